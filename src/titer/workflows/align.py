"""Aligns a model: trains an adapter that refuses harmful requests, with or without a defence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from titer.errors import TiterError
from titer.workflows.common import (
    EMBEDDED,
    Settings,
    Show,
    as_names,
    as_path,
    as_values,
    refuse_unused,
    refuse_unused_data_dir,
    spell,
    workflow,
)
from titer.workflows.training import Training, train


@workflow
def align(
    *,
    output: str | Path,
    method: str = "antibody",
    model: str = EMBEDDED,
    harmful: str = "builtin:harmful",
    helpful: str | Sequence[str] = ("builtin:general",),
    lookalikes: str = "builtin:lookalikes",
    samples: int = 300,
    helpful_ratio: float = 0.5,
    hold_out: str | Sequence[str] = (),
    data_dir: str | Path | None = None,
    seed: int = 0,
    lora: Settings | None = None,
    settings: Settings | None = None,
    show: Show | bool = False,
) -> Training:
    """Align a model on refusals and helpful answers, and return its PEFT adapter. Goes on where it stopped.

    Args:
        output: Folder for the adapter.
        method: A name of `titer methods list`, or the import path of one's own: package.module:NAME or file.py:NAME.
        model: A local folder, a hub id, or smollm2-135m-instruct.
        harmful: Harmful requests: builtin:harmful, advbench, a file, a hub id.
        helpful: Helpful answers: builtin:general, alpaca, a file, a hub id. May be several.
        lookalikes: Harmless prompts that only look harmful.
        samples: Rows of alignment data.
        helpful_ratio: Part of them that is helpful.
        hold_out: Harm category that the defence never sees, for an assay across domains. May be several.
        data_dir: Folder with local copies of named datasets (sst2_train.jsonl, …).
        seed: Seeds data, initialisation and sampling.
        lora: Settings of the adapter (`titer settings lora`).
        settings: Settings of the method (`titer settings align.METHOD`).
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Raises:
        TiterError: For arguments that cannot be meant or have no effect, data or a model that cannot be loaded, a folder
            that holds another training, and a training that runs away.
    """
    from titer import methods
    from titer.data import alignment_mixture
    from titer.data.pools import DataSettings, defence_pools
    from titer.files import check_output
    from titer.models import split_adapter

    output, helpful, held_out = as_path("output", output), as_names(helpful), as_names(hold_out)
    copies = None if data_dir is None else as_path("data_dir", data_dir)
    check_output(output, ["log.jsonl"], ["adapter", "checkpoints"])
    base, adapter = split_adapter(model)
    if adapter is not None and lora:
        raise TiterError(
            f"`{model}` is an adapter, which keeps the LoRA settings that it was made with.",
            f"Leave `{spell('lora')}` off.",
        )
    chosen = methods.find("align", method)
    refuse_unused_data_dir([harmful, *helpful, lookalikes])
    n_helpful = round(samples * helpful_ratio)
    if n_helpful == 0 and "helpful_dataset" not in chosen.streams:
        refuse_unused(["helpful", "lookalikes"], f"when none of {samples} rows are helpful")
    if n_helpful == samples and "harmful_dataset" not in chosen.streams:
        refuse_unused(["harmful", "hold_out"], f"with `{spell('method')} {method}` when all rows are helpful")
    values, new = as_values("settings", settings), as_values("lora", lora)
    args = methods.settings(chosen, values, spell("settings"), str(output / "checkpoints"), seed)
    data = DataSettings(harmful=harmful, helpful=helpful, lookalikes=lookalikes, held_out_categories=held_out)
    pools = defence_pools(data, seed, copies, samples)
    records = alignment_mixture(pools["defence"], pools["helpful"], samples, helpful_ratio, seed=seed)
    streams = {"harmful_dataset": pools["defence"], "helpful_dataset": pools["helpful"]}
    return train("align", method, chosen, values, args, base, adapter, new, records, streams, output, show)
