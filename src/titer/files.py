"""Writing files where they belong, and so that no reader and no crash ever sees half of one."""

from __future__ import annotations

import errno
import os
import re
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


_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENODEV, errno.ESTALE,
)  # fmt: skip
# safetensors and tokenizers tell an error's number in words alone; torch, while it saves, not even that.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH = re.compile(r"iostream error|file write failed|unexpected pos \d+ vs \d+")


class DiskError(OSError):
    """A file that cannot be written, which is for whoever owns the disk to put right; nothing that was whole is lost."""


def disk_error_number(error: BaseException) -> int | None:
    """Return the number of an error that is the disk's: no room, not to be written, gone. `None` for every other error.

    A file that is not there is none: looking for one is a bug, or a mistake.
    """
    if isinstance(error, OSError):
        return error.errno if isinstance(error, DiskError) or error.errno in _DISK else None
    if isinstance(error, TiterError):
        return None  # it may quote anything
    if isinstance(error, RuntimeError) and _TORCH.search(str(error)):
        return errno.EIO
    told = _OS_ERROR.search(str(error))
    return int(told[1]) if told and int(told[1]) in _DISK else None


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make what goes wrong with the disk in the block a `DiskError` that names `path`, whichever library meets it.

    Raises:
        DiskError: For no room, a disk that is read-only or fails, and a folder that somebody removed meanwhile.
    """
    try:
        yield
    except DiskError:
        raise  # of a file within
    except Exception as error:
        number = disk_error_number(error)
        folder = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        if isinstance(error, TimeoutError):  # elsewhere it would be a network's
            number = errno.ETIMEDOUT
        elif isinstance(error, FileNotFoundError):
            gone = str(error.filename) == str(path) or folder != Path(path).absolute().parent
            number = errno.ENOENT if gone else None
        elif isinstance(error, RuntimeError) and _TORCH.search(str(error)):
            number = _why(folder)
        if number is None:
            raise
        raise DiskError(number, os.strerror(number), str(path)) from error


def _why(folder: Path) -> int:
    """Return the number of the error that kept a library from writing into a folder, which has not said it."""
    disk = os.statvfs(folder)
    if disk.f_flag & os.ST_RDONLY:
        return errno.EROFS
    return errno.ENOSPC if disk.f_bavail * disk.f_frsize < 1 << 20 else errno.EIO


def disk_advice(error: BaseException, number: int) -> tuple[str, str]:
    """Return what is wrong and what to do, for the user whose disk raised an error of this number."""
    path = str(getattr(error, "filename", None) or "")
    what = f"{path or 'A file'} could not be {'written' if isinstance(error, DiskError) else 'read or written'}"
    what += f": {os.strerror(number)}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        place = Path(path).absolute()
        free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.is_dir())).free
        return (
            f"{what}; {free / 1e6:.1f} MB are free there.",
            "Free some space and run the same command again: it goes on.",
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{what}.", "Allow it and run the same command again: it goes on. Or choose another folder."
    return f"{what}.", "See to it that the disk can be used and run the same command again: it goes on."


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to be written in place of `path`, which is there whole, or as it was before when the block raises.

    Missing folders above it are made.
    """
    path = Path(path)
    # In the same folder, since a rename is atomic only within one file system. Not `tempfile`: its files are private
    # to their owner, and the renamed file would stay so.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
