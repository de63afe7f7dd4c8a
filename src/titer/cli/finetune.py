"""`titer finetune`: train a customer's data into an aligned model, with or without a defence."""

from __future__ import annotations

from titer.cli.common import method_help
from titer.cli.mirror import Call, mirror
from titer.methods import names
from titer.text import say
from titer.workflows.finetune import finetune
from titer.workflows.training import Training

NAME = "finetune"
HELP = f"Fine-tune an aligned model on an untrusted upload: {names('finetune')}. Writes a PEFT adapter."
EXAMPLES = """
Examples:

`titer finetune upload.jsonl --model aligned/adapter --output tuned` — sieve: rows that look harmful teach nothing

`titer finetune upload.jsonl --model aligned/adapter --output tuned --set num_train_epochs=2 --set replay=0.2`

`titer finetune upload.jsonl --model aligned/adapter --method antibody --set ratio=calibrated --set tau=0.1 --output tuned`

Rows are conversational prompt–completion or `messages` JSONL, as TRL reads it.
"""


@mirror(finetune, arguments=["dataset"], about={"method": method_help("finetune")})
def command(call: Call[Training]) -> None:
    """Fine-tune an aligned model."""
    done = call()
    say(f"Adapter: {done.adapter}")
    if done.held_back is not None:
        say("Rows that look harmful, and taught little or nothing: {} of {}.".format(*done.held_back))
    if done.sample_weights is not None:
        say(f"What each row was allowed to teach: {done.sample_weights}")
    if done.serving is not None:
        say(f"A serving control: what the adapter is to be served with, and protects nobody without: {done.serving}")
