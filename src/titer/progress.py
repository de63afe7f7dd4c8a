"""What is being done, how far it is and how long it will take yet: work says so, a display shows it.

    with Task("answers", len(prompts)) as answers:
        for batch in batches:
            ...
            answers.advance(len(batch))

Tasks nest: what runs inside of another is a part of it. Nobody who reports asks who listens: without a word from the caller
there is a line on stderr every half minute (`Lines`) and none for shorter work; `shown(None)` silences it, `shown(display)`
chooses another display.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self, TextIO, TypeVar

from titer.text import one_line, say

EVERY = 30.0
"""Seconds between lines."""

POINTS = 60
"""How far back the pace is taken from: so many advances, or as many seconds where there are several in each."""

now = time.monotonic
T = TypeVar("T")


class Task:
    """A piece of work; it is open between entering and leaving it as a context.

    Args:
        what: What is done ("align booster") or, with a total, what is counted ("step", "answers").
        total: How many there will be; `None` where nothing is counted.

    Attributes:
        done: How many there are.
        note: What else there is to say ("loss 1.234").
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total = one_line(what), total
        self.done, self.note = 0, ""
        # When there were how many. Replaced as a whole, because displays read it from threads of their own.
        self._points: tuple[tuple[float, int], ...] = ((now(), 0),)

    def __enter__(self) -> Self:
        self._points = ((now(), self.done),)
        _open.append(self)
        if len(_open) == 1 and _display is not None:
            _display.start()
        return self

    def __exit__(self, *error: object) -> None:
        # By itself: attackers of a fleet do not close theirs in the order in which they opened them.
        _open.remove(self)
        if not _open and _display is not None:
            _display.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Take note that so many more are done."""
        self.done += count
        self.note = one_line(note)
        kept = self._points
        if len(kept) > 1 and kept[-1][0] - kept[-2][0] < 1:
            kept = kept[:-1]
        self._points = (*kept[-POINTS:], (now(), self.done))

    def skip(self, count: int) -> None:
        """Take note that so many were done before, which says nothing of how fast it goes."""
        self.done += count
        self._points = ((now(), self.done),)

    @property
    def left(self) -> float | None:
        """Seconds that it will take yet at its present pace; `None` while that is not known."""
        (start, before), (last, done) = self._points[0], self._points[-1]
        if self.total is None or done == before or done >= self.total:
            return None
        each = (last - start) / (done - before)
        todo = self.total - done
        return max(each * (todo - 1), each * todo - (now() - last), 0.0)

    @property
    def idle(self) -> float:
        """Seconds since it last advanced."""
        return now() - self._points[-1][0]

    def __str__(self) -> str:
        count = "" if self.total is None else f" {self.done} of {self.total}"
        return f"{self.what}{count}{self.note and ', ' + self.note}"


class Display(Protocol):
    """Shows what `line` says from the moment that the first task is opened until the last one is closed."""

    def start(self) -> None:
        """Begin to show."""

    def stop(self) -> None:
        """Show nothing more."""


class Lines:
    """Prints a line every half minute, however long a step takes.

    Args:
        file: Where to; stderr as it is then when `None`.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file
        self._said = 0.0
        self._over = threading.Event()

    def start(self) -> None:
        """Begin; of several processes that train together, the first one speaks."""
        self._said = now()
        if os.environ.get("RANK", "0") == "0":
            # A thread, because no step knows how long it will take. It sleeps, and computes nothing.
            self._over = threading.Event()
            threading.Thread(target=self._watch, args=(self._over,), daemon=True).start()

    def stop(self) -> None:
        """End."""
        self._over.set()

    def _watch(self, over: threading.Event) -> None:
        try:
            while not over.wait(max(0.0, self._said + EVERY - now())):
                self.tick()
        except (OSError, ValueError):
            # The file is full or closed: nobody listens any more, and the work goes on.
            return

    def tick(self) -> None:
        """Print a line if one is due."""
        if _open and now() - self._said >= EVERY:
            self._said = now()
            say(f"… {line()}", self.file or sys.stderr)


_open: list[Task] = []
_display: Display | None = Lines()


@contextmanager
def shown(display: Display | None) -> Iterator[None]:
    """Show what is done inside of the block on another display, or not at all; no task may be open yet."""
    global _display
    before, _display = _display, display
    try:
        yield
    finally:
        _display = before


def tasks() -> list[Task]:
    """Return the tasks that are open, each a part of those before it."""
    return [*_open]


def line() -> str:
    """Return on one line what is being done, how far it is, for how long now where that is long, and how long yet."""
    parts = tasks()
    if not parts:
        return ""
    # Several attackers may be at the same thing.
    first, *inside = dict.fromkeys(map(str, parts))
    said = first + (f": {', '.join(inside)}" if inside else "")
    last = parts[-1]
    if last.idle >= EVERY:
        said += f", {'for' if last.total is None else 'the next for'} {duration(last.idle)}"
    left = next((left for task in parts if (left := task.left) is not None), None)
    return said if left is None else f"{said}, {duration(left)} left"


def counted(what: str, items: Sequence[T]) -> Iterator[T]:
    """Yield items, each a step of a task."""
    with Task(what, len(items)) as task:
        for item in items:
            yield item
            task.advance()


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
