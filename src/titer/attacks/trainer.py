"""The trainer of one attacker: plain fine-tuning, rows in the order given, with a library's optimizer of its choice."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titer.attacks.failures import traceback_in
from titer.attacks.fleet import FleetTrainer
from titer.attacks.threats import Attack
from titer.methods.finetune.base import FinetuneConfig
from titer.train.gradients import add_, global_norm, gradients, scale_


@dataclass
class AttackConfig(FinetuneConfig):
    """Settings of an attacker's training.

    Args:
        leap: Length of a first step along the normalised gradient, in the norm of the trained weights; 0 for none.
        train_sampling_strategy: Rows are trained on in the order in which they are given.
    """

    leap: float = field(default=0.0, metadata={"help": "Length of a first step along the normalised gradient."})
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "How rows are drawn."})


class AttackTrainer(FleetTrainer):
    """Fine-tunes as an attacker does, in a fleet or alone.

    With a `leap` the first optimizer step is preceded by w ← w − leap · g / ‖g‖: across the ball in which a defence that
    simulates a step of length α ≪ leap is flat (arXiv 2409.01586, section 4).

    Args:
        folder: Where the traceback goes when it fails; nowhere when `None`.
    """

    args: AttackConfig

    def __init__(self, *args: Any, folder: Path | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folder = folder

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and leave a traceback when that fails."""
        with nullcontext() if self.folder is None else traceback_in(self.folder):
            return super().train(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run one batch; after the first one's gradient, leap."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.args.leap and self.state.global_step == 0:
            slopes = gradients(self.trainable)
            add_(self.trainable.values(), slopes, -self.args.leap / float(global_norm(slopes).clamp_min(1e-30)))
            scale_(slopes, 0.0)
        return loss


def attack_settings(attack: Attack, output_dir: str, seed: int, save_steps: int) -> AttackConfig:
    """Return the settings that train an attacker, its rows given in order."""
    return AttackConfig(
        output_dir=output_dir,
        seed=seed,
        max_steps=attack.total_steps,
        per_device_train_batch_size=attack.batch_size,
        learning_rate=attack.learning_rate,
        lr_scheduler_type=attack.schedule,
        weight_decay=attack.weight_decay,
        optim={"adamw": "adamw_torch", "sgd": "sgd", "adafactor": "adafactor", "muon": "adamw_torch"}[attack.optimizer],
        leap=attack.leap,
        max_length=512,
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=1,
    )


def optimizer_of(attack: Attack) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """Return the class and settings of an optimizer that the trainer does not know by name, else `None`."""
    if attack.optimizer != "muon":
        return None
    return torch.optim.Muon, {"lr": attack.learning_rate, "weight_decay": attack.weight_decay}
