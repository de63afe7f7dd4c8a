"""Adaptive KL (arXiv 2602.17546 v2): the more harmful a batch, the closer the model is held to the aligned one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from titer.errors import TiterError, check_known
from titer.methods import Held, Method, Source
from titer.methods.finetune.guard import GuardConfig, GuardTrainer
from titer.packing.batches import PackedBatch
from titer.packing.losses import token_logits
from titer.ranges import SHARE, Range

SCOPES = ("batch", "row")


@dataclass
class AdaptiveKlConfig(GuardConfig):
    """Settings of adaptive KL.

    Args:
        scope: One w for each optimizer `batch`, by the mean risk of its rows, or for each `row` by its own, as the released
            code has it with its micro-batches of one row.
        low_risk: Harm score, from 1 to 5, at which w would be 0.
        high_risk: Harm score at which w would be 1.
        min_weight: The smallest w.
        max_weight: The largest w.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "low_risk": Range(0, 10),
        "high_risk": Range(0, 10),
        "min_weight": SHARE,
        "max_weight": SHARE,
    }

    scope: str = field(default="batch", metadata={"help": "One w a batch, or a row.", "choices": list(SCOPES)})
    low_risk: float = field(default=2.0, metadata={"help": "Harm score (1 to 5) at which w would be 0."})
    high_risk: float = field(default=5.0, metadata={"help": "Harm score (1 to 5) at which w would be 1."})
    min_weight: float = field(default=0.1, metadata={"help": "Smallest w."})
    max_weight: float = field(default=0.9, metadata={"help": "Largest w."})

    def __post_init__(self) -> None:
        check_known([self.scope], SCOPES, "scope")
        super().__post_init__()
        if self.min_weight > self.max_weight:
            raise TiterError(f"min_weight {self.min_weight:g} is above max_weight {self.max_weight:g}.")
        if self.low_risk >= self.high_risk:
            raise TiterError(f"low_risk {self.low_risk:g} is not below high_risk {self.high_risk:g}.")


class AdaptiveKlTrainer(GuardTrainer):
    """Minimises (1 − w) g + w KL(π_0‖π_w) on the answers of the upload (arXiv 2602.17546 v2).

    g is the mean CE of the answer tokens, KL the mean divergence over the vocabulary from the model as it was when the trainer was
    made. w = clamp((risk − 2) / 3, .1, .9) of the batch's mean harm score, which goes from 1 to 5: 1 + 4 P(harmful) of whole
    answers, by a guard that is asked once, before training. One gradient and one forward pass a step. Extra memory: a copy of
    the trained weights, and the logits of a micro-batch's answer tokens, two times.

    Args:
        model: The aligned model with its adapter; it is the reference as it is when the trainer is made.
        args: Settings.
        kwargs: What `trl.SFTTrainer` takes.

    Attributes:
        risk: The harm score of each row, `(n,)`.
    """

    args: AdaptiveKlConfig

    KEEPS_WEIGHTS = True

    def __init__(self, model: Any, args: AdaptiveKlConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        # Two passes over one batch are compared, and at the start their difference is 0.
        self.refuse_noise("so the divergence from the reference would be that of two masks.")
        self.risk = 1 + 4 * self.harm([(row, self.answer(row)) for row in range(len(self.train_dataset))])

    def before_step(self, model: Any) -> None:
        """Count the tokens of the optimizer batch, and find its w."""
        super().before_step(model)
        rows = torch.cat([batch["row"] for batch in self.micro_batches]).cpu()
        count = [self.risk[rows].sum().item(), len(rows)]
        total, number = self.total(torch.tensor(count, dtype=torch.float64, device=self.args.device)).tolist()
        self.batch_risk = total / number
        self.record(risk=self.batch_risk)

    def weights(self, rows: Tensor) -> Tensor:
        """Return the w of each row of a micro-batch, `(B,)`."""
        risk = self.risk[rows.cpu()]
        if self.args.scope == "batch":
            risk = torch.full_like(risk, self.batch_risk)
        weight = (risk - self.args.low_risk) / (self.args.high_risk - self.args.low_risk)
        return weight.clamp(self.args.min_weight, self.args.max_weight)

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to the loss of the optimizer batch."""
        with self.reference():
            before = _log_probabilities(token_logits(model, inputs))
        logs = _log_probabilities(token_logits(model, inputs))
        nll = F.nll_loss(logs, inputs["targets"], reduction="none")
        kl = F.kl_div(logs, before, reduction="none", log_target=True).sum(-1)  # KL(π_0‖π_w), in spite of its order
        weight = self.weights(inputs["row"]).to(nll)[inputs["branch"]]
        self.record(kl=kl.mean().item(), kl_weight=weight.mean().item())
        loss = ((1 - weight) * nll + weight * kl).sum() * self.accelerator.num_processes / self.tokens
        return (loss, {"logits": logs}) if return_outputs else loss


def _log_probabilities(logits: Tensor) -> Tensor:
    """Return log-probabilities, in at least float32."""
    return torch.log_softmax(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, -1)


ADAPTIVE_KL = Method(
    AdaptiveKlConfig,
    AdaptiveKlTrainer,
    "Holds the model to the aligned one, the more the more harmful a batch is (arXiv 2602.17546 v2).",
    # The toy's answers have scores of 1.73 to 1.87.
    variants={
        "batch": {"low_risk": 1.7, "high_risk": 1.9},
        "row": {"scope": "row", "low_risk": 1.7, "high_risk": 1.9},
    },
    memory="a copy of the trained weights; two logits an answer token and entry of the vocabulary",
    holds=lambda args: Held(copies=1, logits=4),
    source=Source("2602.17546 v2", "gjyotin305/adaptive-ai-safety-align", "MIT", ""),
)
