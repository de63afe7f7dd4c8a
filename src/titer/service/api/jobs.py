"""Fine-tuning jobs: create, list, retrieve, cancel, pause and resume them; their events and checkpoints."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Header, Request
from sqlalchemy import ColumnElement, Text, cast, exists, false, func, or_, select

from titer.service import quotas
from titer.service.access import Caller, needs
from titer.service.api.files import find_file
from titer.service.api.job_requests import JobRequest, check, check_key
from titer.service.identifiers import new_id
from titer.service.policy import Policy
from titer.service.queue import finish, say, wait_again
from titer.service.refusals import Refused, invalid, not_found
from titer.service.tables import DAY, Event, File, Job, Model, now
from titer.service.tenants import MOST, Page, Tenant

router = APIRouter(prefix="/v1/fine_tuning/jobs")
Authorised = Annotated[Caller, needs("jobs")]


class Kind(NamedTuple):
    """What errors call a kind of job, and the parameter that names one."""

    name: str
    param: str


ALLOWED = {
    "cancelled": ("validating_files", "queued", "running", "paused"),
    "paused": ("validating_files", "queued", "running"),
    "resumed": ("paused",),
}
"""In which statuses a job can be what its owner wishes."""
KINDS = {"fine_tuning": Kind("fine-tuning job", "fine_tuning_job_id"), "audit": Kind("audit", "audit_id")}
METRICS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)


# -- jobs as clients see them -----------------------------------------------------------------------------------------


def as_object(job: Job) -> dict[str, Any]:
    """Return a job as OpenAI's `fine_tuning.job`, with what is titer's own under `titer`."""
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": job.created_at,
        "error": job.error,
        "estimated_finish": job.estimated_finish,
        "fine_tuned_model": job.fine_tuned_model,
        "finished_at": job.finished_at,
        "hyperparameters": job.method["supervised"]["hyperparameters"],
        "integrations": [],
        "metadata": job.details,
        "method": job.method,
        "model": job.model,
        "organization_id": job.org_id,
        "result_files": job.result_files,
        "seed": job.seed,
        "status": job.status,
        "trained_tokens": job.trained_tokens,
        "training_file": job.file_id,
        "user_provided_suffix": job.suffix,
        "validation_file": job.validation_file_id,
        "titer": {
            "stage": job.stage,
            "wish": job.wish,
            "attempt": job.attempt,
            "rows": job.rows,
            "audit": job.audit,
            "gate": job.gate,
        },
    }


def event_object(event: Event) -> dict[str, Any]:
    """Return an event as OpenAI's `fine_tuning.job.event`."""
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.kind,
        "data": event.data,
    }


def checkpoint_object(model: Model) -> dict[str, Any]:
    """Return the model of a checkpoint as OpenAI's `fine_tuning.job.checkpoint`; its id follows from the model's."""
    metrics = {name: value for name, value in (model.metrics or {}).items() if name in METRICS}
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": "ftckpt_" + hashlib.sha256(model.id.encode()).hexdigest()[:24],
        "created_at": model.created_at,
        "fine_tuned_model_checkpoint": model.id,
        "fine_tuning_job_id": model.job_id,
        "metrics": {"step": model.step, **metrics},
        "step_number": model.step,
    }


# -- making one -------------------------------------------------------------------------------------------------------


def create_job(caller: Caller, request: JobRequest, idempotency: str | None = None) -> Job:
    """Make a job, whose files are checked before it waits for a worker.

    Args:
        caller: Who asks for it.
        request: What is asked for.
        idempotency: The request's `Idempotency-Key`: one that came within 24 hours before gives the job that was made then.

    Raises:
        Refused: For what cannot be meant, a model or a file that is not there, and a quota that is used up.
    """
    rules = caller.service.policy()
    check_key(idempotency)
    with caller.writing() as tenant:
        # Whoever else makes a job for this organisation, or repeats this request, waits here.
        organisation = quotas.lock(tenant.session, tenant.org)
        if idempotency is not None and (before := _repeated(tenant, request, idempotency)) is not None:
            return before
        method = check(request, rules)
        _check_model(tenant, request.model, rules)
        file = _file(tenant, request.training_file, "training_file")
        if request.validation_file is not None:
            _file(tenant, request.validation_file, "validation_file")
        quotas.check_job(tenant.session, quotas.quota_of(rules, organisation), tenant.org, method, file.bytes)
        job = Job(
            id=new_id("job"),
            model=request.model,
            file_id=file.id,
            validation_file_id=request.validation_file,
            method=method,
            suffix=request.suffix,
            seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
            policy=rules.as_dict(),
            priority=organisation.priority,
            idempotency=idempotency,
            # None would be stored as JSON's null.
            **({} if request.metadata is None else {"details": request.metadata}),
        )
        tenant.add(job)
        say(tenant.session, job, f"Created fine-tuning job: {job.id}")
        say(tenant.session, job, f"Validating training file: {file.id}")
        tenant.log("job.created", job.id, model=job.model, file=file.id)
        return job


def _repeated(tenant: Tenant, request: JobRequest, key: str) -> Job | None:
    """Return the job that the same request made before."""
    job = tenant.session.scalar(tenant.select(Job, Job.idempotency == key))
    if job is None:
        return None
    if job.created_at <= now() - DAY:
        job.idempotency = None
        tenant.session.flush()
        return None
    asked = (request.model, request.training_file, request.validation_file, request.suffix, request.metadata)
    if asked != (job.model, job.file_id, job.validation_file_id, job.suffix, job.details):
        raise Refused(
            409, f"This `Idempotency-Key` came with another request before, which made {job.id}. Use a new one.",
            "Idempotency-Key", "idempotency_key_reused",
        )  # fmt: skip
    return job


def _check_model(tenant: Tenant, name: str, rules: Policy) -> None:
    """Raise unless a model can be fine-tuned; nobody removes a fine-tuned one until the transaction ends."""
    if name in rules.models:
        return
    model = tenant.find(Model, name, lock=True)
    if model is None or model.base not in rules.models:
        known = ", ".join(f"`{one}`" for one in rules.models)
        raise Refused(
            404, f"The model {name!r:.300} does not exist, or cannot be fine-tuned here. Those that can: {known}.",
            "model", "model_not_found",
        )  # fmt: skip
    if model.held is not None:
        raise Refused(403, f"The model {name!r} is held: {model.held}", "model", "model_held")


def _file(tenant: Tenant, name: str, param: str) -> File:
    file = find_file(tenant, name, param, lock=True)
    if file.purpose != "fine-tune":
        raise invalid(param, f"The purpose of {name} is `{file.purpose}`; a job needs `fine-tune`.", "invalid_file")
    return file


# -- what its owner wishes --------------------------------------------------------------------------------------------


def cancel_job(caller: Caller, name: str, kind: str = "fine_tuning") -> Job:
    """Cancel a job, or an audit: at once where nobody works on it, or else its worker does so with its next beat."""
    with caller.writing() as tenant:
        job = _wished(tenant, name, "cancelled", kind)
        if job.status == "running":
            _wish(tenant, job, "cancel")
        else:
            finish(tenant.session, job, "cancelled", actor=tenant.actor)
        return job


def pause_job(caller: Caller, name: str) -> Job:
    """Pause a job: its worker stops at a checkpoint, from which it goes on when it is resumed."""
    with caller.writing() as tenant:
        job = _wished(tenant, name, "paused")
        if job.status == "running":
            _wish(tenant, job, "pause")
        else:
            say(tenant.session, job, "The job was paused.")
            job.status = "paused"
            tenant.log("job.paused", job.id)
        return job


def resume_job(caller: Caller, name: str) -> Job:
    """Let a paused job wait for a worker again."""
    with caller.writing() as tenant:
        job = _wished(tenant, name, "resumed")
        say(tenant.session, job, "The job waits for a worker again.")
        wait_again(tenant.session, job)
        tenant.log("job.resumed", job.id)
        return job


def _wished(tenant: Tenant, name: str, what: str, kind: str = "fine_tuning") -> Job:
    """Return a job that is locked and can be `what` its owner wishes."""
    job = _job(tenant, name, lock=True, kind=kind)
    is_ending = job.wish == "cancel" and what != "cancelled"
    if job.status not in ALLOWED[what] or is_ending:
        is_status = "is being cancelled" if is_ending else f"is `{job.status}`"
        raise Refused(
            400, f"The {KINDS[kind].name} {name} {is_status}; it can be {what} while it is {' or '.join(ALLOWED[what])}.",
            KINDS[kind].param, "invalid_state",
        )  # fmt: skip
    return job


def _wish(tenant: Tenant, job: Job, wish: str) -> None:
    if job.wish != wish:
        say(tenant.session, job, f"The job is to be {'cancelled' if wish == 'cancel' else 'paused'}.")
        job.wish = wish
        tenant.log(f"job.{wish}_asked", job.id)


def _job(tenant: Tenant, name: str, lock: bool = False, kind: str = "fine_tuning") -> Job:
    return tenant.get(Job, name, KINDS[kind].name, Job.kind == kind, param=KINDS[kind].param, lock=lock)


# -- endpoints --------------------------------------------------------------------------------------------------------


@router.post("")
def create(
    caller: Authorised,
    body: JobRequest,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Make a job."""
    return as_object(create_job(caller, body, idempotency_key))


@router.get("")
def listed(caller: Authorised, request: Request, after: str | None = None, limit: int = 20) -> dict[str, Any]:
    """List jobs, the newest first; `metadata[key]=value` chooses those with a pair, `metadata=null` those without any."""
    with caller.reading() as tenant:
        chosen: list[ColumnElement[bool]] = [Job.kind == "fine_tuning"]
        for name, value in request.query_params.multi_items():
            if name == "metadata" and value == "null":
                chosen.append(or_(Job.details.is_(None), cast(Job.details, Text) == "null"))
            elif name.startswith("metadata["):
                chosen.append(_has_pair(caller, name.removeprefix("metadata[").removesuffix("]"), value))
        page = tenant.page(Job, *chosen, after=after, limit=limit)
    return page.as_list([as_object(job) for job in page.rows])


@router.get("/{fine_tuning_job_id}")
def retrieved(caller: Authorised, fine_tuning_job_id: str) -> dict[str, Any]:
    """Return a job."""
    with caller.reading() as tenant:
        return as_object(_job(tenant, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/cancel")
def cancelled(caller: Authorised, fine_tuning_job_id: str) -> dict[str, Any]:
    """Cancel a job."""
    return as_object(cancel_job(caller, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/pause")
def paused(caller: Authorised, fine_tuning_job_id: str) -> dict[str, Any]:
    """Pause a job."""
    return as_object(pause_job(caller, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/resume")
def resumed(caller: Authorised, fine_tuning_job_id: str) -> dict[str, Any]:
    """Resume a job."""
    return as_object(resume_job(caller, fine_tuning_job_id))


@router.get("/{fine_tuning_job_id}/events")
def events(caller: Authorised, fine_tuning_job_id: str, after: str | None = None, limit: int = 20) -> dict[str, Any]:
    """List what happened to a job, the newest first."""
    with caller.reading() as tenant:
        job = _job(tenant, fine_tuning_job_id)
        page = tenant.page(Event, Event.job_id == job.id, after=after, limit=limit)
    return page.as_list([event_object(event) for event in page.rows])


@router.get("/{fine_tuning_job_id}/checkpoints")
def checkpoints(
    caller: Authorised, fine_tuning_job_id: str, after: str | None = None, limit: int = 10
) -> dict[str, Any]:
    """List the checkpoints of a job that can be used as models, the newest first."""
    if not 1 <= limit <= MOST:
        raise invalid("limit", f"`limit` is {limit}; it goes from 1 to {MOST}.")
    with caller.reading() as tenant:
        job = _job(tenant, fine_tuning_job_id)
        models = tenant.all(Model, Model.job_id == job.id, Model.step.is_not(None))
    # There is one an epoch at most, so that a page is cut from all of them.
    objects = sorted((checkpoint_object(model) for model in models), key=lambda one: -one["step_number"])
    if after is not None:
        places = [place for place, one in enumerate(objects) if one["id"] == after]
        if not places:
            raise not_found("cursor", after, "after")
        objects = objects[places[0] + 1 :]
    return Page(objects[:limit], len(objects) > limit).as_list(objects[:limit])


def _has_pair(caller: Caller, key: str, value: str) -> ColumnElement[bool]:
    """Return the condition that a job's `metadata` has a pair. Neither key nor value becomes a part of a path in JSON."""
    if "\0" in key + value:
        return false()
    if not caller.service.database.is_sqlite:
        return Job.details[key].as_string() == value
    pair = func.json_each(Job.details).table_valued("key", "value")
    return exists(select(pair.c.key).where(pair.c.key == key, pair.c.value == value))
