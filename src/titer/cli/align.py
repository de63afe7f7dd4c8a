"""`titer align`: train an adapter that refuses harmful requests, with or without a defence."""

from __future__ import annotations

from titer.cli.common import method_help
from titer.cli.mirror import Call, mirror
from titer.methods import names
from titer.text import say
from titer.workflows.align import align
from titer.workflows.training import Training

NAME = "align"
HELP = f"Align a model on refusals and helpful answers: {names('align')}. Writes a PEFT adapter."
EXAMPLES = """
Examples:

`titer align --method antibody --output aligned` — the embedded model on built-in data

`titer align --method booster --model my-model/ --harmful advbench --helpful alpaca --output aligned`

`titer align --method booster --model aligned --output boosted` — goes on from an adapter

`titer align --method antibody --lora r=16 --set rho=0.2 --set max_steps=100 --set learning_rate=2.0e-4 --output aligned`
"""


@mirror(align, about={"method": method_help("align")})
def command(call: Call[Training]) -> None:
    """Align a model."""
    done = call()
    say(f"Adapter: {done.adapter}")
    say(f"Score it: titer evaluate {done.adapter} --output {done.folder / 'evaluation'}")
