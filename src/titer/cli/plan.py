"""`titer plan`: what a training needs of a machine, before it is paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from titer.cli.common import Json
from titer.cli.mirror import Call, mirror
from titer.progress import duration
from titer.text import say, to_json
from titer.workflows.plan import GIB, Needs, plan

if TYPE_CHECKING:
    from titer.workflows.plan import Line

NAME = "plan"
HELP = (
    "Say what a training needs: memory of a card, time and money, by method, and what makes it fit. Loads no weights."
)
EXAMPLES = """
Examples:

`titer plan my-model/ --gpu h100-80` — every method, with LoRA of rank 32

`titer plan my-model/ --method booster --gpu h100-80 --count 8 --adapter full` — all weights, sharded over eight cards

`titer plan my-model/ --method antibody --gpu l4-24 --quantise 4 --checkpointing --seq-length 1024 --batch 2`

`titer plan --gpu cpu --steps 60` — the embedded model on this machine
"""


@mirror(plan, arguments=["model"])
def command(call: Call[Needs], as_json: Json = False) -> None:
    """Say what a training needs."""
    found = call()
    if as_json:
        say(to_json(found.document))
        return
    from titer.screen import Screen, table

    parts = ("weights", "optimizer", "method", "passes")
    shown = table(
        "stage", "method", "GiB", "of it weights, moments, method, pass", "a step", "training", "price", "fits",
        title=f"{found.model}: {found.parameters / 1e9:.2f} billion weights, {found.steps} steps on {found.count} × {found.gpu} "
        f"({found.available / GIB:.1f} GiB)",
        typed=2,
    )  # fmt: skip
    for line in found.lines:
        held = ", ".join(f"{line.memory[part] / GIB:.1f}" for part in parts)
        price = f"${line.price:.2f}" if line.price else ""
        step = f"{line.seconds:.2g} s"
        about = duration(3600 * line.hours)
        shown.add_row(line.stage, line.method, f"{line.total / GIB:.1f}", held, step, about, price, _fits(line))
    Screen().print(shown)
    for method, why in found.refused.items():
        say(f"{method} is left out: {why}.")
    for assumption in found.assumptions:
        say(assumption)


def _fits(line: Line) -> str:
    if line.fits:
        return "yes"
    ways = [f"{what} ({total / GIB:.1f})" for what, total in line.fitting.items()]
    return f"no; with {', or '.join(ways)}" if ways else "no, nor with any one change"
