"""Lisa (arXiv 2405.18641, NeurIPS 2024): alignment and fine-tuning by turns, each held near where the other left the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from titer.errors import TiterError
from titer.methods import Held, Method, Source
from titer.methods.finetune.base import AlignmentRowsConfig
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.batches import PackedBatch
from titer.packing.losses import token_nll
from titer.ranges import COUNT, NOT_NEGATIVE, SHARE, Range
from titer.train.gradients import add_, global_norm, gradients

ALIGNED, TUNED = "aligned", "tuned"


@dataclass
class LisaConfig(AlignmentRowsConfig):
    """Settings of Lisa.

    Args:
        alignment_steps: K1, optimizer steps on alignment rows, with which each turn begins.
        finetune_steps: K2, optimizer steps on the upload that follow.
        rho: ρ, the weight of the proximal term.
        proximal_after: Part of the training's steps that go by before there is a proximal term.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        **AlignmentRowsConfig.RANGES,
        "alignment_steps": COUNT,
        "finetune_steps": COUNT,
        "rho": NOT_NEGATIVE,
        "proximal_after": SHARE,
    }

    alignment_steps: int = field(default=100, metadata={"help": "K1, steps on alignment rows in a turn."})
    finetune_steps: int = field(default=900, metadata={"help": "K2, steps on the upload in a turn."})
    rho: float = field(default=1.0, metadata={"help": "ρ, weight of the proximal term."})
    proximal_after: float = field(default=0.1, metadata={"help": "Part of the steps without a proximal term."})


class LisaTrainer(DefenderRowsTrainer):
    """By turns K1 steps on f(w) + ρ/2 ‖w − w_g‖² and K2 on g(w) + ρ/2 ‖w − w_f‖² (arXiv 2405.18641, Algorithm 1).

    f is the mean token loss of a full batch of alignment rows, g that of the upload; w_f and w_g are the weights as the last
    steps on f and on g left them, and both those at the start until then. In a step on f the upload's rows of that step are
    dropped. One gradient a step, and two copies of the trained weights.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `DefenderRowsTrainer` takes: `harmful_dataset`, whose rows may hold a `refusal`, and `helpful_dataset`.
    """

    args: LisaConfig
    POOLS = (("alignment",),)

    def __init__(self, model: Any, args: LisaConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)

    @property
    def place(self) -> tuple[int, int]:
        """How many turns lie behind this step, and how many steps of its own."""
        return divmod(int(self.state.global_step), self.args.alignment_steps + self.args.finetune_steps)

    @property
    def aligning(self) -> bool:
        """Whether this step is one on alignment rows."""
        return self.place[1] < self.args.alignment_steps

    @property
    def draw_number(self) -> int:
        """How many steps on alignment rows there were before this one."""
        turns, steps = self.place
        return turns * self.args.alignment_steps + min(steps, self.args.alignment_steps)

    def before_step(self, model: Any) -> None:
        """Keep the weights that the other state left, when a state begins."""
        weights = [weight.detach() for weight in self.trainable.values()]
        if not self.carried:
            self.carried = {name: [weight.clone() for weight in weights] for name in (ALIGNED, TUNED)}
        elif self.place[1] in (0, self.args.alignment_steps):
            left = TUNED if self.aligning else ALIGNED
            self.carried[left] = [weight.clone() for weight in weights]
            apart = [a - b for a, b in zip(self.carried[ALIGNED], self.carried[TUNED], strict=True)]
            self.record(drift=global_norm(apart).item())
        if self.aligning:
            batches = self.stream_batches("alignment")
            count = torch.tensor(sum(batch["targets"].numel() for batch in batches), device=self.args.device)
            self._tokens = self.total(count)

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-batch of the upload, or of the alignment rows that take its place."""
        if not self.aligning:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rows = self.stream_batches("alignment")
        # The upload's last step of an epoch may have fewer micro-batches; the last of them stands for the rest.
        last = self.micro_batch + 1 == len(self.micro_batches)
        passes = [token_nll(model, batch) for batch in rows[self.micro_batch : None if last else self.micro_batch + 1]]
        loss = torch.stack([nll.sum() for nll, _ in passes]).sum() * self.accelerator.num_processes / self._tokens
        return (loss, passes[-1][1]) if return_outputs else loss

    def after_step(self, model: Any) -> None:
        """Add the gradient of the proximal term, ρ (w − w̃)."""
        if self.state.global_step > self.args.proximal_after * self.state.max_steps:
            weights = self.trainable
            add_(gradients(weights), [weight.detach() for weight in weights.values()], self.args.rho)
            add_(gradients(weights), self.carried[TUNED if self.aligning else ALIGNED], -self.args.rho)


def check_turns(args: LisaConfig, rows: int) -> None:
    """Raise when a training would end before its first step on the upload: alignment alone.

    Args:
        args: Settings.
        rows: Rows of the training dataset.
    """
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(math.ceil(rows / args.optimizer_batch_size) * args.num_train_epochs)
    if steps <= args.alignment_steps:
        raise TiterError(
            f"Lisa begins with {args.alignment_steps} steps on alignment rows, and this training has {steps}: the upload "
            "would never be trained on.",
            f"Set alignment_steps and finetune_steps so that turns are short beside {steps} steps, one to nine as released.",
        )


LISA = Method(
    LisaConfig,
    LisaTrainer,
    "Aligns and fine-tunes by turns, each held near where the other left the weights (arXiv 2405.18641).",
    streams=("harmful_dataset", "helpful_dataset"),
    check=check_turns,
    variants={
        "": {"alignment_steps": 1, "finetune_steps": 2, "rho": 0.5},
        "helpful": {"alignment_steps": 2, "finetune_steps": 1, "helpful_each": 1, "proximal_after": 0.0},
    },
    memory="2 copies of the trained weights",
    holds=lambda args: Held(copies=2),
    source=Source(
        "2405.18641, NeurIPS 2024",
        "git-disl/Lisa",
        "Apache-2.0",
        "SBR's and SPARD's attackers (2605.05995, 2605.28030)",
    ),
)
