"""The audit log: lines that only grow in number, each with the hash of the one before, so that a change shows."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from titer.service.tables import LogEntry, LogHead, now

FIRST = "0" * 64
"""What stands for the line before the first one."""


def digest(entry: LogEntry) -> str:
    """Return the hash of a line: of all that it says and the hash of the line before."""
    said = [entry.number, entry.at, entry.org_id, entry.actor, entry.action, entry.subject, entry.details, entry.before]
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def append(
    session: Session, org: str | None, actor: str, action: str, subject: str, details: dict[str, Any] | None = None
) -> LogEntry:
    """Add a line. Whoever adds one waits for those who add another, until their transactions end."""
    head = session.scalar(select(LogHead).with_for_update().execution_options(populate_existing=True))
    if head is None:
        head = LogHead(id=1, number=0, digest=FIRST)
        session.add(head)
    entry = LogEntry(
        number=head.number + 1,
        at=now(),
        org_id=org,
        actor=actor,
        action=action,
        subject=subject,
        details=details or {},
        before=head.digest,
        digest="",
    )
    entry.digest = digest(entry)
    head.number, head.digest = entry.number, entry.digest
    session.add(entry)
    session.flush()
    return entry
