"""SafeMERGE (arXiv 2503.17239, ACL Findings 2026): merge the layers least like the alignment with a safe adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.errors import TiterError, check_known
from titer.methods import Repair, Source
from titer.methods.repair.lowrank import Layer, LowRank
from titer.methods.repair.safelora import PROJECTIONS, similarities
from titer.ranges import SHARE, Range

MERGES = ("clean", "released")


@dataclass
class SafeMergeConfig:
    """Settings of SafeMERGE.

    Args:
        threshold: τ: layers whose cosine is below it are merged.
        safe: Weight of the safe adapter in the merge; the tuned one's is 1 − safe.
        merge: What is merged: the products (`clean`), or A and B by themselves (`released`).
        projection: C of the cosine, as of `safelora`.
    """

    RANGES: ClassVar[dict[str, Range]] = {"threshold": SHARE, "safe": SHARE}

    threshold: float = field(default=0.35, metadata={"help": "τ: layers whose cosine is below it are merged."})
    safe: float = field(default=0.2, metadata={"help": "Weight of the safe adapter; the tuned one's is 1 − safe."})
    merge: str = field(default="clean", metadata={"help": "clean: products are merged; released: A and B separately."})
    projection: str = field(default="approximate", metadata={"help": "C: approximate, V Vᵀ/‖V‖, or exact."})

    def __post_init__(self) -> None:
        check_known([self.merge], MERGES, "merge")
        check_known([self.projection], PROJECTIONS, "projection")


def merged(name: str, layer: Layer, config: SafeMergeConfig) -> LowRank:
    """Return the merged matrix of a layer: what is added to the base's weight from then on.

    With `released`, A and B are each the sum of √(w_i s_i) times those of the adapters, so that the merged adapter's scale is 1,
    the weights of the products are as wanted, and √(w_t w_s) (B_t A_s + B_s A_t) comes on top.
    """
    weight = 1 - config.safe
    if config.merge == "clean":
        return (layer.alignment + layer.update) * weight + layer.alignment * config.safe
    tuned, safe = layer.tuned, layer.aligned
    if tuned is None or safe is None or tuned.rank != safe.rank:
        raise TiterError(
            f"The adapters have other ranks at `{name}`, so their factors cannot be added.",
            "Set `merge=clean`, which adds products.",
        )
    return LowRank(
        tuned.b * weight**0.5 + safe.b * config.safe**0.5,
        tuned.a * weight**0.5 + safe.a * config.safe**0.5,
    )


def safe_merge(
    layers: Mapping[str, Layer], config: SafeMergeConfig
) -> tuple[dict[str, LowRank], dict[str, dict[str, Any]]]:
    """Merge tuned and safe adapter where cos(ΔW, C ΔW) < τ (arXiv 2503.17239); other layers keep their update."""
    cosines, _ = similarities(layers, config.projection)
    chosen = [name for name, cosine in cosines.items() if cosine < config.threshold]
    updates = {name: merged(name, layers[name], config) - layers[name].alignment for name in chosen}
    return updates, {name: {"cosine": cosine} for name, cosine in cosines.items()}


SAFE_MERGE = Repair(
    SafeMergeConfig,
    safe_merge,
    "Merges the layers least like the alignment with the aligned adapter (SafeMERGE, arXiv 2503.17239).",
    variants={
        "clean": {"threshold": 0.9},
        "released": {"threshold": 0.9, "merge": "released", "safe": 0.4},
        "exact": {"threshold": 0.95, "projection": "exact"},
    },
    source=Source("2503.17239, ACL Findings 2026", "aladinD/SafeMERGE", "none"),
)
