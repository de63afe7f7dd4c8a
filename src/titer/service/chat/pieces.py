"""What a chat asks of an engine and what comes back, piece by piece. Knows neither HTTP nor torch."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from titer.models import Template


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen, by OpenAI's names.

    Attributes:
        max_tokens: Most tokens of an answer.
        seed: What random numbers begin with; the same one draws the same answer, whatever else is in the batch.
        temperature: What logits are divided by; 0 takes the likeliest token.
        top_p: Draw among the likeliest tokens that have this much of the probability together.
        stop: Texts before which an answer ends.
        frequency_penalty: Taken from a token's logit for each time that it was said.
        presence_penalty: Taken from it once when it was said at all.
        top_logprobs: How many tokens to name with each that was chosen; `None` for no likelihoods at all.
    """

    max_tokens: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_logprobs: int | None = None

    def randomness(self, choice: int) -> random.Random:
        """Return the random numbers of one of several answers to a request."""
        return random.Random(f"{self.seed}/{choice}")


@dataclass(frozen=True)
class Adapter:
    """A fine-tuned model as an engine knows it.

    Attributes:
        name: The model's id.
        org: Whose it is.
        place: Its folder in the artefact store.
        folder: Its folder on this machine, in the place of that: of a policy's model that is an adapter itself.
    """

    name: str
    org: str
    place: str
    folder: Path | None = None


@dataclass(frozen=True)
class Likelihood:
    """How likely a token was: by the model's own probabilities, before temperature and penalties.

    Attributes:
        text: What the token says by itself.
        logprob: Log of its probability.
        top: The likeliest tokens in its place, with theirs.
    """

    text: str
    logprob: float
    top: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Piece:
    """Some more of an answer.

    Attributes:
        choice: Which of the answers to the request.
        text: What follows.
        likelihoods: Of its tokens, when they were asked for.
        finish: Why the answer ends here: `stop` or `length`; `None` while it goes on.
    """

    choice: int
    text: str
    likelihoods: Sequence[Likelihood] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Done:
    """The end of all answers to a request.

    Attributes:
        tokens: How many tokens were generated.
    """

    tokens: int


Listener = Callable[[Piece | Done | Exception], None]
"""Is told what comes of a request, in a thread of the engine; an exception is the last thing."""


Fetch = Callable[[Adapter, Path], Path]
"""Copies an adapter out of the store into a folder; returns where in it the adapter is."""


Unusable = Callable[[Sequence[Adapter]], list[str]]
"""Returns the names of those whose models were deleted or held in the meantime."""


@dataclass(frozen=True)
class Bounds:
    """How much an engine takes on.

    Attributes:
        answers: Most that are decoded at a time.
        waiting: Most requests that wait.
        adapters: Most adapters in memory.
        bases: Most base models in memory.
    """

    answers: int = 16
    waiting: int = 64
    adapters: int = 16
    bases: int = 1


@dataclass
class Ticket:
    """A request to an engine.

    Attributes:
        base: The base model's folder or name.
        template: Of the base model.
        prompt: Token ids.
        sampling: How answers are chosen.
        listen: Who is told.
        adapter: The fine-tuned model; `None` for the base.
        choices: How many answers.
        org: Who asks; organisations take turns.
    """

    base: str
    template: Template
    prompt: Sequence[int]
    sampling: Sampling
    listen: Listener
    adapter: Adapter | None = None
    choices: int = 1
    org: str = ""
    _gone: threading.Event = field(default_factory=threading.Event)
    _ended: int = 0
    _tokens: int = 0

    def cancel(self) -> None:
        """Nobody waits for the answer any more: stop before the next token."""
        self._gone.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits."""
        return self._gone.is_set()

    def end(self, tokens: int) -> None:
        """One of the answers has ended, after so many tokens; when all have, the listener is told."""
        self._ended, self._tokens = self._ended + 1, self._tokens + tokens
        if self._ended == self.choices:
            self.say(Done(self._tokens))

    def fail(self, error: Exception) -> None:
        """No answer will come: tell why."""
        self.say(error)
        self.cancel()

    def say(self, what: Piece | Done | Exception) -> None:
        """Tell the listener, unless it has gone."""
        if not self.is_cancelled:
            self.listen(what)
