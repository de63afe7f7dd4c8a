"""BDS (arXiv 2510.27172, NeurIPS 2025): each row of the upload has a score, which learns what safe data leave it to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.finetune.base import AlignmentRowsConfig, WeightLogTrainer
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.batches import PackedBatch
from titer.packing.losses import branch_nll, token_nll
from titer.ranges import NOT_NEGATIVE, Range

ACTIVATIONS = ("softmax", "sigmoid")
BETAS = (0.9, 0.95)
EPSILON = 1e-8


@dataclass
class BdsConfig(AlignmentRowsConfig):
    """Settings of BDS.

    Args:
        scheduler_rate: The learning rate of Adam on the scores; 0 leaves all weights at 1.
        activation: What makes weights of scores: `softmax` over the upload, times its size, or twice the `sigmoid`.
    """

    RANGES: ClassVar[dict[str, Range]] = {**AlignmentRowsConfig.RANGES, "scheduler_rate": NOT_NEGATIVE}

    scheduler_rate: float = field(default=5e-3, metadata={"help": "Learning rate of the rows' scores."})
    activation: str = field(
        default="softmax", metadata={"help": "What makes weights of scores.", "choices": list(ACTIVATIONS)}
    )

    def __post_init__(self) -> None:
        check_known([self.activation], ACTIVATIONS, "activation")
        super().__post_init__()


class BdsTrainer(WeightLogTrainer, DefenderRowsTrainer):
    """Minimises f(w) + mean_i w_i ℓ_i(w) over the weights, and mean_i w_i(s) ℓ_i over the scores s, in turn (arXiv 2510.27172).

    f is the mean loss of as many alignment rows as the batch has, ℓ_i that of a row of the upload, both a mean over rows of a mean
    over tokens. Each row has one score; w = n · softmax(s) over all n rows of the upload (or 2σ(s)). No gradient flows through w into the
    model, nor from the scores' loss. Where f holds the model, the loss of a row that f speaks against stays high, and
    its score falls. Two gradients a step; three numbers a row of memory. The score's step is Adam's, as in the released code, which
    adds none of the noise of the paper's Langevin dynamics.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `DefenderRowsTrainer` takes: `harmful_dataset`, whose rows may hold a `refusal`, and `helpful_dataset`.
    """

    args: BdsConfig
    POOLS = (("alignment",),)

    def __init__(self, model: Any, args: BdsConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        zeros = torch.zeros(len(self.train_dataset), dtype=torch.float64)
        self.kept = {"scores": zeros, "mean": zeros.clone(), "square": zeros.clone()}

    @property
    def weights(self) -> Tensor:
        """What each row of the upload counts now, `(n,)`."""
        scores = self.kept["scores"]
        return len(scores) * scores.softmax(0) if self.args.activation == "softmax" else 2 * scores.sigmoid()

    def before_step(self, model: Any) -> None:
        """Leave ∇f."""
        super().before_step(model)
        batches = self.stream_batches("alignment")
        everything = self._total_rows(batches)
        self._rows = self._total_rows(self.micro_batches)
        self._seen: list[tuple[Tensor, Tensor]] = []
        f: Any = 0.0
        for batch in batches:
            with self.compute_loss_context_manager():
                nll, _ = token_nll(model, batch)
            share = self._row_losses(nll, batch).sum() / everything
            self.accelerator.backward(share * self.accelerator.num_processes)
            f = f + share.detach()
        alignment_loss = self.total(f).item()
        self._refuse_divergence("alignment loss", alignment_loss)
        self.record(alignment_loss=alignment_loss)

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to the weighted mean over the rows of the optimizer batch."""
        nll, output = token_nll(model, inputs)
        losses = self._row_losses(nll, inputs)
        rows = inputs["row"]
        self._seen.append((rows, losses.detach()))
        weights = self.weights[rows.cpu()].to(losses)
        loss = (weights * losses).sum() * self.accelerator.num_processes / self._rows
        return (loss, output) if return_outputs else loss

    def after_step(self, model: Any) -> None:
        """Move the scores of the step's rows, by the losses that the model had before it."""
        weights, rows = self.weights, torch.cat([rows for rows, _ in self._seen])
        self.log_weights(rows.cpu(), weights[rows.cpu()])
        self.record(weight_min=weights.min().item(), weight_max=weights.max().item())
        losses = torch.cat([losses for _, losses in self._seen])
        # ℓ of each row of the upload that this step has, on all ranks, and 0 of the others.
        by_row = self.total(losses.new_zeros(len(weights)).index_add(0, rows, losses)).cpu().double()
        slope = weights * by_row / self._rows  # of mean_i w_i(s) ℓ_i
        if self.args.activation == "softmax":
            slope = slope - weights * slope.mean()
        else:
            slope = slope * (1 - weights / 2)
        self._adam(slope)

    def _adam(self, slope: Tensor) -> None:
        """Take a step of Adam on the scores."""
        scores, mean, square = (self.kept[name] for name in ("scores", "mean", "square"))
        step = self.state.global_step + 1
        mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
        square = BETAS[1] * square + (1 - BETAS[1]) * slope * slope
        first, second = mean / (1 - BETAS[0] ** step), square / (1 - BETAS[1] ** step)
        scores = scores - self.args.scheduler_rate * first / (second.sqrt() + EPSILON)
        self.kept = {"scores": scores, "mean": mean, "square": square}

    def _row_losses(self, nll: Tensor, batch: PackedBatch) -> Tensor:
        """Return the mean token loss of each row of a batch, `(B,)` in nats."""
        sums, tokens = branch_nll(nll, batch["branch"], _rows(batch))
        return sums / tokens

    def _total_rows(self, batches: Sequence[PackedBatch]) -> int:
        """Return how many rows batches hold, over all ranks."""
        return int(self.total(torch.tensor(sum(_rows(batch) for batch in batches), device=self.args.device)).item())


def _rows(batch: PackedBatch) -> int:
    return int(batch["branch"].max()) + 1


BDS = Method(
    BdsConfig,
    BdsTrainer,
    "Learns a weight for each row of the upload beside refusals that are trained on (arXiv 2510.27172).",
    streams=("harmful_dataset", "helpful_dataset"),
    gradients=lambda args: Gradients(replay=1.0),
    variants={
        "softmax": {"scheduler_rate": 0.3},
        "sigmoid": {"scheduler_rate": 0.3, "activation": "sigmoid", "helpful_each": 1},
    },
    memory="3 numbers a row of the upload",
    holds=lambda args: Held(onto=1),
    source=Source(
        "2510.27172, NeurIPS 2025",
        "Egg-Hu/Bayesian-Data-Scheduler",
        "none",
        "an attack on all weights (2610.10345)",
    ),
)
