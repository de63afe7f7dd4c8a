"""What runs jobs that can run: this process, or a few of them on this machine."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

from titer import progress
from titer.jobs import estimates
from titer.jobs.job import SPEC, Job, Outcome
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
        self._at_work: dict[Future[Outcome], tuple[Job, ProcessPoolExecutor]] = {}
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

    def launch(self, job: Job, force: bool, what: str) -> None:
        """Hand a job to a worker that has nothing to do."""
        slot = self._slots.pop() if self._slots else self._worker()
        self._at_work[slot.submit(_work, str(job.folder), force)] = job, slot

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
                outcome = future.result()
                self._slots.append(slot)
            except (Held, LeaseLost):
                self._slots.append(slot)
                continue
            except BrokenProcessPool:
                slot.shutdown(wait=False)
                reason = "its process was killed; where memory is short, fewer `--workers` need less"
                outcome = Outcome("failed", 0.0, reason)
            yield job, outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers, after what they have begun."""
        self._open.close()


def _begin(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _work(folder: str, force: bool) -> Outcome:
    """Run a job in a worker."""
    with progress.shown(None):  # the first process tells the user
        return Job.read(Path(folder)).attempt(force)
