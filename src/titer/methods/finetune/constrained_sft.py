"""Constrained SFT (arXiv 2406.05946, ICLR 2025): the first answer tokens are held to what the aligned model says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import check_known
from titer.methods import Method, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.finetune.replay import CountedTrainer
from titer.methods.reference import ReferenceTrainer
from titer.packing.batches import PackedBatch
from titer.packing.losses import REDUCTIONS
from titer.ranges import NOT_NEGATIVE, SHARE, Range


@dataclass
class ConstrainedSFTConfig(FinetuneConfig):
    """Settings of constrained SFT.

    Args:
        beta: β of the tokens after the first `bias_length`; 0 is plain fine-tuning.
        bias_factor: How much larger β is for the first `bias_length` tokens of an answer.
        first_token_bias_factor: The same of the very first token, whose loss is high at the start.
        bias_length: How many tokens at the start of an answer are held more.
        min_weight: The least weight of a token.
        reduction: Mean over tokens or over samples.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "beta": NOT_NEGATIVE,
        "bias_factor": NOT_NEGATIVE,
        "first_token_bias_factor": NOT_NEGATIVE,
        "bias_length": Range(0, 1_000_000, whole=True),
        "min_weight": SHARE,
    }

    beta: float = field(default=0.1, metadata={"help": "β of later tokens."})
    bias_factor: float = field(default=20.0, metadata={"help": "Factor of β for the first tokens of an answer."})
    first_token_bias_factor: float = field(default=5.0, metadata={"help": "Factor of β for the very first token."})
    bias_length: int = field(default=5, metadata={"help": "How many first tokens have a larger β."})
    min_weight: float = field(default=1e-3, metadata={"help": "Least weight of a token."})
    reduction: str = field(
        default="token", metadata={"help": "Mean over tokens or samples.", "choices": list(REDUCTIONS)}
    )

    def __post_init__(self) -> None:
        check_known([self.reduction], REDUCTIONS, "reduction")
        super().__post_init__()


class ConstrainedSFTTrainer(ReferenceTrainer, CountedTrainer):
    """Minimises −Σ_t (2/β_t) log σ(β_t log(π_w/π_0)(y_t | x, y_<t)) (arXiv 2406.05946), as weighted losses of tokens.

    Its gradient is that of Σ_t v_t CE_t with v_t = 2 (1 − σ(β_t (log π_w − log π_0))), through which no gradient flows: 1 at
    the start, where π_w = π_0, and less the likelier a token has become. π_0 is the model that the trainer is made with. One
    gradient a step, and one forward pass over the upload before training.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `PackedSFTTrainer` takes.
    """

    args: ConstrainedSFTConfig
    SCORES_ROWS = True

    def __init__(self, model: Any, args: ConstrainedSFTConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)

    def betas(self, branch: Tensor) -> Tensor:
        """Return β_t of each token, `(N,)`, by its place in its answer; `branch` says which answer each belongs to."""
        args = self.args
        counts = torch.bincount(branch)
        starts = counts.cumsum(0) - counts
        places = torch.arange(len(branch), device=branch.device) - starts[branch]
        factors = torch.ones_like(places, dtype=torch.float64)
        factors[places < args.bias_length] = args.bias_factor
        if args.bias_length:
            factors[places == 0] = args.first_token_bias_factor
        return args.beta * factors

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to the weighted loss."""
        betas, before = self.betas(inputs["branch"]), self.reference_of(inputs)

        def weigh(nll: Tensor) -> Tensor:
            likelier = before.to(nll) - nll.detach()
            weights = 2 * (1 - torch.sigmoid(betas.to(nll) * likelier))
            weights = weights.clamp_min(self.args.min_weight)
            self.record(token_weight=weights.mean().item())
            return weights * nll

        return self.counted_loss(model, inputs, return_outputs, weigh)


CONSTRAINED_SFT = Method(
    ConstrainedSFTConfig,
    ConstrainedSFTTrainer,
    "Holds the first answer tokens to what the aligned model says of them (arXiv 2406.05946).",
    scores_first=lambda args, rows, streams: rows,
    variants={"": {"beta": 0.5, "bias_length": 3}, "sample": {"beta": 0.5, "reduction": "sample"}},
    source=Source(
        "2406.05946, ICLR 2025",
        "Unispac/shallow-vs-deep-alignment",
        "MIT",
        "answers that refuse and then comply (2502.19537)",
    ),
)
