"""What fine-tuning methods share that count an optimizer batch themselves, and that teach alignment rows beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from titer.packing.batches import PackedBatch
from titer.packing.losses import branch_nll, token_nll
from titer.train.trainer import PackedSFTTrainer


class CountedTrainer(PackedSFTTrainer):
    """Supervised fine-tuning that counts what a mean over the optimizer batch is taken over, before its first micro-batch.

    A `reduction`, a setting where a method has one, says what that is: tokens, or samples.

    Args:
        kwargs: What `PackedSFTTrainer` takes.

    Attributes:
        denominator: Supervised tokens or samples of the optimizer batch, over all ranks.
    """

    @property
    def reduction(self) -> str:
        """`token` or `sample`."""
        return str(self.args.reduction)

    def before_step(self, model: Any) -> None:
        """Count the tokens or samples of the optimizer batch."""
        super().before_step(model)
        self.denominator = self.counted(self.micro_batches)

    def counted(self, batches: Sequence[PackedBatch]) -> Tensor:
        """Return how many supervised tokens micro-batches hold, or samples (`reduction`), over all ranks."""
        by_token = self.reduction == "token"
        count = sum(batch["targets"].numel() if by_token else int(batch["branch"].max()) + 1 for batch in batches)
        return self.total(torch.tensor(count, device=self.args.device))

    def counted_loss(
        self,
        model: Any,
        inputs: PackedBatch,
        return_outputs: bool = False,
        weigh: Callable[[Tensor], Tensor] | None = None,
    ) -> Any:
        """Return what a micro-batch adds to the mean over the optimizer batch, for `compute_loss`.

        Args:
            model: The model that is trained.
            inputs: The micro-batch.
            return_outputs: Whether to return the model's output too.
            weigh: Makes weighted losses of the losses of all tokens, `(N,)`.
        """
        nll, output = token_nll(model, inputs)
        weighted = nll if weigh is None else weigh(nll)
        if self.reduction == "token":
            summed = weighted.sum()
        else:
            sums, tokens = branch_nll(weighted, inputs["branch"], len(inputs["row"]))
            summed = (sums / tokens).sum()
        loss = summed * self.accelerator.num_processes / self.denominator
        return (loss, output) if return_outputs else loss


def rows_beside(share: float, batch: int, micro: int) -> int:
    """Return how many rows a rank draws beside its part of an optimizer batch: `share` for each row, one at least.

    Args:
        share: Rows beside each row of the batch.
        batch: Rows of the batch on this rank.
        micro: Rows of a micro-batch, whole ones of which are drawn, so that every rank has as many.
    """
    rows = max(1, round(share * batch))
    return rows if rows <= micro else math.ceil(rows / micro) * micro


class ReplayTrainer(CountedTrainer):
    """Fine-tuning with rows of the alignment data in the batch, `replay` of them for each row of the upload.

    They are the stream `replay`, which a subclass returns from `pools`, drawn anew at each step, and count among the tokens or
    samples of the optimizer batch. With a `replay` of 0 there are none, and nothing of them is computed.

    Args:
        kwargs: What `PackedSFTTrainer` takes.
    """

    @property
    def rows_drawn(self) -> int:
        """How many alignment rows each rank draws at an optimizer step."""
        return rows_beside(self.args.replay, super().rows_drawn, self.args.per_device_train_batch_size)

    def replayed(self) -> Tensor:
        """Return how many tokens or samples of alignment rows count at this step, over all ranks."""
        return self.counted(self.stream_batches("replay"))

    def before_step(self, model: Any) -> None:
        """Leave the gradient of the alignment rows, which count among the tokens or samples of the optimizer batch."""
        super().before_step(model)
        if self.args.replay:
            replayed = self.replayed()
            self.denominator = self.denominator + replayed
            part = replayed.item() / self.denominator.item()
            self.record(replay_loss=self.stream_backward(model, "replay", part), replayed=part)
