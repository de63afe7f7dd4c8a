"""What a user is told: the lines of a display, and the facts in a message, however it is worded."""

import contextlib
import re

import pytest

from titer.errors import TiterError
from titer.progress import Task, line


def every_line(monkeypatch):
    """Return a list that takes every line that a display could show from now on."""
    said = []
    for name in ("__enter__", "advance"):
        own = getattr(Task, name)

        def listening(self, *args, own=own, **kwargs):
            result = own(self, *args, **kwargs)
            said.append(line())
            return result

        monkeypatch.setattr(Task, name, listening)
    return said


def untold(said, *facts):
    """Return those facts that a message, or an error with its hint, does not tell.

    A fact is a name, a number, a file, a line, a key, a command, or the word without which it would not be understood. It
    must stand there by itself: `1` is not told by `10`, `1.5` or `file1`. Case and line breaks do not matter.
    """
    text = " ".join(str(said).split())
    return [fact for fact in facts if not re.search(_alone(" ".join(str(fact).split())), text, re.IGNORECASE)]


def _alone(fact):
    before = r"(?<![\w.,])(?<!-)" if fact[0].isdigit() else r"(?<!\w)" if re.match(r"\w", fact) else ""
    after = r"(?!\w)(?![.,]\d)" if re.search(r"\w$", fact) else ""
    return before + re.escape(fact) + after


@contextlib.contextmanager
def refused(*facts, by=TiterError):
    """Expect an error that tells these facts, in its message or its hint."""
    with pytest.raises(by) as error:
        yield error
    assert not untold(error.value, *facts), str(error.value)
