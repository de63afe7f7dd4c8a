"""The model as it was when a training was made, w0, for methods that hold the trained one to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.compat import copy_each_
from titer.packing.batches import PackedBatch, Sample
from titer.packing.losses import token_nll
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
