"""Task arithmetic (RESTA, arXiv 2402.11746, ACL 2024): add the difference that alignment made once more."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.methods import Repair, Source
from titer.methods.repair.lowrank import Layer, LowRank
from titer.ranges import Range


@dataclass
class TaskArithmeticConfig:
    """Settings of task arithmetic.

    Args:
        gamma: γ, the weight of the safety vector V that is added.
        dare: p, the chance of each number in the factors of the update to be dropped; the others are divided by 1 − p.
        seed: Seeds what is dropped.
    """

    RANGES: ClassVar[dict[str, Range]] = {"gamma": Range(0, 100), "dare": Range(0, 0.99)}

    gamma: float = field(default=0.5, metadata={"help": "γ, weight of the safety vector that is added."})
    dare: float = field(default=0.0, metadata={"help": "p, chance of a number of the update's factors to be dropped."})
    seed: int = field(default=0, metadata={"help": "Seeds what is dropped."})


def drop(factor: Tensor, p: float, seed: str) -> Tensor:
    """Return a factor with each number zero by chance p, and 1/(1 − p) times itself otherwise (arXiv 2311.03099)."""
    generator = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
    kept = torch.rand(factor.shape, generator=generator, dtype=torch.float64) >= p
    return factor * kept / (1 - p)


def task_arithmetic(
    layers: Mapping[str, Layer], config: TaskArithmeticConfig
) -> tuple[dict[str, LowRank], dict[str, dict[str, Any]]]:
    """Add γ V to the update of each layer that fine-tuning changed (arXiv 2402.11746)."""
    updates = {}
    for name, layer in layers.items():
        if not layer.update.rank:
            continue  # what fine-tuning left alone has lost nothing of its alignment
        update = layer.update
        if config.dare:
            # By the layer's name, so that the order of layers does not matter. The two factors are independent, so the
            # product is the update in expectation.
            b, a = (
                drop(factor, config.dare, f"titer.task_arithmetic:{config.seed}:{name}:{which}")
                for which, factor in (("b", update.b), ("a", update.a))
            )
            update = LowRank(b, a)
        updates[name] = update + layer.alignment * config.gamma
    return updates, {}


TASK_ARITHMETIC = Repair(
    TaskArithmeticConfig,
    task_arithmetic,
    "Adds the difference that alignment made once more, times γ (RESTA, arXiv 2402.11746).",
    variants={"": {"gamma": 0.5}, "dare": {"gamma": 0.3, "dare": 0.4, "seed": 3}},
    source=Source("2402.11746, ACL 2024"),
)
