"""A training that is cut off while it saves goes on from the last checkpoint that is whole, to the same weights."""

import errno
import os
import signal
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import torch

from titer import methods
from titer.data.records import Record
from titer.errors import RanAway, TiterError
from titer.files import DiskError
from titer.jobs import trainings
from titer.methods.finetune.base import RefusalTrainer, read_weight_log
from titer.testing import toy_rows
from titer.train import checkpoints
from titer.train.trainer import PackedSFTTrainer

SAVED = 4
"""The optimizer step whose checkpoint breaks off; one of step 2 is there."""

POINTS = {
    "weights": ("peft.peft_model.safe_save_file", ""),
    "carried tensors": ("titer.train.checkpoints.save_file", ""),
    "optimizer": ("torch.save", "optimizer"),
    "random numbers": ("torch.save", "rng_state"),
    "state": ("transformers.trainer_callback.TrainerState.save_to_json", ""),
    "name": ("os.replace", "checkpoint-"),
    "the one before": ("shutil.rmtree", "checkpoint-"),
}


@pytest.fixture(scope="module")
def train(tiny_folder, tmp_path_factory, harmful_rows):
    """Trains in a folder of a name; goes on where there is something to go on with. Returns the adapter's bytes."""
    base = tmp_path_factory.mktemp("trainings")
    records = [Record.from_row(row) for row in toy_rows(16)]
    harmful = [Record.from_row(row) for row in harmful_rows]
    method = methods.find("align", "booster")
    values = {
        "max_steps": 6, "save_steps": 2, "refresh_every": 3, "per_device_train_batch_size": 4, "bf16": False,
        "min_perturbation": 0.0,
    }  # fmt: skip

    def run(name, **more):
        folder = base / name
        args = methods.settings(method, {**values, **more}, "test", str(folder / "checkpoints"), 0)
        lora = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
        trainings.train(method, args, str(tiny_folder), None, lora, records, {"harmful_dataset": harmful}, folder)
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    run.base = base
    run.undisturbed = run("undisturbed")
    return run


def break_off(monkeypatch, point, how):
    """Let the write at a point of the second save leave half a file, and then end in `how`."""
    target, part = POINTS[point]
    calls = []
    original = resolve_name(target)

    def broken(*args, **kwargs):
        path = next((Path(arg) for arg in args if isinstance(arg, str | Path)), None)
        inside = path is not None and f"checkpoint-{SAVED - 2 * (target == 'shutil.rmtree')}" in str(path)
        if not inside or part not in path.name or calls:
            return original(*args, **kwargs)
        calls.append(path)
        if target not in ("os.replace", "shutil.rmtree"):
            path.write_bytes(b'{"half": ')
        return how()

    monkeypatch.setattr(target, broken)
    return calls


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("point", POINTS)
def test_a_full_disk_while_saving(train, monkeypatch, point):
    with monkeypatch.context() as patched:
        calls = break_off(patched, point, full)
        with pytest.raises(OSError, match="No space left"):
            train(f"full {point}")
    assert calls
    assert train(f"full {point}") == train.undisturbed


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_while_saving(train, monkeypatch, point):
    child = os.fork()
    if not child:
        break_off(monkeypatch, point, killed)
        try:
            train(f"killed {point}")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the training came to its end, or failed for another reason"
    assert os.WTERMSIG(status) == signal.SIGKILL
    folder = train.base / f"killed {point}" / "checkpoints"
    found = {path.name for path in folder.glob("checkpoint-*")}
    assert found == {"the one before": {"checkpoint-2", "checkpoint-4"}}.get(point, {"checkpoint-2"})
    assert train(f"killed {point}") == train.undisturbed


def test_the_library_finds_whole_checkpoints_alone(train, monkeypatch):
    """`resume_from_checkpoint=True`, as users of the trainers write it, does not look into what a checkpoint lacks."""
    from transformers.trainer_utils import get_last_checkpoint

    with monkeypatch.context() as patched:
        break_off(patched, "state", full)
        with pytest.raises(OSError, match="No space left"):
            train("library")
    folder = train.base / "library" / "checkpoints"
    assert get_last_checkpoint(str(folder)) == str(folder / "checkpoint-2")


@pytest.mark.parametrize("left", [".inputs.sha256.0.tmp", "inputs.sha256"])
def test_a_kill_before_the_first_checkpoint_blocks_nothing(train, left):
    folder = train.base / left
    (folder / "checkpoints").mkdir(parents=True)
    (folder / left).write_text("half of a ha")
    assert train(folder.name) == train.undisturbed


def test_a_training_that_is_finished_is_not_done_again(train, monkeypatch):
    """Also when it was stopped while it removed its checkpoints."""
    folder = train.base / "undisturbed"
    (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    monkeypatch.setattr(trainings, "fresh_model", lambda *_, **__: pytest.fail("it is trained again"))
    assert train("undisturbed") == train.undisturbed
    assert not (folder / "checkpoints").exists()


def test_the_log_of_a_training_that_was_stopped_is_the_same(train, monkeypatch):
    with monkeypatch.context() as patched:
        break_off(patched, "state", full)
        with pytest.raises(OSError, match="No space left"):
            train("log")
    train("log")
    logs = [(train.base / name / "log.jsonl").read_text() for name in ("log", "undisturbed")]
    assert logs[0] == logs[1]
    assert "runtime" not in logs[0]


def test_a_training_that_ran_away_is_in_nobodys_way(train, monkeypatch):
    seen = []

    def run_away(trainer, what, value):
        seen.extend(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*"))
        if trainer.state.global_step == 3:
            raise RanAway("It ran away.")

    with monkeypatch.context() as patched:
        patched.setattr(PackedSFTTrainer, "_refuse_divergence", run_away)
        with pytest.raises(RanAway):
            train("ran away", learning_rate=1e-2)
    assert "checkpoint-2" in seen
    assert train("ran away") == train.undisturbed


def test_a_clock_that_jumps_back_takes_no_checkpoint_with_it(train, monkeypatch):
    """The last one is from the day before the first."""
    real = checkpoints.put_whole

    def put_whole(part, folder):
        real(part, folder)
        when = 1e9 - 86_400 * int(folder.name.rpartition("-")[2])
        os.utime(folder, (when, when))

    monkeypatch.setattr(checkpoints, "put_whole", put_whole)
    monkeypatch.setattr(trainings, "save_adapter", lambda *_: full())
    with pytest.raises(OSError, match="No space left"):
        train("clock")
    assert [path.name for path in (train.base / "clock" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_full_disk_before_the_adapter(train, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(trainings, "save_adapter", lambda *_: full())
        with pytest.raises(OSError, match="No space left"):
            train("late")
    assert train("late") == train.undisturbed


def weight_log(folder, step):
    """A weighted training's log, as it stands after a step from which the training goes on."""
    trainer = object.__new__(RefusalTrainer)
    trainer.args = SimpleNamespace(output_dir=str(folder), process_index=0)
    trainer.state = SimpleNamespace(global_step=step)
    trainer._logged = None
    return trainer


def log_steps(trainer, steps):
    for _ in range(steps):
        step = trainer.state.global_step
        trainer.log_weights(torch.arange(2), torch.tensor([0.25, 0.75]) / (step + 1))
        trainer.state.global_step += 1


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_log_of_weights_that_was_cut_off_goes_on_as_if_it_had_not(tmp_path, cut):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        log_steps(weight_log(tmp_path / name, 0), 3)
    whole, stopped = (tmp_path / name / "sample_weights.jsonl" for name in ("whole", "stopped"))
    stopped.write_bytes(stopped.read_bytes()[: -cut or None])
    assert all(line in read_weight_log(tmp_path / "whole") for line in read_weight_log(tmp_path / "stopped"))
    log_steps(weight_log(tmp_path / "stopped", 1), 2)
    assert stopped.read_bytes() == whole.read_bytes()
    log_steps(weight_log(tmp_path / "stopped", 0), 3)
    assert stopped.read_bytes() == whole.read_bytes(), "another training begins with another log"


def test_a_log_of_weights_that_is_damaged_says_where(tmp_path):
    log_steps(weight_log(tmp_path, 0), 1)
    path = tmp_path / "sample_weights.jsonl"
    path.write_text(path.read_text().replace("}\n{", "{", 1))
    with pytest.raises(TiterError, match=r"sample_weights\.jsonl:1"):
        read_weight_log(tmp_path)


def test_the_rest_of_a_log_of_weights_does_not_pass_for_all_of_it(tmp_path):
    trainer = weight_log(tmp_path, 0)
    log_steps(trainer, 1)
    (tmp_path / "sample_weights.jsonl").unlink()
    with pytest.raises(DiskError, match="No such file"):
        log_steps(trainer, 1)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("kept", [0, 0.9], ids=["emptied", "cut"])
def test_a_checkpoint_that_was_damaged_is_not_gone_on_from(train, monkeypatch, caplog, name, kept):
    run = f"damaged {name} {kept}"
    with monkeypatch.context() as patched:
        patched.setattr(trainings, "save_adapter", lambda *_: full())
        with pytest.raises(OSError, match="No space left"):
            train(run)
    (file,) = (train.base / run / "checkpoints").glob(f"checkpoint-*/{name}")
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    assert train(run) == train.undisturbed
    assert str(file) in caplog.text
