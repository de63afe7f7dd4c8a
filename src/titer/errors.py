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
    """A training whose loss or weights are not finite any more; the same settings would end in the same way."""


class AttackFailed(TiterError):
    """An attack that could not be carried out for a reason of its own, such as a model that it does not apply to."""


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or first two, with its kind where that says nothing by itself."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if first.endswith(":"):
        first = " ".join([first, *others[:1]])
    return first if " " in first else f"{type(error).__name__} {first}".rstrip()


MOST = 12
"""Most names that a hint lists."""


def did_you_mean(word: str, known: Iterable[str], listing: str | None = None) -> str:
    """Return a hint that names those of `known` that are closest, or all of them where none is close and they are few.

    Args:
        word: What stands there instead.
        known: The names.
        listing: The command that lists them all.
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        hint = f"Did you mean {' or '.join(f'`{name}`' for name in close)}?"
    else:
        few = known if len(known) <= MOST else difflib.get_close_matches(word, known, n=3, cutoff=0.0)
        more = f" and {len(known) - len(few)} more" if len(known) > len(few) else ""
        hint = f"Known: {', '.join(f'`{name}`' for name in few)}{more}."
    return f"{hint} `{listing}` lists all." if listing is not None else hint


def check_known(given: Iterable[str], known: Iterable[str], what: str, listing: str | None = None) -> None:
    """Raise `TiterError` for the first of `given` that is not `known`.

    Args:
        given: Names that somebody typed.
        known: Those that there are.
        what: Describes them, for the message (`key in arms[0]`).
        listing: The command that lists them all, where they are many.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise TiterError(f"Unknown {what}: `{name}`.", did_you_mean(str(name), known, listing))
