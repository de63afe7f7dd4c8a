"""What runs jobs that can run: this process, or a few of them on this machine; clusters are in `titer.jobs.clusters`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from titer import progress
from titer.errors import TiterError
from titer.files import DiskError, disk_error_number
from titer.jobs import estimates
from titer.jobs.job import DONE, SPEC, Job, Outcome, note_failure
from titer.jobs.leases import Held, LeaseLost
from titer.progress import Task


class Launcher(Protocol):
    """Runs jobs."""

    @property
    def free(self) -> bool:
        """Whether it can take another job."""

    @property
    def busy(self) -> bool:
        """Whether jobs that it took have not been taken from `ended`."""

    def __contains__(self, job: object) -> bool:
        """Whether it has a job."""

    def take_up(self, jobs: Iterable[Job]) -> None:
        """Go on with those jobs of a plan that were handed out before, by a launcher that is gone; called once, at first."""

    def launch(self, job: Job, force: bool, what: str) -> None:
        """Begin a job; `what` it is, for the display. One that another process works on stays as it is."""

    def ended(self, wait: bool) -> Iterator[tuple[Job, Outcome]]:
        """Yield jobs that have come to their end; `wait` for one."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def local(workers: int) -> Launcher:
    """Return what runs so many jobs at a time on this machine."""
    return Here() if workers == 1 else Pool(workers)


class Here:
    """Runs one job at a time, in this process, which keeps libraries and the base model loaded."""

    def __init__(self) -> None:
        self._ended: list[tuple[Job, Outcome]] = []
        self.free = True

    @property
    def busy(self) -> bool:
        """Whether a job's outcome is there."""
        return bool(self._ended)

    def __contains__(self, job: object) -> bool:
        return any(job is ended for ended, _ in self._ended)

    def take_up(self, jobs: Iterable[Job]) -> None:
        """Do nothing: what a process did ended with it."""

    def launch(self, job: Job, force: bool, what: str) -> None:
        """Run a job from its beginning to its end."""
        whole = all(path.name == SPEC for path in job.folder.glob("*"))  # else a part of it was done before
        try:
            with Task(what):
                outcome = job.attempt(force)
        except (Held, LeaseLost):
            return
        if outcome.status == "done" and (whole or force) and job.work is not None:
            estimates.record(job.work, outcome.seconds)
        self._ended.append((job, outcome))

    def ended(self, wait: bool) -> Iterator[tuple[Job, Outcome]]:
        """Yield the job that was run."""
        while self._ended:
            yield self._ended.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


class Pool:
    """Runs jobs in processes of this machine, which share its cores.

    Args:
        workers: How many at a time.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._slots: list[ProcessPoolExecutor] = []
        self._at_work: dict[Future[Came], tuple[Job, ProcessPoolExecutor]] = {}
        self._open = ExitStack()

    @property
    def free(self) -> bool:
        """Whether a worker has nothing to do."""
        return len(self._at_work) < self.workers

    @property
    def busy(self) -> bool:
        """Whether one has."""
        return bool(self._at_work)

    def __contains__(self, job: object) -> bool:
        return any(job is ours for ours, _ in self._at_work.values())

    def take_up(self, jobs: Iterable[Job]) -> None:
        """Do nothing: workers end with their launcher."""

    def launch(self, job: Job, force: bool, what: str) -> None:
        """Hand a job to a worker that has nothing to do."""
        slot = self._slots.pop() if self._slots else self._worker()
        self._at_work[slot.submit(work, order(job, force))] = job, slot

    def _worker(self) -> ProcessPoolExecutor:
        # A pool of one each: where a process dies, the library gives up the whole pool.
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        context = multiprocessing.get_context("spawn")
        return self._open.enter_context(
            ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(threads,))
        )

    def ended(self, wait: bool) -> Iterator[tuple[Job, Outcome]]:
        """Yield jobs whose worker is done with them, or died."""
        if wait:
            names = ", ".join(job.name for job, _ in self._at_work.values())
            with Task(f"{len(self._at_work)} jobs: {names}"):
                concurrent.futures.wait(self._at_work, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in [future for future in self._at_work if future.done()]:
            job, slot = self._at_work.pop(future)
            try:
                outcome = taken_in(future.result())
                self._slots.append(slot)
            except BrokenProcessPool:
                slot.shutdown(wait=False)
                reason = "its process was killed; where memory is short, fewer `--workers` need less"
                note_failure(job.folder, reason)
                outcome = Outcome("failed", 0.0, reason)
            if outcome is None:
                continue
            yield job, outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers, after what they have begun."""
        self._open.close()


def _begin(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


class Order(NamedTuple):
    """What a worker is told, wherever it is.

    Attributes:
        folder: Of the job.
        force: Do it again when it is done.
        place: The folder that paths which the user gave start from.
        partial: Folders of jobs that it needs and that are incomplete, which only the launcher knows.
    """

    folder: str
    force: bool
    place: str
    partial: tuple[str, ...] = ()

    def again(self) -> Order:
        """Return the order with which one whose worker died goes on: what it has forced is not forced again."""
        return self._replace(force=self.force and os.path.lexists(Path(self.folder) / DONE))


Came = Outcome | DiskError | None
"""What came of an order: how the job came out, a disk that failed, or nothing because another process works on it."""


def order(job: Job, force: bool) -> Order:
    """Return what a worker is told to do a job."""
    partial = tuple(needed.folder.name for needed in job.needs if needed.status == "incomplete")
    return Order(str(job.folder.absolute()), force, os.getcwd(), partial)


def work(order: Order) -> Came:
    """Run a job in a worker; what stops it is returned, since not every cluster can hand an exception on."""
    with progress.shown(None), contextlib.chdir(order.place):  # the first process tells the user
        try:
            job = Job.read(Path(order.folder))
            for needed in job.needs:
                needed.status = "incomplete" if needed.folder.name in order.partial else needed.status
            return job.attempt(order.force)
        except (Held, LeaseLost):
            return None
        except TiterError as error:
            note_failure(Path(order.folder), str(error))
            return Outcome("failed", 0.0, " ".join(str(error).splitlines()), mistake=True)
        except Exception as error:
            if (number := disk_error_number(error)) is None:
                raise
            return DiskError(number, os.strerror(number), str(getattr(error, "filename", None) or order.folder))


def taken_in(came: Came) -> Outcome | None:
    """Return how a job came out, or `None` when another process works on it.

    Raises:
        DiskError: For the disk that a worker met.
    """
    if isinstance(came, DiskError):
        raise came
    return came
