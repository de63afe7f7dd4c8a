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
    Show,
    quiet_libraries,
    settings_from,
)  # fmt: skip
from titer.text import say

NAME = "finetune"
HELP = "Fine-tune an aligned model on an untrusted upload: sft, antibody or gate. Writes a PEFT adapter."
EXAMPLES = """
Examples:

`titer finetune upload.jsonl --model aligned/adapter --method antibody --output tuned`

`titer finetune upload.jsonl --model aligned/adapter --method gate --output tuned --set num_train_epochs=2`

Rows are conversational prompt–completion or `messages` JSONL, as TRL reads it.
"""


def command(
    dataset: Annotated[str, typer.Argument(help="The upload: a .jsonl file, a named dataset, or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter.")],
    method: Annotated[str, typer.Option("--method", help="sft, antibody or gate.")] = "antibody",
    model: Model = EMBEDDED,
    harmful: Harmful = "builtin:harmful",
    helpful: Helpful = ["builtin:general"],  # noqa: B006
    lookalikes: Lookalikes = "builtin:lookalikes",
    data_dir: DataDir = None,
    seed: Seed = 0,
    overrides: Overrides = None,
) -> None:
    """Fine-tune an aligned model."""
    from titer import methods, stages
    from titer.data import load
    from titer.data.pools import DataSettings, defence_pools
    from titer.estimates import recorded, training
    from titer.models import split_adapter

    quiet_libraries()
    chosen = methods.find("finetune", method)
    args = methods.settings(chosen, settings_from(overrides), "--set", str(output / "checkpoints"), seed)
    records = load(dataset, data_dir=data_dir)
    streams = {}
    if chosen.streams:
        pools = defence_pools(DataSettings(harmful=harmful, helpful=helpful, lookalikes=lookalikes), seed, data_dir)
        streams = {"harmful_dataset": pools["defence"], "helpful_dataset": pools["helpful"]}
    base, adapter = split_adapter(model)
    work = training(f"finetune {method}", chosen, args, base, records, streams).after_loading
    Show().expect([work])
    with recorded(work, whole=not (output / "checkpoints").exists()):
        stages.train(chosen, args, base, adapter, {}, records, streams, output)
    say(f"Adapter: {output / 'adapter'}")
    if method != "sft":
        say(f"What each row was allowed to teach: {output / 'sample_weights.jsonl'}")
