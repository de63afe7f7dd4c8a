"""What is kept for how long, and how it goes: rows first, with a note of what they named in the store, and then that.

A crash in between leaves the note, by which the next sweep removes the rest. Nobody sees a row whose contents are gone, and no
contents stay that no row or note names.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from titer.service import strays
from titer.service.chain import append
from titer.service.context import Service
from titer.service.policy import RetentionPolicy
from titer.service.quotas import ENDS
from titer.service.running import Away
from titer.service.tables import DAY, Appeal, File, Job, Model, Organisation, Owned, Part, Removal, Upload, now
from titer.service.tenants import Tenant

WORK = ("checkpoints", "audit.json", "rows.json", "sample_weights.jsonl")
"""What a job needs on the way and leaves in its folder of the store; the rest is by what its model was decided."""
EVERY = 600.0
"""Seconds from one sweep to the next."""
AT_ONCE = 100
"""Most things that go in one transaction, for which everybody else who writes may wait."""
ACTOR = "retention"
NAMED = 20
"""Most strays that a line of the audit log names."""

logger = logging.getLogger(__name__)


@dataclass
class Swept:
    """What a sweep removed.

    Attributes:
        counts: How many of each kind: files, uploads, models, work (of jobs), places (in the store), strays (places that no
            row had named).
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


def announce(session: Session, place: str) -> None:
    """Note what is about to be put into the store: it goes in a while unless it is `kept` before."""
    session.add(Removal(place=place, created_at=now() + DAY))


def kept(session: Session, place: str) -> None:
    """Take back what was announced, in the transaction that names the place.

    Raises:
        RuntimeError: It took so long that the place was emptied.
    """
    mine = delete(Removal).where(Removal.place == place, Removal.stray.is_(False))
    if session.execute(mine).rowcount != 1:  # type: ignore[attr-defined]
        raise RuntimeError(f"{place} was announced too long ago")


def remove_file(tenant: Tenant, file: File) -> list[str]:
    """Remove a file with all that quotes it: appeals, and the rows of its audits, whose figures stay with their jobs.

    Returns:
        The places that are noted, for `empty`.
    """
    places = [file.place]
    for appeal in tenant.all(Appeal, Appeal.file_id == file.id):
        tenant.remove(appeal)
    for job in tenant.all(Job, Job.file_id == file.id, Job.status.in_(ENDS)):
        places.append(f"jobs/{job.id}" if job.kind == "audit" else f"jobs/{job.id}/audit.json")
        _say_gone(job, "audit")
    tenant.log("file.deleted", file.id, purpose=file.purpose, bytes=file.bytes, sha256=file.digest)
    tenant.remove(file)
    return _discard_all(tenant.session, places)


def remove_part(tenant: Tenant, part: Part) -> list[str]:
    """Remove a part of an upload; returns the places that are noted, for `empty`."""
    tenant.remove(part)
    return _discard_all(tenant.session, [part.place])


def remove_model(tenant: Tenant, model: Model) -> list[str]:
    """Remove a model with its adapter; returns the places that are noted, for `empty`."""
    places = [model.place]
    tenant.log("model.deleted", model.id)
    tenant.remove(model)
    tenant.session.flush()
    job = tenant.find(Job, model.job_id)
    if job is not None and job.tidied and not tenant.count(Model, Model.job_id == job.id):
        places.append(_evidence(job))
    return _discard_all(tenant.session, places)


def needed_by(tenant: Tenant, file: File) -> Job | None:
    """Return a job that is not at its end and still reads a file, if there is one."""
    reads = or_(Job.file_id == file.id, Job.validation_file_id == file.id)
    return tenant.session.scalar(tenant.select(Job, reads, Job.status.not_in(ENDS)).order_by(Job.number).limit(1))


def _tidy(tenant: Tenant, job: Job) -> None:
    """Remove what a job that is over needed on the way, and a model that it never published.

    By what a model was decided stays as long as there is one.
    """
    models = [model.place for model in tenant.all(Model, Model.job_id == job.id)]
    places = [] if f"models/{job.id}" in models else [f"models/{job.id}"]
    places += [f"jobs/{job.id}/{name}" for name in WORK] if models else [_evidence(job)]
    _say_gone(job, "audit")
    job.tidied = True
    _discard_all(tenant.session, places)


def _evidence(job: Job) -> str:
    """Return the place of all that a job left but for its models, which nothing refers to from now on."""
    _say_gone(job, "gate")
    return f"jobs/{job.id}"


def _say_gone(job: Job, what: Literal["audit", "gate"]) -> None:
    found: dict[str, Any] | None = getattr(job, what)
    if found:
        setattr(job, what, {**found, "place": None})


def _discard_all(session: Session, places: list[str]) -> list[str]:
    for place in places:
        discard(session, place)
    return places


# -- a sweep ----------------------------------------------------------------------------------------------------------


REMOVED: dict[str, int] = {}
"""How much of each kind (`Swept.counts`) sweeps have removed since this process began."""


def sweep(service: Service, strays_too: bool = False) -> Swept:
    """Remove what has been kept long enough. It may be run anywhere, also several times at once.

    Args:
        service: The service.
        strays_too: List the whole store for what no row names, which then goes with a sweep a day later.
    """
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
    for kind, count in swept.counts.items():
        REMOVED[kind] = REMOVED.get(kind, 0) + count
    if strays_too:
        strays.note(service)  # behind the emptying: whatever a clock does, another sweep looks again
    return swept


def empty(service: Service, swept: Swept | None = None, places: Sequence[str] | None = None) -> Swept:
    """Remove from the store what nothing names any more: all of it, or only some `places`."""
    swept = swept or Swept()
    which = Removal.created_at <= now() if places is None else Removal.place.in_(places)
    query = select(Removal.number, Removal.place, Removal.stray).where(which).order_by(Removal.number)
    with service.database.reading() as session:
        noted = session.execute(query).all()
        named = strays.Named(session) if any(stray for *_, stray in noted) else None
    found: list[str] = []
    for number, place, stray in noted:
        spared = stray and named is not None and named.keeps(place)
        if not spared and not _removed(service, place):
            swept.failed += 1
            continue
        with service.database.writing() as session:
            session.execute(delete(Removal).where(Removal.number == number))
        if not spared:
            swept.add("strays" if stray else "places", 1)
            found += [place] * stray
    if found:
        with service.database.writing() as session:
            append(session, None, ACTOR, "strays.removed", "store", {"count": len(found), "first": found[:NAMED]})
    return swept


def _removed(service: Service, place: str) -> bool:
    """Remove a place from the store; returns whether it is gone."""
    try:
        service.store.remove(place)
    except FileNotFoundError:
        pass  # another sweep was quicker
    except Exception:  # each kind of store has errors of its own; none may keep the others from going
        logger.warning("%s cannot be removed from the store; the next sweep tries again", place, exc_info=True)
        return False
    return True


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
        Job.status.not_in(ENDS),
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
        remove_part(tenant, part)
    return len(late), AT_ONCE in (len(late), len(parts))


def _models(tenant: Tenant, policy: RetentionPolicy) -> Found:
    begins = select(Job.number).where(Job.org_id == tenant.org, Job.status.not_in(ENDS), Job.model == Model.id)
    found = _some(tenant, Model, _over(Model, policy.models), ~begins.exists())
    for model in found:
        remove_model(tenant, model)
    return len(found), len(found) == AT_ONCE


def _work(tenant: Tenant, policy: RetentionPolicy) -> Found:
    ended = Job.finished_at <= (-1 if policy.work is None else now() - policy.work * DAY)
    found = _some(tenant, Job, Job.status.in_(ENDS), Job.tidied.is_(False), ended)
    for job in found:
        _tidy(tenant, job)
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
    """Sweep from time to time while the block is at work, the first time at once; for strays once a day."""
    stop = threading.Event()

    def go_on() -> None:
        looked = -math.inf
        while True:
            due = time.monotonic() - looked >= DAY
            try:
                swept = sweep(service, strays_too=due)
            except (SQLAlchemyError, OSError, Away):
                logger.warning("a sweep failed; the next one tries again", exc_info=True)
            else:
                looked = time.monotonic() if due else looked
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
