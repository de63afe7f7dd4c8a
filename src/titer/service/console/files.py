"""Pages of files and audits: upload one, see what is wrong with its rows, audit it, mark rows honest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from starlette.datastructures import FormData, UploadFile

from titer.service import keys, policy
from titer.service.api import files, safety
from titer.service.api.jobs import cancel_job
from titer.service.console import drawings
from titer.service.console.page import Form, PageRoute, go, problems_of, read_form, render, word, words
from titer.service.console.session import PATH, ForAdmin, ForFiles, ForJobs, Visitor
from titer.service.evidence import audited_rows, cleared_rows
from titer.service.incoming import store_file
from titer.service.refusals import Refused, not_found
from titer.service.store import pieces
from titer.service.tables import Appeal, File, Job

router = APIRouter(route_class=PageRoute, include_in_schema=False)
ON_PAGE = 50
"""Rows of an audit on a page."""


async def _uploaded(request: Request, visitor: ForFiles) -> FormData:
    most = request.app.state.service.policy().limits.file_bytes
    return await read_form(request, most + 65536)


@router.get(f"{PATH}/files")
def list_files(request: Request, visitor: ForFiles, after: str | None = None) -> Response:
    """Show the files."""
    return _list(request, visitor, after)


def _list(
    request: Request,
    visitor: Visitor,
    after: str | None = None,
    problems: dict[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
    filename: str = "",
) -> Response:
    with visitor.caller.reading() as tenant:
        page = tenant.page(File, files.alive(), after=after)
        most = policy.current(tenant.session).limits.file_bytes
    context = {"page": page, "problems": problems or {}, "errors": errors or [], "filename": filename, "most": most}
    return render(request, "files.html.j2", 400 if problems else 200, visitor, title="Files", **context)


@router.post(f"{PATH}/files")
def upload(request: Request, visitor: ForFiles, form: Annotated[FormData, Depends(_uploaded)]) -> Response:
    """Store a file whose rows can all be trained on, or show what is wrong with which."""
    given = form.get("file")
    if not isinstance(given, UploadFile) or not given.filename:
        return _list(request, visitor, problems={"file": "Choose a file."})
    try:
        stored = store_file(visitor.caller, pieces(given.file), given.filename, "fine-tune")
    except Refused as error:
        problems = problems_of(error, {}, "file")
        return _list(request, visitor, problems=problems, errors=error.details.get("errors"), filename=given.filename)
    return go(f"{PATH}/files/{stored.id}", "uploaded")


@router.get(f"{PATH}/files/{{name}}")
def show_file(request: Request, name: str, visitor: ForFiles) -> Response:
    """Show a file with its audits, jobs and appeals."""
    with visitor.caller.reading() as tenant:
        file = files.find_file(tenant, name)
        found = tenant.all(Job, Job.file_id == file.id) if visitor.may("jobs") else []
        appeals = tenant.all(Appeal, Appeal.file_id == file.id)
    audits = [job for job in reversed(found) if job.kind == "audit"]
    jobs = [job for job in reversed(found) if job.kind != "audit"]
    return render(
        request,
        "file.html.j2",
        visitor=visitor,
        title=file.filename,
        file=file,
        audits=audits,
        jobs=jobs,
        appeals=appeals,
    )


@router.post(f"{PATH}/files/{{name}}/delete")
def delete_file(name: str, visitor: ForFiles, form: Form) -> Response:
    """Delete a file."""
    files.delete_file(visitor.caller, name)
    return go(f"{PATH}/files", "deleted")


@router.post(f"{PATH}/files/{{name}}/audits")
def start_audit(name: str, visitor: ForJobs, form: Form) -> Response:
    """Let a file be audited."""
    job = safety.create_audit(visitor.caller, name)
    return go(f"{PATH}/audits/{job.id}", "auditing")


# Audits --------------------------------------------------------------------------------------------------------------


@router.get(f"{PATH}/audits/{{name}}")
def show_audit(
    request: Request,
    name: str,
    visitor: ForJobs,
    only: str = "",
    page: int = Query(1, ge=1, le=10**6),
) -> Response:
    """Show what an audit found, also that of a job."""
    return _audit(request, visitor, name, only, page)


@router.get(f"{PATH}/audits/{{name}}/live")
def live_audit(request: Request, name: str, visitor: ForJobs) -> Response:
    """Return the part of the page that is asked for again and again while the audit is at work."""
    with visitor.caller.reading() as tenant:
        job = tenant.get(Job, name, "audit")
    return render(request, "audit_live.html.j2", visitor=visitor, job=job)


@router.post(f"{PATH}/audits/{{name}}/cancel")
def cancel_audit(name: str, visitor: ForJobs, form: Form) -> Response:
    """Cancel an audit."""
    cancel_job(visitor.caller, name, "audit")
    return go(f"{PATH}/audits/{name}", "cancelled")


@router.post(f"{PATH}/audits/{{name}}/appeals")
def appeal(request: Request, name: str, visitor: ForAdmin, form: Form) -> Response:
    """Mark rows honest."""
    keys.check_scope(visitor.caller.scopes, "jobs")
    with visitor.caller.reading() as tenant:
        job = tenant.get(Job, name, "audit")
    chosen, reason, only = words(form, "row"), word(form, "reason"), word(form, "only")
    problems = {} if chosen else {"row": "Mark at least one row."}
    if not reason:
        problems["reason"] = "Say why: it stands in the audit log."
    if not all(row.isascii() and row.isdigit() and len(row) < 10 for row in chosen):
        problems["row"] = "These are no rows of the file."
    if not problems:
        try:
            safety.appeal(visitor.caller, job.file_id, [int(row) for row in chosen], reason)
        except Refused as error:
            problems = problems_of(error, {"rows": "row", "reason": "reason"}, "row")
    if problems:
        return _audit(request, visitor, name, only, 1, problems, chosen, reason)
    return go(f"{PATH}/audits/{name}", "appealed", **({"only": only} if only == "flagged" else {}))


def _audit(
    request: Request,
    visitor: Visitor,
    name: str,
    only: str,
    page: int,
    problems: dict[str, str] | None = None,
    chosen: list[str] | None = None,
    reason: str = "",
) -> Response:
    with visitor.caller.reading() as tenant:
        job = tenant.get(Job, name, "audit")
        file = tenant.find(File, job.file_id)
        cleared = cleared_rows(tenant, job.file_id)
    ranked = audited_rows(visitor.caller.service.store, job) or ()
    listed = [row for row in ranked if only != "flagged" or row["flagged"]]
    pages = max(1, -(-len(listed) // ON_PAGE))
    if page > pages:
        raise not_found("page", str(page), "page")
    return render(
        request,
        "audit.html.j2",
        400 if problems else 200,
        visitor,
        title=f"Audit of {file.filename if file else 'a deleted file'}",
        job=job,
        file=file,
        rows=listed[ON_PAGE * (page - 1) : ON_PAGE * page],
        cleared=cleared,
        only=only if only == "flagged" else "",
        number=page,
        pages=pages,
        drop_over=(job.policy.get("audit") or {}).get("drop_over"),
        chart=histogram_of(ranked, job),
        problems=problems or {},
        chosen=chosen or [],
        reason=reason,
    )


def histogram_of(rows: Sequence[dict[str, Any]], job: Job) -> str | None:
    """Return the chart of P(harmful) over the rows; `None` where nothing looked for harm."""
    values = [row["p_harmful"] for row in rows if row["p_harmful"] is not None]
    if not values:
        return None
    flagged = sum(row["flagged"] for row in rows)
    label = f"How likely rows are harmful: of {len(values)}, {flagged} are likelier harmful than not."
    return drawings.histogram(values, (job.policy.get("audit") or {}).get("drop_over"), label)
