"""Files, models and outputs that are damaged, missing, of the wrong kind or out of reach: named before they do any harm."""

import json
import logging
import shutil

import pytest
import yaml

# --- a run folder whose files were damaged ---------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def no_json(path):
    path.write_text("done!\n")


def of_another_type(path):
    path.write_text("[1, null]\n")


def binary(path):
    path.write_bytes(bytes(range(256)))


def a_folder(path):
    path.unlink()
    path.mkdir()


def missing(path):
    path.unlink()


DAMAGES = [truncated, empty, no_json, of_another_type, binary, a_folder]


@pytest.fixture(scope="module")
def experiment(tiny_folder, tmp_path_factory):
    training = {"per_device_train_batch_size": 4, "max_steps": 1, "bf16": False}
    values = {
        "name": "x",
        "model": str(tiny_folder),
        "arms": {"a": {"align": "sft", "finetune": "antibody"}},
        "lora": {"r": 2, "target_modules": ["q_proj"]},
        "align": {"samples": 8, "training": training},
        "finetune": {"samples": 8, "training": training},
        "evaluate": {
            "harmful": 2, "lookalikes": 2, "task": 2, "max_new_tokens": 2, "task_max_new_tokens": 2, "weights": 4,
        },
    }  # fmt: skip
    path = tmp_path_factory.mktemp("experiment") / "e.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def _finished(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert set(again(experiment, folder).values()) == {"done"}
    return folder


@pytest.fixture
def finished(_finished, tmp_path):
    """The folder of a finished run, to be damaged."""
    return shutil.copytree(_finished, tmp_path / "run")


def again(experiment, folder):
    """Run what is to do, and collect; returns how each stage came out, by its folder's name."""
    from titer import experiment as experiments
    from titer.plan import Silent, execute

    plan = experiments.make_plan(experiments.read_experiment(experiment), folder)
    assert execute(plan, Silent()), [stage.reason for stage in plan.stages.values()]
    experiments.collect(plan, "titer run", 0.0)
    return {stage.folder.name: stage.status for stage in plan.stages.values()}


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"], (folder / "weights.jsonl").read_bytes()


LEFT = ["stages/judge-*/done.json", "stages/judge-*/scores.jsonl", "stages/answer-*/inferences.jsonl",
        "stages/weigh-*/log_ratios.json"]  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGES, missing], ids=lambda damage: damage.__name__)
def test_a_stage_whose_files_are_damaged_is_done_again(experiment, finished, caplog, damage):
    expected = results(finished)
    files = [sorted(finished.glob(pattern))[place % 2] for place, pattern in enumerate(LEFT)]
    for file in files:
        damage(file)
    with caplog.at_level(logging.WARNING, "titer"):
        found = again(experiment, finished)
    redone = {file.parent.name for file in files if not (damage is missing and file.name == "done.json")}
    assert {name for name, status in found.items() if status == "done"} == {file.parent.name for file in files}
    for name in redone:
        (line,) = [record.getMessage() for record in caplog.records if name in record.getMessage()]
        assert "is done again" in line
        assert any(str(file) in line for file in files)
    assert results(finished) == expected
    assert set(again(experiment, finished).values()) == {"cached"}


def test_adapters_that_are_damaged_are_trained_again(experiment, finished, caplog):
    weights = next(finished.glob("stages/align-*/adapter/adapter_model.safetensors"))
    whole = weights.read_bytes()
    truncated(weights)
    found = again(experiment, finished)
    assert [name.partition("-")[0] for name, status in found.items() if status == "done"] == ["align"]
    assert f"{weights} is damaged: `align a` is done again." in caplog.text
    assert weights.read_bytes() == whole


def test_a_dry_run_knows_what_is_to_do_again(titer, experiment, finished):
    binary(next(finished.glob("stages/judge-*/scores.jsonl")))
    _, out, _ = titer("run", experiment, "--output", finished, "--dry-run", "--json")
    assert [stage["status"] for stage in json.loads(out)["stages"]].count("to do") == 1


@pytest.mark.parametrize(
    "record", [{"files": {"../../kept": ""}}, {"files": ["x"]}, {"seconds": "1"}, {"key": "x"}, {}]
)
def test_a_record_of_what_was_done_is_not_believed(experiment, finished, record):
    """Whatever it says, nothing outside of its stage is touched."""
    (finished / "kept").write_text("")
    file = next(finished.glob("stages/judge-*/done.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | record) if record else "{}")
    assert list(again(experiment, finished).values()).count("done") == 1
    assert (finished / "kept").is_file()


def test_a_file_in_the_place_of_a_stage(experiment, finished, caplog):
    stage = next(finished.glob("stages/judge-*"))
    shutil.rmtree(stage)
    stage.write_text("")
    assert again(experiment, finished)[stage.name] == "done"
    assert f"{stage} is no folder" in caplog.text


def test_verdicts_of_a_judge_that_broke_off_are_not_gone_on_with_when_damaged(finished, caplog):
    from titer import judges
    from titer.evaluation import artefacts
    from titer.evaluation.scoring import judge_into

    scores = next(finished.glob("stages/judge-*/scores.jsonl"))
    inferences = artefacts.read_inferences(finished / "inferences.jsonl")
    truncated(scores)
    judge_into(scores, inferences, [judges.get("offline")])
    assert f"{scores}:" in caplog.text
    assert "judged again" in caplog.text
    assert len(artefacts.read_scores(scores)) == 8


@pytest.mark.parametrize("damage", [*DAMAGES, missing], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["results.json", "inferences.jsonl", "scores.jsonl", "weights.jsonl"])
def test_a_report_of_damaged_files(titer, finished, damage, name):
    damage(finished / name)
    code, _, error = titer("report", finished)
    if damage in (missing, empty) and name != "results.json":
        assert code == 0  # the page says less then
        return
    assert code == 2, error
    assert str(finished / name) in error


@pytest.mark.parametrize("damage", [*DAMAGES, missing], ids=lambda damage: damage.__name__)
def test_judging_damaged_answers_again(titer, finished, damage):
    damage(finished / "inferences.jsonl")
    code, _, error = titer("evaluate", "--rejudge", finished)
    assert code == 2, error
    assert str(finished / "inferences.jsonl") in error
