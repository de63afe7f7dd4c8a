"""The model as it was when a training was made, w0, for methods that hold the trained one to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.compat import copy_each_
from titer.packing.batches import PackedBatch, Sample
from titer.packing.losses import token_logits, token_nll
from titer.progress import Task
from titer.train.gradients import local, reshard, sharded_like, whole
from titer.train.trainer import PackedSFTTrainer


class ReferenceTrainer(PackedSFTTrainer):
    """Supervised fine-tuning beside a frozen reference: the weights that the trainer was made with.

    A training that is resumed is made with the same weights and then takes up its checkpoint, so its reference is the same.

    Args:
        kwargs: What `PackedSFTTrainer` takes.

    Attributes:
        reference_nll: Loss of every answer token under the reference, in nats, a tensor for each training row; where
            `SCORES_ROWS`. One forward pass over the training rows, before training.
    """

    SCORES_ROWS: ClassVar[bool] = False
    KEEPS_WEIGHTS: ClassVar[bool] = False
    """Whether `reference` can be asked for: one copy of the trained weights."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.SCORES_ROWS:
            rows = self.train_dataset
            pairs = zip(rows["prompt_ids"], rows["completion_ids"], strict=True)
            self.reference_nll = self.scored([Sample(prompt, [answer]) for prompt, answer in pairs])
        if self.KEEPS_WEIGHTS:
            self.keep_weights()

    def keep_weights(self) -> None:
        """Let the reference be the weights as they are."""
        self._start = [whole(weight.detach()).clone() for weight in self.trainable.values()]

    @torch.no_grad()
    def scored(self, samples: Sequence[Sample], what: str = "reference of the upload's rows") -> list[Tensor]:
        """Return the loss of every answer token under the model as it is, in nats, a tensor on the CPU for each sample.

        Args:
            samples: Prompts with one answer each.
            what: What is being done, for a line on the screen.
        """
        size, scores = self.args.per_device_train_batch_size, []
        training = self.model.training
        self.model.eval()
        with Task(what, len(samples)) as done:
            for start in range(0, len(samples), size):
                part = samples[start : start + size]
                batch = self._prepare_inputs(self.data_collator.lay_out(part))
                with self.compute_loss_context_manager():
                    nll, _ = token_nll(self.model, batch)
                scores += nll.cpu().split([len(sample.branches[0]) for sample in part])
                done.advance(len(part))
        self.model.train(training)
        return scores

    def reference_of(self, inputs: PackedBatch) -> Tensor:
        """Return the loss of every answer token of a micro-batch under the reference, `(N,)` in nats, as `token_nll` orders them."""
        scores = torch.cat([self.reference_nll[row] for row in inputs["row"].tolist()])
        return scores.to(inputs["targets"].device)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside the block the trained weights are those of the reference; on exit they are what they were, bit for bit.

        Finish every backward pass that needs the trained weights before entering, and start none inside.
        """
        weights = list(self.trainable.values())
        start = [sharded_like(old, weight.detach()) for old, weight in zip(self._start, weights, strict=True)]
        saved = [local(weight.detach()).clone() for weight in weights]
        try:
            with torch.no_grad():
                copy_each_([local(weight.detach()) for weight in weights], [local(old) for old in start])
                # Autocast keeps rounded copies of weights for as long as it is on, and those made here have no gradient.
                torch.clear_autocast_cache()
                yield
        finally:
            torch.clear_autocast_cache()
            reshard(self.model)
            with torch.no_grad():
                copy_each_([local(weight.detach()) for weight in weights], saved)


DIRECTIONS = ("forward", "reverse")


def divergence(logits: Tensor, reference: Tensor, direction: str) -> tuple[Tensor, Tensor]:
    """Return the divergence at each token, `(N,)` in nats, and its gradient by the logits, `(N, vocabulary)`.

    Where both are the same bit for bit, the gradient is zero and not rounding's, which would have a direction.

    Args:
        logits: Of the model, `(N, vocabulary)`.
        reference: Of the reference.
        direction: `forward`, KL(π_0‖π_w), or `reverse`, KL(π_w‖π_0).
    """
    ours, theirs = logits.log_softmax(-1), reference.log_softmax(-1)
    p, q = ours.exp(), theirs.exp()
    if direction == "forward":
        return (q * (theirs - ours)).sum(-1), p - q
    found = (p * (ours - theirs)).sum(-1)
    return found, p * (ours - theirs - found[:, None])


class DivergenceTrainer(ReferenceTrainer):
    """Supervised fine-tuning that may hold what the model says of further rows to what the reference says.

    Args:
        kwargs: What `PackedSFTTrainer` takes.
    """

    def divergence_backward(self, model: Any, stream: str, direction: str = "forward", factor: float = 1.0) -> float:
        """Add `factor` times ∇KL to `.grad`; return KL, the mean divergence over a stream's answer tokens of all ranks, in nats.

        Args:
            model: The model that is trained.
            stream: The stream.
            direction: Of the divergence (`divergence`).
            factor: What its gradient counts.
        """
        batches = self.stream_batches(stream)
        tokens = self.total(torch.tensor(sum(batch["targets"].numel() for batch in batches), device=self.args.device))
        mean: Any = 0.0
        for batch in batches:
            with torch.no_grad(), self.reference(), self.compute_loss_context_manager():
                reference = _precise(token_logits(model, batch))
            with self.compute_loss_context_manager():
                logits = _precise(token_logits(model, batch))
            found, slope = divergence(logits.detach(), reference, direction)
            # Its gradient by the logits is the divergence's, exactly.
            loss = (slope * logits).sum() * factor * self.accelerator.num_processes / tokens
            self.accelerator.backward(loss)
            mean = mean + found.sum() / tokens
        kl = float(self.total(mean).item())
        self._refuse_divergence("divergence from the reference", kl)
        return kl


def _precise(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
