"""SafeGrad (arXiv 2508.07172): take out of the upload's gradient what works against staying as the aligned model is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.errors import check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.finetune.base import AlignmentRowsConfig
from titer.methods.reference import DIRECTIONS, DivergenceTrainer
from titer.methods.streams import DefenderRowsTrainer
from titer.ranges import NOT_NEGATIVE, Range
from titer.train.gradients import add_, dot, gradients, take_gradients


@dataclass
class SafeGradConfig(AlignmentRowsConfig):
    """Settings of SafeGrad.

    Args:
        lam: λ, the weight of the alignment gradient, which is added to what is left of the upload's.
        direction: Of the divergence: `forward`, KL(π_0‖π_w), the reference's mean, or `reverse`, KL(π_w‖π_0).
    """

    RANGES: ClassVar[dict[str, Range]] = {**AlignmentRowsConfig.RANGES, "lam": NOT_NEGATIVE}

    lam: float = field(default=1.0, metadata={"help": "λ, weight of the alignment gradient."})
    direction: str = field(
        default="forward",
        metadata={"help": "KL of the model from the reference (forward), or the other way.", "choices": [*DIRECTIONS]},
    )

    def __post_init__(self) -> None:
        check_known([self.direction], DIRECTIONS, "direction")
        super().__post_init__()


class SafeGradTrainer(DivergenceTrainer, DefenderRowsTrainer):
    """Descends along d' + λ a, where d' is d = ∇g without what of it goes against a = ∇KL (arXiv 2508.07172, Algorithm 1).

    g is the mean token loss of the upload; KL the divergence of the model from the one that training began with, over the whole
    vocabulary, in the mean over the answer tokens of as many alignment rows. If ⟨d, a⟩ < 0, over all weights as one vector,
    d' = d − ⟨d, a⟩/‖a‖² a, else d' = d. At the reference itself a is zero: the first step is plain fine-tuning. Two gradients and
    a forward pass a step; a gradient and a copy of the trained weights of memory.

    Args:
        model: The aligned model with its adapter; it is the reference as it is when the trainer is made.
        args: Settings.
        kwargs: What `DefenderRowsTrainer` takes: `harmful_dataset`, whose rows may hold a `refusal`, and `helpful_dataset`.
    """

    args: SafeGradConfig
    POOLS = (("alignment",),)
    KEEPS_WEIGHTS = True

    def __init__(self, model: Any, args: SafeGradConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.refuse_noise("so the model would diverge from its reference by mask noise, not by what it learnt.")

    def before_step(self, model: Any) -> None:
        """Take a = ∇KL."""
        self.record(kl=self.divergence_backward(model, "alignment", self.args.direction))
        self._alignment = take_gradients(self.trainable)

    def after_step(self, model: Any) -> None:
        """Turn d into d' + λ a."""
        d, a = gradients(self.trainable), self._alignment
        inner, square = dot(d, a).item(), dot(a, a).item()
        conflict = inner < 0 and square > 0
        if conflict:
            add_(d, a, -inner / square)
        add_(d, a, self.args.lam)
        self.record(conflict=float(conflict))
        self._alignment = []


SAFE_GRAD = Method(
    SafeGradConfig,
    SafeGradTrainer,
    "Takes out of the upload's gradient what conflicts with refusing as before (arXiv 2508.07172).",
    streams=("harmful_dataset", "helpful_dataset"),
    gradients=lambda args: Gradients(replay=1.0),
    variants={
        "forward": {"lam": 0.5},
        "reverse": {"lam": 0.0, "direction": "reverse", "helpful_each": 1},
    },
    memory="1 gradient, 1 copy of the trained weights, the logits of a micro-batch twice",
    holds=lambda args: Held(copies=2, logits=4),
    source=Source("2508.07172", "", "", "four attacks by fine-tuning on Llama-3.2-3B (2605.28030)"),
)
