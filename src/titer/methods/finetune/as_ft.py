"""AsFT (arXiv 2506.08473, AAAI 2026): hold what fine-tuning changes to the directions of what the alignment changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from titer.methods import Held, Method, Source
from titer.methods.adapter import plain_factors
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.repair.lowrank import LowRank
from titer.ranges import NOT_NEGATIVE, Range
from titer.train.gradients import add_, gradients, sharded_like, whole
from titer.train.trainer import PackedSFTTrainer


@dataclass
class AsFtConfig(FinetuneConfig):
    """Settings of AsFT.

    Args:
        lam: λ, the weight of the regulariser.
        scaled: Whether ΔW is what the adapter adds, its scale α/r included; the released code leaves that out.
    """

    RANGES: ClassVar[dict[str, Range]] = {"lam": NOT_NEGATIVE}

    lam: float = field(default=1.0, metadata={"help": "λ, weight of the regulariser."})
    scaled: bool = field(default=True, metadata={"help": "The adapter's scale is part of ΔW."})


class Regulariser(NamedTuple):
    """‖(I − C) ΔW‖² of one layer, and its gradients by B and A."""

    value: Tensor
    by_b: Tensor
    by_a: Tensor


class Anchor(NamedTuple):
    """What a layer's adapter was when training began.

    Attributes:
        b: B₀, `(out, r)`.
        a: A₀, `(r, in)`.
        scale: α/r.
        norm: ‖V‖_F.
    """

    b: Tensor
    a: Tensor
    scale: float
    norm: float

    @property
    def alignment(self) -> LowRank:
        """V, what the adapter added to the base."""
        return LowRank(self.b * self.scale, self.a)

    def outside(self, x: Tensor) -> Tensor:
        """Return (I − C) x with C = V Vᵀ/‖V‖_F, `(out, n)`; where V is zero, C is."""
        return x - self.alignment @ (self.alignment.T @ x) / self.norm if self.norm else x

    def regulariser(self, b: Tensor, a: Tensor, scaled: bool) -> Regulariser:
        """Return ‖(I − C) ΔW‖² for ΔW = s (B A − B₀A₀), with nothing larger than the factors formed.

        Args:
            b: B, `(out, r)`.
            a: A, `(r, in)`.
            scaled: Whether s is α/r, or 1.
        """
        factor = self.scale if scaled else 1.0
        # ΔW = L R, of twice the adapter's rank.
        left = factor * torch.cat([b, -self.b], 1)
        right = torch.cat([a, self.a])
        once = self.outside(left)
        twice = self.outside(once)
        value = ((once.T @ once) * (right @ right.T)).sum()
        # By ΔW it is 2 (I − C)² ΔW, since C is symmetric; C is no projection, so the square stays.
        return Regulariser(value, 2 * factor * twice @ (right @ a.T), 2 * factor * (b.T @ twice) @ right)


class AsFtTrainer(PackedSFTTrainer):
    """Minimises g + λ Σ_layers ‖(I − C) ΔW‖_F², C = V Vᵀ/‖V‖_F (arXiv 2506.08473).

    g is the mean token loss of the upload. V = s B₀A₀ is what the aligned adapter adds to the base, ΔW = s (B A − B₀A₀) what fine-tuning
    changed since. The regulariser's gradient is added to that of g once a step, from the factors alone. One gradient a step, and a
    copy of the adapter of memory.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: AsFtConfig

    def __init__(self, model: Any, args: AsFtConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self._anchors = []
        for layer in plain_factors(self, "AsFT"):
            b, a = (_precise(factor.detach()).clone() for factor in (layer.b, layer.a))
            self._anchors.append(Anchor(b, a, layer.scale, LowRank(b * layer.scale, a).norm()))

    def after_step(self, model: Any) -> None:
        """Add λ times the gradient of the regulariser."""
        total = 0.0
        gradients(self.trainable)  # a missing one is an error
        for layer, anchor in zip(plain_factors(self, "AsFT"), self._anchors, strict=True):
            b, a = (_precise(whole(factor.detach())) for factor in (layer.b, layer.a))
            found = anchor.regulariser(b, a, self.args.scaled)
            total += found.value.item()
            for factor, slope in ((layer.b, found.by_b), (layer.a, found.by_a)):
                add_([factor.grad], [sharded_like(slope.to(factor.dtype), factor)], self.args.lam)
        self.record(regulariser=total)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


AS_FT = Method(
    AsFtConfig,
    AsFtTrainer,
    "Holds what fine-tuning changes to the directions of the alignment (arXiv 2506.08473).",
    variants={"": {"lam": 3.0}, "unscaled": {"lam": 30.0, "scaled": False}},
    memory="1 copy of the adapter",
    holds=lambda args: Held(copies=1),
    source=Source(
        "2506.08473, AAAI 2026",
        "PKU-YuanGroup/AsFT",
        "Llama 2 Community",
        "14.4 against a successor's 3.6 (2510.14301)",
    ),
    lora_only=True,
)
