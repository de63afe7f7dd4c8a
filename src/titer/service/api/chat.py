"""Chat completions of base and fine-tuned models."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from titer.service.access import Caller, needs
from titer.service.chat.desk import Desk
from titer.service.chat.pieces import Done, Likelihood, Piece, Ticket
from titer.service.chat.request import ChatRequest
from titer.service.identifiers import new_id
from titer.service.refusals import Refused
from titer.service.tables import now
from titer.version import __version__

SECONDS = 1.0
"""How often to look whether a client is still there."""
THREADS = 8
"""How many chats are taken in at a time. While a model's tokenizer is read all of them wait for it, in threads of their own number,
so that what else the server is asked does not wait with them."""


@contextlib.asynccontextmanager
async def _chatting(app: FastAPI) -> AsyncIterator[None]:
    yield
    desk: Desk | None = getattr(app.state, "desk", None)
    if desk is not None:
        await run_in_threadpool(desk.close)


router = APIRouter(lifespan=_chatting)


def desk_of(app: Any) -> Desk:
    """Return where an application's chats are taken in."""
    if getattr(app.state, "desk", None) is None:
        app.state.desk = Desk(app.state.service)
    desk: Desk = app.state.desk
    return desk


class Incoming:
    """What an engine says about a request, handed over from its thread to the one that serves the client."""

    def __init__(self, request: Request) -> None:
        self._request, self._loop = request, asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Done | Exception] = asyncio.Queue()
        self.ticket: Ticket | None = None

    def listen(self, what: Piece | Done | Exception) -> None:
        """Take what the engine says, in its thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, what)

    async def next(self) -> Piece | Done:
        """Return what comes next.

        Raises:
            ClientGone: The client has gone.
            Refused: Whatever the engine failed with.
        """
        while True:
            try:
                found = await asyncio.wait_for(self._queue.get(), SECONDS)
            except TimeoutError:
                if await self.is_gone():
                    raise ClientGone from None
                continue
            if isinstance(found, Exception):
                raise found
            return found

    async def is_gone(self) -> bool:
        """Whether the client has gone."""
        return await self._request.is_disconnected()

    def cancel(self) -> None:
        """Let the engine stop, whatever it has said so far."""
        if self.ticket is not None:
            self.ticket.cancel()


class ClientGone(Exception):
    """A client that went away before its answer was there."""


@router.post("/v1/chat/completions")
async def create(request: Request, wanted: ChatRequest, caller: Annotated[Caller, needs("models")]) -> Response:
    """Answer a conversation, at once or in pieces as they come."""
    incoming = Incoming(request)
    try:
        ask = desk_of(request.app).ask
        limiter = request.app.state.chatting
        incoming.ticket = ticket = await anyio.to_thread.run_sync(ask, caller, wanted, incoming.listen, limiter=limiter)
        form = _Form(wanted, len(ticket.prompt))
        if not wanted.stream:
            return JSONResponse(await _whole(incoming, form))
        # What fails before there is anything to say fails as other requests do.
        first = await incoming.next()
    except ClientGone:
        incoming.cancel()
        return Response(status_code=499)  # nobody reads it
    except BaseException:
        incoming.cancel()
        raise
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(incoming, form, first), media_type="text/event-stream", headers=headers)


async def _whole(incoming: Incoming, form: _Form) -> dict[str, Any]:
    """Return the answers once they are there."""
    loop = asyncio.get_running_loop()
    texts = [""] * form.choices
    likelihoods: list[list[Likelihood]] = [[] for _ in texts]
    finish: list[str | None] = [None] * form.choices
    looked = loop.time()
    while isinstance(piece := await incoming.next(), Piece):
        texts[piece.choice] += piece.text
        likelihoods[piece.choice] += piece.likelihoods
        finish[piece.choice] = piece.finish
        if loop.time() - looked > SECONDS:
            looked = loop.time()
            if await incoming.is_gone():
                raise ClientGone
    choices = [
        {
            "index": place,
            "message": {"role": "assistant", "content": texts[place], "refusal": None},
            "logprobs": form.logprobs(likelihoods[place]),
            "finish_reason": finish[place],
        }
        for place in range(form.choices)
    ]
    return {**form.head("chat.completion"), "choices": choices, "usage": form.usage(piece.tokens)}


async def _events(incoming: Incoming, form: _Form, first: Piece | Done) -> AsyncIterator[str]:
    """Yield an answer as server-sent events."""
    try:
        for choice in range(form.choices):
            yield form.chunk(choice, {"role": "assistant", "content": "", "refusal": None})
        piece = first
        while isinstance(piece, Piece):
            if piece.text or piece.likelihoods:
                yield form.chunk(piece.choice, {"content": piece.text}, form.logprobs(piece.likelihoods))
            if piece.finish:
                yield form.chunk(piece.choice, {}, finish=piece.finish)
            piece = await incoming.next()
        if form.include_usage:
            yield _event({**form.head("chat.completion.chunk"), "choices": [], "usage": form.usage(piece.tokens)})
        yield "data: [DONE]\n\n"
    except Refused as error:
        # The status has been sent; OpenAI's clients raise what an event calls an error.
        yield _event(error.body)
    except ClientGone:
        return
    finally:
        incoming.cancel()


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class _Form:
    """What all responses to a request have in common.

    Args:
        wanted: The request.
        prompt: Tokens of its conversation.
    """

    def __init__(self, wanted: ChatRequest, prompt: int) -> None:
        self.choices, self._model, self._prompt = wanted.n or 1, wanted.model, prompt
        self._id, self._created, self._logprobs = new_id("completion"), now(), bool(wanted.logprobs)
        self.include_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        digest = hashlib.sha256(f"{__version__}/{wanted.model}".encode()).hexdigest()
        self._fingerprint = f"fp_{digest[:12]}"

    def head(self, kind: str) -> dict[str, Any]:
        """Return what is the same in all chunks."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
        }

    def chunk(self, choice: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> str:
        """Return an event of a stream."""
        found = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        more = {"usage": None} if self.include_usage else {}
        return _event({**self.head("chat.completion.chunk"), "choices": [found], **more})

    def usage(self, tokens: int) -> dict[str, Any]:
        """Return how many tokens there were."""
        return {"prompt_tokens": self._prompt, "completion_tokens": tokens, "total_tokens": self._prompt + tokens}

    def logprobs(self, likelihoods: Any) -> dict[str, Any] | None:
        """Return likelihoods of tokens as OpenAI has them; `None` when they were not asked for."""
        if not self._logprobs:
            return None
        content = [
            {**_token(one.text, one.logprob), "top_logprobs": [_token(text, value) for text, value in one.top]}
            for one in likelihoods
        ]
        return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    """Return a token as OpenAI has it; one that is only a part of a character has no bytes of its own."""
    return {"token": text, "logprob": max(logprob, LEAST), "bytes": None if "\ufffd" in text else list(text.encode())}


LEAST = -9999.0
"""What stands for the logarithm of nothing, which JSON cannot say; it is OpenAI's."""
