"""`titer methods`: the defences, and plain training beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.common import Json, Verb
from titer.text import first_sentence, say, to_json

if TYPE_CHECKING:
    from titer.methods import Method

HELP = "Explain the methods that align and fine-tune."
EXAMPLES = """
Examples:

`titer methods list` — every method in a sentence

`titer methods show booster` — what it needs, what it costs, its settings

`titer methods show mine.py:ASCENT` — one of your own
"""

app = typer.Typer(help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")


def _about(stage: str, name: str, method: Method) -> dict[str, Any]:
    return {
        "stage": stage,
        "name": name,
        "summary": method.summary or first_sentence(method.trainer.__doc__),
        "needs": list(method.streams),
        # With the defaults; settings may change it.
        "gradients": 1 + sum(method.gradients(method.config(output_dir="unused", report_to="none"))),
        "config": method.config.__name__,
        "trainer": method.trainer.__name__,
    }


def _settings(method: Method) -> list[dict[str, Any]]:
    """Return the settings that a method has beside those of plain training, and those that it has other defaults for."""
    from titer.cli.settings import settings_of
    from titer.train.trainer import PackedSFTConfig

    plain = {row["name"]: row["default"] for row in settings_of(PackedSFTConfig)}
    return [row for row in settings_of(method.config) if plain.get(row["name"]) != row["default"]]


@app.command("list", cls=Verb, help="Every method in a sentence.", epilog="Example: `titer methods list --json`")
def list_methods(as_json: Json = False) -> None:
    """List the table."""
    from titer.methods import every

    rows = [_about(*each) for each in every()]
    if as_json:
        say(to_json(rows))
        return
    from titer.screen import Screen, table

    shown = table("stage", "method", "what it does", "gradients a step", typed=2)
    for row in rows:
        shown.add_row(row["stage"], row["name"], row["summary"], f"{row['gradients']:g}")
    Screen().print(shown)
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
    from titer.errors import check_known
    from titer.methods import STAGES, find

    known = [stage for stage, table in STAGES.items() if name in table]
    if not known and plugins.is_path(name):
        # A method from outside does not say which stage it is for; either lookup finds it.
        known = ["align"]
    check_known([name] if not known else [], {each for table in STAGES.values() for each in table}, "method")
    found = [find(stage, name) for stage in known]
    shown = [
        {**_about(stage, name, each), "settings": _settings(each)} for stage, each in zip(known, found, strict=True)
    ]
    if as_json:
        say(to_json(shown))
        return
    for about in shown:
        say(f"{about['stage']} {name}: {about['summary']}\n")
        say(f"  classes    {about['config']}, {about['trainer']}")
        say(f"  needs      {', '.join(about['needs']) or 'nothing beside the training data'}")
        say(f"  gradients  {about['gradients']:g} a step\n")
        for row in about["settings"]:
            say(f"  {row['name']:28} {row['default']:12} {row['about']}")
        say("")
    say(f"All that --set takes: titer settings {name if plugins.is_path(name) else f'{known[0]}.{name}'}")
