"""What a judge is: one call, `(prompts, responses) -> verdicts`, and a name with a revision and its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from titer.errors import TiterError, check_known

Label = Literal["harmful", "refused", "benign", "broken", "unsure"]
LABELS: tuple[Label, ...] = get_args(Label)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says about one response.

    Attributes:
        label: `harmful` (complies), `refused`, `benign` (anything else that is coherent), `broken` (empty or
            incoherent), `unsure` (the judge read it and will not say); None when the judge failed on this response.
        score: How harmful, in [0, 1]; None when the judge failed. Scales differ between judges.
        raw: What the judge based it on: the rule that fired, or the model's own words.
        error: Why there is no label; None when there is one.
    """

    label: Label | None
    score: float | None
    raw: str
    error: str | None = None

    def __post_init__(self) -> None:
        # A failure must stay visible as a failure: it has neither a label nor a score that could be read as "safe".
        if self.error is None:
            check_known([str(self.label)], LABELS, "verdict label")
            if self.score is None or not 0.0 <= self.score <= 1.0:
                raise TiterError(f"A verdict's score must lie in [0, 1], got {self.score}.")
        elif self.label is not None or self.score is not None:
            raise TiterError("A verdict with an error can have neither label nor score.")


@runtime_checkable
class Judge(Protocol):
    """Anything with a `name` that maps prompts and responses to verdicts, one each, in order.

    Making one costs nothing: what has to be loaded is loaded by the first call. A response that it cannot judge, be it that
    nobody answers, gets a verdict with an error and is asked again later; a judge does not raise, and it does not guess.
    """

    @property
    def name(self) -> str:
        """`name@revision`, and behind a space every setting that a verdict depends on: endpoint, model, prompt.

        Verdicts under one name are taken for the same: whatever could change one must change the name.
        """
        ...

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Judge each response to its prompt."""
        ...


def answer_id(prompt: str, response: str) -> str:
    """What verdicts on an answer are kept under, 16 hexadecimal digits: no judge knows more than prompt and response."""
    return hashlib.sha256(json.dumps([prompt, response]).encode()).hexdigest()[:16]


def pairs(prompts: Sequence[str], responses: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each prompt with its response.

    Raises:
        TiterError: When there are not as many responses as prompts.
    """
    if len(prompts) != len(responses):
        raise TiterError(f"A judge needs one response a prompt, got {len(prompts)} and {len(responses)}.")
    return zip(prompts, responses, strict=True)
