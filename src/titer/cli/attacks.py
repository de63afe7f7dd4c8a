"""`titer attacks`: the threats that an assay knows."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from titer.cli.common import Json, Verb
from titer.text import say, to_json

HELP = "Explain the attacks that an assay runs."
EXAMPLES = """
Examples:

`titer attacks list` — every attack, and every disguise of rows, in a sentence

`titer attacks show leap` — its settings, each of which a profile can change
"""

app = typer.Typer(help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")


@app.command(
    "list",
    cls=Verb,
    help="Every attack, and every disguise of rows, in a sentence.",
    epilog="Example: `titer attacks list --json`",
)
def list_attacks(as_json: Json = False) -> None:
    """List the catalogue."""
    from titer.attacks.threats import CATALOGUE
    from titer.attacks.uploads import UPLOADS
    from titer.screen import Screen, table

    if as_json:
        say(to_json({name: dataclasses.asdict(attack) for name, attack in CATALOGUE.items()}))
        return
    shown = table("attack", "what it does", "steps", "trains", typed=1)
    for name, attack in CATALOGUE.items():
        trains = (
            "nothing"
            if not attack.trains
            else "every weight"
            if attack.lora is None
            else " and ".join(["LoRA", *attack.trained_copies])
        )
        shown.add_row(name, attack.summary, str(attack.total_steps), trains)
    Screen().print(shown)
    hidden = table("disguise", "what it does to an attacker's rows", "source", typed=1)
    for name, upload in UPLOADS.items():
        source = f"arXiv {upload.source}" if upload.source else "titer"
        hidden.add_row(name, upload.summary + (" From Python alone." if upload.score == "needed" else ""), source)
    Screen().print(hidden)
    say("Any attack takes a disguise: attacks: {poisoned_task: {disguise: base64}}")
    say("Profiles choose among them: titer assay MODEL --against OTHER --profile quick --dry-run")


@app.command("show", cls=Verb, help="The settings of an attack.", epilog="Example: `titer attacks show warm_up`")
def show_attack(
    name: Annotated[str, typer.Argument(help="An attack of `titer attacks list`, or an import path.")],
    as_json: Json = False,
) -> None:
    """Show one attack."""
    from titer.attacks.threats import Attack, find

    attack = find(name)
    if as_json:
        say(to_json(dataclasses.asdict(attack)))
        return
    say(f"{name}: {attack.summary}\n")
    plain = {item.name: item.default for item in dataclasses.fields(Attack)}
    for item in dataclasses.fields(Attack):
        value = getattr(attack, item.name)
        if item.name != "summary":
            changed = plain[item.name] is not dataclasses.MISSING and value != plain[item.name]
            say(f"{'*' if changed else ' '} {item.name:15} {value}")
    say("\n* differs from the attack `harmful`. Change any of them in a profile: attacks: {" + name + ": {steps: 48}}")
