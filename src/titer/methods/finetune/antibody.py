"""Antibody, stage 2 (arXiv 2603.00498, ICLR 2026): the aligned model decides how much each user sample may teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import check_known
from titer.methods import Method, Source
from titer.methods.finetune.base import FinetuneConfig, RefusalTrainer, all_reduce_max, check_batch_of_two
from titer.packing.batches import PackedBatch
from titer.packing.losses import RATIOS, REDUCTIONS, branch_nll, token_nll, weighted_parts
from titer.ranges import POSITIVE, Range
from titer.train.gradients import gradients, scale_
from titer.train.rows import Encoder


@dataclass
class AntibodyFinetuneConfig(FinetuneConfig):
    """Settings of Antibody's fine-tuning stage.

    Args:
        tau: τ, temperature of the softmax over the optimizer batch.
        ratio: `sum`, the ratio of likelihoods as the paper prints it; `mean`, per token as in the released code; or
            `calibrated` (ours), how much less likely the request makes a refusal, whatever the answer
            (`titer.packing.losses.log_likelihood_ratio`).
        reduction: `token`, Σ_i w_i Σ_t CE_it / Σ_i w_i N_i (released code), or `sample`, Σ_i w_i mean_t CE_it.
    """

    RANGES: ClassVar[dict[str, Range]] = {"tau": POSITIVE}

    per_device_train_batch_size: int = field(default=16, metadata={"help": "Samples of a micro-batch."})
    tau: float = field(default=1.0, metadata={"help": "Temperature of the softmax over the optimizer batch."})
    ratio: str = field(
        default="sum", metadata={"help": "Likelihoods of answers: sum, mean or calibrated.", "choices": list(RATIOS)}
    )
    reduction: str = field(
        default="token", metadata={"help": "Mean over tokens or samples.", "choices": list(REDUCTIONS)}
    )

    def __post_init__(self) -> None:
        check_known([self.ratio], RATIOS, "ratio")
        check_known([self.reduction], REDUCTIONS, "reduction")
        super().__post_init__()


class AntibodyFinetuneTrainer(RefusalTrainer):
    """Fine-tunes with weights w_i = softmax_batch(r_i / τ), r_i = log π_θ(y_i | x_i) − log π_θ(y_r | x_i).

    The weights come from the current model at every step, and no gradient flows through them. The likelihood of the
    user's answer is the training forward itself; that of the refusal is a forward of the refusal's tokens alone, on
    the keys and values which that forward left (with gradient checkpointing, or a model that cannot be packed, of the
    prompt and the refusal). The softmax runs over the whole optimizer batch, across micro-batches
    and ranks: because the loss is linear in the weights, unnormalised gradients are accumulated relative to the
    largest ratio seen so far and divided by the normaliser once all micro-batches have gone backward.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        refusals: Generic refusals; titer's own when not given.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: AntibodyFinetuneConfig

    def __init__(
        self, model: Any, args: AntibodyFinetuneConfig, *, refusals: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model=model, args=args, refusals=refusals, **kwargs)
        check_batch_of_two(args, len(self.train_dataset))

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Return the refusal of each row, by index."""
        return self.refusal_column(rows, encoder)

    def before_step(self, model: Any) -> None:
        """Begin the softmax of a new optimizer batch."""
        # A few numbers a step: float64 costs nothing, and a float64 model stays exact.
        exact = {"dtype": torch.float64, "device": self.args.device}
        self.largest = torch.tensor(-torch.inf, **exact)
        self.numerator = torch.zeros((), **exact)
        self.denominator = torch.zeros((), **exact)
        self.partition = torch.zeros((), **exact)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return Σ_i exp(r_i/τ − m) ℓ_i of a micro-batch, with m the largest r/τ of the optimizer batch so far."""
        nll, output = token_nll(model, inputs, use_cache=self.layout.cached)
        answer, tokens = branch_nll(nll, inputs["branch"], len(inputs["row"]))
        ratio = self.log_ratio(model, inputs, output, answer, tokens, self.args.ratio)
        weights = self._unnormalised(ratio / self.args.tau)
        self.seen.append((inputs["row"], ratio))
        numerator, denominator = weighted_parts(answer, tokens, weights, self.args.reduction)
        self.numerator += self.total(numerator.detach())
        self.denominator += self.total(denominator)
        self.partition += self.total(weights.sum())
        loss = numerator * self.accelerator.num_processes  # DDP takes the mean over ranks
        return (loss, output) if return_outputs else loss

    @torch.no_grad()
    def _unnormalised(self, exponents: Tensor) -> Tensor:
        """Return exp(exponents − m), after bringing what is accumulated so far to the new largest exponent m."""
        largest = torch.maximum(self.largest, all_reduce_max(exponents.max().double()))
        if len(self.seen) > 0:
            rescale = torch.exp(self.largest - largest)
            scale_(gradients(self.trainable), rescale)
            for part in (self.numerator, self.denominator, self.partition):
                part *= rescale
        self.largest = largest
        return torch.exp(exponents - largest)

    def after_step(self, model: Any) -> None:
        """Divide by the normaliser, which turns the accumulated gradient into that of the weighted loss."""
        # Σ_i w_i N_i ≥ min_i N_i ≥ 1, so the released code's max(1, ·) never acts on the whole batch.
        scale_(gradients(self.trainable), 1.0 / self.denominator)
        rows = torch.cat([row for row, _ in self.seen])
        ratios = torch.cat([ratio for _, ratio in self.seen])
        weights = torch.exp(ratios / self.args.tau - self.largest) / self.partition
        self.log_weights(rows, weights, log_ratio=ratios)
        self.record(largest_weight=weights.max().item())

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run one micro-batch; the loss that is logged is the weighted loss of the whole optimizer batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        last = self.micro_batch == len(self.micro_batches)
        return self.numerator / self.denominator if last else torch.zeros_like(loss)


ANTIBODY = Method(
    AntibodyFinetuneConfig,
    AntibodyFinetuneTrainer,
    "Weighs each row by how much likelier than a refusal the model finds its answer (arXiv 2603.00498, stage 2).",
    weighs_rows=True,
    check=check_batch_of_two,
    variants={
        "sum": {"tau": 16.0},
        "mean": {"tau": 0.5, "ratio": "mean", "reduction": "sample"},
        "calibrated": {"tau": 0.5, "ratio": "calibrated"},
    },
    source=Source("2603.00498, ICLR 2026", "minhquoc0712/Antibody", "none"),
)
