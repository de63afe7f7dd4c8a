"""Files: upload, list, retrieve, read and delete them."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from sqlalchemy import ColumnElement, or_
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from titer.service import retention
from titer.service.access import Caller, needs
from titer.service.forms import Form, pour
from titer.service.incoming import (
    PURPOSES,
    RESULTS,
    IncomingFile,
    check_purpose,
    check_seconds,
    read_chunks,
    store_file,
)
from titer.service.refusals import Refused, invalid, not_found
from titer.service.tables import File, now
from titer.service.tenants import Tenant

__all__ = ["as_object", "delete_file", "find_file", "router", "store_file"]

router = APIRouter()
Authorised = Annotated[Caller, needs("files")]
MOST = 10_000
"""Most files on a page, as of OpenAI's."""
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
FORM = {
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["fine-tune", "user_data"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}


def form_body(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what the OpenAPI document says of a body that is read as it comes."""
    content = {"multipart/form-data": {"schema": {"type": "object", "additionalProperties": False, **schema}}}
    return {"requestBody": {"required": True, "content": content}}


def as_object(file: File) -> dict[str, Any]:
    """Return a file as clients see it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": None,
    }


def alive() -> ColumnElement[bool]:
    """What holds of a file that has not expired, whether or not it has been deleted already."""
    return or_(File.expires_at.is_(None), File.expires_at > now())


def find_file(tenant: Tenant, name: str, param: str = "file_id", *, lock: bool = False) -> File:
    """Return a file; raises `Refused` 404 for one that is not there or has expired."""
    return tenant.get(File, name, "File object", alive(), param=param, lock=lock)


class _Taking:
    """A file that comes as a form."""

    def __init__(self, caller: Caller, content_type: str | None) -> None:
        self._form = Form(content_type, "file", FIELDS, self._take)
        self.incoming = IncomingFile(caller).__enter__()
        self.feed = self._form.feed

    def _take(self, data: bytes) -> None:
        # In the order in which OpenAI's client sends them, what the file is for is known by now.
        if check_purpose(self._form.values.get("purpose", "fine-tune")) != "fine-tune":
            self.incoming.unread()
        self.incoming.write(data)

    def keep(self) -> File:
        self._form.end()
        values = self._form.values
        purpose = check_purpose(values.get("purpose"))
        return self.incoming.keep(self._form.filename or "", purpose, _seconds(values))

    def close(self) -> None:
        self.incoming.__exit__(None, None, None)


def _seconds(values: dict[str, str]) -> int | None:
    anchor, seconds = values.get("expires_after[anchor]"), values.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise invalid("expires_after.anchor", "`anchor` is `created_at`.")
    if seconds is None or not seconds.isdecimal() or len(seconds) > 12:
        raise invalid("expires_after.seconds", "`seconds` is a whole number.")
    return check_seconds(int(seconds))


@router.post("/v1/files", openapi_extra=form_body(FORM))
async def create(request: Request, caller: Authorised) -> dict[str, Any]:
    """Upload a file; its rows are checked when it is for `fine-tune`."""
    taking = await run_in_threadpool(_Taking, caller, request.headers.get("content-type"))
    try:
        await pour(request, taking.feed, taking.incoming.most)
        return as_object(await run_in_threadpool(taking.keep))
    finally:
        await run_in_threadpool(taking.close)


@router.get("/v1/files")
def listed(
    caller: Authorised,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = MOST,
    order: str = "desc",
) -> dict[str, Any]:
    """List files, the newest first."""
    known = purpose if purpose in (*PURPOSES, RESULTS) else ""  # PostgreSQL does not take every text to look for
    where = [alive(), *([] if purpose is None else [File.purpose == known])]
    with caller.reading() as tenant:
        page = tenant.page(File, *where, after=after, limit=limit, order=order, most=MOST)
        return page.as_list([as_object(file) for file in page.rows])


@router.get("/v1/files/{file_id}")
def retrieve(file_id: str, caller: Authorised) -> dict[str, Any]:
    """Return what a file is."""
    with caller.reading() as tenant:
        return as_object(find_file(tenant, file_id))


@router.get("/v1/files/{file_id}/content")
def content(file_id: str, caller: Authorised) -> StreamingResponse:
    """Return what a file holds."""
    with caller.reading() as tenant:
        file = find_file(tenant, file_id)
    try:
        chunks = read_chunks(caller.service.store, file.place)
    except FileNotFoundError:
        with caller.reading() as tenant:
            if tenant.find(File, file_id) is not None:
                raise  # what the table names must be there
        raise not_found("File object", file_id, "file_id") from None  # deleted in the meantime
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": disposition(file.filename),
        # Whatever it holds, no browser shows it as a page of this server's.
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


def disposition(filename: str) -> str:
    """Return the header that offers a file under its name, which is no path there, in a form that no name can break."""
    name = filename.replace("/", "_").replace("\\", "_")
    plain = "".join(char if char.isascii() and (char.isalnum() or char in " ._-()") else "_" for char in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


@router.delete("/v1/files/{file_id}")
def delete(file_id: str, caller: Authorised) -> dict[str, Any]:
    """Delete a file."""
    delete_file(caller, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def delete_file(caller: Caller, file_id: str) -> None:
    """Delete a file, and what audits of it quote; their figures and decisions stay.

    Raises:
        Refused: 404 where there is none; 409 while a job needs it.
    """
    with caller.writing() as tenant:
        file = find_file(tenant, file_id, lock=True)
        job = retention.needed_by(tenant, file)
        if job is not None:
            raise Refused(
                409, f"The file is needed by {job.id}, which is {job.status}: cancel it first.", "file_id",
                "file_in_use", job=job.id,
            )  # fmt: skip
        places = retention.remove_file(tenant, file)
    retention.empty(caller.service, places=places)
