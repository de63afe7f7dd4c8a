"""Pages of models: those that are deployed or held, and a chat with one."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from fastapi.responses import Response

from titer.service import policy
from titer.service.api import chat, models
from titer.service.chat.request import ChatRequest
from titer.service.console.page import Form, PageRoute, go, render, word
from titer.service.console.session import PATH, ForModels
from titer.service.refusals import Refused, not_found
from titer.service.tables import Model

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get(f"{PATH}/models")
def list_models(request: Request, visitor: ForModels, after: str | None = None) -> Response:
    """Show the models."""
    with visitor.caller.reading() as tenant:
        page = tenant.page(Model, after=after)
        bases = list(policy.current(tenant.session).models)
    return render(request, "models.html.j2", visitor=visitor, title="Models", page=page, bases=bases)


@router.post(f"{PATH}/models/delete")
def delete_model(request: Request, visitor: ForModels, form: Form) -> Response:
    """Delete a model."""
    models.delete_model(visitor.caller, chat.desk_of(request.app), word(form, "model"))
    return go(f"{PATH}/models", "deleted")


@router.get(f"{PATH}/chat")
def show_chat(request: Request, visitor: ForModels, model: str = "") -> Response:
    """Show the chat with a model."""
    with visitor.caller.reading() as tenant:
        held = policy.current(tenant.session)
        found = tenant.find(Model, model)
    if found is None and model not in held.models:
        raise not_found("model", model, "model", "model_not_found")
    return render(
        request, "chat.html.j2", visitor=visitor, title="Chat", name=model, held=found.held if found else None
    )


@router.post(f"{PATH}/chat")
async def talk(request: Request, visitor: ForModels, form: Form) -> Response:
    """Answer a conversation, in pieces as they come."""
    try:
        said = {"model": word(form, "model"), "messages": json.loads(word(form, "messages")), "stream": True}
        asked = ChatRequest.model_validate(said)
    except (ValueError, RecursionError):  # no JSON, nested endlessly, or no conversation
        raise Refused(400, "The conversation cannot be read.", "messages") from None
    return await chat.create(request, asked, visitor.caller)
