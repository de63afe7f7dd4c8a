"""What titer adds to the library's checkpoints: a method's own state, and that a checkpoint is whole or not there."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from titer.compat import exportable_state
from titer.files import put_whole, writing
from titer.train.gradients import sharded_like, whole

UNFINISHED = ".unfinished"
"""In the output folder: where a checkpoint is written until it is whole."""

CARRIED_FILE = "carried.safetensors"
"""In a checkpoint: the tensors that a method carries from step to step, one for each trained weight."""

KEPT_FILE = "kept.safetensors"
"""In a checkpoint: tensors of any other shape that a method carries, which are the same on all ranks."""


class StepState(TrainerCallback, exportable_state()):  # type: ignore[misc]
    """Numbers that a method carries from step to step; saved in checkpoints, so that resuming is exact."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Return what the trainer writes into `trainer_state.json`."""
        return {"args": {}, "attributes": {"values": self.values}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the numbers of the checkpoint that training resumes from."""
        # By default the library saves the state of callbacks but does not restore it.
        saved = state.stateful_callbacks.get(type(self).__name__)
        if saved is not None:
            self.values = dict(saved["attributes"]["values"])


class Moments(TrainerCallback):
    """Tells a trainer of the moments that the library alone knows: `after_update` and `after_training`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = weakref.proxy(trainer)  # which holds this

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer has moved the weights, its gradients are still there and its learning rate is that of this step."""
        self.trainer.after_update(self.trainer.model_wrapped)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last checkpoint is written."""
        self.trainer.after_training(self.trainer.model_wrapped)


def save_carried(carried: Mapping[str, Sequence[Tensor]], checkpoint: str, writes: bool) -> None:
    """Save lists of tensors by name in a checkpoint; all ranks take part, and one `writes`."""
    tensors = {}
    for name, kept in carried.items():
        for place, tensor in enumerate(kept):
            gathered = whole(tensor)
            if writes:
                tensors[f"{name}.{place}"] = gathered.cpu().contiguous()
    if tensors:
        save_file(tensors, Path(checkpoint) / CARRIED_FILE)


def load_carried(checkpoint: str | None, weights: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Return what `save_carried` left in a checkpoint, on the devices of `weights` and sharded as they are."""
    if checkpoint is None or not (file := Path(checkpoint) / CARRIED_FILE).is_file():
        return {}
    tensors = load_file(file)
    names = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
    return {
        name: [sharded_like(tensors[f"{name}.{place}"], weight) for place, weight in enumerate(weights)]
        for name in names
    }


def save_kept(kept: Mapping[str, Tensor], checkpoint: str, writes: bool) -> None:
    """Save tensors by name in a checkpoint; all ranks hold the same, and one `writes`."""
    if kept and writes:
        save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, Path(checkpoint) / KEPT_FILE)


def load_kept(checkpoint: str | None) -> dict[str, Tensor]:
    """Return what `save_kept` left in a checkpoint, on the CPU."""
    if checkpoint is None or not (file := Path(checkpoint) / KEPT_FILE).is_file():
        return {}
    return dict(load_file(file))


@contextmanager
def appearing(checkpoint: Path, args: Any, wait: Callable[[], None]) -> Iterator[Path]:
    """Let a checkpoint appear under its name when all processes have written all of it.

    Args:
        checkpoint: Where it is to be.
        args: The training's arguments, which know this process.
        wait: Returns when all processes have called it.

    Yields:
        The folder to write it to until then.
    """
    part = checkpoint.parent / UNFINISHED / checkpoint.name
    with writing(checkpoint):
        if args.should_save:
            shutil.rmtree(part.parent, ignore_errors=True)  # what broke off before
        wait()
        yield part
        # Machines with a disk of their own have their own part of it.
        for mine in (args.process_index == 0, args.local_process_index == 0):
            wait()
            if mine and part.is_dir():
                put_whole(part, checkpoint)
                part.parent.rmdir()
        wait()


def remove_old(newest: Path, best: str | None, limit: int | None) -> None:
    """Remove the checkpoints beyond `limit`, the earliest steps first: those before go when the newest is there.

    The library goes by the files' dates, and would remove the newest each time once a clock has jumped back.
    """
    kept = {newest} | ({Path(best)} if best else set())
    others = sorted(
        (path for path in newest.parent.glob("checkpoint-*") if path not in kept),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    if limit:
        for path in others[: max(0, len(others) + len(kept) - limit)]:
            shutil.rmtree(path, ignore_errors=True)
