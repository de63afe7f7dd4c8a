"""The application: all endpoints behind one set of rules about errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import anyio
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from titer.errors import TiterError
from titer.service.api import chat, files, jobs, models, operations, safety, uploads
from titer.service.console import pages
from titer.service.context import Service
from titer.service.headers import REQUEST, Guard
from titer.service.health import Health
from titer.service.limits import Limits
from titer.service.metrics import Figures, Measured
from titer.service.outages import Outages, outage
from titer.service.refusals import Refused
from titer.service.texts import check_texts
from titer.service.tracing import Traced
from titer.version import __version__

logger = logging.getLogger(__name__)


class Application(FastAPI):
    """The application with what stands around it, also around its answer to a fault of its own."""

    def build_middleware_stack(self) -> Any:
        """Return what a server calls."""
        limits: Limits = self.state.limits
        inner = super().build_middleware_stack()
        guard = Guard(inner, lambda: limits.policy().limits.file_bytes, outage, self.state.hosts)
        return Traced(Measured(guard, self.state.figures))


def create_app(service: Service, hosts: Iterable[str] = ()) -> FastAPI:
    """Return the application of a service, as uvicorn runs it.

    Args:
        service: The service.
        hosts: Names under which it may be asked over the loopback device: those of a proxy on this machine.
    """
    app = Application(title="titer", version=__version__, docs_url=None, redoc_url=None)
    app.state.service, app.state.hosts = service, list(hosts)
    app.state.limits, app.state.health = Limits(service), Health(service)
    app.state.chatting = anyio.CapacityLimiter(chat.THREADS)
    app.state.figures = Figures(service, lambda: chat.desk_of(app).load)
    for module in (files, uploads, jobs, models, chat, safety, operations):
        app.include_router(module.router, dependencies=[Depends(check_texts)])
    app.mount("/console/static", pages.static)
    app.include_router(pages.router)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(TiterError, _mistake)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Outages)
    return app


def _answer(refused: Refused) -> Response:
    # Spelt in ASCII, since it may quote what cannot be written otherwise.
    body = json.dumps(refused.body).encode()
    return Response(body, refused.status, {**refused.headers, "Content-Type": "application/json"})


async def _refused(request: Request, error: Any) -> Response:
    return _answer(error)


async def _mistake(request: Request, error: Any) -> Response:
    """Answer what a user's data or settings made impossible as titer says it."""
    return _answer(Refused(400, str(error), code="invalid_request"))


async def _malformed(request: Request, error: Any) -> Response:
    """Name the first parameter of a request that is missing, unknown or of another type."""
    found = error.errors()[0]
    param = ".".join(str(part) for part in found["loc"][1:]) or None
    unknown = found["type"] == "extra_forbidden"
    message = (
        f"Unrecognized request argument supplied: {param}" if unknown else f"{param or 'The request'}: {found['msg']}."
    )
    code = (
        "unknown_parameter"
        if unknown
        else "missing_required_parameter"
        if found["type"] == "missing"
        else "invalid_type"
    )
    return _answer(Refused(400, message, param, code))


async def _plain(request: Request, error: Any) -> Response:
    """Answer what the router refuses: an unknown address, or a method that it does not take."""
    message = f"Invalid URL ({request.method} {request.url.path})" if error.status_code == 404 else str(error.detail)
    return _answer(Refused(error.status_code, message, headers=dict(error.headers or {})))


async def _failed(request: Request, error: Exception) -> Response:
    """Answer a fault of the service: its number stands in the log beside what happened."""
    number = request.scope[REQUEST]
    logger.error("%s %s failed (%s)", request.method, request.url.path, number, exc_info=error)
    return _answer(Refused(500, f"The server had an error while processing your request ({number}).", code=None))
