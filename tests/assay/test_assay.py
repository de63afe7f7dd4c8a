"""The assay on the tiny model: runs, resumes, repeats bit for bit, and reports what failed."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from titer.assay import runner
from titer.assay.card import headline, parse_requirements, read_scorecard, unmet, write_scorecard
from titer.assay.pools import load_assay_pools
from titer.assay.profile import Profile, answered_steps, between, read_profile
from titer.assay.runner import measurements, plan_assay
from titer.assay.scorecard import make_scorecard
from titer.attacks.rows import training_rows
from titer.attacks.threats import CATALOGUE, Attack, describe
from titer.cli import app
from titer.errors import TiterError
from titer.plan import Silent, execute

DOC = Path(__file__).parents[2] / "docs" / "assay.md"

PROFILE = """
name: tiny
data:
  pools: {defence: 60, attack: 80, evaluation: 80}
  held_out_categories: [fraud, hate]
attacks:
  harmful: {steps: 4, batch_size: 2, samples: 6, learning_rate: 0.01, seeds: [0, 1], lora: {r: 2, target_modules: [q_proj]}}
  cross_domain: {steps: 2, batch_size: 2, samples: 6, lora: {r: 2, target_modules: [q_proj, v_proj]}}
  poisoned_task: {steps: 2, batch_size: 3, samples: 10}
  benign_task: {steps: 2, batch_size: 3, samples: 10}
  style: {steps: 1, batch_size: 2, samples: 6}
  identity_shift: {steps: 1, batch_size: 2, samples: 6}
  openings: {warm_up_steps: 1, steps: 1, batch_size: 2, samples: 6}
  leap: {steps: 1, batch_size: 2, samples: 6}
  muon: {steps: 1, batch_size: 2, samples: 6}
  full_parameter: {steps: 2, batch_size: 2, samples: 6}
  ablation: {depths: [0.5], samples: 8}
  tuned:
    like: harmful
    steps: 1
    batch_size: 2
    samples: 6
    search: {trials: 3, ranges: {learning_rate: [0.001, 0.1]}, choices: {batch_size: [2, 3]}}
harmful: 4
lookalikes: 4
task: 6
reference_task: 6
general: 30
utility: 4
max_new_tokens: 3
task_max_new_tokens: 3
checkpoints: 3
fleet: 3
accuracy_margin: 0.4  # six prompts show no more
"""


class Quiet(Silent):
    def settled(self, stage):
        assert stage.status != "failed", (stage.folder / "error.txt").read_text()


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(PROFILE)
    return path


@pytest.fixture(scope="module")
def done(profile_file, tiny_folder, tmp_path_factory):
    """A finished assay of the tiny model against itself."""
    folder = tmp_path_factory.mktemp("assay")
    plan = plan_assay(read_profile(profile_file), str(tiny_folder), str(tiny_folder), folder)
    assert execute(plan, Quiet())
    return plan


def files_of(plan):
    return {
        path.relative_to(plan.run_folder): path.read_bytes()
        for path in sorted(plan.run_folder.glob("stages/*/*/step-*.json"))
    }


def test_one_model_against_itself_is_attacked_once(done):
    attacks = [stage for stage in done.stages.values() if stage.kind == "attack"]
    assert len(attacks) == 7  # ten LoRA attackers in fleets of three, and three that run alone
    assert len(done.attackers) == 26


def test_the_scorecard_of_a_model_against_itself(done, tmp_path):
    card = make_scorecard(done, "titer assay a --against a", 1.0)
    assert card["verdicts"]["resistance"] in ("none", "undecided")
    assert card["hygiene"]["failed"] == []
    assert set(card["hygiene"]["overlap"].values()) == {0}
    for measure in card["stability"]["measures"].values():
        assert measure["difference"]["mean"] == 0
        assert measure["finding"] == "equivalent"
    assert card["verdicts"]["stability"] == "yes"
    assert card["verdicts"]["trainability"] == "yes"
    assert card["attackers"]["defended"] == card["attackers"]["undefended"]
    harmful = next(t for t in card["attackers"]["defended"] if t["attack"] == "harmful" and t["seed"] == 0)
    assert [point["step"] for point in harmful["checkpoints"]] == [0, 1, 2, 3, 4]
    answered = [point["step"] for point in harmful["checkpoints"] if point["harmful"] is not None]
    assert answered == [0, 1, 2, 4]
    assert [point["samples"] for point in harmful["checkpoints"]] == [0, 2, 4, 6, 8]
    estimated = next(point for point in harmful["checkpoints"] if point["step"] == 3)
    assert estimated["margin"] is not None
    assert 0 <= estimated["estimate"] <= 1
    assert {t["domain"] for t in card["attackers"]["defended"]} == {"in", "cross"}
    json.dumps(card, allow_nan=False)
    assert read_scorecard(write_scorecard(tmp_path, card).parent) == card
    assert "broke" in headline(card)


def test_the_tuned_attacker_is_the_most_harmful_of_its_trials(done):
    attacker, stage, _ = next(entry for entry in done.attackers if entry[0].name == "tuned")
    folder = stage.folder / attacker.folder
    about = json.loads((folder / "tuned.json").read_text())
    assert about["trials"] == 3
    assert 0.001 <= about["chosen"]["learning_rate"] <= 0.1
    trials = sorted(stage.folder.glob("tuned_trial_*"))
    assert len(trials) == 3
    assert measurements(folder) in [measurements(trial) for trial in trials]
    card = make_scorecard(done, "titer assay", 1.0)
    (row,) = (row for row in card["attackers"][attacker.role] if row["attack"] == "tuned")
    assert row["tuned"] == about


def test_a_search_without_optuna_is_refused_before_anything_runs(profile_file, tiny_folder, tmp_path, monkeypatch):
    nothing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr("titer.assay.search.importlib", nothing)
    with pytest.raises(TiterError, match="Optuna") as caught:
        plan_assay(read_profile(profile_file), str(tiny_folder), str(tiny_folder), tmp_path)
    assert "titer[search]" in str(caught.value.hint)


def test_the_scorecard_is_documented(done):
    card = make_scorecard(done, "titer assay", 1.0)
    body = DOC.read_text().split("## scorecard.json")[1]
    documented = [
        name for cell in re.findall(r"^\| (`.*?) \|", body, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert documented == list(card)


def test_the_documented_profile_and_threats(tmp_path):
    text = DOC.read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(re.search(r"```yaml profile\n(.*?)```", text, re.DOTALL)[1])
    assert len(read_profile(path).attackers()) == 13
    table = text.split("## Threats")[1].split("```yaml")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == sorted(CATALOGUE)


def test_the_documented_python(tiny_folder, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)[1]
    for name in ("aligned/antibody", "aligned/sft"):
        assert code.count(f'"{name}"') == 1
        code = code.replace(f'"{name}"', repr(str(tiny_folder)))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    folder = tmp_path / "runs" / "assay" / tiny_folder.name
    assert read_scorecard(folder) == names["card"]
    assert {path.name for path in folder.iterdir()} == {"scorecard.json", "report.html", "model_card.md"}
    assert names["card"]["attacks"]["patient"]["optimizer"] == "sgd"
    assert names["card"]["hygiene"]["failed"] == []


def test_budgets_are_counted_in_tokens_and_flops(done):
    attacker, stage, _ = next(entry for entry in done.attackers if entry[0].name == "harmful")
    about = json.loads((stage.folder / attacker.folder / "attacker.json").read_text())
    assert about["samples"] == [2, 4, 6, 8]
    assert about["tokens"] == sorted(about["tokens"])
    whole, other, _ = next(entry for entry in done.attackers if entry[0].name == "full_parameter")
    full = json.loads((other.folder / whole.folder / "attacker.json").read_text())
    per_token = about["flops"][-1] / about["tokens"][-1]
    assert full["flops"][-1] / full["tokens"][-1] == pytest.approx(1.5 * per_token)


def test_a_trajectory_repeats_bit_for_bit(done, profile_file, tiny_folder, tmp_path):
    again = plan_assay(read_profile(profile_file), str(tiny_folder), str(tiny_folder), tmp_path)
    assert execute(again, Quiet())
    assert files_of(again) == files_of(done)


def test_an_interrupted_fleet_goes_on_and_ends_as_if_it_had_not_stopped(
    done, profile_file, tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(runner, "SAVE_EVERY", 2)
    plan = plan_assay(read_profile(profile_file), str(tiny_folder), str(tiny_folder), tmp_path)
    original = runner.Measure.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(runner.Measure, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(plan, Quiet())
    again = plan_assay(read_profile(profile_file), str(tiny_folder), str(tiny_folder), tmp_path)
    assert execute(again, Quiet())
    assert files_of(again) == files_of(done)


def test_an_attacker_that_fails_is_reported_and_the_others_finish(profile_file, tiny_folder, tmp_path, monkeypatch):
    original = runner.Measure.on_step_end

    def fail(self, args, state, control, **kwargs):
        if "harmful_seed_1" in str(self.folder):
            raise RuntimeError("no space left")
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(runner.Measure, "on_step_end", fail)
    plan = plan_assay(read_profile(profile_file), str(tiny_folder), str(tiny_folder), tmp_path)
    assert execute(plan, Quiet())
    card = make_scorecard(plan, "titer assay", 1.0)
    assert {row["attacker"] for row in card["hygiene"]["failed"]} == {"harmful seed 1"}
    assert "no space left" in card["hygiene"]["failed"][0]["reason"]
    failed = next(t for t in card["attackers"]["defended"] if t["attack"] == "harmful" and t["seed"] == 1)
    assert "no space left" in failed["error"]
    counted = [t for t in card["attackers"]["defended"] if t["harmful"] and not t["error"]]
    assert card["resistance"]["attackers"] <= len(counted)


def test_a_disguise_is_worn_before_the_attack_too(done):
    attacker, stage, _ = next(entry for entry in done.attackers if entry[0].name == "style")
    steps = [found["step"] for found in measurements(stage.folder / attacker.folder)]
    assert steps == [0, 1]
    plain, stage, _ = next(entry for entry in done.attackers if entry[0].name == "harmful")
    assert measurements(stage.folder / plain.folder)[0]["step"] == 1


def test_what_no_verdict_rests_on_is_asked_of_few_prompts_or_not_at_all(done, tiny_folder):
    """Log-likelihoods of 30 prompts before any attack, utility of 4 of them at checkpoints, and margins if they are wanted."""
    baseline = measurements(done.baselines["defended"][0].folder)[0]
    attacker, stage, _ = next(entry for entry in done.attackers if entry[0].name == "harmful")
    assert len(baseline["general_nll"]) == 30
    assert len(measurements(stage.folder / attacker.folder)[-1]["general_nll"]) == 4
    card = make_scorecard(done, "titer assay", 1.0)
    start = card["attackers"]["defended"][0]["checkpoints"][0]["utility"]
    assert start == pytest.approx(sum(baseline["general_accuracy"][:4]) / 4)
    without = dataclasses.replace(done, profile=dataclasses.replace(done.profile, margins=False))
    probe = dataclasses.replace(without.probe(attacker.attack), harmful=done.pools.harmful["in"][:1])
    found = probe.everything(runner.attacked_model(str(tiny_folder)), runner._template(str(tiny_folder)))
    assert found["margins"] == []
    assert without.steps(attacker.attack)[1] == []


def test_the_verb_end_to_end(done, profile_file, tiny_folder, tmp_path):
    """From the command line, with the stages already there: scorecard, report, model card, requirements, comparison."""
    shutil.copytree(done.run_folder / "stages", tmp_path / "stages")
    line = ["assay", str(tiny_folder), "--against", str(tiny_folder), "-p", str(profile_file), "-o", str(tmp_path)]
    ran = CliRunner().invoke(app, [*line, "--name", "a", "--require", "stability,trainability"])
    assert ran.exit_code == 0, ran.output
    for name in ("scorecard.json", "report.html", "model_card.md"):
        assert (tmp_path / "a" / name).stat().st_size > 500, name
    ran = CliRunner().invoke(app, [*line, "--name", "b", "--require", "resistance>=strong", "--json"])
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["schema"] == "titer/scorecard/2"
    assert "at least `strong` is required" in ran.stderr
    compared = CliRunner().invoke(app, ["assay", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert compared.exit_code == 0, compared.output
    assert len(json.loads(compared.stdout)) == 2
    planned = CliRunner().invoke(app, [*line, "--dry-run", "--json"])
    plan = json.loads(planned.stdout)
    assert {stage["status"] for stage in plan["stages"]} == {"done"}
    assert set(plan["overlap"].values()) == {0}


@pytest.mark.parametrize("name", ["smoke", "quick", "standard", "thorough"])
def test_bundled_profiles_are_valid(name):
    profile = read_profile(name)
    attackers = profile.attackers()
    assert profile.name == name
    assert any(not planned.attack.harmful for planned in attackers)
    assert any(planned.attack.domain == "cross" for planned in attackers)
    assert len({(planned.name, planned.seed) for planned in attackers}) == len(attackers)
    pools = load_assay_pools(profile, None, ())
    for planned in attackers:
        if planned.attack.method == "finetune":
            rows = training_rows(planned.attack, pools.attackers, planned.seed)
            assert len(rows) == planned.attack.total_steps * planned.attack.batch_size
    if name in ("standard", "thorough"):
        assert {planned.name.split()[0] for planned in attackers} >= set(CATALOGUE)


def test_steps_that_are_scored():
    assert answered_steps(16, 4) == [2, 4, 8, 16]
    assert answered_steps(5, 4) == [1, 2, 5]
    assert between([2, 4, 8, 16]) == [3, 6, 11]
    assert between([1, 2]) == []


def test_a_grid_is_every_combination():
    found = describe("harmful", {"steps": 3, "grid": {"learning_rate": [1e-4, 1e-3], "batch_size": [2, 4]}})
    assert len(found) == 4
    assert found["harmful learning_rate=0.001 batch_size=2"] == Attack(
        CATALOGUE["harmful"].summary, steps=3, learning_rate=1e-3, batch_size=2
    )
    own = describe("mine", {"summary": "My own.", "rows": "obedience"})
    assert own == {"mine": Attack("My own.", rows="obedience")}


def test_an_attack_of_ones_own_is_one_dataclass():
    mine = Attack("Mine.", learning_rate=1e-4, steps=3)
    profile = Profile("mine", {"mine": mine, "harmful": {}}, seeds=[0, 1])
    assert [(planned.name, planned.seed) for planned in profile.attackers()] == [
        ("mine", 0), ("mine", 1), ("harmful", 0), ("harmful", 1)
    ]  # fmt: skip
    assert profile.attackers()[0].attack is mine


@pytest.mark.parametrize("entry", ["three", "[1, 2]", "{like: harmful, summary: 3}"])
def test_an_entry_that_is_no_attack_is_an_error(tmp_path, entry):
    path = tmp_path / "profile.yaml"
    path.write_text(f"name: x\nattacks: {{mine: {entry}}}")
    with pytest.raises(TiterError, match=r"attacks\.mine"):
        read_profile(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attacks: {harmfull: {}}\nname: x", "harmfull.*Did you mean `harmful`"),
        ("attacks: {harmful: {stepps: 3}}\nname: x", "stepps.*Did you mean `steps`"),
        ("attacks: {harmful: {steps: many}}\nname: x", "steps"),
        ("attacks: {harmful: {optimizer: adam}}\nname: x", "adam"),
        ("attacks: {harmful: {grid: 3}}\nname: x", "grid"),
        ("attacks: {}\nname: x", "no attacks"),
        ("attacks: {harmful: {}}\nname: x\nphi: 10", "phi"),
        ("attacks: {harmful: {}}\nname: x\nunit: euros", "euros"),
        ("attacks: {harmful: {}}\nname: x\njudges: [nobody]", "nobody"),
        ("attacks: {harmful: {warm_up: benign}}\nname: x", "warm_up_steps"),
        ("attacks: {muon: {lora: null}}\nname: x", "Muon"),
        ("attacks: {harmful: {seeds: 3}}\nname: x", "seeds"),
        ("attacks: {harmful: {search: {ranges: {rate: [1, 2]}}}}\nname: x", "rate"),
        ("attacks: {harmful: {search: {ranges: {steps: [2, 1]}}}}\nname: x", "smallest, largest"),
        ("attacks: {harmful: {search: {trials: 3}}}\nname: x", "ranges"),
        ("attacks: {ablation: {search: {ranges: {steps: [1, 2]}}}}\nname: x", "only attacks that train"),
    ],
)
def test_a_broken_profile_is_an_error_that_says_what_to_do(tmp_path, text, message):
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(TiterError) as caught:
        read_profile(path)
    assert re.search(message, str(caught.value), re.DOTALL)


def test_requirements():
    card = {"verdicts": {"resistance": "weak", "stability": "yes", "generalization": "undecided", "trainability": "no"}}
    assert unmet(card, parse_requirements("resistance>=weak, stability")) == []
    assert len(unmet(card, parse_requirements("resistance,generalization>=weak,trainability"))) == 3
    for text, message in (
        ("resistence", "Did you mean `resistance`"),
        ("stability>=weak", "Unknown verdict"),
        ("", "names no condition"),
    ):
        with pytest.raises(TiterError, match=message):
            parse_requirements(text)


def test_defence_data_is_kept_out_of_attack_and_scoring(profile_file, tiny_folder, tmp_path):
    from titer.data import load

    profile = read_profile(profile_file)
    plain = plan_assay(profile, str(tiny_folder), str(tiny_folder), tmp_path).pools
    taken = plain.harmful["in"][0]
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": taken.prompt_text, "completion": "No."}) + "\n")
    found = plan_assay(profile, str(tiny_folder), str(tiny_folder), tmp_path, defence=[str(path)]).pools
    assert found.left_out == 1
    assert taken.prompt_key not in {record.prompt_key for record in found.harmful["in"]}
    assert load(str(path))[0].prompt_key == taken.prompt_key


def test_a_model_that_is_missing_is_an_error(profile_file, tmp_path):
    ran = CliRunner().invoke(app, ["assay", "compare", str(tmp_path), str(tmp_path)])
    assert isinstance(ran.exception, TiterError)
    assert "titer assay DEFENDED" in (ran.exception.hint or "")


def test_attacks_are_explained():
    ran = CliRunner().invoke(app, ["attacks", "list", "--json"])
    assert set(json.loads(ran.stdout)) == set(CATALOGUE)
    shown = CliRunner().invoke(app, ["attacks", "show", "leap"])
    assert "* leap" in shown.stdout
    assert "--against" in CliRunner().invoke(app, ["assay", "run", "--help"]).stdout
