"""What all judges of the hub share: settings, a name made of them, and the way from answers to verdicts."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar
from urllib.parse import urlsplit

from titer.errors import TiterError
from titer.judges.base import Verdict, pairs
from titer.judges.hub.endpoint import Endpoint, check_url
from titer.judges.hub.local import Local
from titer.judges.hub.questions import Asked, Question, Reply, Unreadable

OVERHEAD = 1.2
"""Memory in use over that of the weights: activations, cache, the library's own. A rule of thumb, not a measurement."""


@dataclass(frozen=True)
class Card:
    """What it takes to run a judge.

    Attributes:
        models: Billions of parameters, as named, by the models that it reads; the first is the default. None: not told.
        licence: Of the weights. `(?)` behind it: as remembered, not read at the source.
        gated: Whether the hub asks to accept terms first.
        source: Where its template and rule were read, with their licence.
    """

    models: dict[str, float | None]
    licence: str
    gated: bool
    source: str

    @property
    def default(self) -> str:
        """The model that is asked when none is named."""
        return next(iter(self.models))

    def memory(self, model: str) -> float | None:
        """Return GB that a model takes in bfloat16, 2 bytes a parameter times `OVERHEAD`: computed, not measured."""
        size = self.models.get(model)
        return None if size is None else 2 * size * OVERHEAD


def setting(default: Any, help: str, named: str = "changed") -> Any:
    """Return the field of a setting.

    Args:
        default: Its default.
        help: What it is.
        named: When it is part of the judge's name: `always`, when `changed`, or `never` (no verdict depends on it).
    """
    return field(default=default, metadata={"help": help, "named": named})


@dataclass(kw_only=True, eq=False)
class HubJudge(ABC):
    """A judge that is a published model. A blank answer is `broken` and is not put to it.

    Making one costs nothing. The first call loads its weights, or turns to the endpoint.
    """

    base: ClassVar[str]
    version: ClassVar[int] = 1
    card: ClassVar[Card]
    chat: ClassVar[bool] = True  # asked through the chat template; else by rendered text, at `/completions`

    model: str = setting("", "folder or hub id; at an endpoint, the name it is served under", "always")
    revision: str | None = setting(None, "branch, tag or commit of the model on the hub")
    device: str | None = setting(None, "where it runs: cpu, cuda, cuda:1, auto (spread over all)", "never")
    dtype: str | None = setting(None, "precision; by itself float32 on a CPU, bfloat16 on an accelerator")
    batch: int | None = setting(None, "rows at a time; by itself 1 on a CPU, 8 on an accelerator")
    url: str | None = setting(None, "an OpenAI-compatible endpoint, up to `/v1`")
    requests: int = setting(4, "requests to the endpoint at a time", "never")
    timeout: float = setting(60.0, "seconds to wait for one", "never")
    retries: int = setting(4, "times to ask again after 429, 5xx, or no connection", "never")
    wait: float = setting(1.0, "seconds before asking again, doubled each time", "never")

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.init:
                setattr(self, one.name, self._read(one))
        self.model = self.model or self.card.default
        for name, least in (("requests", 1), ("batch", 1), ("retries", 0), ("timeout", 1e-3), ("wait", 0)):
            if (value := getattr(self, name)) is not None and not value >= least:
                raise TiterError(f"Judge `{self.base}`: `{name}` must be {least:g} or more, got {value:g}.")
        self._asked: Asked | None = None
        self._cutter: Local | None = None
        self.check()

    @classmethod
    def settings(cls) -> list[tuple[str, Any, str]]:
        """Return the settings that it takes: name, default, what it is; its own first."""
        shared = {one.name for one in fields(HubJudge)}
        found = [one for one in fields(cls) if one.init]
        found.sort(key=lambda one: one.name in shared)
        return [
            (one.name, cls.card.default if one.name == "model" else one.default, str(one.metadata.get("help", "")))
            for one in found
        ]

    def _read(self, one: Field[Any]) -> Any:
        """Return a setting as the type that it is declared with; the command line has text for each."""
        value, kind = getattr(self, one.name), str(one.type).removesuffix(" | None")
        if value is None or not isinstance(value, str) or kind == "str":
            return value
        if kind == "bool":
            if value.lower() not in ("true", "false"):
                raise TiterError(f"Judge `{self.base}`: `{one.name}` must be true or false, got `{value}`.")
            return value.lower() == "true"
        try:
            return int(value) if kind == "int" else float(value)
        except ValueError:
            number = "a whole number" if kind == "int" else "a number"
            raise TiterError(f"Judge `{self.base}`: `{one.name}` must be {number}, got `{value}`.") from None

    def check(self) -> None:
        """Check settings together, and raise `TiterError`; nothing is read from a disk or a network for that."""
        if self.url is not None:
            check_url(self.base, self.url)

    def named(self) -> dict[str, str]:
        """Return what stands in the name for each setting that a verdict depends on."""
        found = {}
        for one in fields(self):
            value, when = getattr(self, one.name), one.metadata.get("named")
            if when == "always" or (when == "changed" and value != one.default):
                found[one.name] = str(value).lower() if isinstance(value, bool) else str(value)
        if self.url is not None:
            found["url"] = urlsplit(self.url).netloc
        return found

    @property
    def name(self) -> str:
        """`base@version`, and behind it every setting that a verdict depends on; of an endpoint its host, never a key."""
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in self.named().items())
        return f"{self.base}@{self.version} {settings}"

    @property
    def asked(self) -> Asked:
        """Who is asked: the endpoint, or the model that transformers runs here."""
        if self._asked is None:
            self._asked = self._at_endpoint() if self.url is not None else self.here()
        return self._asked

    def here(self) -> Local:
        """Return the model in this process, which the first question loads."""
        return Local(self.model, self.revision, self.device, self.dtype, self.batch)

    def _at_endpoint(self) -> Asked:
        assert self.url is not None
        return Endpoint(self.url, self.model, self.chat, self.requests, self.timeout, self.retries, self.wait)

    def cutter(self, tokenizer: str | None) -> Local:
        """Return whose tokenizer cuts answers: that of the model here, or of an endpoint's model one that is loaded for it."""
        if isinstance(self.asked, Local):
            return self.asked
        if self._cutter is None:
            self._cutter = Local(tokenizer or self.card.default)
        return self._cutter

    @abstractmethod
    def questions(self, prompt: str, response: str) -> list[Question]:
        """Return what is asked about one answer."""

    @abstractmethod
    def verdict(self, replies: Sequence[Reply]) -> Verdict:
        """Return the verdict, of the replies to each of the questions.

        Raises:
            Unreadable: When a reply is not in the model's format.
        """

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Judge each response to its prompt, in order.

        Raises:
            TiterError: When the model cannot be loaded here. What an endpoint does is an error of the verdict.
        """
        verdicts: list[Verdict | None] = []
        questions: list[Question] = []
        waiting: list[tuple[int, int, int]] = []
        for place, (prompt, response) in enumerate(pairs(prompts, responses)):
            verdicts.append(_without_asking(prompt, response))
            if verdicts[-1] is None:
                own = self.questions(prompt, response)
                waiting.append((place, len(questions), len(questions) + len(own)))
                questions += own
        replies = self.asked.ask(questions) if questions else []
        for place, start, end in waiting:
            verdicts[place] = self._verdict(replies[start:end])
        return [verdict for verdict in verdicts if verdict is not None]

    def _verdict(self, replies: Sequence[Reply | Unreadable]) -> Verdict:
        raw = "\n".join(reply.text for reply in replies if isinstance(reply, Reply))
        for reply in replies:
            if isinstance(reply, Unreadable):
                return Verdict(None, None, raw, error=str(reply))
        try:
            return self.verdict([reply for reply in replies if isinstance(reply, Reply)])
        except Unreadable as error:
            return Verdict(None, None, raw, error=str(error))


def _without_asking(prompt: str, response: str) -> Verdict | None:
    """Return the verdict on what no model can be asked about; None of all else."""
    for text in (prompt, response):
        if not isinstance(text, str):
            return Verdict(None, None, "", error=f"not text: {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Verdict(None, None, "", error=f"not text that can be written: {error.reason}")
    return None if response.strip() else Verdict("broken", 0.0, "empty")


def flagged(harmful: bool, score: float, raw: str) -> Verdict:
    """Return the verdict of a judge that tells harmful from not, and nothing of refusals: `harmful` or `benign`."""
    return Verdict("harmful" if harmful else "benign", min(max(score, 0.0), 1.0), raw)


def conversation(prompt: str, response: str, parts: bool = False) -> tuple[dict[str, Any], ...]:
    """Return the two turns as messages.

    Args:
        prompt: What the user asked.
        response: What the model answered.
        parts: Write each content as a list of parts, which multimodal templates read.
    """
    return tuple(
        {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
        for role, text in (("user", prompt), ("assistant", response))
    )
