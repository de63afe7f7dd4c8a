"""The one error a user of titer is meant to see, and the suggestion that goes with it.

Every mistake that a user can make (a broken file, an unknown key, a setting that would change the method)
raises `TiterError`. The command line prints its message without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TiterError(ValueError):
    """A mistake in what the user gave: a file, a key, a value.

    Args:
        message: What is wrong, naming the file, line and key where there is one.
        hint: What to do about it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        super().__init__(message if hint is None else f"{message}\n{hint}")


class RanAway(TiterError):
    """A training whose loss or weights are no numbers any more: with the same settings it ends so each time."""


class AttackFailed(TiterError):
    """An attack that could not be carried out for a reason of its own, such as a model that it does not apply to."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest of `known`, or lists them all when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean `{close[0]}`?"
    return "Known: " + ", ".join(f"`{name}`" for name in known) + "."


def check_known(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise `TiterError` for the first of `given` that is not `known`; `what` describes it (`key in arms[0]`)."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TiterError(f"Unknown {what}: `{name}`.", did_you_mean(str(name), known))
