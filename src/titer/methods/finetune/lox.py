"""LoX (arXiv 2506.15606, COLM 2025): go further in the directions of the alignment, and fine-tune from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.methods import Method, Source
from titer.methods.adapter import plain_factors
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.repair.lowrank import LowRank
from titer.ranges import NOT_NEGATIVE, Range
from titer.train.trainer import PackedSFTTrainer


@dataclass
class LoxConfig(FinetuneConfig):
    """Settings of LoX.

    Args:
        rank: k, how many singular directions of what the alignment added are extrapolated; 0 for all of them.
        coefficient: c, by how much.
    """

    RANGES: ClassVar[dict[str, Range]] = {"rank": Range(0, 1_000_000, whole=True), "coefficient": NOT_NEGATIVE}

    rank: int = field(default=6, metadata={"help": "k, leading singular directions that are extrapolated; 0 for all."})
    coefficient: float = field(default=1.25, metadata={"help": "c, by how much they are."})


def extrapolated(b: Tensor, a: Tensor, rank: int, coefficient: float) -> Tensor:
    """Return B' with B' A = V + c U_k S_k V_kᵀ for V = B A = U S Vᵀ, in float64: B' = B + c U_k U_kᵀ B.

    Args:
        b: B, `(out, r)`.
        a: A, `(r, in)`.
        rank: k, 0 for all.
        coefficient: c.
    """
    b, a = b.double(), a.double()
    if not rank:
        return b * (1 + coefficient)
    leading = LowRank(b, a).compact().b[:, :rank]
    return b + coefficient * (leading @ (leading.T @ b))


class LoxTrainer(PackedSFTTrainer):
    """Fine-tunes, from V + c U_k S_k V_kᵀ in the place of V, what the aligned adapter adds to each weight (arXiv 2506.15606).

    U_k S_k V_kᵀ are the k leading singular directions of V = B A. They are multiplied by 1 + c when the trainer is made: B changes,
    A does not, and neither does the rank. Then plain fine-tuning: one gradient a step, no extra memory. A training that is resumed
    is made with the aligned adapter again and then takes up the weights of its checkpoint, so nothing is extrapolated twice.

    Args:
        model: The aligned model with its adapter; that adapter is changed.
        args: Settings.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: LoxConfig

    def __init__(self, model: Any, args: LoxConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        with torch.no_grad():
            for layer in plain_factors(self, "LoX"):
                layer.b.copy_(extrapolated(layer.b.detach().cpu(), layer.a.detach().cpu(), args.rank, args.coefficient))


LOX = Method(
    LoxConfig,
    LoxTrainer,
    "Extrapolates the leading directions of the alignment, then fine-tunes (arXiv 2506.15606).",
    variants={"": {"rank": 2}, "full": {"rank": 0, "coefficient": 1.0}},
    source=Source("2506.15606, COLM 2025", "VITA-Group/LoX", "MIT", ""),
    lora_only=True,
)
