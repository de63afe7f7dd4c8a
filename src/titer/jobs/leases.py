"""Leases: of several processes that share a run folder, one at a time works on a job, also on a network file system.

A lease is a file `NAME.N`, linked into its place, which succeeds for one process only. Its owner renews its time; one that was
not renewed for a while, or whose process is gone from this machine, is over, and whoever makes `NAME.N+1` has the job. An owner
that stood still that long (a suspended laptop, a paused process) finds the higher number, and knows that it has lost.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 60.0
"""How long a lease holds that is not renewed."""


def machine_identity() -> list[str]:
    """Return what tells this machine, its boot and its process numbers from others, where processes share a file system."""
    found = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
    return found


class Held(Exception):
    """Raised where another process holds a lease; says which."""


class LeaseLost(BaseException):
    """Raised in a process that lost its lease to another. Not an `Exception`: nobody goes on from it."""


class Lease:
    """One process's right to work on something, renewed by a thread until it is left as a context.

    Args:
        folder: Where leases lie.
        name: Of what is worked on.
        seconds: How long it holds when it is not renewed.

    Raises:
        Held: When another process has it.
    """

    def __init__(self, folder: Path, name: str, seconds: float | None = None) -> None:
        self.folder, self.name = folder, name
        self.seconds = SECONDS if seconds is None else seconds
        self.lost = False
        self._over = threading.Event()
        self._in_main = threading.current_thread() is threading.main_thread()
        folder.mkdir(parents=True, exist_ok=True)
        self.path = self._take()
        self._inode = self.path.stat().st_ino
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()

    def _take(self) -> Path:
        about = {**this_process(), "since": time.time()}
        mine = self.folder / f".{self.name}.{uuid.uuid4().hex}"
        try:
            mine.write_text(json.dumps(about), encoding="utf-8")
            while True:
                last = _last(self.folder, self.name)
                if (other := _holder(self.folder, self.name, last, mine, self.seconds)) is not None:
                    raise Held(other)
                path = self.folder / f"{self.name}.{last + 1}"
                with contextlib.suppress(FileExistsError):  # another was faster; look again
                    os.link(mine, path)
                    return path
        finally:
            mine.unlink(missing_ok=True)

    @property
    def holds(self) -> bool:
        """Whether nobody has taken it over."""
        try:
            mine = self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            mine = False
        return mine and not self.lost and _last(self.folder, self.name) == int(self.path.suffix[1:])

    def _renew(self) -> None:
        while not self._over.wait(self.seconds / 6):
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                if not self.holds:
                    self.lost = True
                    if self._in_main:
                        _thread.interrupt_main()
                    return
                os.utime(self.path)

    def check(self) -> None:
        """Raise `LeaseLost` when another process has taken it over."""
        if not self.holds:
            self.lost = True
            raise LeaseLost(self.name)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        """Give it back: from now on it is over."""
        self._over.set()
        self._renewing.join()
        if self.holds:
            with contextlib.suppress(OSError):
                os.utime(self.path, (0, 0))

    def remove(self) -> None:
        """Remove all leases of this name, of what will never be worked on again."""
        for path in self.folder.glob(f"{self.name}.*"):
            path.unlink(missing_ok=True)


def holder(folder: Path, name: str, seconds: float | None = None) -> str | None:
    """Say who holds the lease on something; `None` when nobody does. Arguments as of `Lease`."""
    if not (last := _last(folder, name)):
        return None
    clock = folder / f".clock.{uuid.uuid4().hex}"
    try:
        clock.touch()
        return _holder(folder, name, last, clock, SECONDS if seconds is None else seconds)
    finally:
        clock.unlink(missing_ok=True)


class Holder(NamedTuple):
    """Who holds a lease.

    Attributes:
        machine: Its name.
        pid: Of the process.
        since: When it took it, by its machine's clock.
    """

    machine: str
    pid: int
    since: float


def holders(folder: Path) -> dict[str, Holder]:
    """Return who holds leases, by what is worked on. Writes nothing, and goes by this machine's clock."""
    numbers: dict[str, int] = {}
    for path in folder.glob("[!.]*.*"):
        name, _, number = path.name.rpartition(".")
        if number.isdecimal():
            numbers[name] = max(int(number), numbers.get(name, 0))
    found = {}
    for name, last in numbers.items():
        with contextlib.suppress(OSError, ValueError):  # it goes at this moment
            path = folder / f"{name}.{last}"
            about = json.loads(path.read_text(encoding="utf-8"))
            if time.time() - path.stat().st_mtime <= SECONDS and may_run(about):
                found[name] = Holder(about["machine"][0], about["pid"], about.get("since", about["started"]))
    return found


def _last(folder: Path, name: str) -> int:
    """Return the highest number of a lease on something; 0 for none."""
    numbers = (path.name.removeprefix(f"{name}.") for path in folder.glob(f"{name}.*"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _holder(folder: Path, name: str, number: int, clock: Path, seconds: float) -> str | None:
    """Say who holds a lease of a number; `None` when it is over. `clock` is a file to read the file system's time from."""
    path = folder / f"{name}.{number}"
    try:
        os.utime(clock)
        age = clock.stat().st_mtime - path.stat().st_mtime
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # there is none, or it goes at this moment
    if age > seconds or not may_run(about):
        return None
    return f"process {about['pid']} on {about['machine'][0]}"


def this_process() -> dict[str, Any]:
    """Return what tells this process from every other, for `may_run`."""
    import psutil

    return {"machine": machine_identity(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def may_run(about: Mapping[str, Any]) -> bool:
    """Whether a process may still run: on this machine it is looked for. `about` is what it said of itself.

    One that was killed and that its parent has not buried yet has its number still, and runs no more.
    """
    import psutil

    if about["machine"] != machine_identity():
        return True
    try:
        process = psutil.Process(about["pid"])
        same = abs(process.create_time() - about["started"]) < 1
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
