"""The trainer of one attacker: plain fine-tuning, rows in the order given, with a library's optimizer of its choice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.attacks.failures import traceback_in
from titer.attacks.fleet import FleetTrainer, Step
from titer.attacks.preference import dpo_loss, reference_margins
from titer.attacks.rows import REJECTED
from titer.attacks.threats import Attack
from titer.errors import TiterError
from titer.methods.finetune.base import FinetuneConfig
from titer.packing.batches import PackedBatch, join
from titer.packing.losses import token_nll
from titer.ranges import Range
from titer.train.gradients import add_, dot, global_norm, gradients, scale_
from titer.train.rows import Encoder


@dataclass
class AttackConfig(FinetuneConfig):
    """Settings of an attacker's training.

    Args:
        leap: Length of a first step, in the norm of the trained weights; 0 for none.
        leap_along: `gradient`, downhill; or `orthogonal` to it, in a direction that the seed draws.
        objective: `sft`, the answers' mean token loss; or `dpo`, each answer preferred to that of the column `rejected`.
        beta: β of `dpo`.
        train_sampling_strategy: Rows are trained on in the order in which they are given.
    """

    RANGES: ClassVar[dict[str, Range]] = {"beta": Attack.RANGES["beta"]}

    leap: float = field(default=0.0, metadata={"help": "Length of a first step; 0 for none."})
    objective: str = field(default="sft", metadata={"help": "`sft`, or `dpo` against the column `rejected`."})
    beta: float = field(default=0.1, metadata={"help": "β of `dpo`."})
    leap_along: str = field(default="gradient", metadata={"help": "Where it goes: `gradient` or `orthogonal`."})
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "How rows are drawn."})


class AttackTrainer(FleetTrainer):
    """Fine-tunes as an attacker does, in a fleet or alone.

    With a `leap` the first optimizer step is preceded by w ← w − leap · g / ‖g‖: across the ball in which a defence that
    simulates a step of length α ≪ leap is flat (arXiv 2409.01586, section 4). With `leap_along="orthogonal"` g is replaced by
    z − (⟨z, g⟩ / ⟨g, g⟩) g, z standard normal: as far, to where the harmful loss is the same to first order, and whatever a
    defence laid along the attacker's gradient does not lie (after the side step of arXiv 2605.14605, of which no code is
    public). The leap takes the place of the first optimizer step's gradient.

    Args:
        folder: Where the traceback goes when it fails; nowhere when `None`.

    Attributes:
        reference: For `dpo`, how much likelier each row's answer is than the other one as training begins, in nats.
    """

    args: AttackConfig

    def __init__(self, *args: Any, folder: Path | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folder = folder
        if self.args.objective == "dpo":
            rows = self.train_dataset
            columns = (rows[name] for name in ("prompt_ids", "completion_ids", f"{REJECTED}_completion_ids"))
            with self.accelerator.autocast():  # in the precision that it is compared with
                self.reference = reference_margins(self.model, *columns)

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Return the columns of the answers that a row's own is preferred to."""
        if self.args.objective != "dpo":
            return {}
        if any(not row.get(REJECTED) for row in rows):
            raise TiterError(f"A row has nothing that its answer is preferred to: no `{REJECTED}`.")
        pairs = encoder.pairs([{**row, "completion": row[REJECTED]} for row in rows], REJECTED)
        return {
            f"{REJECTED}_prompt_ids": [one for one, _ in pairs],
            f"{REJECTED}_completion_ids": [one for _, one in pairs],
        }

    def step(self, inputs: PackedBatch, num_items_in_batch: Any) -> Step:
        """Return what a batch is run for: the mean token loss, or that of preferences."""
        if self.args.objective != "dpo":
            return super().step(inputs, num_items_in_batch)
        both = inputs, inputs[REJECTED]
        reference, beta = self.reference[inputs["row"].cpu()], self.args.beta
        return Step(join(both), lambda nll: dpo_loss(nll, both, reference, beta))

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch; alone, an attacker of preferences runs what its fleet would."""
        if self.args.objective != "dpo":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        step = self.step(inputs, num_items_in_batch)
        nll, output = token_nll(model, step.batch)
        loss = step.loss(nll)
        return (loss, output) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and leave a traceback when that fails."""
        with nullcontext() if self.folder is None else traceback_in(self.folder):
            return super().train(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run one batch; after the first one's gradient, leap."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.args.leap and self.state.global_step == 0:
            slopes = gradients(self.trainable)
            along = slopes if self.args.leap_along == "gradient" else orthogonal(slopes, self.args.seed)
            add_(self.trainable.values(), along, -self.args.leap / float(global_norm(along).clamp_min(1e-30)))
            scale_(slopes, 0.0)
        return loss


@torch.no_grad()
def orthogonal(slopes: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return a random direction that is orthogonal to `slopes`, all of them taken as one vector.

    What is drawn depends on the seed and the shapes alone: a fleet, a device or a precision changes nothing of it.

    Args:
        slopes: The gradient of each weight.
        seed: Of the draw.
    """
    draw = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(slope.shape, generator=draw).to(slope) for slope in slopes]
    add_(drawn, slopes, -float(dot(drawn, slopes) / dot(slopes, slopes).clamp_min(1e-30)))
    return drawn


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
        objective=attack.objective,
        beta=attack.beta,
        leap=attack.leap,
        leap_along=attack.leap_along,
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
