"""`titer repair`: undo what fine-tuning did to an aligned adapter's safety."""

from __future__ import annotations

from titer.cli.common import method_help
from titer.cli.mirror import Call, mirror
from titer.methods import names
from titer.text import say
from titer.workflows.repair import Repaired, repair
from titer.workflows.training import Training

NAME = "repair"
HELP = f"Repair a fine-tuned adapter with the aligned one beside it: {names('repair')}."
EXAMPLES = """
Examples:

`titer repair --aligned aligned --model tuned --output repaired`

`titer repair --method safelora --aligned aligned --model tuned --set select=threshold --set threshold=0.35 --output repaired`

`titer repair --method antidote --harmful advbench --aligned aligned --model tuned --output repaired`

`titer repair --method one_shot --aligned aligned --model tuned --output repaired` — trains, and goes on where it stopped

`titer repair --method sldr --aligned aligned --model tuned --output guarded` — trains refusals that a router switches on

Both are adapters on one base model; the tuned one went on from the aligned one.
"""


@mirror(repair, about={"method": method_help("repair")})
def command(call: Call[Repaired | Training]) -> None:
    """Repair an adapter."""
    done = call()
    if isinstance(done, Repaired):
        say(f"Changed {done.changed} of {len(done.layers)} layers: {done.folder / 'repair.json'}")
    say(f"Adapter: {done.adapter}")
    if isinstance(done, Training) and done.guarded is not None:
        say(f"A served guard: {done.guarded}. What it is to be served with: {done.serving}")
        say("Served alone, the adapter has refusals always on; whoever holds the weights leaves them off.")
