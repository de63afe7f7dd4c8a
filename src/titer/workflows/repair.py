"""Repairs a fine-tuned adapter with the aligned one beside it, without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.workflows.common import (
    Settings,
    Show,
    Table,
    as_path,
    as_values,
    listener,
    refuse_what_is_there,
    spell,
    workflow,
)


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
    settings: Settings | None = None,
    force: bool = False,
    show: Show | bool = False,
) -> Repaired:
    """Repair a fine-tuned adapter with the aligned one beside it, without training.

    Args:
        aligned: The adapter before fine-tuning.
        model: The adapter after fine-tuning.
        output: Folder for the repaired adapter.
        method: Name of a repair method, or the import path of one's own.
        settings: Settings of the method (`titer settings repair.safelora`).
        force: Replace what is there.
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Returns:
        Where it is, and what was done to each layer.

    Raises:
        TiterError: When the two adapters do not belong together, are no plain LoRA, or are the same; for a wrong setting.
    """
    from titer import methods
    from titer.files import check_output, read_json
    from titer.methods.repair.adapters import REPORT
    from titer.methods.repair.adapters import repair as carry_out
    from titer.models import split_adapter

    folder, before, after = as_path("output", output), as_path("aligned", aligned), as_path("model", model)
    check_output(folder, [REPORT], ["adapter"])
    refuse_what_is_there([folder / "adapter"], force)
    chosen = methods.find("repair", method)
    config = methods.settings(chosen, as_values("settings", settings), spell("settings"))
    base, _ = split_adapter(str(after))
    listener(show).remark(f"Repairing {after} …")
    carry_out(base, before, after, chosen, config, folder)
    return Repaired(folder, read_json(folder / REPORT)["layers"])
