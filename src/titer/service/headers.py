"""What holds for every request before an endpoint sees it, and for every answer after: pure ASGI, so that streams stay streams."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import anyio
import anyio.to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from titer.service.identifiers import new_id
from titer.service.json_lines import shown
from titer.service.refusals import Refused, compressed

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

JSON_BYTES = 4 << 20
"""Largest body of a request that brings no file."""
HOST = re.compile(r"(\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(:\d*)?")
TAKES_FILES = re.compile(r"/v1/files/?$|/v1/uploads/[^/]+/parts/?$")
"""Where the endpoint itself bounds what it takes (`forms.pour`), and lets a client that still sends read why it is refused."""
AROUND = 1 << 20
"""What a form of the console may hold besides its file."""
STILL, SLOWEST = 60.0, 1024
"""Seconds that a body may stand still, and bytes a second that it must bring on average after that."""
CONSOLE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What pages of the console may load: nothing from elsewhere, nothing that stands within the page."""
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
REQUEST, EXTRA = "titer.request", "titer.headers"
"""Under which a scope holds the number of the request, and headers that its answer is to have."""


class Guard:
    """Around the whole application: bounds what comes in, and marks what goes out.

    Args:
        app: The application.
        file_bytes: Returns how large a file may be; it may ask the database.
        outage: Returns the answer where that cannot be found out now (`titer.service.outages`).
        hosts: Names under which the server may be asked besides its loopback address.
    """

    def __init__(
        self,
        app: App,
        file_bytes: Callable[[], int],
        outage: Callable[[MutableMapping[str, Any], Exception], Refused | None],
        hosts: Iterable[str] = (),
    ) -> None:
        self.app, self.file_bytes, self.outage = app, file_bytes, outage
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope[REQUEST] = new_id("request")
        scope[EXTRA] = {}
        body = Body(receive)

        async def marked(message: Message) -> None:
            if body.refused is not None and not body.answered:
                # Whatever an endpoint makes of a body that broke off, the client hears why.
                body.answered = True
                await answer(_marked_send(scope, send), body.refused)
                return
            if body.refused is None:
                await _mark(scope, message, send)

        refused = self._refusal(scope)
        if refused is None:
            try:
                body.limit = await self._limit(scope)
                body.check_length(Headers(scope=scope))
            except Refused as error:
                refused = error
            except Exception as error:  # of the database, most likely
                refused = self.outage(scope, error)
                if refused is None:
                    raise
        if refused is not None:
            await answer(_marked_send(scope, send), refused)
            return
        await self.app(scope, body.receive, marked)

    def _refusal(self, scope: MutableMapping[str, Any]) -> Refused | None:
        """Return why a request is not served at all."""
        headers = Headers(scope=scope)
        if not self._is_meant(scope, headers.get("host", "")):
            return Refused(
                421,
                "This server is asked by the address of this machine alone. Behind a proxy start it with --allow-host.",
                code="unknown_host",
            )
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity") and not TAKES_FILES.match(scope["path"]):
            return compressed(shown(coding))
        return None

    def _is_meant(self, scope: MutableMapping[str, Any], host: str) -> bool:
        """Whether a request that comes over the loopback device names it.

        A page of a stranger, opened in a browser on this machine, can let its own name lead to this address. It cannot
        change what the browser sends as `Host`.
        """
        server = scope.get("server")
        if not server or not is_loopback(server[0]):
            return True
        found = HOST.fullmatch(host.lower())
        name = "" if found is None else found["v6"] or found["name"]
        return is_loopback(name) or name in self.hosts

    async def _limit(self, scope: MutableMapping[str, Any]) -> float:
        """Return how large the body of a request may be."""
        if TAKES_FILES.match(scope["path"]):
            return math.inf
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data" or not scope["path"].startswith("/console/"):
            return JSON_BYTES
        return AROUND + await anyio.to_thread.run_sync(self.file_bytes)


class Body:
    """The body of a request as it comes in.

    Attributes:
        limit: How large it may be.
        refused: Why it broke off, once it did.
        answered: Whether the client has heard of that.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.limit: float = JSON_BYTES
        self._bytes, self._started, self._ended = 0, 0.0, False
        self.refused: Refused | None = None
        self.answered = False

    def check_length(self, headers: Headers) -> None:
        """Refuse a body that says that it is too large."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.limit:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(
            413, f"The request is larger than {self.limit:,} bytes.", code="request_too_large",
            headers={"Connection": "close"},
        )  # fmt: skip

    async def receive(self) -> Message:
        """Return the next piece of it."""
        if self._ended:
            return await self._receive()
        self._started = self._started or anyio.current_time()
        deadline = self._started + STILL + self._bytes / SLOWEST
        with anyio.move_on_after(min(STILL, deadline - anyio.current_time())) as waiting:
            message = await self._receive()
        if waiting.cancelled_caught:
            slow = "The request's body did not come in time."
            self._break_off(Refused(408, slow, code="request_timeout", headers={"Connection": "close"}))
        self._bytes += len(message.get("body", b""))
        if self._bytes > self.limit:
            self._break_off(self._too_large())
        self._ended = not message.get("more_body", False)
        return message

    def _break_off(self, refused: Refused) -> None:
        """End the request: nothing more of it is read."""
        self.refused = refused
        raise HTTPException(refused.status, refused.message)


async def _mark(scope: MutableMapping[str, Any], message: Message, send: Send) -> None:
    """Send a message; the start of an answer with all headers that it is to have."""
    if message["type"] == "http.response.start":
        headers = MutableHeaders(raw=message.setdefault("headers", []))
        page = scope["path"].startswith("/console")
        headers["x-request-id"] = scope[REQUEST]
        headers["Content-Security-Policy"] = CONSOLE if page else "default-src 'none'; frame-ancestors 'none'"
        for name, value in {**ALWAYS, **scope[EXTRA]}.items():
            headers[name] = value
        headers.setdefault("Cache-Control", "no-store")
    await send(message)


def _marked_send(scope: MutableMapping[str, Any], send: Send) -> Send:
    async def marked(message: Message) -> None:
        await _mark(scope, message, send)

    return marked


async def answer(send: Send, refused: Refused) -> None:
    """Send an answer that no endpoint gave."""
    body = json.dumps(refused.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
