"""The terminal, for what is more than lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table

from titer.text import visible


class Screen(Console):
    """A console on which what strangers wrote is text: no markup, no names of emoji, and nothing that a screen obeys.

    Args:
        kwargs: What `rich.console.Console` takes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **kwargs)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as ever; of the texts in it, whatever is `visible` remains. Styles are not text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> None:
        """Tell the caller that nobody reads any more, where Rich would end the process."""
        raise BrokenPipeError


def table(*headers: str, title: str | None = None, typed: int = 0) -> Table:
    """Return an empty table of which nothing is cut: words that are too long go on in the next line.

    Args:
        headers: Of its columns.
        title: Above it.
        typed: How many of the first columns hold what one types, which is never broken either.
    """
    columns = [Column(header, overflow="fold", no_wrap=place < typed) for place, header in enumerate(headers)]
    return Table(*columns, title=title)
