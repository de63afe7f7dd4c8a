"""Panacea (arXiv 2501.18100, NeurIPS 2025): fine-tune so that one perturbation undoes the harm, and add that perturbation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.errors import TiterError
from titer.methods import Gradients, Held, Method, Source
from titer.methods.align.base import HarmfulStreamTrainer
from titer.methods.finetune.base import FinetuneConfig
from titer.ranges import NOT_NEGATIVE, POSITIVE, Range
from titer.train.gradients import NORM_EPSILON, add_, gradients, perturbed, scale_, take_gradients


@dataclass
class PanaceaConfig(FinetuneConfig):
    """Settings of Panacea.

    Args:
        rho: ρ, the length of the perturbation in weight space.
        lam: λ, how much is given for a larger effect of the perturbation.
        clamp: Above this harmful loss, in nats, the perturbed weights have no gradient; 0 for no such limit.
    """

    RANGES: ClassVar[dict[str, Range]] = {"rho": POSITIVE, "lam": NOT_NEGATIVE, "clamp": NOT_NEGATIVE}

    rho: float = field(default=1.0, metadata={"help": "ρ, length of the perturbation."})
    lam: float = field(default=0.001, metadata={"help": "λ, weight of the effect of the perturbation."})
    clamp: float = field(default=5.0, metadata={"help": "Harmful loss above which nothing more is asked; 0 for none."})


class PanaceaTrainer(HarmfulStreamTrainer):
    """Maximises λ (h(w + ε) − h(w)) − g(w) over w, with ε = ρ ∇h(w)/‖∇h(w)‖, and releases w + ε (arXiv 2501.18100).

    g is the mean token loss of the upload, h that of the defender's harmful rows, of which the same batch gives both gradients. To first
    order the gradient of a step is ∇g(w) − λ (∇h(w + ε) − ∇h(w)), where ∇h(w + ε) is left out once h(w + ε) is above `clamp`. The ε
    of the last step is added when training ends; checkpoints hold w, and ε beside it. Three gradients a step; two gradients and ε of memory.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        harmful_dataset: Harmful prompts with harmful answers, held by the defender.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: PanaceaConfig

    def __init__(self, model: Any, args: PanaceaConfig, **kwargs: Any) -> None:
        if args.load_best_model_at_end:
            raise TiterError(
                "Panacea adds the perturbation of the last step, and `load_best_model_at_end` would put the weights of an "
                "earlier one under it.",
                "Leave load_best_model_at_end off.",
            )
        super().__init__(model=model, args=args, **kwargs)

    def before_step(self, model: Any) -> None:
        """Find ε, and leave −λ (∇h(w + ε) − ∇h(w))."""
        weights = self.trainable
        harmful_loss = self.stream_backward(model, "harmful")  # .grad = ∇h(w)
        with perturbed(weights, self.args.rho, self.compute_dtype) as perturbation:
            slope = take_gradients(weights)
            perturbed_loss = self.stream_backward(model, "harmful")  # .grad = ∇h(w + ε)
        regulariser = gradients(weights)
        within = not self.args.clamp or perturbed_loss <= self.args.clamp
        scale_(regulariser, -self.args.lam * within)
        add_(regulariser, slope, self.args.lam)
        scale_(slope, self.args.rho / (perturbation.norm + NORM_EPSILON))
        self.carried["epsilon"] = slope
        self.record(
            harmful_loss=harmful_loss,
            perturbed_loss=perturbed_loss,
            perturbation_ratio=perturbation.ratio,
            perturbation_cosine=perturbation.cosine,
        )

    def after_training(self, model: Any) -> None:
        """Add the ε of the last step."""
        add_([weight.detach() for weight in self.trainable.values()], self.carried["epsilon"])


PANACEA = Method(
    PanaceaConfig,
    PanaceaTrainer,
    "Fine-tunes for a perturbation that undoes the harm, and adds it at the end (arXiv 2501.18100).",
    streams=("harmful_dataset",),
    gradients=lambda args: Gradients(answers=2.0),
    variants={"": {"lam": 0.5, "rho": 0.3, "clamp": 0.0}, "clamped": {"lam": 0.5, "rho": 0.3, "clamp": 5.0}},
    memory="2 gradients",
    holds=lambda args: Held(copies=3),
    source=Source(
        "2501.18100, NeurIPS 2025",
        "w-yibo/Panacea",
        "none",
        "more poison: its harmful score rises with it (2610.10345)",
    ),
)
