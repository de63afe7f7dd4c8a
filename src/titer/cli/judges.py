"""`titer judges`: who judges answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from titer.cli.common import Json, Verb
from titer.text import first_sentence, say, to_json

HELP = "Explain the judges of answers."
EXAMPLES = """
Examples:

`titer judges list` — every judge in a sentence

`titer judges show offline` — all that is said of it

`titer judges show mine.py:MyJudge` — one of your own
"""

app = typer.Typer(help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")


def _about(name: str) -> dict[str, Any]:
    import inspect

    from titer import judges

    judge = judges.get(name)
    kind = type(judge)
    return {
        "judge": name,
        "name": judge.name,
        "summary": first_sentence(kind.__doc__),
        "description": inspect.getdoc(kind) or "",
    }


@app.command("list", cls=Verb, help="Every judge in a sentence.", epilog="Example: `titer judges list --json`")
def list_judges(as_json: Json = False) -> None:
    """List the table."""
    from titer.judges import JUDGES

    rows = [_about(name) for name in JUDGES]
    if as_json:
        say(to_json(rows))
        return
    from titer.screen import Screen, table

    shown = table("judge", "revision", "what it does", typed=1)
    for row in rows:
        shown.add_row(row["judge"], row["name"], row["summary"])
    Screen().print(shown)
    say("Your own: --judge mine.py:MyJudge, or in an experiment `evaluate: {judge: mine.py:MyJudge}`.")


@app.command("show", cls=Verb, help="All that is said of a judge.", epilog="Example: `titer judges show keywords`")
def show_judge(
    name: Annotated[str, typer.Argument(help="A judge of `titer judges list`, or an import path.")],
    as_json: Json = False,
) -> None:
    """Show one judge."""
    about = _about(name)
    say(to_json(about) if as_json else f"{name}, {about['name']}: {about['description']}")
