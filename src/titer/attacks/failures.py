"""Who is to blame when an attacker fails: the machine, the attack itself, or, for all that is neither, titer."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from titer.errors import AttackFailed

# Of an OSError: no room, no memory, no handles, a device or a network disk that is gone. A file that is not there is a bug.
_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS,
    errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT,
)  # fmt: skip
# Memory on the CPU, cuBLAS's workspace, and the two things that torch says while it saves to a full disk, have no class.
_WORDS = re.compile(
    r"can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory|iostream error|unexpected pos \d+ vs \d+"
)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors tells its errors' numbers in words alone


def blame(error: BaseException) -> Literal["machine", "attack"] | None:
    """Return what an attacker's failure is to be put down to; `None` for everything that nobody foresaw.

    `machine`: no memory, no room on the disk, a device that is gone. It says nothing of model or attack, and another try
    may go well. `attack`: an `AttackFailed`, and what numerical routines raise on weights that have run away. Every other
    error is a fault of titer (or of a method from outside), and must never pass for an attack that failed.

    A loss that is no number raises nothing: the attacker goes on, and the scorecard finds its model destroyed.
    """
    if isinstance(error, AttackFailed | FloatingPointError | torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return "attack"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "machine"
    if isinstance(error, OSError):
        return "machine" if error.errno in _MACHINE else None
    if isinstance(error, RuntimeError) and _WORDS.search(str(error)):
        return "machine"
    number = _OS_ERROR.search(str(error))
    return "machine" if number is not None and int(number[1]) in _MACHINE else None


@contextmanager
def traceback_in(folder: Path) -> Iterator[None]:
    """Keep the traceback of an error that leaves the block in `folder/error.txt`, and say so in the error."""
    try:
        yield
    except Exception as error:
        path = folder / "error.txt"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        error.add_note(f"Traceback: {path}.")
        raise
