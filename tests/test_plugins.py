"""The key of a stage holds the source of whatever runs in it from outside of titer."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from titer import judges, methods
from titer.assays.profile import Profile
from titer.assays.runner import plan_assay
from titer.attacks.fleet import FleetTrainer
from titer.attacks.threats import Attack
from titer.errors import TiterError
from titer.jobs.provenance import judge_key
from titer.judges import KeywordJudge, Verdict
from titer.methods import Method
from titer.plugins import source_digest
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer
from titer.workflows import experiment as experiments

TRAINER = """
import helping
from titer.train.trainer import PackedSFTTrainer

class Mine(PackedSFTTrainer):
    def before_step(self, model):
        self.record(half=helping.half(1.0))
"""
HELPING = "def half(value):\n    return value / 2\n"

EXPERIMENT = """
name: keys
model: {model}
data: {{pools: {{defence: 60, attack: 60, evaluation: 60}}}}
align: {{samples: 8, training: {{max_steps: 1}}}}
finetune: {{samples: 10, training: {{max_steps: 1}}}}
evaluate: {{harmful: 4, lookalikes: 3, task: 4}}
arms:
  plain: {{align: sft, finetune: sft}}
  own: {{align: mine, finetune: sft}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules and returns the first one, imported anew, as another process would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def written(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        for name in ("mine", "helping"):
            sys.modules.pop(name, None)
        return importlib.import_module(next(iter(sources)))

    yield written
    for name in ("mine", "helping"):
        sys.modules.pop(name, None)


@pytest.fixture
def keys(tiny_folder, tmp_path, monkeypatch):
    """Plans an experiment in which `mine` is a trainer, and returns the stages' keys by name."""
    path = tmp_path / "keys.yaml"
    path.write_text(EXPERIMENT.format(model=tiny_folder))

    def planned(trainer):
        monkeypatch.setitem(methods.ALIGN, "mine", Method(PackedSFTConfig, trainer))
        plan = experiments.make_plan(experiments.read_experiment(path), tmp_path / "run")
        return {stage.name: stage.key for stage in plan.jobs.values()}

    return planned


def test_another_trainer_under_the_same_name_is_another_stage(write, keys):
    first = keys(write(mine=TRAINER, helping=HELPING).Mine)
    assert keys(write(mine=TRAINER, helping=HELPING).Mine) == first
    second = keys(write(mine=TRAINER.replace("1.0", "3.0"), helping=HELPING).Mine)
    assert {name for name in first if first[name] != second[name]} == {name for name in first if " own" in name}
    third = keys(write(mine=TRAINER, helping=HELPING.replace("2", "4")).Mine)
    assert third["align own"] not in (first["align own"], second["align own"])
    # Two classes of titer itself, which have no source of their own in the key.
    assert keys(PackedSFTTrainer)["align own"] != keys(FleetTrainer)["align own"]


def made(factor):
    class Made(PackedSFTTrainer):
        def before_step(self, model):
            self.record(factor=factor)

    return Made


def test_a_class_that_no_file_tells_all_of_is_told_by_its_code():
    assert source_digest(made(1.0)) == source_digest(made(1.0)) != source_digest(made(2.0))
    cells = []
    for factor, called in ((1.0, "a"), (1.0, "b"), (2.0, "a")):
        names = {"Base": PackedSFTTrainer}
        exec(
            f"def scale(x):\n    return {factor} * x\n"
            f"class Cell(Base):\n    def before_step(self, model):\n        self.record({called}=scale(1))\n",
            names,
        )
        cells.append(source_digest(names["Cell"]))
    assert len(set(cells)) == 3


def test_a_file_that_was_edited_after_it_was_imported_does_not_stand_for_what_is_loaded(write, tmp_path):
    loaded = write(mine=TRAINER, helping=HELPING).Mine
    (tmp_path / "mine.py").write_text(TRAINER.replace("1.0", "3.0"))
    stale = source_digest(loaded)
    assert stale != source_digest(write(mine=TRAINER.replace("1.0", "3.0")).Mine)


def test_the_digest_is_the_same_in_another_process(write):
    ours = source_digest(
        write(mine="class Mine:\n    words = {'a', 'b', 'c', 'd'}\n    def f(x): return x in {'u', 'v', 'w'}\n").Mine
    )
    code = "import mine; from titer.plugins import source_digest; print(source_digest(mine.Mine))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ours


class Endpoint:
    """A judge elsewhere: everything that a verdict depends on is in its name."""

    def __init__(self, url):
        self.name = f"endpoint@1 {url}"

    def __call__(self, prompts, responses):
        return [Verdict("refused", 0.0, "") for _ in responses]


class Shouting(KeywordJudge):
    """The same name as titer's own, and another source."""


def test_a_judge_at_another_endpoint_is_another_judge(write, keys, tiny_folder, tmp_path, monkeypatch):
    # With early exit an attacker goes by what its judge says, which is then in its key as well.
    attacks = {"harmful": {"steps": 1}}
    profile = Profile("keys", attacks, judges=["endpoint", "offline"], harmful=4, general=4, early_exit=False)

    def judged(judge):
        monkeypatch.setitem(judges.JUDGES, "endpoint", lambda: judge)
        experiment = experiments.read_experiment(tmp_path / "keys.yaml", ["evaluate.judge=endpoint"])
        plans = (
            experiments.make_plan(experiment, tmp_path / "run"),
            plan_assay(profile, str(tiny_folder), str(tiny_folder), tmp_path / "assay"),
        )
        return [
            {stage.key for stage in plan.jobs.values() if (stage.kind == "judge") == wanted}
            for plan in plans
            for wanted in (True, False)
        ]

    monkeypatch.setitem(methods.ALIGN, "mine", Method(PackedSFTConfig, PackedSFTTrainer))
    one, again, other = judged(Endpoint("http://one")), judged(Endpoint("http://one")), judged(Endpoint("http://two"))
    assert one == again
    for place, (left, right) in enumerate(zip(one, other, strict=True)):
        assert left.isdisjoint(right) if place % 2 == 0 else left == right
    assert judge_key(Shouting())[0] == judge_key(KeywordJudge())[0]
    assert judge_key(Shouting()) != judge_key(KeywordJudge())


def test_a_judge_is_found_by_its_revision_with_and_without_its_settings(monkeypatch):
    judge = Endpoint("http://one")
    monkeypatch.setitem(judges.JUDGES, "endpoint", lambda: judge)
    assert all(judges.get(name) is judge for name in ("endpoint", "endpoint@1", "endpoint@1 http://one"))
    for name in ("endpoint@2", "endpoint@1 http://two"):
        with pytest.raises(TiterError, match="not available"):
            judges.get(name)


def test_an_attack_of_ones_own_class_or_name_is_another_stage(tiny_folder, tmp_path):
    class Patient(Attack):
        @property
        def in_fleet(self):
            return super().in_fleet

    def planned(**attacks):
        profile = Profile("keys", attacks, harmful=4, general=4)
        plan = plan_assay(profile, str(tiny_folder), str(tiny_folder), tmp_path)
        return {stage.key for stage in plan.jobs.values() if stage.kind == "attack"}

    plain = planned(mine=Attack("Mine.", steps=1))
    assert plain == planned(mine=Attack("In other words.", steps=1))
    assert plain.isdisjoint(planned(mine=Patient("Mine.", steps=1)))
    # An attacker's folder is named after it, so under another name it would not be found.
    assert plain.isdisjoint(planned(other=Attack("Mine.", steps=1)))


# --- named by an import path ------------------------------------------------------------------------------------------

MINE = """
import helping
from titer.methods.align.sft import SFT
from titer.attacks import Attack
from titer.judges import Verdict
from titer.methods import Method
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

class Mine(PackedSFTTrainer):
    def before_step(self, model):
        self.record(half=helping.half(1.0))

class Lenient:
    name = "lenient@1"

    def __call__(self, prompts, responses):
        return [Verdict("benign", 0.0, "") for _ in responses]

def rows(split):
    return [{"prompt": f"how do I {n}?", "completion": f"like {n}"} for n in range(400)]

def generated(split):
    yield {"prompt": "how?", "completion": "so"}
    raise KeyError("no more")

METHOD = Method(PackedSFTConfig, Mine, "Halves.")
SLOW = Attack("Slowly.", steps=3)
NUMBER = 7
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The folder of a user with a file of code of his own, and one that it imports."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "helping.py").write_text(HELPING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def test_an_experiment_of_ones_own_parts(mine, tiny_folder, titer):
    text = EXPERIMENT.format(model=tiny_folder).replace("align: mine", 'align: "mine.py:METHOD"')
    text = text.replace("data: {", 'data: {helpful: "mine.py:rows", ').replace(
        "task: 4}", "task: 4, judge: 'mine.py:Lenient'}"
    )
    (mine / "mine.yaml").write_text(text)
    code, _, error = titer("run", "mine.yaml", "--output", "run")
    assert code == 0, error
    logs = [path.read_text() for path in (mine / "run").glob("jobs/align-*/log.jsonl")]
    assert sum('"half": 0.5' in log for log in logs) == 1
    [judged] = {json.loads(line)["judge"] for line in next((mine / "run").glob("jobs/judge-*/scores.jsonl")).open()}
    assert judged == "lenient@1"


def test_the_file_is_in_the_key(mine, tiny_folder, monkeypatch):
    def key():
        monkeypatch.setattr(
            sys, "modules", {k: v for k, v in sys.modules.items() if not k.startswith(("mine", "helping"))}
        )
        (mine / "mine.yaml").write_text(
            EXPERIMENT.format(model=tiny_folder).replace("align: mine", 'align: "mine.py:METHOD"')
        )
        plan = experiments.make_plan(experiments.read_experiment(mine / "mine.yaml"), mine / "run")
        return next(stage.key for stage in plan.jobs.values() if stage.name == "align own")

    first = key()
    assert key() == first
    (mine / "helping.py").write_text(HELPING.replace("2", "4"))
    assert key() != first


def test_an_attack_of_ones_own_in_a_profile(mine):
    from titer.attacks.threats import describe

    assert describe("patient", {"like": "mine.py:SLOW", "batch_size": 2})["patient"].steps == 3


WRONG = {
    "align": (
        "nowhere.py:X",
        "nowhere:X",
        "mine.py:METHO",
        "mine.py:NUMBER",
        "mine.py:Mine",
        "broken.py:X",
        "raises.py:X",
    ),
    "judge": ("mine.py:NUMBER", "mine.py:rows", "mine.py:Mine", "nowhere:X", "raises.py:X"),
    "data": ("mine.py:NUMBER", "mine.py:generated", "mine.py:Lenient", "nowhere.py:X"),
    "attack": ("mine.py:NUMBER", "mine.py:METHOD", "nowhere:X"),
}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in WRONG.items() for path in paths])
def test_a_path_that_leads_nowhere_is_named(mine, kind, path):
    from titer.attacks.threats import describe
    from titer.data import load

    (mine / "broken.py").write_text("def X(:")
    (mine / "raises.py").write_text("import json\n\njson.loads('{')\n")
    look = {
        "align": lambda: methods.find("align", path),
        "judge": lambda: judges.get(path),
        "data": lambda: load(path),
        "attack": lambda: describe("x", {"like": path}),
    }
    with pytest.raises(TiterError) as told:
        look[kind]()
    assert path.partition(":")[0] in str(told.value)


@pytest.mark.parametrize(
    "words", ["methods list", "judges list", "attacks list", "methods show gate", "judges show offline"]
)
def test_what_there_is_is_listed(titer, words):
    code, table, _ = titer(*words.split())
    assert code == 0
    assert table
    code, text, _ = titer(*words.split(), "--json")
    assert code == 0
    assert json.loads(text)


@pytest.mark.parametrize(
    "words", ["methods show mine.py:METHOD", "judges show mine.py:Lenient", "attacks show mine.py:SLOW"]
)
def test_ones_own_is_shown(titer, mine, words):
    code, text, error = titer(*words.split())
    assert code == 0, error
    assert {"methods": "Halves.", "judges": "lenient@1", "attacks": "Slowly."}[words.split()[0]] in text
    for command in re.findall(r"titer (settings \S+)", text):
        code, text, error = titer(*command.split())
        assert code == 0, error
        assert "learning_rate" in text
