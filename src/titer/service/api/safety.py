"""What is titer's own: audits, appeals, and what was measured of a job's model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from titer.data.records import is_blank
from titer.service import evidence, quotas
from titer.service.access import Caller, needs
from titer.service.api.files import find_file
from titer.service.api.jobs import cancel_job
from titer.service.identifiers import new_id
from titer.service.incoming import read_chunks
from titer.service.json_lines import split
from titer.service.policy import current, shown
from titer.service.queue import say
from titer.service.refusals import Refused, invalid
from titer.service.tables import Appeal, File, Job, Model
from titer.service.tenants import Tenant

router = APIRouter(prefix="/titer/v1")
ForJobs = Annotated[Caller, needs("jobs")]
ForAdmin = Annotated[Caller, needs("admin")]
ROWS = 1000
"""Most rows of an audit on a page."""
REASON = 2000


class AuditRequest(BaseModel):
    """What is to be audited: a file, as the upload of a fine-tuning of a model."""

    model_config = ConfigDict(extra="forbid")
    file_id: str
    model: str | None = None


class AppealRequest(BaseModel):
    """Rows of a file, from 0, that a reviewer found honest, and why."""

    model_config = ConfigDict(extra="forbid")
    rows: list[Annotated[int, Field(strict=True)]]
    reason: str


# -- audits ---------------------------------------------------------------------------------------------------------------


def create_audit(caller: Caller, file_id: str, model: str | None = None) -> Job:
    """Let a file be audited without a fine-tuning of it.

    Args:
        caller: Who asks for it.
        file_id: The file.
        model: The model that it would be trained into; by default the first of the policy.

    Raises:
        Refused: For a file or a model that is not there, and a quota that is used up.
    """
    with caller.writing() as tenant:
        organisation = quotas.lock(tenant.session, tenant.org)
        rules = current(tenant.session)
        file = _trainable(tenant, file_id)
        name = next(iter(rules.models)) if model is None else model
        if name not in rules.models:
            known = ", ".join(f"`{one}`" for one in rules.models)
            raise Refused(
                404, f"The model {name!r:.300} does not exist here. Those that do: {known}.", "model", "model_not_found"
            )
        limit = quotas.quota_of(rules, organisation).waiting_jobs
        quotas.check("waiting_jobs", limit, quotas.waiting(tenant.session, tenant.org))
        job = Job(
            id=new_id("audit"), kind="audit", model=name, file_id=file.id, status="queued", policy=rules.as_dict(),
            priority=organisation.priority,
        )  # fmt: skip
        tenant.add(job)
        say(tenant.session, job, f"Created audit: {job.id}")
        tenant.log("audit.created", job.id, model=name, file=file.id)
        return job


def _trainable(tenant: Tenant, file_id: str) -> File:
    file = find_file(tenant, file_id, lock=True)
    if file.purpose != "fine-tune":
        raise invalid("file_id", f"The purpose of {file.id} is `{file.purpose}`; rows are those of `fine-tune`.")
    return file


def audit_summary(job: Job) -> dict[str, Any]:
    """Return what an audit, or that of a fine-tuning, found, but for its rows."""
    found = job.audit or {}
    return {
        "id": job.id,
        "object": "titer.audit",
        "status": job.status,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "file_id": job.file_id,
        "model": job.model,
        "verdict": found.get("verdict"),
        "share": found.get("share"),
        "counts": {name: found.get(name) for name in ("rows", "flagged", "dropped", "cleared")},
        "false_alarms": found.get("false_alarms"),
        "estimate": found.get("estimate"),
        "error": job.error or None,
    }


def audit_object(
    caller: Caller, job: Job, *, offset: int = 0, limit: int = 100, only: str | None = None
) -> dict[str, Any]:
    """Return an audit with a page of its rows, the most suspicious first.

    Args:
        caller: Who asks.
        job: The audit, or a fine-tuning whose audit is asked for.
        offset: How many rows come before the page.
        limit: Most rows on it.
        only: `flagged`: those that are likelier harmful than not.

    Returns:
        The summary with `rows`, `total` (of how many), and `rows_kept`: whether the rows are still there.
    """
    with caller.reading() as tenant:
        cleared = evidence.cleared_rows(tenant, job.file_id)
    rows = evidence.audited_rows(caller.service.store, job)
    wanted = [row for row in rows or () if only != "flagged" or row["flagged"]]
    page = [{**row, "cleared": row["index"] in cleared} for row in wanted[offset : offset + limit]]
    return {**audit_summary(job), "rows": page, "total": len(wanted), "offset": offset, "rows_kept": rows is not None}


@router.post("/audits", status_code=202)
def create(body: AuditRequest, caller: ForJobs) -> dict[str, Any]:
    """Let a file be audited."""
    return audit_object(caller, create_audit(caller, body.file_id, body.model))


@router.get("/audits")
def listed(caller: ForJobs, after: str | None = None, limit: int = 20, order: str = "desc") -> dict[str, Any]:
    """List audits without their rows, the newest first."""
    with caller.reading() as tenant:
        page = tenant.page(Job, Job.kind == "audit", after=after, limit=limit, order=order)
        return page.as_list([audit_summary(job) for job in page.rows])


@router.get("/audits/{audit_id}")
def retrieve(
    audit_id: str, caller: ForJobs, offset: int = 0, limit: int = 100, only: Literal["flagged"] | None = None
) -> dict[str, Any]:
    """Return what an audit found, also that of a fine-tuning, and some of its rows."""
    if not 0 <= offset < 2**31:
        raise invalid("offset", f"`offset` is {offset}; it is at least 0.")
    if not 1 <= limit <= ROWS:
        raise invalid("limit", f"`limit` is {limit}; it goes from 1 to {ROWS}.")
    with caller.reading() as tenant:
        job = tenant.get(Job, audit_id, "audit", param="audit_id")
    return audit_object(caller, job, offset=offset, limit=limit, only=only)


@router.post("/audits/{audit_id}/cancel")
def cancel(audit_id: str, caller: ForJobs) -> dict[str, Any]:
    """Cancel an audit; that of a fine-tuning ends with its job alone."""
    return audit_summary(cancel_job(caller, audit_id, "audit"))


# -- appeals --------------------------------------------------------------------------------------------------------------


def appeal(caller: Caller, file_id: str, rows: list[int], reason: str) -> Appeal:
    """Mark rows honest: from now on they teach, whatever an audit makes of them.

    Args:
        caller: The reviewer.
        file_id: The file.
        rows: Their numbers in it, from 0.
        reason: Why; it stands in the audit log.

    Raises:
        Refused: For a file or rows that are not there, and no reason.
    """
    if not rows:
        raise invalid("rows", "`rows` is empty: name at least one row.")
    if is_blank(reason) or len(reason) > REASON or "\0" in reason:
        raise invalid("reason", f"Say why, in at most {REASON:,} characters: it stands in the audit log.")
    with caller.reading() as tenant:
        file = _trainable(tenant, file_id)
    # What is in a file never changes, so it is read before anybody has to wait.
    number = sum(1 for line in split(read_chunks(caller.service.store, file.place)) if line.strip())
    wrong = [row for row in rows if not 0 <= row < number]
    if wrong:
        raise invalid("rows", f"There is no row {wrong[0]}: the file has {number:,}, counted from 0.")
    with caller.writing() as tenant:
        file = _trainable(tenant, file_id)
        found = Appeal(id=new_id("appeal"), file_id=file.id, rows=sorted(set(rows)), reason=reason, reviewer=caller.key)
        tenant.add(found)
        tenant.log("appeal.created", found.id, file=file.id, rows=found.rows, reason=reason)
    return found


def appeal_object(found: Appeal) -> dict[str, Any]:
    """Return an appeal as clients see it."""
    return {
        "id": found.id,
        "object": "titer.appeal",
        "created_at": found.created_at,
        "file_id": found.file_id,
        "rows": found.rows,
        "reason": found.reason,
        "reviewer": found.reviewer,
    }


@router.post("/files/{file_id}/appeals", status_code=201)
def create_appeal(file_id: str, body: AppealRequest, caller: ForAdmin) -> dict[str, Any]:
    """Mark rows of a file honest."""
    return appeal_object(appeal(caller, file_id, body.rows, body.reason))


@router.get("/appeals")
def appeals(
    caller: ForJobs, file_id: str | None = None, after: str | None = None, limit: int = 20, order: str = "desc"
) -> dict[str, Any]:
    """List appeals, the newest first."""
    if file_id is not None and "\0" in file_id:  # PostgreSQL takes no such text, not even to look for it
        raise invalid("file_id", "No id holds a NUL character.")
    where = [] if file_id is None else [Appeal.file_id == file_id]
    with caller.reading() as tenant:
        page = tenant.page(Appeal, *where, after=after, limit=limit, order=order)
        return page.as_list([appeal_object(found) for found in page.rows])


# -- what was decided about a job, and by what ------------------------------------------------------------------------------


def safety_report(caller: Caller, job: Job) -> dict[str, Any]:
    """Return all that a job's safety was decided by: audit, gate, appeals, the policy, decisions, and hashes of artefacts."""
    with caller.reading() as tenant:
        models = tenant.all(Model, Model.job_id == job.id)
        file = tenant.find(File, job.file_id)
        told = [appeal_object(found) for found in tenant.all(Appeal, Appeal.file_id == job.file_id)]
        decisions = [
            {"number": line.number, "at": line.at, "actor": line.actor, "action": line.action, "details": line.details,
             "sha256": line.digest}
            for line in tenant.said_of([job.id, *(model.id for model in models)])
        ]  # fmt: skip
    held = {model.id: model.held for model in models if model.held is not None}
    return {
        "object": "titer.safety_report",
        "job_id": job.id,
        "status": job.status,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "held": held.get(job.fine_tuned_model or ""),
        "file": {"id": job.file_id, "sha256": None if file is None else file.digest},
        "audit": None if not job.audit else audit_summary(job),
        "gate": job.gate or None,
        "appeals": told,
        "policy": shown(job.policy),
        "decisions": decisions,
        "artefacts": evidence.hashes(caller.service.store, job, models),
    }


@router.get("/jobs/{job_id}/safety")
def safety(job_id: str, caller: ForJobs) -> dict[str, Any]:
    """Return a job's safety report."""
    with caller.reading() as tenant:
        job = tenant.get(Job, job_id, "fine-tuning job", param="job_id")
    return safety_report(caller, job)
