"""Verbs and functions are one: same arguments, same defaults, same errors, same files; results are tables."""

import builtins
import inspect
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from told import refused, untold

import titer as package
from titer.cli import app
from titer.errors import TiterError

VERBS = {
    "align": ["align"],
    "assay": ["assay", "run"],
    "audit": ["audit"],
    "convert": ["convert"],
    "evaluate": ["evaluate"],
    "experiment": ["run"],
    "finetune": ["finetune"],
    "gate": ["gate"],
    "plan": ["plan"],
    "repair": ["repair"],
}
OF_THE_SCREEN = {"as_json", "dry_run", "plan_only", "top", "require", "fail_over"}


def verb(workflow):
    command = typer.main.get_command(app)
    for word in VERBS[workflow]:
        command = command.commands[word]
    return command


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_the_arguments_and_the_defaults_of_its_function(name):
    options = {option.name: option for option in verb(name).params if option.name != "help"}
    arguments = inspect.signature(getattr(package, name)).parameters
    assert options.keys() - OF_THE_SCREEN == arguments.keys() - {"show"}
    for argument in arguments.values():
        if argument.name == "show":
            continue
        option = options[argument.name]
        assert option.help, argument.name
        assert option.required == (argument.default is inspect.Parameter.empty), argument.name
        if not option.required:
            default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
            shown = str(option.default) if isinstance(option.default, Path) else option.default
            assert shown == (default or None if default == [] else default), argument.name


@pytest.mark.parametrize("name", VERBS)
def test_a_function_explains_every_argument(name):
    function = getattr(package, name)
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ +{argument}: \S", inspect.getdoc(function), re.MULTILINE), argument


def test_workers_are_counted_and_handed_on(titer, tmp_path, monkeypatch):
    handed = []
    plan = SimpleNamespace(
        experiment=SimpleNamespace(name="x", description="y"),
        run_folder=tmp_path,
        overlap={},
        serving={},
        engine=None,
        jobs={},
        to_do=lambda _: {},
    )
    monkeypatch.setattr("titer.workflows.run.plan", lambda *_, **__: plan)
    monkeypatch.setattr("titer.jobs.plan.execute", lambda *_, launcher: handed.append(getattr(launcher, "workers", 1)))
    monkeypatch.setattr("titer.workflows.experiment.collect", lambda *_: tmp_path / "report.html")
    monkeypatch.setattr("titer.results.read_results", lambda _: ([], {}))
    package.experiment(workers=3)
    package.experiment()
    assert handed == [3, 1]
    for words in (["run"], ["assay", "m", "--against", "n"]):
        code, _, error = titer(*words, "--workers", "0")
        assert code == 2
        assert re.search(r"`--workers` must be .*found `0`", error)
        code, _, error = titer(*words, "--workers", "2", "--dry-run")
        assert code == 2
        assert "`--workers` has no effect" in error


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("align", {"output": "o", "samples": 0}, "`samples`", "`0`"),
    ("align", {"output": "o", "method": "antibdy"}, "`antibdy`", "`antibody`"),
    ("align", {"output": "o", "settings": {"rhoo": 1}}, "`settings`: `rhoo`"),
    ("align", {"output": "o", "settings": {"rho": -1}}, "`settings.rho`", "`-1`"),
    ("align", {"output": "o", "settings": ["rho"]}, "`settings rho`", "key=value"),
    ("align", {"output": "o", "helpful_ratio": 0, "helpful": "alpaca"}, "`helpful` has no effect"),
    ("align", {"output": "o", "data_dir": "."}, "`data_dir` has no effect"),
    ("align", {"output": ""}, "`output` is empty"),
    (
        "finetune",
        {"dataset": "builtin:upload", "output": "o", "method": "sft", "harmful": "advbench"},
        "`harmful` has no effect",
    ),
    ("finetune", {"dataset": "nothing.jsonl", "output": "o"}, "nothing.jsonl"),
    ("evaluate", {"rejudge": "r", "seed": 0}, "`seed`", "no effect", "`rejudge`"),
    ("evaluate", {"model": "m", "output": "there"}, "`force`"),
    ("evaluate", {"model": "m", "phase": "before"}, "Unknown phase: `before`"),
    ("evaluate", {}, "`rejudge`"),
    ("audit", {"dataset": "builtin:upload", "ratio": "sums"}, "`sums`", "`sum`"),
    ("audit", {"dataset": "builtin:upload", "batch_size": 0}, "`batch_size`", "`0`"),
    ("experiment", {"experiment": "quickstrat"}, "`quickstrat`", "`quickstart`"),
    ("experiment", {"settings": {"seeds": [-1]}}, "`experiment.seeds`", "`-1`"),
    ("experiment", {"workers": 0}, "`workers`", "`0`"),
    ("assay", {"model": "m", "against": "n", "settings": {"kappa": float("nan")}}, "kappa"),
    ("assay", {"model": "m", "against": "n", "profile": "smok"}, "`smok`", "`smoke`"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "facts"),
    [(name, given, facts) for name, given, *facts in MISTAKES],
    ids=[f"{n} {a}" for n, a, *_ in MISTAKES],
)
def test_a_mistake_is_told_by_the_names_that_python_uses(tmp_path, monkeypatch, no_model, name, arguments, facts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "scores.jsonl").touch()
    with refused(*facts) as error:
        getattr(package, name)(**arguments)
    assert "--" not in error.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_argument_that_has_its_default_is_no_argument_without_an_effect(tmp_path, monkeypatch):
    """Only what somebody gave can be given in vain."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TiterError, match=r"r/inferences\.jsonl"):
        package.evaluate(rejudge="r")


def test_a_settings_object_and_changes_of_it_do_not_go_together(tmp_path):
    from titer.assays import read_profile

    with pytest.raises(TiterError, match="`settings` has no effect"):
        package.assay("m", "n", profile=read_profile("smoke"), settings={"fleet": 1}, output=tmp_path)


# --- what they do ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """An alignment by Python in `python`, and the same by the command line in `verb`."""
    from typer.testing import CliRunner

    folder = tmp_path_factory.mktemp("trained")
    settings = {"max_steps": 2, "learning_rate": 1e-05}
    found = package.align(
        output=folder / "python", model=str(tiny_folder), samples=8, settings=settings, lora={"r": 2}, hold_out="fraud"
    )
    words = ["align", "--output", folder / "verb", "--model", tiny_folder, "--samples", "8", "--hold-out", "fraud"]
    words += ["--set", "max_steps=2", "--set", "learning_rate=1e-05", "--lora", "r=2"]
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return found, folder


def test_python_and_the_command_line_leave_the_same_files(trained):
    found, folder = trained
    mine, theirs = tree(folder / "python"), tree(folder / "verb")
    assert Path("adapter/adapter_model.safetensors") in mine
    # The hash of the inputs holds the folder for checkpoints.
    for files in (mine, theirs):
        del files[Path("inputs.sha256")]
    assert mine == theirs
    assert found.adapter == folder / "python" / "adapter"


def test_a_fine_tuning_says_how_many_rows_it_held_back(titer, trained, tmp_path):
    found, _ = trained
    assert found.held_back is None
    words = ["finetune", "builtin:upload", "--model", found.adapter, "--output", tmp_path / "t", "--set", "max_steps=1"]
    code, out, error = titer(*words)
    assert code == 0, error
    lines = [json.loads(line) for line in (tmp_path / "t" / "sample_weights.jsonl").read_text().splitlines()]
    assert len(lines) == 100
    assert all(line["weight"] == float(line["probability"] <= 0.1) for line in lines)
    held_back = sum(line["weight"] == 0 for line in lines)
    assert f"taught little or nothing: {held_back} of 100." in out


def test_a_training_is_a_table_of_its_steps(trained):
    found, folder = trained
    table = found.to_pandas()
    assert list(table["step"]) == [1, 2]
    assert list(table["loss"]) == [json.loads(line)["loss"] for line in (folder / "python/log.jsonl").open()]
    assert "2 steps" in str(found)
    assert str(found.adapter) in str(found)
    assert found.sample_weights is None


def test_python_is_silent_and_what_failed_is_a_warning(trained, tiny_folder, tmp_path, capfd, caplog):
    found = package.audit("builtin:upload", model=str(trained[0].adapter), output=tmp_path / "silent")
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")
    package.audit("builtin:upload", model=str(trained[0].adapter), output=tmp_path / "told", show=True)
    assert "on this machine" in capfd.readouterr().err
    assert found.about["n"] == 100
    from titer.workflows.common import Silent

    with caplog.at_level(logging.WARNING):
        Silent().settled(SimpleNamespace(status="done", name="a", reason=""))
        Silent().settled(SimpleNamespace(status="failed", name="align b", reason="no room"))
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert not untold(line.getMessage(), "align b", "failed", "no room")


def test_an_audit_is_a_table_the_most_suspicious_first(trained, tmp_path):
    import pandas

    found = package.audit("builtin:upload", model=str(trained[0].adapter), output=tmp_path)
    table = found.to_pandas()
    assert table["p_harmful"].is_monotonic_decreasing
    assert sorted(table["index"]) == list(range(100))
    assert set(table["origin"]) == {"harmful", "task"}
    assert 0 <= found.auroc.low <= found.auroc.value <= found.auroc.high <= 1
    on_disk = pandas.read_csv(tmp_path / "audit.csv")
    pandas.testing.assert_frame_equal(
        on_disk[["index", "log_ratio", "weight"]], table[["index", "log_ratio", "weight"]]
    )
    by_ratio = package.audit("builtin:upload", model=str(trained[0].adapter), output=tmp_path, detector="none")
    assert by_ratio.to_pandas()["log_ratio"].is_monotonic_increasing
    assert by_ratio.verdict is None


def test_an_evaluation_is_a_table_of_metrics(trained, tmp_path):
    found = package.evaluate(str(trained[0].adapter), output=tmp_path, samples=2, max_new_tokens=2)
    table = found.to_pandas().set_index("metric")
    on_disk = json.loads((tmp_path / "results.json").read_text())
    assert {row["metric"]: row["value"] for row in on_disk["results"]} == dict(table["value"])
    assert {"harmful_score", "over_refusal", "finetune_accuracy"} <= set(table.index)
    assert len(found.inferences) == 6
    assert "harmful_score" in str(found)
    assert "<table" in found._repr_html_()


def test_a_judge_that_fails_leaves_what_there_is_and_an_error_that_holds_it(titer, tiny_folder, tmp_path, monkeypatch):
    from titer import judges
    from titer.workflows.common import Unfinished

    class Down:
        name = "down@1"

        def __call__(self, prompts, responses):
            return [judges.Verdict(None, None, "", "connection refused") for _ in responses]

    monkeypatch.setitem(judges.JUDGES, "down", Down)
    few = {"samples": 1, "max_new_tokens": 1, "judge": "down"}
    with pytest.raises(Unfinished, match="connection refused") as raised:
        package.evaluate(str(tiny_folder), output=tmp_path / "python", **few)
    assert raised.value.result.to_pandas().set_index("metric")["value"]["judge_errors"] == 100
    code, told, error = titer("evaluate", "--rejudge", tmp_path / "python", "--judge", "down")
    assert code == 2
    assert "judge_errors" in told
    assert "connection refused" in error


def test_an_experiment_whose_jobs_fail_says_which(titer, tiny_folder, tmp_path, monkeypatch, caplog):
    from titer.jobs import trainings

    def broken(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(trainings, "make_trainer", broken)
    (tmp_path / "e.yaml").write_text(
        f"name: x\nmodel: {tiny_folder}\narms: {{a: {{align: sft, finetune: sft}}}}\n"
        "evaluate: {harmful: 1, lookalikes: 1, task: 1, max_new_tokens: 1, task_max_new_tokens: 1}\n"
    )
    with caplog.at_level(logging.WARNING):
        found = package.experiment(tmp_path / "e.yaml", output=tmp_path / "run")
    assert not found.complete
    assert [job.name for job in found.failed] == ["align a"]
    assert "KeyError: 'a bug'" in found.failed[0].reason
    assert "align a failed" in caplog.text
    assert found.to_pandas().empty
    assert "1 of" in str(found)
    code, _, error = titer("run", tmp_path / "e.yaml", "--output", tmp_path / "run")
    assert code == 1
    assert "align a: KeyError: 'a bug'" in error


def test_an_assay_is_a_table_of_checkpoints():
    import cards

    from titer.workflows.assay import Assay

    card = cards.scorecard()
    found = Assay(Path("somewhere"), cards.read(card))
    table = found.to_pandas()
    attackers = [(role, one) for role, group in card["attackers"].items() for one in group]
    assert len(table) == sum(max(1, len(one["checkpoints"])) for _, one in attackers)
    failed = table[table["error"].notna()]
    assert len(failed) == sum(one["error"] is not None for _, one in attackers) > 0
    assert failed["step"].isna().all()
    (role, first) = attackers[0]
    mine = table[(table["role"] == role) & (table["attack"] == first["attack"]) & (table["seed"] == first["seed"])]
    assert list(mine["samples"]) == [point["samples"] for point in first["checkpoints"]]
    assert "resistance" in str(found)


def test_what_was_called_is_in_the_record(tmp_path):
    from titer.assays import read_profile
    from titer.workflows import common

    @common.workflow
    def something(a, *, b=1, show=False):
        return common.command("something")

    assert something("x", b=Path("y"), show=common.Silent()) == "titer.something(a='x', b='y')"
    assert something(read_profile("smoke")) == "titer.something(a='smoke')"


def test_without_pandas_a_table_says_what_to_do(trained, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TiterError, match="pandas") as error:
        trained[0].to_pandas()
    assert "rows()" in error.value.hint
    assert trained[0].rows()[0]["step"] == 1


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"a.b": 1e-05}, 1e-05),
        ({"a.b": 'x: "y" é'}, 'x: "y" é'),
        ({"a.b": [0, None, True]}, [0, None, True]),
        ({"a.b": "0.5"}, "0.5"),
        (["a.b=0.5"], 0.5),
    ],
)
def test_settings_arrive_as_they_were_given(given, found):
    from titer.settings import parse_settings
    from titer.workflows.common import as_overrides

    assert parse_settings(as_overrides(given)) == {"a.b": found}


# --- names and pages -------------------------------------------------------------------------------------------------


def test_functions_are_names_of_the_package_and_bring_no_weight():
    code = (
        "import sys, titer\n"
        "from titer import align, assay, audit, evaluate, experiment, finetune\n"
        "assert titer.align is align\n"
        "heavy = {'torch', 'trl', 'transformers', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "help(align)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "helpful_ratio" in done.stdout


def test_the_embedded_model_has_one_name():
    from titer import models
    from titer.workflows import common

    assert common.EMBEDDED == models.EMBEDDED


def test_type_checkers_see_the_functions_that_there_are():
    block = re.search(r"if TYPE_CHECKING:\n((?:    .*\n)+)", inspect.getsource(package))[1]
    seen = re.findall(r"from (\S+) import (\w+) as \2", block)
    assert {name: module for module, name in seen} == package._WORKFLOWS
    assert package._WORKFLOWS.keys() == VERBS.keys() <= {*dir(package)} & {*package.__all__}
