"""Fine-tunes an aligned model: trains a customer's data into it, with or without a defence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from titer.workflows.training import Training, defence_streams, train


@workflow
def finetune(
    dataset: str,
    *,
    output: str | Path,
    method: str = "sieve",
    model: str = EMBEDDED,
    harmful: str = "builtin:harmful",
    helpful: str | Sequence[str] = ("builtin:general", "builtin:topics"),
    lookalikes: str = "builtin:lookalikes",
    data_dir: str | Path | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    show: Show | bool = False,
) -> Training:
    """Fine-tune an aligned model on an untrusted upload, and return the PEFT adapter. Goes on where it stopped.

    Args:
        dataset: The upload: a .jsonl file, a named dataset, or a hub id.
        output: Folder for the adapter.
        method: A name of `titer methods list`, or the import path of one's own: package.module:NAME or file.py:NAME.
        model: A local folder, a hub id, or smollm2-135m-instruct.
        harmful: Harmful requests: builtin:harmful, advbench, a file, a hub id.
        helpful: Helpful answers: builtin:general, alpaca, a file, a hub id. May be several.
        lookalikes: Harmless prompts that only look harmful.
        data_dir: Folder with local copies of named datasets (sst2_train.jsonl, …).
        seed: Seeds data, initialisation and sampling.
        settings: Settings of the method (`titer settings finetune.METHOD`).
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Raises:
        TiterError: For arguments that cannot be meant or have no effect, data or a model that cannot be loaded, a folder
            that holds another training, and a training that runs away.
    """
    from titer import methods
    from titer.data import load
    from titer.files import check_output
    from titer.infer.serving import SERVING
    from titer.models import split_adapter

    output, helpful = as_path("output", output), as_names(helpful)
    copies = None if data_dir is None else as_path("data_dir", data_dir)
    check_output(output, ["log.jsonl", "sample_weights.jsonl", SERVING], ["adapter", "checkpoints"])
    chosen = methods.find("finetune", method)
    if not chosen.streams:
        why = f"with `{spell('method')} {method}`, which has no use for it"
        refuse_unused(["harmful", "helpful", "lookalikes"], why)
    refuse_unused_data_dir([dataset, *([harmful, *helpful, lookalikes] if chosen.streams else [])])
    values = as_values("settings", settings)
    args = methods.settings(chosen, values, spell("settings"), str(output / "checkpoints"), seed)
    records = load(dataset, data_dir=copies)
    streams = defence_streams(harmful, helpful, lookalikes, seed, copies) if chosen.streams else {}
    base, adapter = split_adapter(model)
    return train("finetune", method, chosen, values, args, base, adapter, {}, records, streams, output, show)
