"""Experiments on the tiny model: plan, run, resume, fail, report."""

import json
import shutil
import time

import pytest
from told import refused, untold
from typer.testing import CliRunner

from titer import judges
from titer.cli import app
from titer.data import load
from titer.data.pools import HELPFUL_ROWS
from titer.errors import TiterError
from titer.jobs.plan import Silent, execute
from titer.results import artefacts
from titer.workflows import experiment as experiments


class Quiet(Silent):
    """Remembers how stages came out."""

    def __init__(self):
        self.seen = []

    def settled(self, stage):
        self.seen.append((stage.kind, stage.status))


SETTINGS = """
name: tiny
model: {model}
lora: {{r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}}
data: {{pools: {{defence: 60, attack: 60, evaluation: 60}}}}
align: {{samples: 16, training: {{per_device_train_batch_size: 4, max_steps: 3, learning_rate: 0.001, bf16: false}}}}
finetune:
  samples: 10
  poison_ratios: [0.2]
  checkpoints: [2]
  training: {{per_device_train_batch_size: 5, max_steps: 4, learning_rate: 0.001, bf16: false}}
evaluate: {{harmful: 4, lookalikes: 3, task: 4, max_new_tokens: 3, task_max_new_tokens: 2, weights: 6}}
arms:
  undefended: {{align: sft, finetune: sft}}
  booster: {{align: booster, align_from: undefended, finetune: sft}}
  antibody: {{align: antibody, finetune: antibody}}
  gated: {{align: sft, finetune: gate}}
"""


@pytest.fixture(scope="module")
def settings(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(SETTINGS.format(model=tiny_folder))
    return path


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    """A finished run: read it, do not change it."""
    plan, _, complete = run(settings, tmp_path_factory.mktemp("done") / "run")
    assert complete, [stage.reason for stage in plan.jobs.values()]
    return plan


@pytest.fixture
def done_folder(done, tmp_path):
    """A copy of its folder, to be changed freely."""
    return shutil.copytree(done.run_folder, tmp_path / "run")


def run(settings, folder, overrides=()):
    plan = experiments.make_plan(experiments.read_experiment(settings, overrides), folder)
    show = Quiet()
    complete = execute(plan, show)
    return plan, show, complete


def test_a_run_leaves_every_artefact(settings, done_folder):
    # Planned anew and all done before, so that what is collected lies in the copy.
    plan, show, complete = run(settings, done_folder)
    assert complete
    assert {status for _, status in show.seen} == {"cached"}
    # `gated` is aligned as `undefended` is, so three alignments serve four arms.
    assert sum(stage.kind == "align" for stage in plan.jobs.values()) == 3
    report = experiments.collect(plan, "titer run tiny", 0.0)
    assert report.is_file()
    results, provenance = artefacts.read_results(done_folder / "results.json")
    seen = {(row.arm, row.phase, row.step) for row in results}
    assert seen == {(arm, phase, step) for arm in ("undefended", "booster", "antibody", "gated")
                    for phase, step in (("aligned", 0), ("finetuned", 2), ("finetuned", 4))}  # fmt: skip
    for metric in ("harmful_score", "refusal_rate", "broken_rate", "over_refusal", "finetune_accuracy"):
        row = next(row for row in results if row.metric == metric)
        assert row.low <= row.value <= row.high
        assert row.n > 0
    assert sum(provenance["overlap"].values()) == 0
    inferences = artefacts.read_inferences(done_folder / "inferences.jsonl")
    assert provenance["weights"].keys() == {row.model for row in inferences}
    assert len(set(provenance["weights"].values())) > 8  # `gated` is aligned as `undefended` is
    assert provenance["experiment"]["arms"]["antibody"] == [{"align": "antibody"}, {"finetune": "antibody"}]
    weights = [json.loads(line) for line in (done_folder / "weights.jsonl").read_text().splitlines()]
    weighed = {("antibody", "before"), ("antibody", "after"), ("gated", "before")}
    assert {(row["arm"], row["when"]) for row in weights} == weighed
    assert all(0 <= row["weight"] <= 1 for row in weights)
    assert {row["origin"] for row in weights} == {"task", "harmful"}
    for stage in plan.jobs.values():
        if stage.kind == "finetune":
            assert not (stage.folder / "checkpoints").exists()
            assert (stage.folder / "adapter" / "tokenizer.json").is_file()
    antibody = next(s for s in plan.jobs.values() if s.name.startswith("fine-tune antibody"))
    assert (antibody.folder / "sample_weights.jsonl").is_file()


def test_a_changed_setting_runs_only_what_depends_on_it(settings, done_folder):
    _, show, _ = run(settings, done_folder, ["arms.booster.align_settings={lam: 2.0}"])
    redone = [kind for kind, status in show.seen if status == "done"]
    assert sorted(redone) == ["align", "answer", "answer", "answer", "finetune", "judge", "judge", "judge"]
    _, show, _ = run(settings, done_folder, ["evaluate.harmful=5"])
    assert not [kind for kind, status in show.seen if status == "done" and kind in ("align", "finetune")]


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_stopped(settings, done, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from titer.jobs import trainings

    monkeypatch.setattr("titer.methods.declared.SAVE_EVERY", 2)

    class Stop(trainings.ReportSteps):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainings, "ReportSteps", Stop)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "parts")
    first = next(iter(done.jobs.values()))
    stopped = tmp_path / "parts" / "jobs" / first.folder.name
    assert (stopped / "checkpoints" / "checkpoint-2").is_dir()
    assert not (stopped / "adapter").exists()
    _parts, _, complete = run(settings, tmp_path / "parts")
    assert complete
    for stage in done.jobs.values():
        if stage.kind in ("align", "finetune"):
            ours = load_file(tmp_path / "parts" / "jobs" / stage.folder.name / "adapter" / "adapter_model.safetensors")
            theirs = load_file(stage.folder / "adapter" / "adapter_model.safetensors")
            assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_failed_stage_is_reported_and_the_others_finish(settings, tmp_path, monkeypatch):
    from titer.methods.align import BoosterTrainer

    def broken(self, model):
        raise RuntimeError("the disk melted")

    monkeypatch.setattr(BoosterTrainer, "before_step", broken)
    plan, _show, complete = run(settings, tmp_path / "run")
    assert not complete
    failed = [stage for stage in plan.jobs.values() if stage.status == "failed"]
    assert [stage.name for stage in failed] == ["align booster"]
    assert "the disk melted" in failed[0].reason
    assert "RuntimeError" in (failed[0].folder / "error.txt").read_text()
    skipped = [stage for stage in plan.jobs.values() if stage.status == "skipped"]
    assert all("booster" in stage.name for stage in skipped)
    assert len(skipped) == 7
    report = experiments.collect(plan, "titer run tiny", 0.0).read_text()
    assert "the disk melted" in report
    results, _ = artefacts.read_results(tmp_path / "run" / "results.json")
    assert {row.arm for row in results} == {"undefended", "antibody", "gated"}


class Endpoint:
    """A judge that somebody may have to start first; while it is down every second answer gets no verdict."""

    name = "endpoint@1 http://somewhere"

    def __init__(self):
        self.down, self.asked = True, 0

    def __call__(self, prompts, responses):
        self.asked += len(responses)
        lost = judges.Verdict(None, None, "", "connection refused")
        verdict = judges.Verdict("refused", 0.0, "")
        return [lost if self.down and place % 2 else verdict for place in range(len(responses))]


def test_a_judge_that_was_down_is_asked_for_the_rest_by_the_next_run(settings, tmp_path, monkeypatch):
    judge = Endpoint()
    monkeypatch.setitem(judges.JUDGES, "endpoint", lambda: judge)
    short = ["evaluate.judge=endpoint", "align.training.max_steps=1", "finetune.training.max_steps=1"]
    short += ["finetune.checkpoints=[]", "arms={undefended: {align: sft, finetune: sft}}"]
    plan, show, complete = run(settings, tmp_path / "run", short)
    assert not complete
    assert [status for kind, status in show.seen if kind == "judge"] == ["failed"] * 2
    failed = [stage for stage in plan.jobs.values() if stage.status == "failed"]
    assert not any(untold(stage.reason, "3 of 7 answers", "connection refused") for stage in failed)
    assert not any(stage.done for stage in failed)
    experiments.collect(plan, "titer run", 0.0)
    assert artefacts.read_results(tmp_path / "run" / "results.json")[0] == []
    assert judge.asked == 14

    judge.down = False
    plan, show, complete = run(settings, tmp_path / "run", short)
    assert complete
    assert [status for kind, status in show.seen] == ["cached", "cached", "done", "cached", "cached", "done"]
    assert judge.asked == 14 + 6
    experiments.collect(plan, "titer run", 0.0)
    results, _ = artefacts.read_results(tmp_path / "run" / "results.json")
    assert {row.n for row in results if row.metric == "harmful_score"} == {4}
    assert not [row for row in results if row.metric == "judge_errors"]


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("finetun={}", ["`finetun`", "`finetune`"]),
        ("finetune.training.max_stepps=3", ["`max_stepps`", "`max_steps`"]),
        ("arms.antibody.align_settings={roh: 1}", ["`roh`", "`rho`"]),
        ("arms.antibody.align=antibdy", ["`antibdy`", "`antibody`"]),
        ("arms.booster.align_from=antibody", ["arms.booster.align_from", "arm before `booster`", "`antibody`"]),
        ("finetune.poison_ratios=[1.5]", ["poison_ratios", "from 0 to 1", "`1.5`"]),
        ("finetune.poison_ratios=0.2", ["`experiment.finetune.poison_ratios`", "list", "`0.2`"]),
        ("finetune.training.learning_rate='1e-4'", ["`finetune.training.learning_rate`", "number", "`1e-4`"]),
        ("finetune.training.per_device_train_batch_size=1", ["batch", "1", "plain SFT"]),
        ("evaluate.judge=oracle", ["judge", "`oracle`"]),
        ("data.task=builtin:sentimet", ["`sentimet`", "`sentiment`"]),
        ("align.training.fp16=true", ["fp16", "bf16"]),
        ("lora.rank=8", ["key in `lora`", "`rank`"]),
        ("evaluate.harmful=5000", ["harmful", "5000 prompts"]),
        ("align.samples=100000", ["rows", "samples = 100000"]),
        ("data.helpful=[]", ["data.helpful", "no dataset"]),
        ("data.helpful=[builtin:genral]", ["builtin:genral", "builtin:general"]),
        ("nonsense", ["nonsense", "key=value"]),
        ("seeds=[0", ["seeds=[0", "YAML"]),
    ],
)
def test_mistakes_are_errors_before_anything_runs(settings, tmp_path, override, facts):
    with refused(*facts):
        run(settings, tmp_path / "run", [override])
    assert not (tmp_path / "run").exists()


def test_every_second_helpful_row_is_a_look_alike_and_datasets_take_turns_between(settings):
    experiment = experiments.read_experiment(settings, ["data.helpful=[builtin:general, builtin:topics]"])
    pools = experiments.load_pools(experiment, 0, None)
    assert len(pools.helpful) == HELPFUL_ROWS  # of fewer rows than twice the look-alikes that the defence holds
    topics = {record.prompt_key for record in load("builtin:topics")}
    lookalikes = {record.prompt_key for record in load("builtin:lookalikes")}
    kinds = [
        "label" if record.prompt_key in topics else "lookalike" if record.prompt_key in lookalikes else "general"
        for record in pools.helpful
    ]
    assert kinds == ["general", "lookalike", "label", "lookalike"] * (HELPFUL_ROWS // 4)
    one = experiments.read_experiment(settings, ["data.helpful=builtin:general"])
    assert one.data.helpful == ["builtin:general"]


def test_broken_yaml_names_its_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: x\narms: [\n")
    with pytest.raises(TiterError, match=r"broken\.yaml:3"):
        experiments.read_experiment(path)


@pytest.mark.parametrize("name", sorted(experiments.bundled()))
def test_bundled_experiments_are_valid(name):
    assert experiments.read_experiment(name).name == name


def test_a_dry_run_repeats_itself_and_rests_on_what_such_stages_took(done, settings, tmp_path):
    line = ["run", str(settings), "-o", str(tmp_path / "new"), "--dry-run", "--json"]
    first, second = (json.loads(CliRunner().invoke(app, line).stdout) for _ in range(2))
    assert first["seconds"] == pytest.approx(second["seconds"], rel=0.1)
    assert first["seconds_low"] <= first["seconds"] <= first["seconds_high"]
    assert all(stage["records"] for stage in first["stages"])
    took = sum(stage.seconds for stage in done.jobs.values())
    assert took / 4 < first["seconds"] < took * 4


def test_a_folder_of_another_training_is_left_alone(settings, done_folder):
    plan, _, _ = run(settings, done_folder)
    stage = next(iter(plan.jobs.values()))
    (stage.folder / "inputs.sha256").write_text("another")
    with refused(stage.folder, "finished training", "other settings"):
        stage.run()
    assert (stage.folder / "adapter" / "adapter_model.safetensors").is_file()
    shutil.rmtree(stage.folder / "adapter")
    checkpoint = stage.folder / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    with refused(stage.folder, "checkpoints", "other settings"):
        stage.run()


def test_judging_a_run_again_writes_its_report_again(settings, done_folder):
    folder = done_folder
    plan, _, _ = run(settings, folder)
    experiments.collect(plan, "titer run", time.perf_counter())
    answers = (folder / "inferences.jsonl").read_bytes()
    (folder / "report.html").write_text("old")
    result = CliRunner().invoke(app, ["evaluate", "--rejudge", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "</html>" in (folder / "report.html").read_text()
    assert (folder / "inferences.jsonl").read_bytes() == answers


def test_evaluate_labels_what_it_scored(tiny_folder, tmp_path):
    words = ["evaluate", str(tiny_folder), "--samples", "3", "--max-new-tokens", "2", "--output", str(tmp_path / "e")]
    label = ["--phase", "finetuned", "--step", "7", "--poison-ratio", "0.2"]
    assert CliRunner().invoke(app, [*words, *label], catch_exceptions=False).exit_code == 0
    results, _ = artefacts.read_results(tmp_path / "e" / "results.json")
    assert {(row.phase, row.step, row.poison_ratio) for row in results} == {("finetuned", 7, 0.2)}
    with pytest.raises(TiterError, match="finetuned"):
        CliRunner().invoke(app, [*words, "--phase", "finetune"], catch_exceptions=False)


# --- arms as lists of steps -------------------------------------------------------------------------------------------


def test_repairs_follow_fine_tuning_at_every_scored_step(settings, done, tmp_path):
    from safetensors.torch import load_file

    arms = "arms={plain: [{align: sft}, {finetune: sft}], repaired: [{align: sft}, {finetune: sft}, %s]}"
    plan, _, complete = run(settings, tmp_path / "run", [arms % "{repair: safelora, settings: {number: 2}}"])
    assert complete, [job.reason for job in plan.jobs.values()]
    kinds = [job.kind for job in plan.jobs.values()]
    assert [kinds.count(kind) for kind in ("align", "finetune", "repair")] == [1, 1, 2]
    results = experiments.collect(plan, "titer run", 0.0).parent / "results.json"
    seen = {(row.arm, row.phase, row.step) for row in artefacts.read_results(results)[0]}
    assert {("repaired", "finetuned", 2), ("repaired", "finetuned", 4), ("repaired", "aligned", 0)} <= seen
    tuned, last = (
        [job for job in plan.jobs.values() if job.kind == kind][-1].folder / "adapter" / "adapter_model.safetensors"
        for kind in ("finetune", "repair")
    )
    before, after = load_file(tuned), load_file(last)
    assert {name for name in before if not before[name].equal(after[name])}


def test_repairs_with_rows_of_the_defender_and_repairs_that_train(settings, tmp_path):
    from safetensors.torch import load_file

    steps = {
        "antidote": "{repair: antidote, settings: {dense_ratio: 0.3}}",
        "patched": "{repair: one_shot, settings: {max_steps: 2, learning_rate: 0.01, bf16: false}}",
        "both": "{repair: one_shot, settings: {max_steps: 2, learning_rate: 0.01, bf16: false}}, {repair: safelora}",
    }
    arms = ", ".join(f"{name}: [{{align: sft}}, {{finetune: sft}}, {step}]" for name, step in steps.items())
    plan, show, complete = run(settings, tmp_path / "run", [f"arms={{{arms}}}"])
    assert complete, [job.reason for job in plan.jobs.values()]
    repairs = [job for job in plan.jobs.values() if job.kind == "repair"]
    assert len(repairs) == 6  # of two scored steps each; `both` shares its patches with `patched`
    measured, trained = (
        [job for job in repairs if job.name.startswith(f"repair {arm}")] for arm in ("antidote", "patched")
    )
    assert all(job.work.cost.reads == len(job.records("harmful_dataset")) > 1 for job in measured)
    assert all(len(job.records("records")) == 1 and job.work.cost.passes == 2 for job in trained)
    early, last = (load_file(job.folder / "adapter" / "adapter_model.safetensors") for job in trained)
    (tuned,) = [job.folder for job in plan.jobs.values() if job.kind == "finetune"]
    for repaired, start in ((early, tuned / "step-2"), (last, tuned / "adapter")):
        before = load_file(start / "adapter_model.safetensors")
        assert before.keys() == repaired.keys()
        assert 0 < max(float((repaired[name] - before[name]).abs().max()) for name in before) < 0.05
    assert [json.loads(line)["step"] for line in (trained[0].folder / "log.jsonl").read_text().splitlines()] == [1, 2]
    results = experiments.collect(plan, "titer run", 0.0).parent / "results.json"
    seen = {(row.arm, row.step) for row in artefacts.read_results(results)[0]}
    assert {(arm, step) for arm in steps for step in (2, 4)} <= seen
    _, show, complete = run(settings, tmp_path / "run", [f"arms={{{arms}}}"])
    assert complete
    assert {status for _, status in show.seen} == {"cached"}


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ("[{finetune: sft}, {align: sft}]", "`align` cannot follow `finetune`"),
        ("[{align: sft}, {repair: safelora}, {finetune: sft}]", "`finetune` cannot follow `repair`"),
        ("[{finetune: sft}]", "no `align` step"),
        ("[{align: sft}, {repair: safelora}]", "no `finetune` step"),
        ("[{align: sft}, {finetune: sft}, {finetune: gate}]", "2 `finetune` steps"),
        ("[{align: sft, finetune: sft}]", "one method"),
        ("[{align: sft}, {finetun: sft}]", "`finetune`"),
        ("[{align: sft}, {finetune: sft}, {repair: safelora, settings: {numbr: 2}}]", "`number`"),
        ("[{align: sft}, {finetune: sft}, {repair: safelora, settings: {number: 0}}]", "arms.one[2].settings.number"),
        ("[{align: sft}, {finetune: sft}, {repair: one_shot, settings: {rwo: 2}}]", "`row`"),
        ("[{align: sft}, {finetune: sft}, {repair: one_shot, settings: {row: -2}}]", "arms.one[2].settings.row"),
        ("[{align: sft}, {finetune: sft}, {repair: booster}]", "`booster`"),
        ("{align: sft, finetune: sft, repair_settings: {number: 2}}", "no effect without `arms.one.repair`"),
        ("[align]", "arms.one[0]"),
    ],
)
def test_steps_that_make_no_sense_together_are_refused_with_the_reason(settings, steps, says):
    with pytest.raises(TiterError) as error:
        experiments.read_experiment(settings, [f"arms={{one: {steps}}}"])
    assert says in str(error.value)


def test_a_mapping_and_a_list_of_steps_are_the_same_arm(settings):
    mapping = "{a: {align: sft, finetune: sft}, b: {align: booster, align_from: a, align_settings: {lam: 2.0}, finetune: sft}}"
    steps = "{a: [{align: sft}, {finetune: sft}], b: [{align: sft}, {align: booster, settings: {lam: 2.0}}, {finetune: sft}]}"
    one, other = (experiments.read_experiment(settings, [f"arms={arms}"]) for arms in (mapping, steps))
    assert one.arms == other.arms
