"""The audit log: lines that only grow in number, each with the hash of the one before, so that a change shows.

Who can write the database can write the whole chain anew, and no chain shows that by itself. What `verify` returns is therefore
to be kept elsewhere from time to time: a later `verify` against it finds every change of what came before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from titer.errors import TiterError
from titer.service.tables import LogEntry, LogHead, now

FIRST = "0" * 64
"""What stands for the line before the first one."""


@dataclass(frozen=True)
class Head:
    """The end of a log: enough to find out later whether anything up to it was changed.

    Attributes:
        number: Of its last line.
        digest: The hash of that line.
    """

    number: int
    digest: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read what `str` wrote: `NUMBER:HASH`."""
        number, _, digest = text.partition(":")
        if not number.isdecimal() or len(digest) != len(FIRST):
            raise TiterError(f"`{text}` is no end of an audit log.", "Write what `titer audit-log verify` printed.")
        return cls(int(number), digest)

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"


class Broken(Exception):
    """A log that was changed.

    Args:
        number: The first line that is not what was written there.
        reason: What is wrong with it.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")
        self.number, self.reason = number, reason


def digest(entry: LogEntry) -> str:
    """Return the hash of a line: of all that it says and the hash of the line before."""
    said = [entry.number, entry.at, entry.org_id, entry.actor, entry.action, entry.subject, entry.details, entry.before]
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def append(
    session: Session, org: str | None, actor: str, action: str, subject: str, details: dict[str, Any] | None = None
) -> LogEntry:
    """Add a line. Whoever adds one waits for those who add another, until their transactions end."""
    head = _head(session)
    entry = LogEntry(
        number=head.number + 1,
        at=now(),
        org_id=org,
        actor=actor,
        action=action,
        subject=subject,
        # As it will be read: its hash must not depend on what JSON cannot tell apart, such as a tuple and a list.
        details=json.loads(json.dumps(details or {}, allow_nan=False)),
        before=head.digest,
        digest="",
    )
    entry.digest = digest(entry)
    head.number, head.digest = entry.number, entry.digest
    session.add(entry)
    session.flush()
    return entry


def _head(session: Session) -> LogHead:
    """Return the end of the log, locked; the first one ever is made by one transaction alone, for which others wait."""
    query = select(LogHead).with_for_update().execution_options(populate_existing=True)
    head = session.scalar(query)
    if head is None:
        insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
        session.execute(insert(LogHead).values(id=1, number=0, digest=FIRST).on_conflict_do_nothing())
        head = session.scalars(query).one()
    return head


def verify(session: Session, known: Head | None = None) -> Head:
    """Read the whole log and return its end. The session must not have read anything before.

    Args:
        session: A transaction; all of it is seen as it was at one moment.
        known: An end that it had once, kept elsewhere.

    Raises:
        Broken: At the first line that was changed, removed, added or moved, also at the end.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    number, before, seen = 0, FIRST, known is None
    for entry in session.scalars(select(LogEntry).order_by(LogEntry.number).execution_options(yield_per=1000)):
        number += 1
        if entry.number != number:
            raise Broken(number, "it is missing")
        if entry.before != before:
            raise Broken(number, "it does not follow on the line before")
        if entry.digest != digest(entry):
            raise Broken(number, "it is not what was written there")
        if known is not None and number == known.number:
            if entry.digest != known.digest:
                raise Broken(number, "it is another one than the end of the log that was kept")
            seen = True
        before = entry.digest
        session.expunge(entry)
    head = session.scalar(select(LogHead))
    ends = Head(0, FIRST) if head is None else Head(head.number, head.digest)
    if ends.number > number:
        raise Broken(number + 1, f"it is missing, as is everything up to line {ends.number}")
    if ends.number < number:
        raise Broken(ends.number + 1, "it was added behind the end of the log")
    if ends.digest != before:
        raise Broken(number, "it is not the one that was the end of the log")
    if known is not None and not seen and known != Head(0, FIRST):
        raise Broken(number + 1, f"it is missing, as is everything up to line {known.number}, which was once there")
    return ends


def last(session: Session, count: int) -> list[LogEntry]:
    """Return the last lines, the oldest first."""
    lines = session.scalars(select(LogEntry).order_by(LogEntry.number.desc()).limit(count)).all()
    return list(reversed(lines))
