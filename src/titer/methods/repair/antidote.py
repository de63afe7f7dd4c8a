"""Antidote (arXiv 2408.09600, ICML 2025): set the numbers of the adapter to zero that matter most on harmful rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import TiterError, check_known
from titer.methods import Repair, Source
from titer.methods.repair.lowrank import Layer, LowRank
from titer.ranges import SHARE, Range

FACTORS = ("update", "tuned")


@dataclass
class AntidoteConfig:
    """Settings of Antidote.

    Args:
        dense_ratio: Part of each row of A and of B that is set to zero.
        factors: Whose A and B: those of what fine-tuning changed (`update`), or the tuned adapter's own, alignment included
            (`tuned`).
    """

    RANGES: ClassVar[dict[str, Range]] = {"dense_ratio": SHARE}

    dense_ratio: float = field(default=0.1, metadata={"help": "Part of each row of A and B that is set to zero."})
    factors: str = field(default="update", metadata={"help": "Whose A and B are pruned: update or tuned."})

    def __post_init__(self) -> None:
        check_known([self.factors], FACTORS, "factors")


def prune(factor: Tensor, norms: Tensor, dense_ratio: float) -> Tensor:
    """Return a matrix without the numbers of the highest Wanda score |W_ij| ‖X_j‖ in each of its rows.

    Args:
        factor: W, `(out, in)`.
        norms: ‖X_j‖ of each of its inputs, up to a common factor, `(in,)`.
        dense_ratio: Part of each row; at least as many as that are taken.
    """
    scores = factor.abs() * norms
    kept = int(factor.shape[1] * (1 - dense_ratio))
    highest = scores.sort(dim=1, stable=True).indices[:, kept:]
    return torch.where(torch.zeros_like(factor, dtype=torch.bool).scatter(1, highest, True), 0.0, factor)


def antidote(
    layers: Mapping[str, Layer], config: AntidoteConfig
) -> tuple[dict[str, LowRank], dict[str, dict[str, Any]]]:
    """Prune B and A of each layer by their Wanda scores on harmful rows (arXiv 2408.09600).

    They are linear maps of their own, with the inputs A x and x; both are scored before either is pruned.
    """
    updates = {}
    for name, layer in layers.items():
        if not layer.update.rank:
            continue  # what fine-tuning left alone has nothing to be removed
        if layer.inputs is None or layer.tuned is None:
            raise TiterError(f"The layer `{name}` lacks its inputs or factors, by which Antidote scores.")
        whole = config.factors == "tuned"
        own, norms = (layer.tuned, layer.inputs.tuned) if whole else (layer.update, layer.inputs.update)
        pruned = LowRank(prune(own.b, norms, config.dense_ratio), prune(own.a, layer.inputs.x, config.dense_ratio))
        updates[name] = pruned - layer.alignment if whole else pruned
    return updates, {}


ANTIDOTE = Repair(
    AntidoteConfig,
    antidote,
    "Sets the numbers to zero that matter most on harmful rows (Antidote, arXiv 2408.09600).",
    streams=("harmful_dataset",),
    variants={"update": {"dense_ratio": 0.3}, "tuned": {"factors": "tuned"}},
    source=Source("2408.09600, ICML 2025", "git-disl/Antidote", "none"),
)
