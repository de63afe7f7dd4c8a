"""Models: those that may be fine-tuned, and those that were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from sqlalchemy import func, select

from titer.service import retention
from titer.service.access import Caller, needs
from titer.service.api.chat import desk_of
from titer.service.chat.desk import Desk
from titer.service.quotas import ENDS
from titer.service.refusals import Refused
from titer.service.tables import Job, Model, PolicyVersion
from titer.service.tenants import Tenant

router = APIRouter(prefix="/v1/models")
Authorised = Annotated[Caller, needs("models")]


def as_object(model: Model) -> dict[str, Any]:
    """Return a fine-tuned model as OpenAI's `model`, with what is titer's own under `titer`."""
    own = {"base": model.base, "job": model.job_id, "step": model.step, "held": model.held}
    return {**_plain(model.id, model.created_at, model.org_id), "titer": own}


def _plain(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def delete_model(caller: Caller, desk: Desk, name: str) -> None:
    """Delete a fine-tuned model with its adapter, and its checkpoints with it.

    Args:
        caller: Who asks for it.
        desk: Where chats with it are taken in, of which no more are answered.
        name: The model.

    Raises:
        Refused: For one that is not there, one that no job has made, and one that a job goes on from.
    """
    if name in caller.service.policy().models:
        raise Refused(
            403, f"{name!r} is a model of the server; only fine-tuned ones can be deleted.", "model", "not_yours"
        )
    with caller.writing() as tenant:
        models = _with_checkpoints(tenant, name)
        _check_unused(tenant, models)
        places = [place for model in models for place in retention.remove_model(tenant, model)]
    for model in models:
        desk.forget(model.id)
    retention.empty(caller.service, places=places)


def _with_checkpoints(tenant: Tenant, name: str) -> list[Model]:
    """Return a model, which is locked, and the checkpoints of the job that it is the result of."""
    model = _found(tenant, name, lock=True)
    if model.step is not None:
        return [model]
    steps = tenant.select(Model, Model.job_id == model.job_id, Model.step.is_not(None)).order_by(Model.number)
    return [model, *tenant.session.scalars(steps.with_for_update())]


def _found(tenant: Tenant, name: str, lock: bool = False) -> Model:
    model = tenant.find(Model, name, lock=lock)
    if model is None:
        raise Refused(404, f"The model {name!r:.300} does not exist.", "model", "model_not_found")
    return model


def _check_unused(tenant: Tenant, models: Sequence[Model]) -> None:
    names = [model.id for model in models]
    jobs = tenant.all(Job, Job.model.in_(names), Job.status.not_in(ENDS))
    if jobs:
        message = f"{', '.join(job.id for job in jobs)} goes on from this model. Wait for it, or cancel it."
        raise Refused(409, message, "model", "model_in_use")


@router.get("")
def listed(caller: Authorised) -> dict[str, Any]:
    """List the models that can be asked: those of the server, and the organisation's own that are not held."""
    rules = caller.service.policy()
    with caller.reading() as tenant:
        since = _since(tenant)
        own = tenant.all(Model, Model.held.is_(None))
    served = [_plain(name, since, "system") for name in rules.models]
    return {"object": "list", "data": [*served, *(as_object(model) for model in own)]}


def _since(tenant: Tenant) -> int:
    """Return since when the server has its models: since its policy names them."""
    return tenant.session.scalar(select(func.max(PolicyVersion.created_at))) or 0


@router.get("/{model:path}")
def retrieved(caller: Authorised, model: str) -> dict[str, Any]:
    """Return a model; a held one says why under `titer`."""
    if model in caller.service.policy().models:
        with caller.reading() as tenant:
            return _plain(model, _since(tenant), "system")
    with caller.reading() as tenant:
        return as_object(_found(tenant, model))


@router.delete("/{model:path}")
def deleted(request: Request, caller: Authorised, model: str) -> dict[str, Any]:
    """Delete a fine-tuned model."""
    delete_model(caller, desk_of(request.app), model)
    return {"id": model, "object": "model", "deleted": True}
