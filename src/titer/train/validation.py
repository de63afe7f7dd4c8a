"""The loss on rows that teach nothing, measured while a training goes on: it changes no weight, and draws no random number."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from titer.packing.batches import Sample, to_device
from titer.packing.losses import token_logits
from titer.packing.streams import draw
from titer.progress import Task

TOKENS_PER_PASS = 1024
"""How many prompt and completion tokens go into one forward pass, unless a single row has more; all their logits exist at once."""


class Validation(TrainerCallback):
    """Measures the rows of a trainer's `eval_dataset`: a batch of them whenever a step is logged, all behind each epoch.

    What it finds is logged with the training's loss, as a mean over all supervised tokens, whatever a method makes of the loss
    that it trains by: `valid_loss` and `valid_mean_token_accuracy` of the batch, `full_valid_loss` and
    `full_valid_mean_token_accuracy` of all rows. The batch has as many rows as an optimizer step and follows from the step's
    number and the seed alone, so that a training which is resumed finds the same.

    Args:
        trainer: A `PackedSFTTrainer` with an `eval_dataset`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = weakref.proxy(trainer)  # which holds this
        rows = trainer.eval_dataset
        self.samples = [
            Sample(prompt, [completion])
            for prompt, completion in zip(rows["prompt_ids"], rows["completion_ids"], strict=True)
        ]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where the step is logged, and let the last one of an epoch be."""
        whole = abs(state.epoch - round(state.epoch)) < 1e-6 or state.global_step >= state.max_steps
        control.should_log = control.should_log or whole
        if control.should_log:
            size = min(args.optimizer_batch_size, len(self.samples))
            places = draw(len(self.samples), (state.global_step - 1) * size, size, (args.seed,))
            self._record("valid", [self.samples[place] for place in places])
        if whole:
            self._record("full_valid", self.samples)

    def _record(self, name: str, samples: Sequence[Sample]) -> None:
        loss, accuracy = measure(self.trainer, samples)
        self.trainer.record(**{f"{name}_loss": loss, f"{name}_mean_token_accuracy": accuracy})


@torch.no_grad()
def measure(trainer: Any, samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the mean loss of a supervised token in nats, and which part of them are the model's first choice.

    Args:
        trainer: A `PackedSFTTrainer`, whose model and layout are used.
        samples: Rows that its layout was found right for.
    """
    model = trainer.model_wrapped
    was_training = model.training
    model.eval()
    loss, hits, tokens = 0.0, 0, 0
    try:
        with Task("validation rows", len(samples)) as done:
            for part in _passes(samples, trainer.args.per_device_train_batch_size):
                batch = to_device(trainer.data_collator.lay_out(part), trainer.args.device)
                with trainer.compute_loss_context_manager():
                    logits = token_logits(model, batch).float()
                targets = batch["targets"]
                loss += F.cross_entropy(logits, targets, reduction="none").double().sum().item()
                hits += int((logits.argmax(-1) == targets).sum())
                tokens += targets.numel()
                done.advance(len(part))
    finally:
        model.train(was_training)
    return loss / tokens, hits / tokens


def _passes(samples: Sequence[Sample], rows: int) -> list[list[Sample]]:
    """Return samples in parts of one forward pass each; those of similar length together, for models that pad.

    The layout was found right for packed rows of as many samples as a micro-batch has, which is what `rows` says.
    """
    parts: list[list[Sample]] = []
    room = 0
    for sample in sorted(samples, key=_tokens):
        if not parts or _tokens(sample) > room or len(parts[-1]) == rows:
            parts.append([])
            room = TOKENS_PER_PASS
        parts[-1].append(sample)
        room -= _tokens(sample)
    return parts


def _tokens(sample: Sample) -> int:
    return len(sample.prompt) + len(sample.branches[0])
