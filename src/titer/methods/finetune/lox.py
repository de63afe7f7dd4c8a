"""LoX (arXiv 2506.15606, COLM 2025): go further in the directions of the alignment, and fine-tune from there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import TiterError
from titer.methods import Method, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.repair.adapters import PLAIN_STARTS
from titer.methods.repair.lowrank import LowRank
from titer.ranges import NOT_NEGATIVE, Range
from titer.train.trainer import PackedSFTTrainer

_FACTOR = re.compile(r".+\.lora_[AB]\.(?P<adapter>[^.]+)\.weight")


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
            pairs = self._factors()
            if not any(bool(b.any() and a.any()) for b, a in pairs):
                raise TiterError(
                    "LoX extrapolates what the alignment added to the model, and the adapter adds nothing.",
                    "Fine-tune an aligned model, with the adapter that its alignment left (`titer align`).",
                )
            for b, a in pairs:
                b.copy_(extrapolated(b.cpu(), a.cpu(), args.rank, args.coefficient))

    def _factors(self) -> list[tuple[Tensor, Tensor]]:
        """Return B and A of each layer that the adapter changes.

        Raises:
            TiterError: Where what was added to the base is not the products B A of one adapter.
        """
        trained = list(self.trainable)
        if not any(_FACTOR.fullmatch(name) for name in trained):
            raise TiterError(
                "LoX needs what the alignment added to the base model, and of a model whose own weights are trained that is "
                "not known.",
                "Align and fine-tune a LoRA adapter: `titer align` and `titer finetune` do.",
            )
        others = [name for name in trained if not _FACTOR.fullmatch(name)]
        if others:
            raise TiterError(
                f"LoX extrapolates plain LoRA adapters, and `{others[0]}` is trained too, which is more than that.",
                "Align with an adapter without DoRA, biases, embeddings or modules that are trained as a whole.",
            )
        active: list[str] = list(self.model.active_adapters)
        for adapter in active:
            start = self.model.peft_config[adapter].init_lora_weights
            if start not in PLAIN_STARTS:
                raise TiterError(
                    f"The adapter `{adapter}` began with `init_lora_weights={start}`, which changes the base's weights, so "
                    "what it adds is not what the alignment added.",
                    "Align with an adapter that leaves its base alone.",
                )
        if len(active) > 1:
            raise TiterError(f"LoX extrapolates one adapter, and {len(active)} are active: {', '.join(active)}.")
        weights = dict(self.model.named_parameters())
        pairs = [
            (weight, weights[name.replace(".lora_B.", ".lora_A.")])
            for name, weight in weights.items()
            if ".lora_B." in name and (found := _FACTOR.fullmatch(name)) and found["adapter"] in active
        ]
        if any(factor.ndim != 2 for pair in pairs for factor in pair):
            raise TiterError("LoX extrapolates adapters of linear layers, and this one changes others.")
        return [(b.detach(), a.detach()) for b, a in pairs]


LOX = Method(
    LoxConfig,
    LoxTrainer,
    "Extrapolates the leading directions of the alignment, then fine-tunes (arXiv 2506.15606).",
    variants={"": {"rank": 2}, "full": {"rank": 0, "coefficient": 1.0}},
    source=Source("2506.15606, COLM 2025", "VITA-Group/LoX", "MIT", ""),
    lora_only=True,
)
