"""An answer that is being generated, and what becomes of the next token's logits."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from titer.service.chat.pieces import Likelihood, Piece, Ticket
from titer.service.chat.sampling import choose, likelihood
from titer.service.chat.text import Text


class Answer:
    """One answer to a request.

    Args:
        ticket: The request.
        choice: Which of its answers.
        owner: Whose rows it is decoded with.
    """

    def __init__(self, ticket: Ticket, choice: int, owner: int) -> None:
        self.ticket, self.choice, self.owner = ticket, choice, owner
        self.text = Text(self._decode, ticket.sampling.stop)
        self.finish: str | None = None
        self.holds = True  # its adapter in memory
        self._numbers = ticket.sampling.randomness(choice)
        self._said: Counter[int] = Counter()
        self._likelihoods: list[Likelihood] = []

    def _decode(self, tokens: list[int]) -> str:
        tokenizer: Any = self.ticket.template.tokenizer
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    def _spell(self, tokens: list[int]) -> str:
        """Return what tokens say of themselves, control tokens too."""
        tokenizer: Any = self.ticket.template.tokenizer
        return str(tokenizer.decode(tokens))

    def take(self, scores: Tensor, greedy: int) -> int:
        """Choose the next token and tell the listener what it adds; `finish` is set when the answer ends with it.

        Args:
            scores: Logits `(vocabulary,)`.
            greedy: The token with the largest.
        """
        sampling = self.ticket.sampling
        plain = sampling.temperature == 0 and not (sampling.frequency_penalty or sampling.presence_penalty)
        token = greedy if plain else choose(scores, sampling, self._numbers, self._said)
        if token in self.ticket.template.end_of_turn:
            self.finish = "stop"
        else:
            self._said[token] += 1
            if sampling.top_logprobs is not None:
                self._likelihoods.append(likelihood(scores, token, sampling.top_logprobs, self._spell))
            if self.text.add(token):
                self.finish = "stop"
            elif len(self.text.tokens) >= sampling.max_tokens:
                self.finish = "length"
        if self.finish:
            self.text.close()
            if self.text.stopped:
                self.finish = "stop"
        self._tell()
        return token

    def _tell(self) -> None:
        text, tokens = self.text.take()
        likelihoods = [self._likelihoods[token] for token in tokens] if self._likelihoods else []
        if text or likelihoods or self.finish:
            self.ticket.say(Piece(self.choice, text, likelihoods, self.finish))
