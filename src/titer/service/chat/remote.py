"""Chats that another server answers: vLLM, or SGLang, with adapters that it loads at run time.

It is given token ids, not messages: it would make special tokens of those that a text spells. What is posted where, it shares with
`titer.infer.servers`; answers are streams here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from titer.infer.servers import ALREADY, COMPLETIONS, LOAD, UNLOAD, VLLM, load_body, unload_body
from titer.service.chat.failures import closing, fail, overloaded
from titer.service.chat.pieces import Adapter, Bounds, Done, Fetch, Likelihood, Piece, Ticket, Unusable
from titer.service.refusals import Refused

SECONDS = 300.0
"""How long the other server may be silent."""

LOOK = 30.0
"""After how many seconds loaded adapters are looked up again, as in `titer.service.chat.engine`."""


class Failed(Exception):
    """What the other server answers instead.

    Args:
        status: The HTTP status.
        text: What it says.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"the server that chats are forwarded to answers {status}: {text[:500]}")
        self.status, self.text = status, text


@dataclass
class _Seat:
    """An adapter that was handed over, and how many requests are being answered with it."""

    adapter: Adapter
    requests: int = 0


class Remote:
    """Has another server answer.

    Args:
        url: Its address.
        folder: Where adapters are handed over, under the same path for both.
        fetch: Brings adapters.
        unusable: Which of some adapters' models may not be used any more.
        bounds: How much is asked of it; may be set anew.
    """

    def __init__(self, url: str, folder: Path, fetch: Fetch, unusable: Unusable, bounds: Bounds) -> None:
        self.bounds = bounds
        self._address, self._folder = urlsplit(url), folder
        self._fetch, self._unusable = fetch, unusable
        self._lock = threading.Lock()  # of the requests; that of the adapters is held while the other server loads one
        self._adapters = threading.Lock()
        self._seats: OrderedDict[str, _Seat] = OrderedDict()
        self._tickets: list[Ticket] = []
        self._closed = False
        self._looked = time.monotonic()

    def submit(self, ticket: Ticket) -> None:
        """Hand a request on.

        Raises:
            Refused: 429 when too many wait.
        """
        with self._lock:
            if self._closed:
                raise closing()
            if len(self._tickets) >= self.bounds.answers + self.bounds.waiting:
                raise overloaded()
            self._tickets.append(ticket)
        threading.Thread(target=self._answer, args=(ticket,), name="titer-chat-forward", daemon=True).start()

    def forget(self, name: str) -> None:
        """Have the other server drop a model that was deleted or held, unless it answers with it just now."""
        with self._adapters:
            seat = self._seats.get(name)
            if seat is not None and not seat.requests:
                self._unload(name)

    def close(self) -> None:
        """Stop; adapters that were handed over are taken back."""
        with self._lock:
            self._closed = True
            for ticket in self._tickets:
                ticket.fail(closing())
        with self._adapters:
            for name in list(self._seats):
                self._unload(name)

    @property
    def load(self) -> dict[str, int]:
        """How much there is to do."""
        return {"answers": len(self._tickets), "waiting": 0, "adapters": len(self._seats), "bases": 0}

    # -- in a request's own thread -------------------------------------------------------------------------------------

    def _answer(self, ticket: Ticket) -> None:
        try:
            if ticket.adapter is None:
                self._complete(ticket, ticket.base)
                return
            for again in (True, False):
                with self._loaded(ticket.adapter) as name:
                    try:
                        self._complete(ticket, name)
                        return
                    except Failed as error:
                        if error.status != 404 or not again:
                            raise
                # It was started anew and knows the adapter no more.
                with self._adapters:
                    self._seats.pop(ticket.adapter.name, None)
        except Exception as error:  # of the other server, the store or the network: the request fails with it
            fail([ticket], error)
        finally:
            with self._lock:
                self._tickets.remove(ticket)

    @contextlib.contextmanager
    def _loaded(self, adapter: Adapter) -> Iterator[str]:
        """Have the other server hold an adapter for a while; gives the name that it knows it by."""
        with self._adapters:
            self._look()
            seat = self._seats.get(adapter.name)
            if seat is None:
                self._make_room()
                folder = self._folder / _key(adapter)
                self._folder.mkdir(parents=True, exist_ok=True)
                place = self._fetch(adapter, folder)
                self._post(LOAD[VLLM], load_body(_key(adapter), str(place)), ALREADY)
                seat = self._seats[adapter.name] = _Seat(adapter)
            self._seats.move_to_end(adapter.name)
            seat.requests += 1
        try:
            yield _key(adapter)
        finally:
            with self._adapters:
                seat.requests -= 1

    def _make_room(self) -> None:
        unused = [name for name, seat in self._seats.items() if not seat.requests]
        while len(self._seats) >= self.bounds.adapters:
            if not unused:
                raise overloaded()
            self._unload(unused.pop(0))

    def _look(self) -> None:
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            for name in self._unusable([seat.adapter for seat in self._seats.values() if not seat.requests]):
                self._unload(name)

    def _unload(self, name: str) -> None:
        seat = self._seats.pop(name)
        # It may be away, or have forgotten the adapter by itself.
        with contextlib.suppress(OSError, http.client.HTTPException, Failed):
            self._post(UNLOAD[VLLM], unload_body(_key(seat.adapter)))
        shutil.rmtree(self._folder / _key(seat.adapter), ignore_errors=True)

    def _connect(self) -> http.client.HTTPConnection:
        secure = self._address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(self._address.netloc, timeout=SECONDS)

    def _post(self, path: str, body: dict[str, Any], but: str | None = None) -> None:
        """Post; an error whose text holds `but` is none."""
        with contextlib.closing(self._connect()) as connection:
            response = _request(connection, path, body)
            text = response.read().decode(errors="replace")
            if response.status != 200 and not (but and but in text):
                raise Failed(response.status, text)

    def _complete(self, ticket: Ticket, model: str) -> None:
        """Ask for completions and tell what comes of them."""
        left, tokens = set(range(ticket.choices)), 0
        with contextlib.closing(self._connect()) as connection:
            response = _request(connection, COMPLETIONS, _body(ticket, model))
            if response.status != 200:
                raise Failed(response.status, response.read().decode(errors="replace"))
            for event in _events(response):
                if ticket.is_cancelled:
                    return
                if "error" in event:
                    raise Failed(response.status, str(event["error"]))
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event.get("choices", ()):
                    piece = _piece(choice)
                    if piece.finish:
                        left.discard(piece.choice)
                    if piece.text or piece.finish:
                        ticket.say(piece)
        if left:
            raise Failed(response.status, "its answer ends in the middle")
        ticket.say(Done(tokens))


def _key(adapter: Adapter) -> str:
    """Return the name that the other server knows an adapter by, which is its folder's: made of the service's own ids."""
    return adapter.place.rpartition("/")[2]


def _request(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def _body(ticket: Ticket, model: str) -> dict[str, Any]:
    sampling = ticket.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(ticket.prompt),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "n": ticket.choices,
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "stop_token_ids": sorted(ticket.template.end_of_turn),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_logprobs is not None:
        body["logprobs"] = sampling.top_logprobs
    return body


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield what a stream of events holds, up to its `[DONE]`."""
    for line in response:
        name, _, data = line.decode().partition(":")
        if name == "data":
            if data.strip() == "[DONE]":
                return
            yield json.loads(data)


def _piece(choice: dict[str, Any]) -> Piece:
    finish = choice.get("finish_reason")
    if finish not in (None, "stop", "length"):
        raise Refused(502, f"The server that answers gave up: {finish}.", code="engine_error")
    found = choice.get("logprobs") or {}
    likelihoods = [
        Likelihood(text, logprob, sorted((top or {}).items(), key=lambda pair: -pair[1]))
        for text, logprob, top in zip(
            found.get("tokens", ()),
            found.get("token_logprobs", ()),
            found.get("top_logprobs") or [None] * len(found.get("tokens", ())),
            strict=True,
        )
    ]
    return Piece(choice.get("index", 0), choice.get("text", ""), likelihoods, finish)
