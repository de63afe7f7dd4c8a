"""The queue: jobs wait in their table, workers take them, and one whose worker died is taken by another.

Nobody's clock is compared with another's. A worker that holds a job counts `beats` up; another one that sees the count stand still
for `SECONDS` by its own monotonic clock may take the job, whose `attempt` then counts up, and from then on the former one can
write nothing any more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from titer.errors import TiterError
from titer.service import policy, quotas
from titer.service.chain import append
from titer.service.database import Database
from titer.service.identifiers import new_id
from titer.service.policy import Policy, QuotaPolicy
from titer.service.quotas import ENDS
from titer.service.refusals import Refused
from titer.service.store import Store
from titer.service.tables import Event, File, Job, Organisation, now
from titer.service.training_files import LEAST, check_files
from titer.text import say as write

SECONDS = 30.0
"""How long the beats of a worker must stand still before its job may be taken."""
SAID = "said"
"""What a session calls the events that it added."""


class Lost(Exception):
    """A job that another worker has taken in the meantime, or that is over."""


@dataclass(frozen=True)
class Claim:
    """A job that a worker holds.

    Attributes:
        job: Its id.
        org: Its organisation.
        kind: `fine_tuning` or `audit`.
        attempt: What its `attempt` was when it was taken.
        worker: Who took it.
    """

    job: str
    org: str
    kind: str
    attempt: int
    worker: str


class Queue:
    """The queue as one worker sees it.

    Args:
        database: Where the jobs are.
        worker: The worker's name: machine, process and a random part.
        seconds: As `SECONDS`.
        clock: A clock of this process that never runs back.
    """

    def __init__(
        self,
        database: Database,
        worker: str,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database, self.worker, self.seconds, self.clock = database, worker, seconds, clock
        self._looked: float | None = None
        self._broken: set[str] = set()
        # Of each job that runs: its attempt, its beats, and for how long they were seen to be these.
        self._still: dict[str, tuple[int, int, float]] = {}

    def claim(self) -> Claim | None:
        """Take the next job: of the organisation with the fewest that run, the highest priority first, then the oldest.

        Of organisations that are equal in this, the one that was served longest ago comes first, so that also a single worker,
        of which nothing runs whenever it claims, takes turns. One whose worker is dead comes before all: its organisation has it among those that run already. Nothing is locked
        while there is nothing to be taken.
        """
        stalled, some_wait = self._look()
        for job, attempt, beats in stalled:
            claim = self._take_over(job, attempt, beats)
            if claim is not None:
                return claim
        return self._take_next() if some_wait else None

    def beat(self, claim: Claim) -> str | None:
        """Say that the worker is alive; returns what the job's owner wishes: `cancel`, `pause` or nothing.

        Raises:
            Lost: The job is another's now.
        """
        with self.database.writing() as session:
            mine = (Job.id == claim.job, Job.status == "running")
            same = (Job.attempt == claim.attempt, Job.worker == claim.worker)
            beaten = update(Job).where(*mine, *same).values(beats=Job.beats + 1).returning(Job.wish)
            found = session.execute(beaten.execution_options(synchronize_session=False)).first()
        if found is None:
            raise _lost(claim)
        wish: str | None = found[0]
        return wish

    def give_back(self, claim: Claim, status: str = "queued") -> None:
        """Let a job go that is not at its end: `queued` for another worker, or `paused`.

        What its owner wishes meanwhile is done: one to be cancelled is over, one to be paused does not wait.

        Raises:
            Lost: The job is another's now.
            ValueError: For another status.
        """
        if status not in ("queued", "paused"):
            raise ValueError(f"no status to give a job back with: {status!r}")
        with self.database.writing() as session:
            let_go(session, held(session, claim), status)

    def validate(self, store: Store, most: int = 8) -> int:
        """Check the files of some jobs that came in: each is `queued` then, or has failed with all that is wrong.

        Takes as long as reading them does, in no transaction: not to be called where a beat would wait for it.

        Args:
            store: Where the files lie.
            most: Most jobs whose files are checked.

        Returns:
            How many jobs were settled.
        """
        with self.database.reading() as session:
            jobs = _next_to_check(session, most)
        return sum(self._validate(store, job) for job in jobs)

    def _validate(self, store: Store, name: str) -> bool:
        with self.database.reading() as session:
            rules = policy.current(session)
            job = session.scalar(select(Job).where(Job.id == name))
            if job is None:
                return False
            params = {"training_file": job.file_id, "validation_file": job.validation_file_id}
            files = {
                param: session.scalar(select(File).where(File.id == file, File.org_id == job.org_id))
                for param, file in params.items()
                if file is not None
            }
        most = policy.from_dict(job.policy).limits.rows
        rows, error = check_files(store, files, most, LEAST if job.kind == "fine_tuning" else 1)
        with self.database.writing() as session:
            quota = self._quota_of(rules, quotas.lock(session, job.org_id))
            if quota is None:
                return False
            coming = (Job.id == name, Job.status == "validating_files")
            found = session.scalar(select(Job).where(*coming).with_for_update())
            if found is None:  # Another worker was faster, or its owner did not want it any more.
                return False
            _settle(session, found, rows, error or _beyond(session, found, rows, quota.rows_a_day), self.worker)
        return True

    # -- what can be taken --------------------------------------------------------------------------------------------

    def _look(self) -> tuple[list[tuple[str, int, int]], bool]:
        """Return the jobs whose beats have stood still for long enough, and whether any job waits.

        Only time in which this worker looked counts, in steps of at most a third of `seconds`. After a break of its own, or of
        the database for all, the workers that live thus have time to beat before anyone takes their jobs.
        """
        with self.database.reading() as session:
            running = session.execute(select(Job.id, Job.attempt, Job.beats).where(Job.status == "running")).all()
            some_wait = session.scalar(select(Job.number).where(Job.status == "queued").limit(1)) is not None
        moment = self.clock()
        passed = 0.0 if self._looked is None else min(moment - self._looked, self.seconds / 3)
        self._looked = moment
        self._still = {job: (attempt, beats, self._age(job, attempt, beats, passed)) for job, attempt, beats in running}
        stalled = [(job, *seen[:2]) for job, seen in self._still.items() if seen[2] >= self.seconds]
        return stalled, some_wait

    def _age(self, job: str, attempt: int, beats: int, passed: float) -> float:
        before = self._still.get(job)
        return before[2] + passed if before is not None and before[:2] == (attempt, beats) else 0.0

    def _take_over(self, name: str, attempt: int, beats: int) -> Claim | None:
        """Take a job from a worker that stands still, unless it moved, or another one was faster."""
        with self.database.writing() as session:
            same = (Job.id == name, Job.status == "running", Job.attempt == attempt, Job.beats == beats)
            job = session.scalar(select(Job).where(*same).with_for_update(skip_locked=True))
            if job is None or _grant(session, job):
                return None
            say(session, job, "The worker of the job does not answer any more; another one goes on with it.", "warn")
            return self._take(session, job, "job.taken_over")

    def _take_next(self) -> Claim | None:
        with self.database.reading() as session:  # Reading a policy takes longer than taking a job.
            rules = policy.current(session)
        with self.database.writing() as session:
            for organisation in self._by_turn(session, rules):
                waiting = select(Job).where(Job.status == "queued", Job.org_id == organisation.id)
                first = waiting.order_by(Job.priority.desc(), Job.number).limit(1)
                # One that is locked is being cancelled or paused.
                job = session.scalar(first.with_for_update(skip_locked=True))
                if job is not None:
                    organisation.served = (session.scalar(select(func.max(Organisation.served))) or 0) + 1
                    what = "Audit" if job.kind == "audit" else "Fine-tuning job"
                    say(session, job, f"{what} {'resumed' if job.attempt else 'started'}.")
                    return self._take(session, job, "job.started")
        return None

    def _by_turn(self, session: Session, rules: Policy) -> Iterator[Organisation]:
        """Yield the organisations whose jobs may be taken now, in their order."""
        waiting = _counted(session, "queued")
        # Those who claim wait for each other here, so that nobody counts jobs that another one is about to take.
        rows = select(Organisation).where(Organisation.id.in_(waiting)).order_by(Organisation.id)
        organisations = session.scalars(rows.with_for_update(key_share=True)).all()
        running = {org: count for org, (count, _, _) in _counted(session, "running").items()}

        def turn(one: Organisation) -> tuple[int, int, int, int]:
            _, priority, oldest = waiting[one.id]
            return running.get(one.id, 0), -priority, one.served, oldest

        for one in sorted(organisations, key=turn):
            quota = self._quota_of(rules, one)
            if quota is not None and (quota.running_jobs is None or running.get(one.id, 0) < quota.running_jobs):
                yield one

    def _quota_of(self, rules: Policy, organisation: Organisation) -> QuotaPolicy | None:
        """Return what an organisation may use; `None`, said once, for one whose limits cannot be meant: its jobs wait."""
        try:
            return quotas.quota_of(rules, organisation)
        except TiterError as error:
            if organisation.id not in self._broken:
                self._broken.add(organisation.id)
                write(f"jobs of the organisation {organisation.id} wait, whose limits are broken: {error}", sys.stderr)
            return None

    def _take(self, session: Session, job: Job, action: str) -> Claim:
        job.status, job.worker, job.wish = "running", self.worker, None
        job.attempt += 1
        job.beats += 1
        if job.started_at is None:
            job.started_at = now()
        append(session, job.org_id, self.worker, action, job.id, {"attempt": job.attempt})
        session.flush()
        return Claim(job.id, job.org_id, job.kind, job.attempt, self.worker)


def _counted(session: Session, status: str) -> dict[str, tuple[int, int, int]]:
    """Return of each organisation with jobs of a status: how many, their highest priority, their oldest."""
    columns = (Job.org_id, func.count(), func.max(Job.priority), func.min(Job.number))
    rows = session.execute(select(*columns).where(Job.status == status).group_by(Job.org_id)).all()
    return {org: (int(count), int(priority), int(oldest)) for org, count, priority, oldest in rows}


def held(session: Session, claim: Claim) -> Job:
    """Return the job of a claim, locked until the transaction ends. Whatever a worker writes, it writes through this.

    Raises:
        Lost: The job is another's now, or it is over.
    """
    query = select(Job).where(Job.id == claim.job).with_for_update().execution_options(populate_existing=True)
    job = session.scalar(query)
    if job is None or (job.status, job.attempt, job.worker) != ("running", claim.attempt, claim.worker):
        raise _lost(claim)
    return job


def say(
    session: Session,
    job: Job,
    message: str,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
) -> Event:
    """Add an event to a job, behind its others and no earlier than they."""
    session.flush()
    # Who adds another event to it waits until this one is there, or is not.
    session.execute(select(Job.id).where(Job.id == job.id).with_for_update())
    events = select(Event.place, Event.created_at).where(Event.job_id == job.id)
    last = session.execute(events.order_by(Event.place.desc()).limit(1)).first()
    place, moment = (1, now()) if last is None else (last[0] + 1, max(last[1], now()))
    event = Event(
        id=new_id("event"),
        org_id=job.org_id,
        job_id=job.id,
        place=place,
        created_at=moment,
        level=level,
        kind=kind,
        message=message,
        data=data,
    )
    session.add(event)
    session.flush()
    session.info.setdefault(SAID, []).append(event.id)
    return event


def said(session: Session) -> list[str]:
    """Return the ids of the events that a transaction has added."""
    return list(session.info.get(SAID, []))


def finish(
    session: Session, job: Job, status: str, error: dict[str, Any] | None = None, actor: str | None = None
) -> None:
    """End a job that is locked: nothing is done with it any more.

    Args:
        session: The transaction.
        job: The job, of `held`, or locked by whoever cancels it.
        status: `succeeded`, `failed` or `cancelled`.
        error: Why it failed: code and message, and the parameter at fault.
        actor: Who ends it, for the audit log; by default its worker.

    Raises:
        Lost: It is over already.
        ValueError: For a status that is no end, a failure without a reason, or a reason without a failure.
    """
    if status not in ENDS or (status == "failed") != (error is not None):
        raise ValueError(f"no end of a job: {status!r} with the error {error!r}")
    if job.status in ENDS:
        raise Lost(f"The job {job.id} is over: it {job.status}.")
    reason = {"cancelled": "The job was cancelled.", "succeeded": "The job has successfully completed."}
    say(session, job, error["message"] if error else reason[status], "error" if error else "info")
    actor = actor or job.worker or "server"
    job.status, job.finished_at, job.worker, job.wish, job.estimated_finish = status, now(), None, None, None
    job.error = {"param": None, **error} if error else None
    append(session, job.org_id, actor, f"job.{status}", job.id, {"error": job.error} if error else {})
    session.flush()


def let_go(session: Session, job: Job, status: str = "queued") -> None:
    """Let a job go that is held and not at its end, as `Queue.give_back`."""
    if not _grant(session, job):
        _rest(session, job, status)


def wait_again(session: Session, job: Job) -> None:
    """Let a job that is locked wait for a worker, or for its files to be checked where they were not."""
    job.status = "queued" if job.rows is not None or job.kind == "audit" else "validating_files"


def _grant(session: Session, job: Job) -> bool:
    """Do what the owner of a job wishes that nobody works on any more; returns whether there was a wish."""
    wish = job.wish
    if wish == "cancel":
        finish(session, job, "cancelled")
    elif wish == "pause":
        _rest(session, job, "paused")
    return wish is not None


def _rest(session: Session, job: Job, status: str) -> None:
    say(session, job, "The job was paused." if status == "paused" else "The job waits for a worker again.")
    append(session, job.org_id, job.worker or "server", f"job.{status}", job.id)
    job.status, job.worker, job.wish, job.estimated_finish = status, None, None, None
    session.flush()


def _lost(claim: Claim) -> Lost:
    return Lost(f"The job {claim.job} is not held by {claim.worker} any more (attempt {claim.attempt}).")


def _next_to_check(session: Session, most: int) -> Sequence[str]:
    """Return the ids of jobs whose files are to be checked: the oldest of each organisation, then their second ones, ..."""
    turn = func.row_number().over(partition_by=Job.org_id, order_by=Job.number)
    waiting = select(Job.id, Job.number, turn.label("turn")).where(Job.status == "validating_files").subquery()
    return session.scalars(select(waiting.c.id).order_by(waiting.c.turn, waiting.c.number).limit(most)).all()


def _beyond(session: Session, job: Job, rows: dict[str, int], limit: int | None) -> dict[str, Any] | None:
    """Return the error of a job with which its organisation would train and validate on too many rows today."""
    if limit is None or job.kind != "fine_tuning":
        return None
    amount, more = quotas.used(session, job.org_id).rows, 0
    for param, examples in rows.items():
        more += examples
        try:
            quotas.check("rows_a_day", limit, amount, more)
        except Refused as refused:
            return {"code": refused.code, "message": refused.message, "param": param}
    return None


def _settle(session: Session, job: Job, rows: dict[str, int], error: dict[str, Any] | None, actor: str) -> None:
    """Let a job whose files were checked wait for a worker, or end."""
    if error is not None:
        finish(session, job, "failed", error, actor)
        return
    job.rows, job.validation_rows = rows["training_file"], rows.get("validation_file")
    job.status = "queued"
    say(session, job, "Files validated, moving job to queued state.")
