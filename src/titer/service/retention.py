"""What is kept for how long, and how it goes: rows first, with a note of what they named in the store, and then that.

A crash in between leaves the note, by which the next sweep removes the rest. Nobody sees a row whose contents are gone, and no
contents stay that no row or note names.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from titer.service.context import Service
from titer.service.keys import DAY
from titer.service.policy import RetentionPolicy
from titer.service.tables import Appeal, File, Job, Model, Organisation, Owned, Part, Removal, Upload, now
from titer.service.tenants import Tenant

ENDED = ("succeeded", "failed", "cancelled")
EVERY = 600.0
"""Seconds from one sweep to the next."""
AT_ONCE = 100
"""Most things that go in one transaction, for which everybody else who writes may wait."""
ACTOR = "retention"

logger = logging.getLogger(__name__)


@dataclass
class Swept:
    """What a sweep removed.

    Attributes:
        counts: How many of each kind: files, uploads, models, work (of jobs), places (in the store).
        failed: Places in the store that could not be removed, which the next sweep tries again.
    """

    counts: dict[str, int] = field(default_factory=dict)
    failed: int = 0

    def add(self, kind: str, count: int) -> None:
        """Count some more."""
        self.counts[kind] = self.counts.get(kind, 0) + count


# -- removing one thing -----------------------------------------------------------------------------------------------


def discard(session: Session, place: str) -> None:
    """Note that a place in the store is to go, with the transaction or not at all; `empty` then removes it."""
    session.add(Removal(place=place))


def remove_file(tenant: Tenant, file: File) -> None:
    """Remove a file with all that quotes it: appeals, and the rows of its audits, whose figures stay with their jobs."""
    session = tenant.session
    discard(session, file.place)
    for appeal in tenant.all(Appeal, Appeal.file_id == file.id):
        tenant.remove(appeal)
    for job in tenant.all(Job, Job.file_id == file.id, Job.status.in_(ENDED)):
        _tidy(session, job)
    tenant.log("file.deleted", file.id, bytes=file.bytes, digest=file.digest)
    tenant.remove(file)


def remove_model(tenant: Tenant, model: Model) -> None:
    """Remove a model with its adapter."""
    discard(tenant.session, model.place)
    tenant.log("model.deleted", model.id)
    tenant.remove(model)


def is_needed(tenant: Tenant, file: File) -> bool:
    """Whether a job that is not at its end still reads a file."""
    reads = or_(Job.file_id == file.id, Job.validation_file_id == file.id)
    return tenant.count(Job, reads, Job.status.not_in(ENDED)) > 0


def _tidy(session: Session, job: Job) -> None:
    """Remove what a job that is over needed on the way. What was decided of its model, and by what, stays."""
    discard(session, f"jobs/{job.id}/checkpoints")
    discard(session, f"jobs/{job.id}/audit.json")
    if job.audit is not None:
        job.audit = {**job.audit, "place": None}
    job.tidied = True


# -- a sweep ----------------------------------------------------------------------------------------------------------


def sweep(service: Service) -> Swept:
    """Remove what has been kept long enough. It may be run anywhere, also several times at once."""
    swept, policy = Swept(), service.policy().retention
    with service.database.reading() as session:
        organisations = session.scalars(select(Organisation.id)).all()
    for org in organisations:
        for kind, remove in (("files", _files), ("uploads", _uploads), ("models", _models), ("work", _work)):
            while True:
                with service.database.writing() as session:
                    found, more = remove(Tenant(session, org, ACTOR), policy)
                swept.add(kind, found)
                if not more:
                    break
    empty(service, swept)
    return swept


def empty(service: Service, swept: Swept | None = None) -> Swept:
    """Remove from the store what nothing names any more."""
    swept = swept or Swept()
    with service.database.reading() as session:
        noted = session.execute(select(Removal.number, Removal.place).order_by(Removal.number)).all()
    for number, place in noted:
        try:
            service.store.remove(place)
        except FileNotFoundError:
            pass  # another sweep was quicker
        except Exception:  # each kind of store has errors of its own; none may keep the others from going
            logger.warning("%s cannot be removed from the store; the next sweep tries again", place, exc_info=True)
            swept.failed += 1
            continue
        with service.database.writing() as session:
            gone = session.get(Removal, number)
            if gone is not None:
                session.delete(gone)
        swept.add("places", 1)
    return swept


Found = tuple[int, bool]
"""How many were removed, and whether there may be others."""


def _some(tenant: Tenant, kind: Any, *where: ColumnElement[bool]) -> list[Any]:
    query = tenant.select(kind, *where).order_by(kind.number).limit(AT_ONCE).with_for_update(skip_locked=True)
    return list(tenant.session.scalars(query))


def _over(kind: type[Owned], days: int | None) -> ColumnElement[bool]:
    """Return the condition that a thing was made more than so many days ago."""
    return kind.created_at <= (-1 if days is None else now() - days * DAY)


def _files(tenant: Tenant, policy: RetentionPolicy) -> Found:
    over = or_(File.expires_at <= now(), _over(File, policy.files))
    read = select(Job.number).where(
        Job.org_id == tenant.org,
        Job.status.not_in(ENDED),
        or_(Job.file_id == File.id, Job.validation_file_id == File.id),
    )
    found = _some(tenant, File, over, ~read.exists())
    for file in found:
        remove_file(tenant, file)
    return len(found), len(found) == AT_ONCE


def _uploads(tenant: Tenant, policy: RetentionPolicy) -> Found:
    """End uploads that nobody completed in time, and remove the parts of all that are over."""
    late = _some(tenant, Upload, Upload.status == "pending", Upload.expires_at <= now())
    for upload in late:
        upload.status = "expired"
        tenant.log("upload.expired", upload.id)
    tenant.session.flush()
    over = select(Upload.id).where(Upload.org_id == tenant.org, Upload.status != "pending")
    parts = _some(tenant, Part, Part.upload_id.in_(over))
    for part in parts:
        discard(tenant.session, part.place)
        tenant.remove(part)
    return len(late), AT_ONCE in (len(late), len(parts))


def _models(tenant: Tenant, policy: RetentionPolicy) -> Found:
    found = _some(tenant, Model, _over(Model, policy.models))
    for model in found:
        remove_model(tenant, model)
    return len(found), len(found) == AT_ONCE


def _work(tenant: Tenant, policy: RetentionPolicy) -> Found:
    ended = Job.finished_at <= (-1 if policy.work is None else now() - policy.work * DAY)
    found = _some(tenant, Job, Job.status.in_(ENDED), Job.tidied.is_(False), ended)
    for job in found:
        _tidy(tenant.session, job)
        tenant.log("job.tidied", job.id)
    return len(found), len(found) == AT_ONCE


def used_bytes(tenant: Tenant) -> int:
    """Return how much an organisation has in the store: files, parts of uploads, adapters."""

    def total(kind: Any) -> int:
        query = select(func.coalesce(func.sum(kind.bytes), 0)).where(kind.org_id == tenant.org)
        return int(tenant.session.scalar(query) or 0)

    return sum(total(kind) for kind in (File, Part, Model))


@contextmanager
def sweeping(service: Service, every: float = EVERY) -> Iterator[None]:
    """Sweep from time to time while the block is at work, the first time at once."""
    stop = threading.Event()

    def go_on() -> None:
        while True:
            try:
                swept = sweep(service)
            except (SQLAlchemyError, OSError):
                logger.warning("a sweep failed; the next one tries again", exc_info=True)
            else:
                if any(swept.counts.values()):
                    logger.info("swept: %s", swept.counts)
            if stop.wait(every):
                return

    thread = threading.Thread(target=go_on, name="retention", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
