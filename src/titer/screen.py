"""The terminal, for what is more than lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

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
