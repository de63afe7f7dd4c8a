"""How a run is: what runs where, what failed and why, how long it will take yet. From its folder alone, whoever runs it.

Nothing is written, nothing is asked of a cluster, and the hashes of files are not looked at. Times are by this machine's clock.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from titer.errors import TiterError
from titer.files import read_json
from titer.jobs.clusters import read_record
from titer.jobs.job import DONE, ERROR, SPEC
from titer.jobs.leases import Holder, holders, may_run
from titer.jobs.plan import PLANNED
from titer.progress import duration
from titer.text import one_line

STATES = ("done", "running", "submitted", "waiting", "failed", "blocked")
"""What a job may be: handed to a cluster and at work nowhere is `submitted`; one that needs a failed one is `blocked`."""


@dataclass(frozen=True)
class JobStatus:
    """How a job is.

    Attributes:
        name: What it is, for people.
        key: Hash of everything that its result depends on.
        kind: Of what kind it is.
        status: One of `STATES`.
        where: Process and machine that work on it, or what its cluster calls it.
        since: When that began, in seconds since 1970.
        seconds: How long it took, when it is done.
        reason: Why it failed.
        path: Of its folder, or of the traceback of its failure.
    """

    name: str
    key: str
    kind: str
    status: str
    where: str = ""
    since: float | None = None
    seconds: float | None = None
    reason: str = ""
    path: str = ""


@dataclass(frozen=True)
class RunStatus:
    """How a run is.

    Attributes:
        run: Its folder.
        jobs: Those of its last plan in their order, and others that somebody works on.
    """

    run: Path
    jobs: tuple[JobStatus, ...]

    def count(self, status: str) -> int:
        """Return how many jobs are so."""
        return sum(job.status == status for job in self.jobs)

    @property
    def open(self) -> bool:
        """Whether anything is to be done that can be."""
        return any(job.status in ("running", "submitted", "waiting") for job in self.jobs)

    def kinds(self) -> dict[str, Counter[str]]:
        """Return how many jobs of each kind are what."""
        found: dict[str, Counter[str]] = {}
        for job in self.jobs:
            found.setdefault(job.kind, Counter())[job.status] += 1
        return found

    def mean(self, kind: str) -> float | None:
        """Return how many seconds jobs of a kind that are done took."""
        took = [job.seconds for job in self.jobs if job.kind == kind and job.seconds is not None]
        return statistics.fmean(took) if took else None

    def left(self, now: float | None = None) -> tuple[float | None, str]:
        """Return how many seconds it will take yet, or `None`, and why that is not known.

        The mean of jobs of a kind that are done, times those that are left of it, over how many jobs run now.
        """
        now = time.time() if now is None else now
        todo = [job for job in self.jobs if job.status in ("running", "submitted", "waiting")]
        if not todo:
            return 0.0, ""
        running = self.count("running")
        if not running:
            return None, "nothing runs"
        means = {kind: self.mean(kind) for kind in dict.fromkeys(job.kind for job in todo)}
        new = [kind for kind, mean in means.items() if mean is None]
        if new:
            return None, f"no job `{new[0]}` is done yet"
        seconds = 0.0
        for job in todo:
            past = now - job.since if job.status == "running" and job.since is not None else 0.0
            seconds += max(0.0, (means[job.kind] or 0.0) - max(0.0, past))
        return seconds / running, ""

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(state)} {state}" for state in STATES if self.count(state))
        seconds, why = self.left()
        left = f"time left is not known: {why}" if seconds is None else f"about {duration(seconds)} left"
        return f"{self.run}: {len(self.jobs)} jobs, {counts}" + (f"; {left}" if self.open else "")

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        seconds, why = self.left()
        return {
            "run": str(self.run),
            "jobs": [asdict(job) for job in self.jobs],
            "kinds": {
                kind: {**{state: counts[state] for state in STATES}, "mean_seconds": self.mean(kind)}
                for kind, counts in self.kinds().items()
            },
            "seconds_left": seconds,
            "not_known": why,
        }


def read_status(run: Path) -> RunStatus:
    """Return how a run is.

    Raises:
        TiterError: Where no run is.
    """
    if not (run / "jobs").is_dir():
        raise TiterError(
            f"{run} is no folder of a run.", "Name one: `titer run` says where it is, runs/NAME by default."
        )
    held = holders(run / "leases")
    there = sorted(path.parent.name for path in (run / "jobs").glob(f"*/{SPEC}"))
    planned = read_json(run / PLANNED).get("jobs", []) if (run / PLANNED).is_file() else there
    names = [*planned, *(name for name in there if name in held and name not in planned)]
    found: dict[str, JobStatus] = {}
    for name in names:
        spec = read_record(run / "jobs" / name / SPEC)
        if spec is not None:  # else the folder goes at this moment, or is not there yet
            found[name] = _status(run, name, spec, held.get(name), found)
    return RunStatus(run, tuple(found.values()))


def _status(
    run: Path, name: str, spec: Mapping[str, Any], holder: Holder | None, before: Mapping[str, JobStatus]
) -> JobStatus:
    folder = run / "jobs" / name
    kind, _, key = name.partition("-")
    about: dict[str, Any] = {"name": str(spec.get("name")), "key": key, "kind": kind, "path": str(folder)}
    sent = _sent(run, key)
    if holder is not None:
        called = f"{_called(sent)}, " if sent else ""
        where = f"{called}process {holder.pid} on {holder.machine}"
        return JobStatus(**about, status="running", where=where, since=holder.since)
    done = read_record(folder / DONE)
    if done is not None:
        return JobStatus(**about, status="done", seconds=done.get("seconds"))
    failed_at = _modified(folder / ERROR)
    if sent and sent["since"] >= (failed_at or 0.0):
        return JobStatus(**about, status="submitted", where=_called(sent), since=sent["since"])
    if failed_at is not None:
        reason = _first_line(folder / ERROR)
        return JobStatus(**about | {"path": str(folder / ERROR)}, status="failed", since=failed_at, reason=reason)
    lacking = [before[needed] for needed in spec.get("needs", []) if needed in before]
    broken = next((needed for needed in lacking if needed.status in ("failed", "blocked")), None)
    if broken is not None:
        return JobStatus(**about, status="blocked", reason=f"needs `{broken.name}`, which {_is(broken)}")
    return JobStatus(**about, status="waiting")


def _called(sent: Mapping[str, Any]) -> str:
    return f"{sent.get('cluster', sent['launcher'])} {sent['id']}"


def _is(job: JobStatus) -> str:
    return "failed" if job.status == "failed" else "is blocked"


def _sent(run: Path, key: str) -> dict[str, Any] | None:
    """Return what a cluster calls a job that was handed to it, unless it ended with its launcher."""
    record = read_record(run / "launched" / f"{key}.json")
    if record is None or not {"launcher", "id", "since", "by"} <= record.keys():
        return None
    return record if record.get("outlives") or may_run(record["by"]) else None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _first_line(path: Path) -> str:
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return one_line(next((line for line in lines if line.strip()), ""))
