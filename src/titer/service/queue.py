"""The queue: jobs wait in their table, workers take them, and one whose worker died is taken by another.

Nobody's clock is compared with another's. A worker that holds a job counts `beats` up; another one that sees the count stand still
for `SECONDS` by its own monotonic clock may take the job, whose `attempt` then counts up, and from then on the former one can
write nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from titer.service.database import Database
from titer.service.tables import Event, Job

SECONDS = 30.0
"""How long the beats of a worker must stand still before its job may be taken."""


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
    """

    def __init__(self, database: Database, worker: str, seconds: float = SECONDS) -> None:
        self.database, self.worker, self.seconds = database, worker, seconds

    def claim(self) -> Claim | None:
        """Take the next job: of the organisation with the fewest that run, the highest priority first, then the oldest."""
        raise NotImplementedError

    def beat(self, claim: Claim) -> str | None:
        """Say that the worker is alive; returns what the job's owner wishes: `cancel`, `pause` or nothing.

        Raises:
            Lost: The job is another's now.
        """
        raise NotImplementedError

    def give_back(self, claim: Claim, status: str = "queued") -> None:
        """Let a job go that is not at its end: `queued` for another worker, or `paused`."""
        raise NotImplementedError


def held(session: Session, claim: Claim) -> Job:
    """Return the job of a claim, locked until the transaction ends. Whatever a worker writes, it writes through this.

    Raises:
        Lost: The job is another's now, or it is over.
    """
    raise NotImplementedError


def say(
    session: Session,
    job: Job,
    message: str,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
) -> Event:
    """Add an event to a job, behind its others and no earlier than they."""
    raise NotImplementedError
