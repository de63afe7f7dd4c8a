"""`titer repair`: undo what fine-tuning did to an aligned adapter's safety, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.common import Force, Overrides, method_help, path, refuse_what_is_there, settings_from
from titer.methods import names
from titer.text import say

NAME = "repair"
HELP = f"Repair a fine-tuned adapter with the aligned one beside it, without training: {names('repair')}."
EXAMPLES = """
Examples:

`titer repair --aligned aligned --model tuned --output repaired`

`titer repair --method safelora --aligned aligned --model tuned --set select=threshold --set threshold=0.35 --output repaired`

Both are adapters on one base model; the tuned one went on from the aligned one.
"""


def command(
    aligned: Annotated[
        Path, typer.Option("--aligned", parser=path, metavar="PATH", help="The adapter before fine-tuning.")
    ],
    model: Annotated[
        Path, typer.Option("--model", "-m", parser=path, metavar="PATH", help="The adapter after fine-tuning.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, metavar="PATH", help="Folder for the repaired adapter.")
    ],
    method: Annotated[str, typer.Option("--method", help=method_help("repair"))] = "safelora",
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Repair an adapter."""
    from titer import methods
    from titer.files import check_output, read_json
    from titer.models import split_adapter

    check_output(output, ["repair.json"], ["adapter"])
    refuse_what_is_there([output / "adapter"], force)
    chosen = methods.find("repair", method)
    config = methods.settings(chosen, settings_from(overrides), "--set")
    from titer.methods.repair.adapters import REPORT, repair

    base, _ = split_adapter(str(model))
    repair(base, aligned, model, chosen, config, output)
    layers = read_json(output / REPORT)["layers"]
    say(f"Changed {sum(layer['changed'] for layer in layers.values())} of {len(layers)} layers: {output / REPORT}")
    say(f"Adapter: {output / 'adapter'}")
