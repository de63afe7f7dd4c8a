"""Booster (arXiv 2409.01586, ICLR 2025): attenuate how much a simulated harmful step lowers the harmful loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.methods import Gradients, Held, Method, Source
from titer.methods.align.base import SimulatedAttackConfig, SimulatedAttackTrainer
from titer.ranges import NOT_NEGATIVE, POSITIVE, Range


@dataclass
class BoosterConfig(SimulatedAttackConfig):
    """Settings of Booster.

    Args:
        lam: λ, the weight of the regulariser.
        alpha: α, the length of the simulated harmful step in weight space.
    """

    RANGES: ClassVar[dict[str, Range]] = {"lam": NOT_NEGATIVE, "alpha": POSITIVE}

    lam: float = field(default=5.0, metadata={"help": "λ, weight of the regulariser."})
    alpha: float = field(default=0.1, metadata={"help": "α, length of the simulated harmful step."})


class BoosterTrainer(SimulatedAttackTrainer):
    """Minimises f(w) + λ (h(w) − h(w − α ∇h(w)/‖∇h(w)‖)) over the weights w (arXiv 2409.01586, Eq. 1).

    f is the mean token loss of the training data, h that of the harmful data. To first order the update direction is
    g = ∇f(w) + λ (∇h(w) − ∇h(w')). Three gradient evaluations a step, and two extra copies of the trainable weights.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        train_dataset: Refusals of harmful prompts and helpful answers.
        harmful_dataset: Harmful prompts with harmful answers.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: BoosterConfig

    def __init__(self, model: Any, args: BoosterConfig, *, harmful_dataset: Any = None, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, harmful_dataset=harmful_dataset, **kwargs)

    def simulate(self, model: Any) -> None:
        """Simulate the attacker's step."""
        with self.simulated_attack(model, radius=self.args.alpha):
            pass

    def combine(self) -> None:
        """Turn ∇f(w) into g."""
        self.add_simulated("sharpness", self.args.lam)


BOOSTER = Method(
    BoosterConfig,
    BoosterTrainer,
    "Attenuates how much a simulated harmful step lowers the harmful loss (arXiv 2409.01586).",
    streams=("harmful_dataset",),
    gradients=lambda args: Gradients(answers=2 / args.refresh_every),
    variants={"": {"lam": 2.0, "alpha": 0.2}},
    memory="2 gradients",
    holds=lambda args: Held(copies=1, onto=2),
    source=Source(
        "2409.01586, ICLR 2025",
        "git-disl/Booster",
        "Apache-2.0",
        "sweeps of rates and steps (2602.06911); stepping aside (2605.14605)",
    ),
)
