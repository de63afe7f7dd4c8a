"""What a hub judge asks of a model, and what comes back, whoever the model is run by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Unreadable(Exception):
    """What a model said, or did not say, of one answer: the error of its verdict."""


@dataclass(frozen=True)
class Question:
    """One text to put to a model.

    Attributes:
        messages: A conversation, for the chat template of the model's tokenizer; empty when `text` is given.
        text: A rendered prompt. The tokenizer puts its first token (`<s>`) before it.
        template: What the chat template takes beside the messages.
        generation_prompt: Whether the template is asked to open the model's own turn.
        tokens: Most tokens that the model says.
        choices: Tokens whose probabilities are wanted, where the model says its label.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    text: str = ""
    template: Mapping[str, Any] = field(default_factory=dict)
    generation_prompt: bool = False
    tokens: int = 1
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: Its words.
        chances: The probability of each choice at the label's token, which is the first that is not blank; None when the
            endpoint told no probabilities.
        unseen: Most probability that any choice which is not in `chances` can have: an endpoint lists the likeliest alone.
    """

    text: str
    chances: Mapping[str, float] | None = None
    unseen: float = 0.0

    def among(self, choices: Sequence[str], tolerance: float = 0.001) -> dict[str, float]:
        """Return the probabilities of the choices relative to each other.

        Args:
            choices: All that there are.
            tolerance: Most that choices which were not told may weigh together; below it they count as 0.

        Raises:
            Unreadable: When probabilities were not told, or not enough of them.
        """
        if self.chances is None:
            raise Unreadable(
                "the endpoint tells no probabilities of tokens (`logprobs`), which this judge's label is made of"
            )
        told = sum(self.chances.values())
        missing = [choice for choice in choices if choice not in self.chances]
        if not told > 0 or (missing and len(missing) * self.unseen > tolerance * told):
            said = ", ".join(f"`{choice}`" for choice in missing or choices)
            raise Unreadable(f"no probability was told of {said}: the model says {self.text[:40]!r} instead")
        return {choice: self.chances.get(choice, 0.0) / told for choice in choices}


class Asked(Protocol):
    """Who runs a model."""

    def ask(self, questions: Sequence[Question]) -> list[Reply | Unreadable]:
        """Return one reply a question, in order, or why there is none."""
        ...
