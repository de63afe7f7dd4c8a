"""`titer finetune`: train a customer's data into an aligned model, with or without a defence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.common import (
    EMBEDDED,
    DataDir,
    Harmful,
    Helpful,
    Lookalikes,
    Model,
    Overrides,
    Seed,
    method_help,
    path,
    refuse_unused,
    refuse_unused_data_dir,
    settings_from,
    train,
)  # fmt: skip
from titer.methods import names
from titer.text import say

NAME = "finetune"
HELP = f"Fine-tune an aligned model on an untrusted upload: {names('finetune')}. Writes a PEFT adapter."
EXAMPLES = """
Examples:

`titer finetune upload.jsonl --model aligned/adapter --method antibody --output tuned`

`titer finetune upload.jsonl --model aligned/adapter --method gate --output tuned --set num_train_epochs=2`

Rows are conversational prompt–completion or `messages` JSONL, as TRL reads it.
"""


def command(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="The upload: a .jsonl file, a named dataset, or a hub id.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, metavar="PATH", help="Folder for the adapter.")
    ],
    method: Annotated[str, typer.Option("--method", help=method_help("finetune"))] = "antibody",
    model: Model = EMBEDDED,
    harmful: Harmful = "builtin:harmful",
    helpful: Helpful = ["builtin:general"],  # noqa: B006
    lookalikes: Lookalikes = "builtin:lookalikes",
    data_dir: DataDir = None,
    seed: Seed = 0,
    overrides: Overrides = None,
) -> None:
    """Fine-tune an aligned model."""
    from titer import methods
    from titer.data import load
    from titer.data.pools import DataSettings, defence_pools
    from titer.files import check_output
    from titer.models import split_adapter

    check_output(output, ["log.jsonl", "sample_weights.jsonl"], ["adapter", "checkpoints"])
    chosen = methods.find("finetune", method)
    if not chosen.streams:
        refuse_unused(
            context, ["harmful", "helpful", "lookalikes"], f"with `--method {method}`, which has no use for it"
        )
    refuse_unused_data_dir(context, [dataset, *([harmful, *helpful, lookalikes] if chosen.streams else [])])
    values = settings_from(overrides)
    args = methods.settings(chosen, values, "--set", str(output / "checkpoints"), seed)
    records = load(dataset, data_dir=data_dir)
    streams = {}
    if chosen.streams:
        pools = defence_pools(DataSettings(harmful=harmful, helpful=helpful, lookalikes=lookalikes), seed, data_dir)
        streams = {"harmful_dataset": pools["defence"], "helpful_dataset": pools["helpful"]}
    base, adapter = split_adapter(model)
    train(f"finetune {method}", chosen, values, args, base, adapter, {}, records, streams, output)
    say(f"Adapter: {output / 'adapter'}")
    if method != "sft":
        say(f"What each row was allowed to teach: {output / 'sample_weights.jsonl'}")
