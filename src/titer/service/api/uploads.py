"""Uploads in parts, which become files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from titer.service import retention
from titer.service.access import Caller, needs
from titer.service.api.files import as_object, form_body, store_file
from titer.service.forms import Form, check_filename, pour, too_large
from titer.service.identifiers import new_id
from titer.service.incoming import Incoming, check_purpose, check_seconds, check_storage, read_chunks
from titer.service.policy import current
from titer.service.refusals import Refused, invalid
from titer.service.tables import File, Part, Upload, now
from titer.service.tenants import Tenant

router = APIRouter()
Authorised = Annotated[Caller, needs("files")]
LIFE = 3600
"""Seconds in which an upload must be completed."""
PART = 64 << 20
"""Most bytes of a part, as of OpenAI's."""
PARTS = 10_000
AGAIN = 2
"""How many times the bytes of an upload its parts may hold: a part whose answer was lost is sent once more."""
MIME = re.compile(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,60}", re.IGNORECASE)
MD5 = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
FORM = {"required": ["data"], "properties": {"data": {"type": "string", "format": "binary"}}}


class ExpiresAfter(BaseModel):
    """When a file is deleted."""

    model_config = ConfigDict(extra="forbid")
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(strict=True)]


class UploadRequest(BaseModel):
    """What an upload will be."""

    model_config = ConfigDict(extra="forbid")
    filename: str
    purpose: str
    bytes: Annotated[int, Field(strict=True)]
    mime_type: str
    expires_after: ExpiresAfter | None = None


class CompleteRequest(BaseModel):
    """Which parts an upload consists of."""

    model_config = ConfigDict(extra="forbid")
    part_ids: Annotated[list[str], Field(min_length=1, max_length=PARTS)]
    md5: str | None = None


def upload_object(upload: Upload, file: File | None = None) -> dict[str, Any]:
    """Return an upload as clients see it."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None if file is None else as_object(file),
    }


@router.post("/v1/uploads")
def create(body: UploadRequest, caller: Authorised) -> dict[str, Any]:
    """Begin an upload."""
    check_filename(body.filename)
    check_purpose(body.purpose)
    if not MIME.fullmatch(body.mime_type):
        raise invalid("mime_type", "`mime_type` is of the form `text/jsonl`.")
    with caller.writing() as tenant:
        policy = current(tenant.session)
        if body.bytes < 1:
            raise invalid("bytes", f"`bytes` is {body.bytes}; a file has at least one.")
        if body.bytes > policy.limits.file_bytes:
            raise too_large(policy.limits.file_bytes)
        check_storage(tenant, policy, body.bytes)
        upload = Upload(
            id=new_id("upload"), filename=body.filename, purpose=body.purpose, mime_type=body.mime_type,
            bytes=body.bytes, status="pending", expires_at=now() + LIFE, file_id=None,
            file_expires_after=check_seconds(body.expires_after.seconds if body.expires_after else None),
        )  # fmt: skip
        tenant.add(upload)
        tenant.log("upload.created", upload.id, bytes=upload.bytes, purpose=upload.purpose)
    return upload_object(upload)


def _pending(tenant: Tenant, name: str, *, lock: bool = False) -> Upload:
    """Return an upload that can still be added to."""
    upload = tenant.get(Upload, name, "Upload", param="upload_id", lock=lock)
    status = "expired" if upload.status == "pending" and upload.expires_at <= now() else upload.status
    if status != "pending":
        raise Refused(400, f"The upload is {status}.", "upload_id", f"upload_{status}")
    return upload


class _Taking:
    """A part that comes as a form."""

    def __init__(self, caller: Caller, upload_id: str, content_type: str | None) -> None:
        with caller.reading() as tenant:
            upload = _pending(tenant, upload_id)
        self._upload, self._id = upload.id, new_id("part")
        self._form = Form(content_type, "data", (), self._take)
        most = min(PART, upload.bytes)
        self.incoming = Incoming(caller, f"parts/{caller.org}/{self._id}", most).__enter__()
        self.feed = self._form.feed

    def _take(self, data: bytes) -> None:
        self.incoming.write(data)

    def keep(self) -> dict[str, Any]:
        self._form.end()
        incoming = self.incoming
        part = Part(
            id=self._id, upload_id=self._upload, bytes=incoming.bytes, digest=incoming.digest, place=incoming.place
        )

        def record(tenant: Tenant) -> None:
            tenant.log("part.created", part.id, upload=part.upload_id, bytes=part.bytes)
            upload = _pending(tenant, part.upload_id, lock=True)
            others = tenant.all(Part, Part.upload_id == upload.id)
            if len(others) >= PARTS or sum(other.bytes for other in others) + part.bytes > AGAIN * upload.bytes:
                raise invalid("data", f"The parts hold more than {AGAIN} times what the upload is to have.")
            check_storage(tenant, incoming.policy, part.bytes)
            tenant.add(part)

        incoming.done(record)
        return {"id": part.id, "object": "upload.part", "created_at": part.created_at, "upload_id": part.upload_id}

    def close(self) -> None:
        self.incoming.__exit__(None, None, None)


@router.post("/v1/uploads/{upload_id}/parts", openapi_extra=form_body(FORM))
async def add_part(upload_id: str, request: Request, caller: Authorised) -> dict[str, Any]:
    """Add a part."""
    taking = await run_in_threadpool(_Taking, caller, upload_id, request.headers.get("content-type"))
    try:
        await pour(request, taking.feed, taking.incoming.most)
        return await run_in_threadpool(taking.keep)
    finally:
        await run_in_threadpool(taking.close)


@router.post("/v1/uploads/{upload_id}/complete")
def complete(upload_id: str, body: CompleteRequest, caller: Authorised) -> dict[str, Any]:
    """Put an upload's parts together, in the order of `part_ids`; what becomes of it is checked as any file is."""
    if body.md5 is not None and not MD5.fullmatch(body.md5):
        raise invalid("md5", "`md5` is 32 hexadecimal digits.")
    with caller.reading() as tenant:
        upload = _pending(tenant, upload_id)
        found = {part.id: part for part in tenant.all(Part, Part.upload_id == upload.id)}
    parts = _in_order(found, body.part_ids)
    total = sum(part.bytes for part in parts)
    if total != upload.bytes:
        raise invalid("part_ids", f"The parts hold {total:,} bytes, and the upload was to have {upload.bytes:,}.")

    def finish(tenant: Tenant, file: File) -> None:
        # Whoever came first has completed or cancelled it; then this file is not kept.
        done = _pending(tenant, upload_id, lock=True)
        done.status, done.file_id = "completed", file.id
        _remove_parts(tenant, upload_id)
        tenant.log("upload.completed", upload_id, file=file.id)

    file = store_file(
        caller, _together(caller, parts, body.md5), upload.filename, upload.purpose, upload.file_expires_after, finish
    )
    retention.empty(caller.service, places=[part.place for part in found.values()])
    upload.status = "completed"
    return upload_object(upload, file)


def _in_order(found: dict[str, Part], names: list[str]) -> list[Part]:
    for place, name in enumerate(names):
        if name not in found:
            raise invalid(f"part_ids[{place}]", "There is no such part of this upload.")
    if len(set(names)) < len(names):
        raise invalid("part_ids", "A part stands there twice.")
    return [found[name] for name in names]


def _together(caller: Caller, parts: list[Part], md5: str | None) -> Iterator[bytes]:
    """Return the bytes of parts one after the other; raises `Refused` at the end for another MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        try:
            chunks = read_chunks(caller.service.store, part.place)
        except FileNotFoundError:  # completed or cancelled by another request meanwhile
            raise invalid("upload_id", "The upload is no longer pending.") from None
        for chunk in chunks:
            digest.update(chunk)
            yield chunk
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise invalid("md5", f"The MD5 of the parts is {digest.hexdigest()}.")


def _remove_parts(tenant: Tenant, upload_id: str) -> list[str]:
    """Remove the parts of an upload; returns the places that are noted."""
    parts = tenant.all(Part, Part.upload_id == upload_id)
    return [place for part in parts for place in retention.remove_part(tenant, part)]


@router.post("/v1/uploads/{upload_id}/cancel")
def cancel(upload_id: str, caller: Authorised) -> dict[str, Any]:
    """Give an upload up, with its parts."""
    with caller.reading() as tenant:
        name = _pending(tenant, upload_id).id
    with caller.writing() as tenant:
        # The log is locked before the upload, as where it is completed: otherwise each would wait for the other.
        tenant.log("upload.cancelled", name)
        upload = _pending(tenant, name, lock=True)
        upload.status = "cancelled"
        places = _remove_parts(tenant, name)
    retention.empty(caller.service, places=places)
    return upload_object(upload)
