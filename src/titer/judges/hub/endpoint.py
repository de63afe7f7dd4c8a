"""A model behind an OpenAI-compatible endpoint, such as vLLM, SGLang, llama.cpp or a service (`titer.web`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from titer.judges.hub.questions import Question, Reply, Unreadable
from titer.web import Client, Unanswered, check_address

KEYS = ("TITER_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables of the key, the first that is set."""

LIKELIEST = 20
"""Tokens whose probabilities an endpoint is asked for: as many as the interface has."""


def check_url(judge: str, url: str) -> None:
    """Raise `TiterError` for what is no endpoint, or holds what belongs in no name."""
    check_address(f"Judge `{judge}`", url, "`url`", KEYS, "url=http://localhost:8000/v1")


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
        self.model, self.chat, self.requests = model, chat, requests
        self._client = Client(url, KEYS, timeout, retries, wait)

    def ask(self, questions: Sequence[Question]) -> list[Reply | Unreadable]:
        """Return one reply a question, in order, or why there is none; nothing is raised of what the endpoint does."""
        with ThreadPoolExecutor(self.requests) as pool:
            return list(pool.map(self._one, questions))

    def _one(self, question: Question) -> Reply | Unreadable:
        try:
            path = "/chat/completions" if self.chat else "/completions"
            return self._reply(question, self._client.json(path, self._body(question)))
        except Unanswered as error:
            return Unreadable(str(error))
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

    def _reply(self, question: Question, answer: Any) -> Reply:
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
        except (KeyError, IndexError, TypeError) as error:
            raise Unreadable(f"the endpoint's answer has no text: {self._client.short(json.dumps(answer))}") from error
        if not isinstance(text, str):
            raise Unreadable(f"the endpoint's answer is {type(text).__name__}, no text")
        if not question.choices or not choice.get("logprobs"):
            return Reply(text)
        try:
            chances, unseen = _chances(self._tokens(choice["logprobs"]), question.choices)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise Unreadable(
                f"the endpoint's probabilities cannot be read: {self._client.short(json.dumps(choice))}"
            ) from error
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
