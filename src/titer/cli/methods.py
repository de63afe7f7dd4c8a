"""`titer methods`: the defences, and plain training."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.common import Json, Verb
from titer.text import say, to_json

if TYPE_CHECKING:
    from titer.methods import Method, Repair

HELP = "Explain the methods that align, fine-tune and repair."
EXAMPLES = """
Examples:

`titer methods list` — every method, with what it needs and costs and what breaks it

`titer methods show booster` — what it needs, what it costs, its settings

`titer methods show mine.py:ASCENT` — one of your own
"""

app = typer.Typer(help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")


def _about(stage: str, name: str, method: Method | Repair) -> dict[str, Any]:
    return {
        "stage": stage,
        "name": name,
        "summary": method.about,
        "needs": list(method.needs),
        "gradients": method.gradients_a_step(),  # with the defaults; settings may change it
        "memory": method.memory,
        "source": dataclasses.asdict(method.source),
        "classes": [kind.__name__ for kind in method.classes],
        "serving_control": getattr(method, "serving", None) is not None,
        "served_guard": getattr(method, "routed", None) is not None,
    }


def _told(about: dict[str, Any]) -> list[str]:
    """Return what a method does, where it comes from, what it needs and costs, and what breaks it, a line each."""
    source = about["source"]
    code = f"{source['code']} (licence: {source['licence']})" if source["code"] else ""
    count = about["gradients"]
    costs = [f"{count:g} gradient{'' if count == 1 else 's'} a step" if count else "no training"]
    costs += [f"memory: {about['memory']}"] if about["memory"] else []
    costs += [f"needs {', '.join(about['needs'])}"] if about["needs"] else []
    costs += ["serving control"] if about["serving_control"] else []
    costs += ["served guard"] if about["served_guard"] else []
    lines = [
        re.sub(r" \([^()]*arXiv [^()]*\)", "", about["summary"]),  # which is told in the next line
        " · ".join(part for part in (source["paper"] and f"arXiv {source['paper']}", code) if part),
        " · ".join(costs),
        source["broken_by"] and f"broken by {source['broken_by']}",
    ]
    return [line for line in lines if line]


def _settings(method: Method | Repair) -> list[dict[str, Any]]:
    """Return the settings that a method has besides those of plain training, and those that it has other defaults for."""
    from titer.cli.settings import settings_of
    from titer.train.trainer import PackedSFTConfig

    plain = {row["name"]: row["default"] for row in settings_of(PackedSFTConfig)}
    return [row for row in settings_of(method.config) if plain.get(row["name"]) != row["default"]]


@app.command(
    "list",
    cls=Verb,
    help="Every method: what it does, needs and costs, where it comes from, what breaks it.",
    epilog="Example: `titer methods list --json`",
)
def list_methods(as_json: Json = False) -> None:
    """List the table."""
    from titer.methods import every

    rows = [_about(*each) for each in every()]
    if as_json:
        say(to_json(rows))
        return
    from rich.table import Table
    from rich.text import Text

    from titer.screen import Screen

    screen = Screen()
    for stage, listed in itertools.groupby(rows, key=lambda row: row["stage"]):
        shown = Table.grid(padding=(0, 2, 1, 2))
        shown.add_column(no_wrap=True)
        shown.add_column(overflow="fold")
        for row in listed:
            what, *more = _told(row)
            shown.add_row(Text(row["name"], "bold"), Text.assemble(what, *((f"\n{line}", "dim") for line in more)))
        screen.print(Text(stage, "bold underline"))
        screen.print(shown, "")
    say(
        "Gradients: of an optimizer step, with the default settings; plain training takes 1. A licence is the released code's."
    )
    say("Your own: --method mine.py:NAME, or in an experiment `align: mine.py:NAME`. See docs/writing_a_method.md.")


@app.command(
    "show",
    cls=Verb,
    help="What a method needs and costs, and its settings.",
    epilog="Example: `titer methods show gate`",
)
def show_method(
    name: Annotated[str, typer.Argument(help="A method of `titer methods list`, or an import path.")],
    as_json: Json = False,
) -> None:
    """Show one method, of every stage that has one of this name."""
    from titer import plugins
    from titer.methods import find, stages_of

    stages = stages_of(name)
    found = [find(stage, name) for stage in stages]
    shown = [
        {**_about(stage, name, each), "settings": _settings(each)} for stage, each in zip(stages, found, strict=True)
    ]
    if as_json:
        say(to_json(shown))
        return
    for about in shown:
        say(f"{about['stage']} {name}: {about['summary']}\n")
        say(f"  classes    {', '.join(about['classes'])}")
        say(f"  needs      {', '.join(about['needs']) or 'nothing besides the training data'}")
        say(f"  gradients  {about['gradients']:g} a step")
        say(f"  memory     {about['memory'] or 'that of plain training'}")
        source = about["source"]
        if source["paper"]:
            say(f"  paper      arXiv {source['paper']}")
        if source["code"]:
            say(f"  code       {source['code']}, licence: {source['licence']}")
        if source["broken_by"]:
            say(f"  broken by  {source['broken_by']}")
        if about["serving_control"]:
            say("  serving    a serving control: acts by what the provider asks with, nothing against open weights")
        if about["served_guard"]:
            say(
                "  serving    a served guard: a router decides by the prompt which weights answer, nothing against open weights"
            )
        say("")
        for row in about["settings"]:
            say(f"  {row['name']:28} {row['default']:12} {row['about']}")
        say("")
    say(f"All that --set takes: titer settings {name if plugins.is_path(name) else f'{stages[0]}.{name}'}")
