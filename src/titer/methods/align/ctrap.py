"""CTRAP (arXiv 2505.16559, ACL 2026): a model that collapses onto one token where a harmful step leads."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from titer.data.records import is_blank
from titer.errors import TiterError, check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.align.base import PerturbationConfig, PerturbationTrainer
from titer.packing.batches import PackedBatch
from titer.packing.losses import token_logits
from titer.ranges import NOT_NEGATIVE, POSITIVE, Range
from titer.train.gradients import perturbed, take_gradients

RETAIN = ("joint", "sum")


@dataclass
class CtrapConfig(PerturbationConfig):
    """Settings of CTRAP.

    Args:
        lam: λ, the weight of the collapse loss; 0 trains f and k alone.
        alpha: α, the length of the harmful step in weight space.
        collapse_text: The last token of this text is what the model collapses onto.
        retain: How alignment and general rows are put together, in what is retained and in what collapses: `joint` is one mean
            over the tokens of both (released code), `sum` adds a mean of each.
    """

    RANGES: ClassVar[dict[str, Range]] = {"lam": NOT_NEGATIVE, "alpha": POSITIVE}

    lam: float = field(default=0.1, metadata={"help": "λ, weight of the collapse loss."})
    alpha: float = field(default=0.1, metadata={"help": "α, length of the harmful step."})
    collapse_text: str = field(
        default="an error", metadata={"help": "Text whose last token the model is to collapse onto."}
    )
    retain: str = field(
        default="joint",
        metadata={
            "help": "Alignment and general rows: one mean over both (joint), or two means (sum).",
            "choices": [*RETAIN],
        },
    )

    def __post_init__(self) -> None:
        check_known([self.retain], RETAIN, "retain")
        if not isinstance(self.collapse_text, str) or is_blank(self.collapse_text):
            raise TiterError(f"`collapse_text` holds no text: {self.collapse_text!r}.")
        super().__post_init__()


class CtrapTrainer(PerturbationTrainer):
    """Minimises f(w) + k(w) + λ c(w − α ∇h(w)/‖∇h(w)‖) over the weights w (arXiv 2505.16559).

    f is the mean token loss of the alignment data, k that of general data, h that of the harmful data; c is the loss of one
    fixed token in the place of every answer token of the alignment and general rows. The Jacobian of the step is taken as the
    identity, as in the released code. Five gradient evaluations a step: h, and c and f + k with two each, which are the released
    code's three, since it lays alignment and general rows side by side. A copy of the trainable weights.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        train_dataset: Refusals of harmful prompts and helpful answers.
        harmful_dataset: Harmful prompts with harmful answers.
        helpful_dataset: Harmless prompts with helpful answers.
        kwargs: What `trl.SFTTrainer` takes.
    """

    POOLS = (("harmful",), ("general",))

    args: CtrapConfig

    def __init__(
        self, model: Any, args: CtrapConfig, *, harmful_dataset: Any = None, helpful_dataset: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(
            model=model, args=args, harmful_dataset=harmful_dataset, helpful_dataset=helpful_dataset, **kwargs
        )
        ids = self.template.tokenizer(args.collapse_text, add_special_tokens=False)["input_ids"]
        self.collapse_token = int(ids[-1])

    def before_step(self, model: Any) -> None:
        """Leave λ ∇c(w − α ∇̂h(w)) + ∇k(w) in `.grad`, to which the training loss adds ∇f(w)."""
        alignment, general = self.micro_batches, self.stream_batches("general")
        tokens = [self.counted(batches) for batches in (alignment, general)]
        # What one token of alignment and of general rows counts; two means, or one over the tokens of both.
        self.each = [1 / count for count in tokens] if self.args.retain == "sum" else [1 / (tokens[0] + tokens[1])] * 2
        self.part = tokens[0] * self.each[0]
        if self.args.lam:
            self._spring_trap(model, alignment, general)
        self.record(general_loss=self.stream_backward(model, "general", tokens[1] * self.each[1]))

    def _spring_trap(self, model: Any, alignment: list[PackedBatch], general: list[PackedBatch]) -> None:
        """Add λ ∇c, taken where a harmful step leads."""
        harmful_loss = self.stream_backward(model, "harmful")  # .grad = ∇h(w)
        self.check_perturbation(model, self.args.alpha, harmful_loss)
        with perturbed(self.trainable, -self.args.alpha, self.compute_dtype) as perturbation:
            take_gradients(self.trainable)  # ∇h has done its part
            both = [(batch, self.each[0]) for batch in alignment] + [(batch, self.each[1]) for batch in general]
            shares = [partial(self.collapse_share, model, batch, each) for batch, each in both]
            collapse_loss = self.backward_of("collapse loss", shares, self.args.lam)
        self.record(
            harmful_loss=harmful_loss,
            collapse_loss=collapse_loss,
            perturbation_ratio=perturbation.ratio,
            perturbation_cosine=perturbation.cosine,
        )

    def collapse_share(self, model: Any, batch: PackedBatch, each: float) -> Tensor:
        """Return the loss of the fixed token in the place of every answer token of a micro-batch, times `each`."""
        logits = token_logits(model, batch)
        precise = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        fixed = torch.full_like(batch["targets"], self.collapse_token)
        return F.cross_entropy(precise, fixed, reduction="sum") * each

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to f, as it counts beside k."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (self.part * found[0], found[1]) if return_outputs else self.part * found


def _gradients(args: CtrapConfig) -> Gradients:
    trap = bool(args.lam)
    return Gradients(answers=trap, training=trap, general=1 + trap)


CTRAP = Method(
    CtrapConfig,
    CtrapTrainer,
    "Makes the model collapse onto one token where a simulated harmful step leads (arXiv 2505.16559).",
    streams=("harmful_dataset", "helpful_dataset"),
    gradients=_gradients,
    variants={
        "": {"lam": 0.5, "alpha": 0.3},
        "sum": {"lam": 0.5, "alpha": 0.3, "retain": "sum"},
    },
    memory="a copy of the weights",
    holds=lambda args: Held(copies=bool(args.lam), onto=1 + bool(args.lam), logits=3 * bool(args.lam)),
    source=Source(
        "2505.16559, ACL 2026",
        "clearloveclearlove/CTRAP",
        "none",
        "stepping aside, then fine-tuning (2605.14605)",
    ),
)
