"""Traces by OpenTelemetry of requests and of the stages of jobs, only where `OTEL_EXPORTER_OTLP_ENDPOINT` says where to.

What clients send of traces of their own is not taken up: a stranger would choose the numbers that an operator looks for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from titer.errors import TiterError
from titer.service.headers import REQUEST, App, Message, Receive, Send
from titer.service.metrics import route_of

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

_tracer: Any = None
_provider: Any = None


def start(part: str, exporter: Any = None) -> bool:
    """Begin to trace, if the environment says where to; returns whether anything is traced.

    Args:
        part: Which process this is: `server` or `worker`.
        exporter: Where spans go instead.

    Raises:
        TiterError: Where traces are asked for and the extra `tracing` is not installed.
    """
    global _tracer, _provider
    if exporter is None and not os.environ.get(ENDPOINT):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ImportError as error:
        raise TiterError(
            f"`{ENDPOINT}` asks for traces, and what sends them is not installed ({error}).",
            "pip install 'titer[tracing]'",
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": f"titer-{part}"}))
    # A given exporter is asked at once; the network is asked by a thread of its own, which no request waits for.
    processor: Any = BatchSpanProcessor(OTLPSpanExporter()) if exporter is None else SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    _tracer, _provider = provider.get_tracer("titer"), provider
    return True


def stop(seconds: float = 5.0) -> None:
    """Trace nothing more; what was traced may take some seconds to be sent."""
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is not None:
        # In a thread, since whoever is asked may not answer for much longer.
        sending = threading.Thread(target=provider.shutdown, daemon=True)
        sending.start()
        sending.join(seconds)


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[Any]:
    """Trace what the block does; nothing happens where nothing is traced.

    `with tracing.span("job.train", job=claim.job):`. An error is marked with its kind alone: what it says may quote an upload.

    Args:
        name: What is done.
        attributes: What else is to be known of it; no contents of files and no names of tenants.
    """
    if _tracer is None:
        yield None
        return
    with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as opened:
        _set(opened, attributes)
        try:
            yield opened
        except BaseException as error:
            opened.set_attribute("error.type", type(error).__name__)
            raise


def _set(opened: Any, attributes: MutableMapping[str, Any]) -> None:
    for name, value in attributes.items():
        if value is not None:
            opened.set_attribute(f"titer.{name}" if "." not in name else name, value)


class Traced:
    """Traces the requests of an application.

    Args:
        app: The application.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _tracer is None:
            await self.app(scope, receive, send)
            return
        with span(f"HTTP {scope['method']}") as opened:

            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    opened.set_attribute("http.response.status_code", message["status"])
                await send(message)

            try:
                await self.app(scope, receive, seen)
            finally:
                known = {"http.request.method": scope["method"], "http.route": route_of(scope)}
                _set(opened, {**known, "request": scope.get(REQUEST)})
