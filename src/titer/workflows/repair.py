"""Repairs a fine-tuned adapter with the aligned one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.workflows.common import (
    Settings,
    Show,
    Table,
    as_names,
    as_path,
    as_values,
    listener,
    refuse_unused,
    refuse_unused_data_dir,
    refuse_what_is_there,
    spell,
    workflow,
)
from titer.workflows.training import Training, defence_streams, train

if TYPE_CHECKING:
    from titer.data import Record
    from titer.methods import Method, Repair


@dataclass(frozen=True)
class Repaired(Table):
    """A repaired adapter; as a table its layers, one a row.

    Attributes:
        folder: Of the result.
        layers: What was done to each layer, by name.
    """

    folder: Path
    layers: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        return self.folder / "adapter"

    @property
    def changed(self) -> int:
        """How many layers were changed."""
        return sum(layer["changed"] for layer in self.layers.values())

    def rows(self) -> list[dict[str, Any]]:
        """Return the layers."""
        return [{"layer": name, **layer} for name, layer in self.layers.items()]

    def __str__(self) -> str:
        return f"{self.changed} of {len(self.layers)} layers changed; {self.adapter}"


@workflow
def repair(
    *,
    aligned: str | Path,
    model: str | Path,
    output: str | Path,
    method: str = "safelora",
    harmful: str = "builtin:harmful",
    helpful: str | Sequence[str] = ("builtin:general", "builtin:topics"),
    lookalikes: str = "builtin:lookalikes",
    data_dir: str | Path | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    force: bool = False,
    show: Show | bool = False,
) -> Repaired | Training:
    """Repair a fine-tuned adapter with the aligned one beside it. A repair that trains goes on where it stopped.

    Args:
        aligned: The adapter before fine-tuning.
        model: The adapter after fine-tuning.
        output: Folder for the repaired adapter.
        method: Name of a repair method, or the import path of one's own.
        harmful: Harmful requests, of methods that want some: builtin:harmful, advbench, a file, a hub id.
        helpful: Helpful answers, of methods that want some. May be several.
        lookalikes: Harmless prompts that only look harmful, which go with the helpful answers.
        data_dir: Folder with local copies of named datasets (sst2_train.jsonl, …).
        seed: Seeds data, and a training.
        settings: Settings of the method (`titer settings repair.safelora`).
        force: Replace what is there.
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Returns:
        Where it is, and what was done to each layer; of a method that trains, its training.

    Raises:
        TiterError: When the two adapters do not belong together, are no plain LoRA, or are the same; for a wrong setting,
            an argument without effect, and a training that runs away.
    """
    from titer import methods
    from titer.methods import Method
    from titer.models import split_adapter

    folder, before, after = as_path("output", output), as_path("aligned", aligned), as_path("model", model)
    chosen, others = methods.find("repair", method), as_names(helpful)
    copies = None if data_dir is None else as_path("data_dir", data_dir)
    why = f"with `{spell('method')} {method}`, which has no use for it"
    kinds = {"harmful_dataset": ["harmful"], "helpful_dataset": ["helpful", "lookalikes"]}
    refuse_unused([name for stream, names in kinds.items() if stream not in chosen.streams for name in names], why)
    if not chosen.streams:
        refuse_unused(["data_dir"] if isinstance(chosen, Method) else ["data_dir", "seed"], why)
    else:
        refuse_unused_data_dir([harmful, *([*others, lookalikes] if "helpful_dataset" in chosen.streams else [])])
    values = as_values("settings", settings)
    args: Any = chosen  # one of two kinds, each with settings of its own
    args = methods.settings(args, values, spell("settings"), str(folder / "checkpoints"), seed)
    base, tuned = split_adapter(str(after))
    streams: dict[str, list[Record]] = {}
    if chosen.streams:
        streams = defence_streams(harmful, others, lookalikes, seed, copies)
    if isinstance(chosen, Method):
        return _trained(method, chosen, values, args, base, before, tuned, streams, folder, force, show)
    return _repaired(method, chosen, args, base, before, after, streams, folder, force, show)


def _repaired(
    name: str,
    method: Repair,
    config: Any,
    base: str,
    before: Path,
    after: Path,
    streams: dict[str, list[Record]],
    folder: Path,
    force: bool,
    show: Show | bool,
) -> Repaired:
    """Carry out a repair that does not train."""
    from titer.files import check_output, read_json
    from titer.jobs.estimates import recorded
    from titer.jobs.rehearsal import rehearse_repair
    from titer.jobs.repairs import tuned_model
    from titer.jobs.work import measuring
    from titer.methods.repair.adapters import REPORT, repair

    check_output(folder, [REPORT], ["adapter"])
    refuse_what_is_there([folder / "adapter"], force)
    told = listener(show)
    told.remark(f"Repairing {after} …")
    rows = [row for stream in method.streams for row in streams[stream]]
    if not rows:
        repair(base, before, after, method, config, folder)
    else:
        rehearse_repair(method, base, streams)
        work = measuring(f"repair {name}", base, rows).after_loading
        told.expect([work])
        with recorded(work):
            repair(base, before, after, method, config, folder, streams, tuned_model)
    return Repaired(folder, read_json(folder / REPORT)["layers"])


def _trained(
    name: str,
    method: Method,
    values: dict[str, Any],
    args: Any,
    base: str,
    before: Path,
    tuned: Path | None,
    streams: dict[str, list[Record]],
    folder: Path,
    force: bool,
    show: Show | bool,
) -> Training:
    """Carry out a repair that trains, from the tuned adapter."""
    from titer.errors import TiterError
    from titer.files import check_output, remove
    from titer.infer.serving import ROUTER, SERVING
    from titer.jobs.repairs import own_rows
    from titer.jobs.routers import FOUND
    from titer.jobs.trainings import INPUTS
    from titer.methods.repair.adapters import same_base

    if tuned is None:
        raise TiterError(f"`{base}` is a whole model, not an adapter.", "A repair goes on from the tuned adapter.")
    aligned = same_base(before, base)
    check_output(folder, ["log.jsonl", SERVING, FOUND], ["adapter", "checkpoints", ROUTER])
    records = own_rows(method, args, streams)
    if force:
        for part in ("adapter", "checkpoints", "log.jsonl", "sample_weights.jsonl", INPUTS, SERVING, FOUND, ROUTER):
            remove(folder / part)
    return train("repair", name, method, values, args, base, tuned, {}, records, streams, folder, show, aligned)
