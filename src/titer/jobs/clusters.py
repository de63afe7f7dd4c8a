"""What launchers of clusters share: which they are, what their jobs ask for, what was handed out, and taking over from dead workers.

    RUN/launched/KEY.json   a job that was handed to a cluster, and what it is called there; gone when it has come to its end

A cluster runs `titer.jobs.launchers.work` in a process for each job, anywhere that the run's folder is. It need not run it once:
whoever has the lease does the job, and everybody else finds that out.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from titer.errors import TiterError, check_known
from titer.files import remove
from titer.jobs.job import Job, Outcome, note_failure
from titer.jobs.launchers import Came, Launcher, Order, local, order, taken_in
from titer.jobs.leases import this_process
from titer.progress import Task
from titer.results.artefacts import write_atomically

logger = logging.getLogger(__name__)

LAUNCHERS = ("local", "slurm", "ray")
TRIES = 3
"""How often a job is given to a worker that then dies, before it is said to have failed."""

LOOK_EVERY = 0.2
LOOK_UP_AFTER = 10.0
"""Seconds between looks at what the cluster says, and until the plan is looked at again meanwhile."""


def choose(
    name: str,
    workers: int,
    partition: str | None = None,
    resources: Mapping[str, Any] | None = None,
    address: str | None = None,
) -> Launcher:
    """Return what runs the jobs of a plan.

    Args:
        name: One of `LAUNCHERS`.
        workers: Jobs that run at the same time.
        partition: Of Slurm.
        resources: What jobs ask for, `mem_gb: 32`, or those of a kind, `align.num_gpus: 1`.
        address: Of a Ray cluster.

    Raises:
        TiterError: For names that nobody knows, and where the extra is not installed.
    """
    check_known([name], LAUNCHERS, "launcher")
    if name == "slurm":
        from titer.jobs.slurm import Slurm

        return Slurm(workers, partition, resources or {})
    if name == "ray":
        from titer.jobs.ray_cluster import Ray

        return Ray(workers, address, resources or {})
    return local(workers)


def extra(library: str, name: str) -> ModuleType:
    """Return a library that an extra of titer installs.

    Raises:
        TiterError: Where it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        hint = f"Install it: `pip install 'titer[{name}]'`."
        raise TiterError(f"`{name}` needs {library}, which is not installed.", hint) from error


class Resources:
    """What jobs ask for.

    Args:
        given: By the cluster's own name for it, for all jobs or, behind the name of a kind and a point, for those of a kind.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.plain = {key: value for key, value in given.items() if "." not in key}
        self.by_kind: dict[str, dict[str, Any]] = {}
        for key, value in given.items():
            kind, point, name = key.partition(".")
            if point:
                self.by_kind.setdefault(kind, {})[name] = value

    def of(self, kind: str) -> dict[str, Any]:
        """Return what jobs of a kind ask for."""
        return self.plain | self.by_kind.get(kind, {})

    def names(self) -> list[str]:
        """Return what is asked for, by whichever kind."""
        return [*dict.fromkeys([*self.plain, *(name for own in self.by_kind.values() for name in own)])]

    def check_kinds(self, jobs: Iterable[Job]) -> None:
        """Raise for kinds of which there is no job."""
        check_known(self.by_kind, dict.fromkeys(job.kind for job in jobs), "kind of job in resources")


# -- what was handed out -----------------------------------------------------------------------------------------------


def record_of(job: Job) -> Path:
    """Return where it says that a job was handed to a cluster."""
    return job.run_folder / "launched" / f"{job.key}.json"


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what such a file says: `launcher`, `id`, `since`, …; `None` where there is none, or it goes at this moment."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass
class Sent:
    """A job that a cluster has.

    Attributes:
        job: The job.
        order: What its worker was told; `None` of one that another launcher sent.
        handle: What the cluster knows it as; `None` before it was sent.
        over_since: When it was first seen to be over.
        parallelism: How many of those that were sent with it may run at the same time.
    """

    job: Job
    order: Order | None
    handle: Any = None
    over_since: float | None = None
    parallelism: int = 1


class Died(Exception):
    """Raised for a worker that ended without a word; says why. `final` where another one would end in the same way."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Away(ABC):
    """Hands jobs to a cluster, and takes in how they came out.

    Args:
        workers: Jobs that run at the same time.
        resources: What they ask for.
    """

    name = ""
    cluster: str | None = None
    """Which of several that go by one name."""
    outlives = False
    """Whether jobs go on when their launcher is gone."""

    def __init__(self, workers: int, resources: Resources) -> None:
        self.workers, self.resources = workers, resources
        self._sent: dict[str, Sent] = {}
        self._tries: dict[str, int] = {}

    @property
    def free(self) -> bool:
        """Whether it can take another job."""
        return len(self._sent) < self.workers

    @property
    def busy(self) -> bool:
        """Whether jobs that it took have not come to their end."""
        return bool(self._sent)

    def __contains__(self, job: object) -> bool:
        return isinstance(job, Job) and job.key in self._sent

    def take_up(self, jobs: Iterable[Job]) -> None:
        """Go on with those jobs that the launcher before handed to the cluster, and that are not over."""
        jobs = list(jobs)
        self.resources.check_kinds(jobs)
        for job in jobs:
            record = read_record(record_of(job))
            if record is None or (record.get("launcher"), record.get("cluster")) != (self.name, self.cluster):
                continue  # of another cluster, which may go on with it
            handle = self.handle_of(job, record)
            if handle is None:
                remove(record_of(job))
            else:
                self._sent[job.key] = Sent(job, None, handle, parallelism=record.get("parallelism", 1))

    def launch(self, job: Job, force: bool, what: str) -> None:
        """Hand a job to the cluster."""
        self._sent[job.key] = Sent(job, order(job, force))
        self.flush(wait=False)

    def ended(self, wait: bool) -> Iterator[tuple[Job, Outcome]]:
        """Yield jobs that have come to their end; `wait` for one, for a while."""
        self.flush(wait)
        over = self._over()
        if wait and not over:
            names = ", ".join(sent.job.name for sent in [*self._sent.values()][:5])
            with Task(f"{len(self._sent)} jobs by {self.name}: {names}{', …' if len(self._sent) > 5 else ''}"):
                end = time.monotonic() + LOOK_UP_AFTER
                while not over and time.monotonic() < end:
                    time.sleep(LOOK_EVERY + len(self._sent) / 500)  # to look costs the file system
                    over = self._over()
        for sent in over:
            outcome = self._outcome(sent)
            if sent.handle is None:
                continue  # it was sent again
            del self._sent[sent.job.key]
            remove(record_of(sent.job))
            if outcome is not None:
                yield sent.job, outcome

    def _over(self) -> list[Sent]:
        return [sent for sent in self._sent.values() if sent.handle is not None and self.over(sent)]

    def _outcome(self, sent: Sent) -> Outcome | None:
        """Return how a job came out, or send it again where its worker died."""
        try:
            return taken_in(self.result(sent))
        except Died as died:
            tries = self._tries[sent.job.key] = self._tries.get(sent.job.key, 0) + 1
            reason = " ".join(str(died).split())
            if not died.final and tries < TRIES:
                logger.warning("%s: %s; taken over (%d of %d).", sent.job.name, reason, tries, TRIES - 1)
                sent.order = sent.order.again() if sent.order is not None else order(sent.job, force=False)
                sent.handle = sent.over_since = None
                return None
            reason += "" if died.final else f"; its worker died {tries} times"
            note_failure(sent.job.folder, reason)
            return Outcome("failed", 0.0, reason)

    def note(self, sent: Sent, name: str, **more: Any) -> None:
        """Take note of what the cluster calls a job, for launchers to come and for `titer status`."""
        about = {"launcher": self.name, "id": name, "job": sent.job.folder.name, "since": time.time(), **more}
        about |= {"outlives": self.outlives, "by": this_process()}
        write_atomically(record_of(sent.job), json.dumps(about).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the cluster."""
        left = [read_record(record_of(sent.job)) or {} for sent in self._sent.values() if sent.handle is not None]
        if left and self.outlives:
            names = " ".join(dict.fromkeys(str(record.get("id", "?")).partition("_")[0] for record in left))
            logger.warning(
                "%d jobs stay with %s and go on there (%s); the same command takes them up.",
                len(left),
                self.name,
                names,
            )

    # -- what each cluster does in its own way -------------------------------------------------------------------------

    @abstractmethod
    def handle_of(self, job: Job, record: Mapping[str, Any]) -> Any:
        """Return what the cluster knows a job as that was handed to it before; `None` when it is over."""

    @abstractmethod
    def flush(self, wait: bool) -> None:
        """Hand over those jobs that have no handle yet; without `wait` there may be more in a moment."""

    @abstractmethod
    def over(self, sent: Sent) -> bool:
        """Whether a job's worker has come to its end."""

    @abstractmethod
    def result(self, sent: Sent) -> Came:
        """Return what a worker that has come to its end said.

        Raises:
            Died: When it said nothing.
        """


def cores(workers: int) -> int:
    """Return how many threads each of so many workers of this machine may have."""
    return max(1, (os.cpu_count() or 1) // workers)
