"""`titer align`: train an adapter that refuses harmful requests, with or without a defence."""

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
    in_range,
    method_help,
    path,
    refuse_unused,
    refuse_unused_data_dir,
    settings_from,
    train,
)  # fmt: skip
from titer.methods import names
from titer.text import say

NAME = "align"
HELP = f"Align a model on refusals and helpful answers: {names('align')}. Writes a PEFT adapter."
EXAMPLES = """
Examples:

`titer align --method antibody --output aligned` — the embedded model on built-in data

`titer align --method booster --model my-model/ --harmful advbench --helpful alpaca --output aligned`

`titer align --method booster --model aligned --output boosted` — goes on from an adapter

`titer align --method antibody --lora r=16 --set rho=0.2 --set max_steps=100 --set learning_rate=2.0e-4 --output aligned`
"""


def command(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, metavar="PATH", help="Folder for the adapter.")
    ],
    method: Annotated[str, typer.Option("--method", help=method_help("align"))] = "antibody",
    model: Model = EMBEDDED,
    harmful: Harmful = "builtin:harmful",
    helpful: Helpful = ["builtin:general"],  # noqa: B006
    lookalikes: Lookalikes = "builtin:lookalikes",
    samples: Annotated[int, typer.Option("--samples", help="Rows of alignment data.", callback=in_range)] = 300,
    helpful_ratio: Annotated[
        float, typer.Option("--helpful-ratio", help="Part of them that is helpful.", callback=in_range)
    ] = 0.5,
    hold_out: Annotated[
        list[str] | None,
        typer.Option("--hold-out", help="Harm category that the defence never sees, for an assay across domains."),
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    lora: Annotated[
        list[str] | None, typer.Option("--lora", help="LoRA setting, as often as wanted.", metavar="KEY=VALUE")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Align a model."""
    from titer.errors import TiterError
    from titer.files import check_output
    from titer.models import split_adapter

    check_output(output, ["log.jsonl"], ["adapter", "checkpoints"])
    base, adapter = split_adapter(model)
    if adapter is not None and lora:
        raise TiterError(
            f"`{model}` is an adapter, which keeps the LoRA settings that it was made with.", "Leave `--lora` off."
        )
    from titer import methods
    from titer.data import alignment_mixture
    from titer.data.pools import DataSettings, defence_pools

    chosen = methods.find("align", method)
    refuse_unused_data_dir(context, [harmful, *helpful, lookalikes])
    n_helpful = round(samples * helpful_ratio)
    if n_helpful == 0 and "helpful_dataset" not in chosen.streams:
        refuse_unused(context, ["helpful", "lookalikes"], f"when none of {samples} rows are helpful")
    if n_helpful == samples and "harmful_dataset" not in chosen.streams:
        refuse_unused(context, ["harmful", "hold_out"], f"with `--method {method}` when all rows are helpful")
    values, new = settings_from(overrides), settings_from(lora, "--lora")
    args = methods.settings(chosen, values, "--set", str(output / "checkpoints"), seed)
    pools = defence_pools(
        DataSettings(harmful=harmful, helpful=helpful, lookalikes=lookalikes, held_out_categories=hold_out or []),
        seed,
        data_dir,
        samples,
    )
    records = alignment_mixture(pools["defence"], pools["helpful"], samples, helpful_ratio, seed=seed)
    streams = {"harmful_dataset": pools["defence"], "helpful_dataset": pools["helpful"]}
    train(f"align {method}", chosen, values, args, base, adapter, new, records, streams, output)
    say(f"Adapter: {output / 'adapter'}")
    say(f"Score it: titer evaluate {output / 'adapter'} --output {output / 'evaluation'}")
