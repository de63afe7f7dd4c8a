"""A model behind an OpenAI-compatible endpoint, such as vLLM, SGLang, llama.cpp or a service.

By the standard library's client: titer declares no other. A redirect is not followed, since the key would go with it.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from titer.errors import TiterError
from titer.judges.hub.questions import Question, Reply, Unreadable

KEYS = ("TITER_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables of the key, the first that is set."""

LIKELIEST = 20
"""Tokens whose probabilities an endpoint is asked for: as many as the interface has."""

LONGEST_WAIT = 60.0
"""Most seconds before a request is sent again, whatever the endpoint asks for."""

AGAIN = (408, 409, 425, 429)
"""Answers below 500 after which asking again may help."""


def check_url(judge: str, url: str) -> None:
    """Raise `TiterError` for what is no endpoint, or holds what belongs in no name."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TiterError(
            f"Judge `{judge}`: `{url}` is no address of an endpoint.", "For example url=http://localhost:8000/v1."
        )
    if parts.username or parts.password or parts.query:
        raise TiterError(
            f"Judge `{judge}`: a key does not belong in `url`.", f"Set the environment variable {KEYS[0]} to it."
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class Endpoint:
    """A model that is asked over HTTP, greedily (`temperature` 0).

    Args:
        url: Of the endpoint, up to `/v1`.
        model: The name that it is served under.
        chat: Ask at `/chat/completions`, where the endpoint renders its chat template, or at `/completions`.
        requests: Most at a time.
        timeout: Seconds to wait for one.
        retries: Times to ask again.
        wait: Seconds before the first of these, doubled each time.
    """

    def __init__(
        self, url: str, model: str, chat: bool, requests: int, timeout: float, retries: int, wait: float
    ) -> None:
        self.address = f"{url.rstrip('/')}/{'chat/completions' if chat else 'completions'}"
        self.model, self.chat, self.requests = model, chat, requests
        self.timeout, self.retries, self.wait = timeout, retries, wait
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._away = False

    def ask(self, questions: Sequence[Question]) -> list[Reply | Unreadable]:
        """Return one reply a question, in order, or why there is none; nothing is raised of what the endpoint does."""
        with ThreadPoolExecutor(self.requests) as pool:
            return list(pool.map(self._one, questions))

    def _one(self, question: Question) -> Reply | Unreadable:
        try:
            return self._reply(question, self._post(self._body(question)))
        except Unreadable as error:
            return error

    def _body(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": question.tokens}
        if not self.chat:
            return {**body, "prompt": question.text, **({"logprobs": LIKELIEST} if question.choices else {})}
        if question.choices:
            body |= {"logprobs": True, "top_logprobs": LIKELIEST}
        if question.template:
            body["chat_template_kwargs"] = dict(question.template)
        return {**body, "messages": list(question.messages)}

    def _post(self, body: Mapping[str, Any]) -> Any:
        """Send a request, again where that may help, and return what came back.

        Raises:
            Unreadable: When nothing usable came.
        """
        asked_for, why, away = 0.0, "", False
        # Where nobody was there a moment ago, each further question is asked once: minutes of waiting would tell no more.
        for attempt in range(1 if self._away else self.retries + 1):
            if attempt:
                time.sleep(min(max(self.wait * 2 ** (attempt - 1), asked_for), LONGEST_WAIT))
            asked_for = 0.0
            try:
                with self._open(self._request(body), timeout=self.timeout) as answer:
                    content = answer.read()
            except urllib.error.HTTPError as error:
                away = False
                why = f"{error.code} {error.reason}: {_told(error)}"
                if error.code < 500 and error.code not in AGAIN:
                    raise Unreadable(f"the endpoint refuses: {why}") from error
                asked_for = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                away = True
                why = str(getattr(error, "reason", error)) or type(error).__name__
            else:
                self._away = False
                return _json(content)
        self._away = away
        raise Unreadable(f"no answer from {urlsplit(self.address).netloc}: {why}")

    def _request(self, body: Mapping[str, Any]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "User-Agent": "titer"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(self.address, json.dumps(body).encode(), headers, method="POST")

    def _reply(self, question: Question, answer: Any) -> Reply:
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
        except (KeyError, IndexError, TypeError) as error:
            raise Unreadable(f"the endpoint's answer has no text: {_short(json.dumps(answer))}") from error
        if not isinstance(text, str):
            raise Unreadable(f"the endpoint's answer is {type(text).__name__}, no text")
        if not question.choices or not choice.get("logprobs"):
            return Reply(text)
        try:
            chances, unseen = _chances(self._tokens(choice["logprobs"]), question.choices)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise Unreadable(f"the endpoint's probabilities cannot be read: {_short(json.dumps(choice))}") from error
        return Reply(text, chances, unseen)

    def _tokens(self, told: Any) -> list[tuple[str, dict[str, float]]]:
        """Return each token of a reply with the logarithms of the probabilities of the likeliest in its place."""
        if not self.chat:
            return list(zip(told["tokens"], told["top_logprobs"], strict=True))
        found = []
        for token in told["content"]:
            likeliest: dict[str, float] = {}
            for other in token["top_logprobs"]:
                likeliest.setdefault(other["token"], other["logprob"])
            found.append((token["token"], likeliest))
        return found


def _chances(
    tokens: Sequence[tuple[str, Mapping[str, float]]], choices: Sequence[str]
) -> tuple[dict[str, float] | None, float]:
    """Return the probability of each choice that is listed at the first token that is not blank, and the least listed."""
    likeliest = next((told for token, told in tokens if token.strip()), None)
    if not likeliest:
        return None, 0.0
    found: dict[str, float] = {}
    for token, logarithm in likeliest.items():
        if (word := token.strip()) in choices:
            found[word] = found.get(word, 0.0) + math.exp(min(float(logarithm), 0.0))
    return found, math.exp(min(0.0, *map(float, likeliest.values())))


def _key() -> str:
    """Return the key; empty where there is none."""
    name, key = next(((name, value) for name in KEYS if (value := os.environ.get(name, "").strip())), ("", ""))
    if not (key.isascii() and key.isprintable()):
        raise TiterError(f"The key in {name} holds what no key does: a line break, or a letter that is not ASCII.")
    return key


def _told(error: urllib.error.HTTPError) -> str:
    """Return the beginning of what an endpoint says about an error."""
    try:
        return _short(error.read(2_000).decode(errors="replace"))
    except (OSError, http.client.HTTPException):
        return "(no more)"


def _short(text: str) -> str:
    """Return the beginning of a text in one line; a key that it repeats is not told."""
    key = _key()
    return " ".join((text.replace(key, "…") if key else text).split())[:200]


def _seconds(text: str | None) -> float:
    """Return the seconds of a `Retry-After`; 0 where it names a date, or nothing."""
    return float(text) if text is not None and text.strip().isdecimal() else 0.0


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise Unreadable(f"the endpoint's answer is not JSON: {_short(content.decode(errors='replace'))}") from error
