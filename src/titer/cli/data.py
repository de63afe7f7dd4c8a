"""`titer data`: the datasets titer knows by name, what is in one, and one as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.common import (
    DataDir,
    DefaultVerb,
    Force,
    Json,
    Verb,
    in_range,
    path,
)
from titer.text import one_line, say, to_json
from titer.workflows.common import refuse_unused, refuse_unused_data_dir, refuse_what_is_there

if TYPE_CHECKING:
    from titer.data import DatasetInfo

HELP = "List the datasets titer knows by name, look into one (rows, origins, categories, first rows), or write one to a file."
EXAMPLES = """
Examples:

`titer data` — all known names

`titer data builtin:harmful` — what is in it

`titer data upload.jsonl` — checks a file and shows what a trainer would read

`titer data export builtin:upload` — writes upload.jsonl, a sample of what a customer may upload

`titer data export builtin:upload --messages` — as OpenAI's fine-tuning takes it, for `titer serve`
"""

app = typer.Typer(cls=DefaultVerb, help=HELP, epilog=EXAMPLES, no_args_is_help=False, rich_markup_mode="markdown")


@app.command(
    "show", cls=Verb, help="List the datasets, or look into one. `titer data NAME` is short for it.", epilog=EXAMPLES
)
def show(
    name: Annotated[str | None, typer.Argument(help="A named dataset, a file or a hub id.")] = None,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "train",
    rows: Annotated[int, typer.Option("--rows", help="Rows to show.", callback=in_range)] = 3,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List datasets, or describe one."""
    from titer.data import available, load

    if name is None:
        refuse_unused(["split", "rows", "data_dir"], "without the name of a dataset")
        _list(available(), as_json)
        return
    refuse_unused_data_dir([name])
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


@app.command(
    "export",
    cls=Verb,
    help="Write a dataset to a file, in the form in which uploads are read.",
    epilog="Example: `titer data export builtin:upload --n 50 --output upload.jsonl`",
)
def export(
    name: Annotated[str, typer.Argument(help="A named dataset, a file or a hub id.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", parser=path, metavar="FILE", help="A .jsonl file; by default named like the dataset."
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Only the first so many rows.", callback=in_range)] = None,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "train",
    data_dir: DataDir = None,
    messages: Annotated[
        bool, typer.Option("--messages", help="Only the `messages` of each row, as OpenAI's fine-tuning takes them.")
    ] = False,
    force: Force = False,
) -> None:
    """Write a dataset to a file."""
    from titer.data import load, write_jsonl
    from titer.data.files import write_rows
    from titer.errors import TiterError
    from titer.files import check_output

    file = output or Path(f"{Path(name.removeprefix('builtin:')).stem}.jsonl")
    if file.suffix != ".jsonl":
        raise TiterError(f"`--output {file}`: rows are written as JSON lines.", "Name a file that ends in .jsonl.")
    check_output(file.parent, [file.name])
    refuse_what_is_there([file], force)
    refuse_unused_data_dir([name])
    records = load(name, split=split, data_dir=data_dir, limit=n)
    if messages:
        write_rows(file, (record.to_messages() for record in records))
    else:
        write_jsonl(file, records)
    say(f"{file}: {len(records)} rows")


def _indented(text: str) -> str:
    """Set off a text of several lines, so that none of them looks like one of titer's own."""
    return text.replace("\n", "\n          ")


def _list(infos: Sequence[DatasetInfo], as_json: bool) -> None:
    import dataclasses

    from titer.screen import Screen, table

    if as_json:
        say(to_json([dataclasses.asdict(info) for info in infos]))
        return
    shown = table("name", "source", "what it holds, and its licence", typed=2)
    for info in infos:
        shown.add_row(info.name, info.source, f"{info.description} ({info.licence})")
    Screen().print(shown)
