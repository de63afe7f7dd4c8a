"""Tokens become text while they come: no half characters, and nothing behind a stop text, which may span several tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"
"""What decoders write in the place of bytes that are no character, as of one whose other bytes are in the next token."""


class Text:
    """The text of an answer that is being generated.

    Args:
        decode: Makes text of token ids.
        stop: Texts before which the answer ends.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, stop
        self.tokens: list[int] = []
        self.ends: list[int] = []  # how long the text was with each token
        self._whole = ""
        # Some tokenizers write a token differently at the beginning of a text. So the last ones are decoded again with those
        # behind them: text up to `_read` is whole, and tokens from `_from` on are decoded to see what follows.
        self._from = self._read = 0
        self._tail = ""
        self._sent = 0
        self._told = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All of it so far."""
        return self._whole + self._tail

    def add(self, token: int) -> bool:
        """Add a token; returns whether a stop text ends the answer."""
        searched = len(self.text)
        self.tokens.append(token)
        before, now = self._decode(self.tokens[self._from : self._read]), self._decode(self.tokens[self._from :])
        # A character's last bytes may be in the next token, and then it is another one.
        self._tail = now.rstrip(HALF)[len(before) :]
        if now.endswith(HALF) or not self._tail:
            return self._ended(searched)
        self._whole, self._tail = self._whole + self._tail, ""
        self._from, self._read = self._read, len(self.tokens)
        return self._ended(searched)

    def close(self) -> None:
        """Say that no token follows: bytes that are no character stay what they are."""
        if not self.stopped:
            before, now = self._decode(self.tokens[self._from : self._read]), self._decode(self.tokens[self._from :])
            self._whole, self._tail = self._whole + now[len(before) :], ""
            self._ended(self._sent)
        self._stop = ()

    def take(self) -> tuple[str, range]:
        """Return what can be said since the last call, and which tokens it came with."""
        safe = len(self.text) - self._held()
        text, self._sent = self.text[self._sent : safe], max(safe, self._sent)
        first = self._told
        while self._told < len(self.ends) and (self.ends[self._told] <= self._sent or self._is_over(self._told)):
            self._told += 1
        return text, range(first, self._told)

    def _is_over(self, token: int) -> bool:
        """Whether a token of an answer that has ended belongs to it: what is behind a stop text does not."""
        begins = self.ends[token - 1] if token else 0
        return not self._stop and (not self.stopped or begins < len(self._whole))

    def _ended(self, searched: int) -> bool:
        if len(self.ends) < len(self.tokens):
            self.ends.append(len(self.text))
        longest = max(map(len, self._stop), default=0)
        found = [self.text.find(stop, max(0, searched - longest + 1)) for stop in self._stop]
        places = [place for place in found if place >= 0]
        if not places:
            return False
        self._whole, self._tail, self.stopped = self.text[: min(places)], "", True
        return True

    def _held(self) -> int:
        """How many letters at the end may be the beginning of a stop text."""
        text = self.text
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
