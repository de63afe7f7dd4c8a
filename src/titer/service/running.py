"""A job that is being done, as the process that does it sees it: its database, its store, its folder, and whether to stop."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from titer.errors import TiterError
from titer.files import DiskError
from titer.service import policy
from titer.service.chain import append
from titer.service.context import Service
from titer.service.policy import Policy
from titer.service.queue import Claim, held, said, say
from titer.service.tables import Event, Job, Organisation

T = TypeVar("T")
OVER, REPORTED, AGAIN, LOST, ORPHANED, STOPPED = 0, 70, 75, 76, 77, 130
"""Exit codes of a job's process: the job is over; it failed by a fault that the log tells; it cannot go on now; it is another
worker's; the worker died; the process was stopped, and the job can go on."""
PATIENCE = 600.0
"""Seconds for which a job waits for a database that is away."""
REMOTE = ("botocore", "aiobotocore", "aiohttp", "s3fs", "urllib3")
"""Packages whose errors are those of a store that cannot be reached."""

logger = logging.getLogger(__name__)


class JobFailed(Exception):
    """A job that cannot be done; its owner is told why.

    Args:
        code: OpenAI's `error.code`.
        message: What is wrong and what to do.
        param: What of the request is at fault.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class Away(Exception):
    """The database, the store or the disk cannot be used now. The job goes on when they can."""


class Stopped(KeyboardInterrupt):
    """The worker asked for the job to be stopped. No part of the work may take it for an error of its own."""


class Stop:
    """Whether the worker asked to stop, by SIGINT.

    Attributes:
        asked: Whether it did.
        waits: Whether whoever works looks at `asked` by itself; else the work is broken off on the spot.
    """

    def __init__(self) -> None:
        self.asked = self.waits = False

    def listen(self) -> None:
        """Listen to SIGINT from now on."""
        signal.signal(signal.SIGINT, self._heard)

    def _heard(self, number: int, frame: Any) -> None:
        self.asked = True
        if not self.waits:
            raise Stopped

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let nothing be broken off in the block, which looks at `asked` by itself."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False

    def check(self) -> None:
        """Break off if that was asked for."""
        if self.asked:
            raise Stopped


@dataclass
class Running:
    """A job that is being done.

    Attributes:
        service: The service.
        claim: The worker's hold of it.
        folder: Where its work lies, which is the current folder: of this attempt alone.
        job: What it says, as it was when the work began; only its stage is kept up to date.
        stop: Whether to stop.
    """

    service: Service
    claim: Claim
    folder: Path
    job: Job
    stop: Stop = field(default_factory=Stop)

    @property
    def policy(self) -> Policy:
        """The policy that the job goes by."""
        return policy.from_dict(self.job.policy)

    @property
    def place(self) -> str:
        """Where in the store everything about the job lies but its models."""
        return f"jobs/{self.claim.job}"

    # -- the database -------------------------------------------------------------------------------------------------

    def change(self, what: Callable[[Session, Job], T]) -> T:
        """Change the job, and what belongs to it, in one transaction, in which nobody else has it.

        A database that goes away while it commits may have done so, and only its answer is lost. What had said something by
        then is found by that, and is not done twice.

        Args:
            what: Changes it; is called again where the database was away, and must not depend on what an earlier call made.

        Raises:
            Lost: The job is another worker's now, or it is over.
            Away: The database was away for too long.
        """
        tried: list[tuple[list[str], T]] = []  # the events of each call, and what it returned

        def changed() -> T:
            with self.service.database.writing() as session:
                if tried:  # whoever still commits an earlier call is waited for
                    session.execute(select(Job.id).where(Job.id == self.claim.job).with_for_update())
                for events, result in tried:
                    if session.scalar(select(Event.id).where(Event.id.in_(events)).limit(1)) is not None:
                        return result
                result = what(session, held(session, self.claim))
                tried.append((said(session), result))
            return result

        return patiently(changed)

    def read(self, what: Callable[[Session], T]) -> T:
        """Look something up."""

        def found() -> T:
            with self.service.database.reading() as session:
                return what(session)

        return patiently(found)

    def tell(self, message: str, level: str = "info") -> None:
        """Add an event."""
        self.change(lambda session, job: say(session, job, message, level))

    def log(self, session: Session, action: str, subject: str | None = None, **details: Any) -> None:
        """Write a line into the audit log."""
        append(session, self.claim.org, self.claim.worker, action, subject or self.claim.job, details)

    def organisation(self, session: Session) -> str:
        """Return the name of the job's organisation."""
        found = session.get(Organisation, self.claim.org)
        return self.claim.org if found is None else found.name

    # -- the store ----------------------------------------------------------------------------------------------------

    def storing(self) -> AbstractContextManager[None]:
        """Make what goes wrong with the store in the block `Away`, but for what is not there, or damaged."""
        return reaching()


@contextmanager
def reaching() -> Iterator[None]:
    """Make what goes wrong with the artefact store in the block `Away`, but for what is not there, or damaged."""
    try:
        yield
    except (FileNotFoundError, TiterError):
        raise
    except DiskError as error:
        raise Away(f"{error.filename or 'A file'} cannot be written: {error.strerror}.") from error
    except Exception as error:
        if not is_of_the_store(error):
            raise
        raise Away(f"The artefact store cannot be used: {error}") from error


def is_of_the_store(error: Exception) -> bool:
    """Whether an error is one of a disk, or of whichever package reaches a store; what is anybody else's fault is not."""
    remote = type(error).__module__.partition(".")[0] in REMOTE
    return remote or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError))


def patiently(attempt: Callable[[], T], patience: float = PATIENCE) -> T:
    """Return what an attempt returns, which is made again while the database is away.

    Raises:
        Away: It was away for `patience` seconds.
    """
    begun, pause = time.monotonic(), 0.2
    while True:
        try:
            return attempt()
        except DBAPIError as error:
            if not is_away(error):
                raise
            if time.monotonic() - begun > patience:
                raise Away("The database is away.") from error
            logger.warning("The database is away (%s); trying again.", error.orig)
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def is_away(error: DBAPIError) -> bool:
    """Whether a database cannot be used now, and what was wanted of it may be wanted again."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def remove_work(service: Service, claim: Claim, earlier: bool = False) -> None:
    """Remove what an attempt at a job left on this machine, and earlier ones: the state that counts is in the store.

    Args:
        service: The service.
        claim: The attempt. A later one may be at work here already.
        earlier: Leave its own.
    """
    folder = service.work / claim.job
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name.isdigit() and int(path.name) < claim.attempt + (not earlier):
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()  # unless another one has something in it
