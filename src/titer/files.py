"""Reading files that are files, and writing them where they belong, so that no reader and no crash sees half of one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

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


# -- the disk ---------------------------------------------------------------------------------------------------------

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


# -- reading ----------------------------------------------------------------------------------------------------------

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def check_file(path: Path, hint: str | None = None) -> None:
    """Raise unless `path` is a file: what comes out of a pipe or a device can be read once, late, or without end.

    Args:
        path: What is to be read.
        hint: What to do where there is none, or a folder.

    Raises:
        TiterError: Naming it.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise TiterError(f"{path} does not exist.", hint or "Check the path.") from None
    except (OSError, ValueError) as error:  # a name that is too long, leads in a circle, or holds a zero
        raise TiterError(f"{path} cannot be read: {_reason(error)}.", hint or "Check the path.") from None
    if stat.S_ISREG(mode):
        return
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    if kind != "a folder":
        hint = "Save what comes through it to a file first, also what `<(…)` would give, and name that file."
    raise TiterError(f"{path} is {kind}, not a file.", hint)


def read_text(path: str | os.PathLike[str], hint: str | None = None) -> str:
    """Read a UTF-8 file as it is, ends of line included.

    Raises:
        TiterError: Naming the file, when it cannot be read, is no file, or no UTF-8.
    """
    path = Path(path)
    check_file(path, hint)
    try:
        # Not `Path.read_text`: its universal newlines would end lines at a lone carriage return too.
        return path.read_bytes().decode()
    except OSError as error:
        raise TiterError(f"{path} cannot be read: {_reason(error)}.", hint) from None
    except UnicodeDecodeError as error:
        raise TiterError(f"{path}: not UTF-8 (byte {error.start}).", hint) from None


def read_json(path: str | os.PathLike[str], hint: str | None = None) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        TiterError: Naming the file, as `read_text`, or when it holds anything else.
    """
    text = read_text(path, hint)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise TiterError(f"{path}:{error.lineno}: not JSON: {error.msg}.", hint) from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets inside each other
        raise TiterError(f"{path}: not JSON: {error}.", hint) from None
    if not isinstance(value, dict):
        raise TiterError(f"{path}: expected a JSON object, found {type(value).__name__}.", hint)
    return value


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# -- writing ----------------------------------------------------------------------------------------------------------

BELOW = 250
"""Bytes of a path that are kept free for what comes to lie in an output folder."""


def check_output(folder: Path, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Raise, before any work is done, when a folder and what goes into it could not be written. Leaves nothing behind.

    Args:
        folder: Need not be there yet.
        files: Names of the files that are written in it; those that are there are replaced.
        folders: Names of the folders that are made in it.

    Raises:
        TiterError: Naming the path that cannot be written, and why.
    """
    here = folder.absolute()
    to_write = [(here, "a folder"), *((here / name, "a folder") for name in folders)]
    to_write += [(here / name, "a file") for name in files]
    for path, wanted in to_write:
        there = next(parent for parent in (path, *path.parents) if _found(parent) is not None)
        found = _found(there)
        if there != path and found != "a folder":
            raise TiterError(f"{path} cannot be written: {there} is {found}.", _ELSEWHERE)
        if there == path and found != wanted:
            raise TiterError(f"{path} is {found}, and {wanted} is to be written there.", _ELSEWHERE)
        # Wherever a name is to lie, the file system says whether it could hold it where there is something already.
        for name in path.relative_to(there).parts:
            _found(there / name)
        try:
            # Not a look at permissions: they do not bind everybody, and a file system may be read-only or gone.
            with tempfile.TemporaryFile(dir=there if found == "a folder" else there.parent):
                pass
        except OSError as error:
            raise TiterError(f"Nothing can be written in {there}: {_reason(error)}.", _ELSEWHERE) from None
    _found(here / "/".join("x" * (BELOW // 2)))


_ELSEWHERE = "Name another place for the output, or make room in this one."


def _found(path: Path) -> str | None:
    """Return what is at a path, `None` for nothing; raises for a path that could not be anything's."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "a file")
    except (FileNotFoundError, NotADirectoryError):
        return "a link to nothing" if path.is_symlink() else None
    except (OSError, ValueError) as error:
        named = f"{str(path)[:80]}…" if len(str(path)) > 200 else path
        raise TiterError(f"{named} cannot be written: {_reason(error)}.", _ELSEWHERE) from None


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to be written in place of `path`, which is there whole, or as it was before when the block raises.

    Missing folders above it are made.
    """
    path = Path(path)
    # In the same folder, since a rename is atomic only within one file system. Not `tempfile`: its files are private
    # to their owner, and the renamed file would stay so.
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.tmp")
    if path.is_dir():
        raise TiterError(f"{path} is a folder, and a file is to be written there.", _ELSEWHERE)
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
    remove(folder)
    os.replace(part, folder)
