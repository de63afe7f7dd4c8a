"""Whose fault it is when an attacker fails: the machine's, the attack's, or, if neither, titer's."""

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
from titer.files import DiskError, disk_error_number

# Memory on the CPU and cuBLAS's workspace have no class.
_WORDS = re.compile(r"can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory")


def blame(error: BaseException) -> Literal["machine", "attack"] | None:
    """Return whose fault an attacker's failure is; `None` for every error that is not expected.

    `machine`: no memory, no handles. It says nothing of model or attack, and another try may go well. `attack`: an
    `AttackFailed`, and what numerical routines raise on weights that have run away. A disk that is full or gone is
    neither's: every attacker would meet it, so it ends the run (`titer.files.DiskError`). Every other error is a fault of titer
    (or of a method from outside), and must never pass for an attack that failed.

    A loss that is no number raises nothing: the attacker goes on, and the scorecard finds its model destroyed.
    """
    if isinstance(error, AttackFailed | FloatingPointError | torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return "attack"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "machine"
    if isinstance(error, OSError):
        of_machine = error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)
        return "machine" if of_machine and not isinstance(error, DiskError) else None
    return "machine" if isinstance(error, RuntimeError) and _WORDS.search(str(error)) else None


@contextmanager
def traceback_in(folder: Path) -> Iterator[None]:
    """Keep the traceback of an error that leaves the block in `folder/error.txt`, and say so in the error."""
    try:
        yield
    except Exception as error:
        if disk_error_number(error) is not None:
            raise  # there may be no room for it
        path = folder / "error.txt"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        error.add_note(f"Traceback: {path}.")
        raise
