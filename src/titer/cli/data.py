"""`titer data`: the datasets titer knows by name, and what is in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.common import DataDir, Json, in_range
from titer.text import one_line, say, to_json

if TYPE_CHECKING:
    from titer.data import DatasetInfo

NAME = "data"
HELP = "List the datasets titer knows by name, or look into one: rows, origins, categories, first rows."
EXAMPLES = """
Examples:

`titer data` — all known names

`titer data builtin:harmful` — what is in it

`titer data upload.jsonl` — checks a file and shows what a trainer would read
"""


def command(
    name: Annotated[str | None, typer.Argument(help="A named dataset, a file or a hub id.")] = None,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "train",
    rows: Annotated[int, typer.Option("--rows", help="Rows to show.", callback=in_range)] = 3,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List datasets, or describe one."""
    from titer.data import available, load

    if name is None:
        _list(available(), as_json)
        return
    from collections import Counter

    records = load(name, split=split, data_dir=data_dir)
    origins = dict(Counter(record.origin for record in records))
    categories = dict(Counter(record.category for record in records if record.category))
    about = {
        "name": name,
        "rows": len(records),
        "origins": origins,
        "categories": categories,
        "first": [record.to_training_row() for record in records[:rows]],
    }
    if as_json:
        say(to_json(about))
        return
    say(f"{name}: {len(records)} rows")
    for key, counts in (("origins", origins), ("categories", categories)):
        if counts:
            say(f"{key}: " + ", ".join(f"{one_line(label)} {count}" for label, count in counts.items()))
    for record in records[:rows]:
        say(f"\n  prompt: {_indented(record.prompt_text)}\n  answer: {_indented(record.completion_text)}")


def _indented(text: str) -> str:
    """Set off a text of several lines, so that none of them looks like one of titer's own."""
    return text.replace("\n", "\n          ")


def _list(infos: Sequence[DatasetInfo], as_json: bool) -> None:
    import dataclasses

    from titer.screen import Screen

    if as_json:
        say(to_json([dataclasses.asdict(info) for info in infos]))
        return
    from rich.table import Table

    table = Table("name", "what it holds", "source", "licence")
    for info in infos:
        table.add_row(info.name, info.description, info.source, info.licence)
    Screen().print(table)
