"""A plan: jobs in an order in which they can run, and running them.

A job that is done is never done again; an interrupted training goes on from its last checkpoint; a changed setting,
dataset, model or method gives another key, so stale numbers cannot survive. A job that fails is reported with its
reason; what depends on it is skipped and everything else goes on. Several processes that are given one run folder share its
jobs (`titer.jobs.leases`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.data.records import Record
from titer.jobs.job import SCHEMA, Job, Kind, key_of
from titer.jobs.launchers import Launcher, local
from titer.jobs.provenance import digest, library_versions
from titer.jobs.work import Work
from titer.progress import Task
from titer.results.artefacts import write_atomically

PLANNED = "plan.json"
"""Which jobs the last plan of a run folder has, in their order; others in it are of plans before."""

LOOK_EVERY = 0.5
"""Seconds between looks at jobs that are at work elsewhere."""


@dataclass
class Plan:
    """Jobs in an order in which they can run.

    Attributes:
        run_folder: Where everything goes.
        jobs: All jobs by their keys, each once however many want it.
        held: The rows that they work on, by digest.
    """

    run_folder: Path
    jobs: dict[str, Job] = field(default_factory=dict)
    held: dict[str, Sequence[Record]] = field(default_factory=dict)

    def add(
        self,
        kind: Kind,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Sequence[Record]] | None = None,
        needs: Sequence[Job] = (),
        places: Mapping[str, Any] | None = None,
        work: Work | None = None,
    ) -> Job:
        """Add a job, or return the one that does the same work already.

        Args:
            kind: What it does.
            name: What it is, for people.
            settings: Plain data that its result depends on.
            inputs: Rows that its result depends on.
            needs: Jobs that must be done before.
            places: Plain data that it needs and its result does not depend on: where things are on this machine.
            work: What there is to compute.
        """
        digests = {}
        for what, records in (inputs or {}).items():
            digests[what] = digest(list(records))
            self.held[digests[what]] = records
        spec = {
            "schema": SCHEMA, "kind": kind.name, "run": kind.path, "version": kind.version, "name": name,
            "libraries": library_versions(), "settings": settings, "inputs": digests,
            "needs": [needed.folder.name for needed in needs], "places": places or {},
        }  # fmt: skip
        # As another process will read it.
        spec = json.loads(json.dumps(spec, default=str))
        key = key_of(spec, needs)
        if key not in self.jobs:
            self.jobs[key] = Job(spec, self.run_folder, key, list(needs), self.held, work, kind)
        return self.jobs[key]

    def write(self) -> None:
        """Write what every job is to do, for any process to do it, and which there are."""
        for job in self.jobs.values():
            job.write()
        text = json.dumps({"jobs": [job.folder.name for job in self.jobs.values()]}, indent=1).encode() + b"\n"
        if not (self.run_folder / PLANNED).is_file() or (self.run_folder / PLANNED).read_bytes() != text:
            write_atomically(self.run_folder / PLANNED, text)

    def to_do(self, force: bool = False) -> dict[str, Work]:
        """Return what there is to compute in jobs that are not done, by their keys; `force` does all again."""
        return {key: job.work for key, job in self.jobs.items() if job.work is not None and (force or not job.done)}


class Silent:
    """Says nothing of how jobs begin and come out."""

    def begins(self, job: Job) -> None:
        """Take note that a job begins."""

    def waits(self, job: Job, holder: str) -> None:
        """Take note that there is nothing to do before another process is done with a job."""

    def settled(self, job: Job) -> None:
        """Take note that a job has come to its end."""


def execute(
    plan: Plan,
    show: Any,
    force: bool = False,
    stop_at: Sequence[str] = (),
    workers: int = 1,
    launcher: Launcher | None = None,
) -> bool:
    """Run the jobs of a plan that are not done yet.

    Args:
        plan: What to run.
        show: Tells the user, as `Silent` does not. How far a job is, `titer.progress` says.
        force: Do jobs again that are done.
        stop_at: Kinds of jobs after whose failure no other job is begun.
        workers: Jobs that run at the same time, each in a process of its own; 1 runs them in this one.
        launcher: Runs them instead; `workers` counts nothing then.

    Returns:
        Whether every job is done.

    Raises:
        OSError: For a disk that is full, read-only or gone.
    """
    plan.write()
    with launcher or local(workers) as opened:
        opened.take_up(plan.jobs.values())
        _Execution(plan, show, force, stop_at, opened).run()
    return all(job.status in ("done", "cached") for job in plan.jobs.values())


class _Execution:
    """One run of a plan."""

    def __init__(self, plan: Plan, show: Any, force: bool, stop_at: Sequence[str], launcher: Launcher) -> None:
        self.show, self.force, self.stop_at, self.launcher = show, force, stop_at, launcher
        self.numbers = {key: number for number, key in enumerate(plan.jobs, 1)}
        self.open = list(plan.jobs.values())
        self.announced: set[str] = set()
        self.stopped = False

    def run(self) -> None:
        while self.open:
            before = len(self.open)
            elsewhere = self._begin_what_can()
            self._take_in(wait=len(self.open) == before and self.launcher.busy)
            if self.stopped and not self.launcher.busy:
                return
            if len(self.open) == before and not self.launcher.busy:
                self._wait(elsewhere)

    def _begin_what_can(self) -> dict[str, str]:
        """Settle or begin each job that can be; return who holds those that another process works on, by key."""
        elsewhere = {}
        for job in list(self.open):
            if job in self.launcher or self.stopped:
                continue
            blocked = next((needed for needed in job.needs if needed.status in ("failed", "skipped")), None)
            if blocked is not None:
                job.status, job.reason = "skipped", f"needs `{blocked.name}`, which {blocked.status}"
                self._settle(job)
            elif any(needed.status == "planned" for needed in job.needs):
                continue
            elif not self.force and job.done:
                job.status, job.seconds = "cached", job.left()["seconds"]
                self._settle(job)
            elif (holder := job.holder()) is not None:
                elsewhere[job.key] = holder
            elif self.launcher.free:
                self._launch(job)
                self._take_in(wait=False)
        return elsewhere

    def _launch(self, job: Job) -> None:
        if job.key not in self.announced:
            self.show.begins(job)
            self.announced.add(job.key)
        whole = f"{job.name} (job {self.numbers[job.key]} of {len(self.numbers)})"
        self.launcher.launch(job, self.force, whole)

    def _take_in(self, wait: bool) -> None:
        """Take in the outcomes of jobs that have come to their end."""
        for job, outcome in self.launcher.ended(wait):
            job.status, job.seconds, job.reason, job.mistake = outcome
            self._settle(job)

    def _settle(self, job: Job) -> None:
        self.open.remove(job)
        self.show.settled(job)
        if job.status == "failed" and job.kind in self.stop_at:
            self.stopped = True

    def _wait(self, elsewhere: Mapping[str, str]) -> None:
        """Wait for another process."""
        job = next((job for job in self.open if job.key in elsewhere), None)
        if job is None:
            return  # it has ended between two looks
        self.show.waits(job, elsewhere[job.key])
        with Task(f"waiting for {job.name}, at work in {elsewhere[job.key]}"):
            time.sleep(LOOK_EVERY)
