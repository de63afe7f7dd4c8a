"""Where files and adapters lie: a folder, or any URL that fsspec reads, such as `s3://bucket/prefix`.

Keys are made of the service's own ids; nothing that a client says becomes one. A file is there whole or not at all, and so is a
folder, whose list of files is written last. That something is not there is said only of a store that is: a mark in it tells it from
the empty folder on which it is to be mounted, and an error of its disk or its server is an error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec

from titer.errors import TiterError
from titer.files import replacing

LIST = "files.json"
"""Names the files of a folder with their hashes; a folder without it is not there."""
MARK = "titer-store"
"""A file that every store has."""
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9][A-Za-z0-9_.:-]*)*")
SCRATCH = re.compile(r"(.*/)?\.?([^/]*)\.[0-9a-f]{32}\.(tmp|part)")
"""What a file is called while it is written."""
CHUNK = 1 << 20


def pieces(file: IO[bytes], size: int = CHUNK) -> Iterator[bytes]:
    """Yield what is left of a file, piece by piece."""
    return iter(partial(file.read, size), b"")


def is_scratch(key: str) -> bool:
    """Whether a key is that of a file which is being written, or whose writing broke off."""
    return SCRATCH.fullmatch(key) is not None


class Counted:
    """A file that is being written, and what was written of it.

    Attributes:
        bytes: How many.
        digest: Their SHA-256.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sum = file, hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """Write some more."""
        self._file.write(data)
        self._sum.update(data)
        self.bytes += len(data)

    @property
    def digest(self) -> str:
        """The SHA-256 of what was written so far."""
        return self._sum.hexdigest()


class Store:
    """An artefact store.

    Args:
        url: A folder, or a URL of fsspec's.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            # Listings are asked for each time: other processes write into the store as well.
            self._system, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise TiterError(f"The artefact store `{url}` cannot be used: {error}.", "Install what it needs.") from None
        self._local = isinstance(self._system, fsspec.get_filesystem_class("file"))
        if self._local:
            Path(self._root).mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> str:
        if not KEY.fullmatch(key):
            raise ValueError(f"no key of a store: {key!r}")
        return f"{self._root}/{key}"

    def mark(self) -> None:
        """Mark a new store, unless it is.

        Raises:
            TiterError: It cannot be written.
        """
        path = self._path(MARK)
        try:
            if not self._system.exists(path):
                self._system.pipe_file(path, b"This folder is an artefact store of `titer serve`.\n")
        except Exception as error:  # each kind of store has errors of its own
            raise TiterError(
                f"The artefact store `{self.url}` cannot be written: {error}.", "Is it mounted, or its server running?"
            ) from error

    def _check(self) -> None:
        """Raise `OSError` unless this is the store, and not what is there while it is away."""
        try:
            self._system.info(self._path(MARK))
        except FileNotFoundError:
            what = f"there is no `{MARK}` in it, so that it is another folder, or not mounted"
            raise OSError(errno.ENODEV, what, self.url) from None

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Let nothing count as missing where the whole store is."""
        try:
            yield
        except FileNotFoundError:
            self._check()
            raise

    @contextmanager
    def writing(self, key: str) -> Iterator[Counted]:
        """Open a file to be written; it is there under its key once the block has ended, and not when it raised."""
        path = self._path(key)
        if self._local:
            self._check()
            with replacing(path) as file:
                yield Counted(file)
                self._check()  # it may have gone meanwhile, before a folder was made where it was
            return
        # Of an object store an upload is either completed or given up.
        part = f"{path}.{uuid.uuid4().hex}.part"
        try:
            with self._system.open(part, "wb") as file:
                counted = Counted(file)
                yield counted
            self._system.mv(part, path)
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is told
                self._system.rm(part)
            raise

    def write(self, key: str, data: bytes) -> None:
        """Write a file."""
        with self.writing(key) as file:
            file.write(data)

    def open(self, key: str) -> IO[bytes]:
        """Open a file to be read; raises `FileNotFoundError`."""
        with self._looking():
            file: IO[bytes] = self._system.open(self._path(key), "rb")
        return file

    def read(self, key: str) -> bytes:
        """Return what a file holds; raises `FileNotFoundError`."""
        with self.open(key) as file:
            return file.read()

    def exists(self, key: str) -> bool:
        """Whether there is a file under a key."""
        # Not fsspec's `isfile`, for which nothing is there whenever anything goes wrong.
        try:
            with self._looking():
                return bool(self._system.info(self._path(key))["type"] == "file")
        except FileNotFoundError:
            return False

    def remove(self, key: str) -> None:
        """Remove a file, a folder, or nothing; also what a writing that broke off left."""
        if is_scratch(key):
            key, _, name = key.rpartition("/")
            path = f"{self._path(key)}/{name}"
        else:
            path = self._path(key)
        with suppress(FileNotFoundError), self._looking():
            self._system.info(path)
            self._system.rm(path, recursive=True)

    def listing(self) -> list[str]:
        """Return the keys of all files but the store's mark, also of those that are being written."""
        self._system.invalidate_cache()  # of what there was when somebody asked before
        self._check()
        keys = (path.removeprefix(f"{self._root}/") for path in self._system.find(self._root))
        return [key for key in keys if key != MARK]

    # -- folders ------------------------------------------------------------------------------------------------------

    def put_folder(self, key: str, folder: Path) -> None:
        """Copy a folder into the store; it counts as there once its list of files is."""
        listed: dict[str, str] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            with path.open("rb") as source, self.writing(f"{key}/{name}") as target:
                for data in pieces(source):
                    target.write(data)
                listed[name] = target.digest
        self.write(f"{key}/{LIST}", json.dumps(listed, indent=1).encode())

    def has_folder(self, key: str) -> bool:
        """Whether a folder is there, whole."""
        return self.exists(f"{key}/{LIST}")

    def folder_bytes(self, key: str) -> int:
        """Return how large a folder is, without its list of files; raises `FileNotFoundError`."""
        listed: dict[str, Any] = json.loads(self.read(f"{key}/{LIST}"))
        return sum(int(self._system.size(self._path(f"{key}/{name}"))) for name in listed)

    def get_folder(self, key: str, folder: Path) -> None:
        """Copy a folder out of the store; `folder` is there whole or not at all.

        Raises:
            FileNotFoundError: There is none.
            TiterError: A file of it is not what was put there.
        """
        listed: dict[str, Any] = json.loads(self.read(f"{key}/{LIST}"))
        part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
        try:
            for name, wanted in listed.items():
                path = part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with self.open(f"{key}/{name}") as source, path.open("wb") as file:
                    target = Counted(file)
                    for data in pieces(source):
                        target.write(data)
                if target.digest != wanted:
                    raise TiterError(f"`{key}/{name}` in the artefact store is not what was put there.", "Restore it.")
            if folder.exists():
                shutil.rmtree(folder)
            part.mkdir(parents=True, exist_ok=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
