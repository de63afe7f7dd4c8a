"""A training that is cut off while it saves goes on from the last checkpoint that is whole, to the same weights."""

import errno
import os
import signal
from pathlib import Path
from pkgutil import resolve_name

import pytest
from every_method import many_rows

from titer import methods, stages
from titer.data.records import Record

SAVED = 4
"""The optimizer step whose checkpoint breaks off; one of step 2 is there."""

POINTS = {
    "weights": ("peft.peft_model.safe_save_file", ""),
    "simulated attack": ("safetensors.torch.save_file", ""),
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
    records = [Record.from_row(row) for row in many_rows(16)]
    harmful = [Record.from_row(row) for row in harmful_rows]
    method = methods.find("align", "booster")
    values = {
        "max_steps": 6, "save_steps": 2, "refresh_every": 3, "per_device_train_batch_size": 4, "bf16": False,
        "min_perturbation": 0.0,
    }  # fmt: skip

    def run(name):
        folder = base / name
        args = methods.settings(method, values, "test", str(folder / "checkpoints"), 0)
        lora = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
        stages.train(method, args, str(tiny_folder), None, lora, records, {"harmful_dataset": harmful}, folder)
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


@pytest.mark.parametrize("left", ["", "half of a ha"])
def test_a_kill_before_the_first_step_blocks_nothing(train, left):
    folder = train.base / f"early {len(left)}" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ".inputs.sha256.0.tmp").write_text(left)
    assert train(folder.parent.name) == train.undisturbed


def test_a_full_disk_before_the_adapter(train, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(stages, "save_adapter", lambda *_: full())
        with pytest.raises(OSError, match="No space left"):
            train("late")
    assert train("late") == train.undisturbed


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("kept", [0, 0.9], ids=["emptied", "cut"])
def test_a_checkpoint_that_was_damaged_is_not_gone_on_from(train, monkeypatch, caplog, name, kept):
    run = f"damaged {name} {kept}"
    with monkeypatch.context() as patched:
        patched.setattr(stages, "save_adapter", lambda *_: full())
        with pytest.raises(OSError, match="No space left"):
            train(run)
    (file,) = (train.base / run / "checkpoints").glob(f"checkpoint-*/{name}")
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    assert train(run) == train.undisturbed
    assert str(file) in caplog.text
