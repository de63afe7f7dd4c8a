"""Safe LoRA (arXiv 2405.16833, NeurIPS 2024): project the updates least like the alignment onto its subspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.errors import TiterError, check_known
from titer.methods import Repair, Source
from titer.methods.repair.lowrank import Layer, LowRank
from titer.ranges import COUNT, SHARE, Range

SELECTIONS = ("number", "threshold")
PROJECTIONS = ("approximate", "exact")


@dataclass
class SafeLoraConfig:
    """Settings of Safe LoRA.

    Args:
        select: Which layers are projected: the `number` least similar ones, or those up to the `threshold`.
        number: How many, of `select=number`; all where there are fewer.
        threshold: τ, the highest cosine of a layer that is projected, of `select=threshold`.
        projection: C: `approximate`, V Vᵀ/‖V‖_F, or `exact`, V (VᵀV)⁻¹ Vᵀ.
    """

    RANGES: ClassVar[dict[str, Range]] = {"number": COUNT, "threshold": SHARE}

    select: str = field(default="number", metadata={"help": "What chooses layers: number or threshold."})
    number: int = field(default=10, metadata={"help": "How many layers are projected, the least similar ones."})
    threshold: float = field(default=0.5, metadata={"help": "τ, the highest cosine of a layer that is projected."})
    projection: str = field(default="approximate", metadata={"help": "C: approximate, V Vᵀ/‖V‖, or exact."})

    def __post_init__(self) -> None:
        check_known([self.select], SELECTIONS, "select")
        check_known([self.projection], PROJECTIONS, "projection")


def project(v: LowRank, update: LowRank, projection: str) -> LowRank:
    """Return C ΔW with C = V Vᵀ/‖V‖_F, or the orthogonal projection onto the columns of V."""
    if projection == "approximate":
        return LowRank(v @ (v.T @ update.b) / v.norm(), update.a)
    basis = v.compact().b
    return LowRank(basis @ (basis.T @ update.b), update.a)


def similarities(layers: Mapping[str, Layer], projection: str) -> tuple[dict[str, float], dict[str, LowRank]]:
    """Return cos(ΔW, C ΔW) and C ΔW of each layer that fine-tuning changed.

    Raises:
        TiterError: For a layer that the aligned adapter does not change: there is no subspace to compare with.
    """
    cosines, projected = {}, {}
    for name, (v, update) in layers.items():
        if not update.rank:
            continue  # there is nothing to project
        if not v.norm():
            raise TiterError(
                f"The aligned adapter does not change `{name}`, so there is no subspace to project onto.",
                "Repair with an adapter whose alignment trained every layer that fine-tuning trains.",
            )
        projected[name] = c_update = project(v, update, projection)
        length = c_update.norm() * update.norm()
        cosines[name] = c_update.inner(update) / length if length else 0.0
    return cosines, projected


def safelora(
    layers: Mapping[str, Layer], config: SafeLoraConfig
) -> tuple[dict[str, LowRank], dict[str, dict[str, Any]]]:
    """Replace ΔW by C ΔW where cos(ΔW, C ΔW) is small (arXiv 2405.16833, Sec. 3); other layers keep their update."""
    cosines, projected = similarities(layers, config.projection)
    if config.select == "threshold":
        chosen = [name for name, cosine in cosines.items() if cosine <= config.threshold]
    else:
        chosen = sorted(cosines, key=lambda name: (cosines[name], name))[: config.number]
    return {name: projected[name] for name in chosen}, {name: {"cosine": cosine} for name, cosine in cosines.items()}


SAFELORA = Repair(
    SafeLoraConfig,
    safelora,
    "Projects the updates least like the alignment onto its subspace (arXiv 2405.16833).",
    variants={
        "number": {"number": 2},
        "threshold": {"select": "threshold", "threshold": 0.9},
        "exact": {"number": 3, "projection": "exact"},
    },
    source=Source("2405.16833, NeurIPS 2024", "IBM/SafeLoRA", "Apache-2.0"),
)
