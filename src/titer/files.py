"""Writing files where they belong, and so that no reader and no crash ever sees half of one."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from titer.errors import TiterError
from titer.text import visible


def folder_name(name: str, where: str) -> str:
    """Return a name that somebody gave to a folder, after making sure that it names one *in* the folder it goes to.

    Args:
        name: The name.
        where: What gave it, for the error (`--name`).

    Raises:
        TiterError: When it is a path, is empty, or is no name that every file system can hold.
    """
    outside = name.strip() in ("", ".", "..") or "/" in name or "\\" in name
    if outside or visible(name) != name or any(char in name for char in "\n\t") or len(name.encode()) > 200:
        raise TiterError(
            f"`{where}` must be the name of one folder, found `{name[:80]}`.",
            "Up to 200 bytes, without slashes; where the folder lies is for `--output` to say.",
        )
    return name


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to be written in place of `path`, which is there whole, or as it was before when the block raises.

    Missing folders above it are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within one file system. Not `tempfile`: its files are private
    # to their owner, and the renamed file would stay so.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_whole(part: Path, folder: Path) -> None:
    """Move a folder that is complete to its place; whatever was there goes.

    What it holds is on the disk before it has its name, so that not even a power failure leaves half of one there.
    """
    for path in part.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)
