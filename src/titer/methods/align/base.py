"""What alignment-stage defences share: a harmful stream, and a simulated step of an attacker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import TiterError
from titer.methods.streams import DefenderRowsTrainer
from titer.ranges import COUNT, SHARE, Range
from titer.train.gradients import (
    add_,
    dot,
    global_norm,
    gradients,
    perturbed,
    scale_,
    take_gradients,
)
from titer.train.trainer import PackedSFTConfig

logger = logging.getLogger(__name__)


class HarmfulStreamTrainer(DefenderRowsTrainer):
    """Supervised fine-tuning with a stream of harmful samples, whose gradients are compared with each other.

    Args:
        args: Settings.
        kwargs: What `DefenderRowsTrainer` takes.
    """

    POOLS = (("harmful",),)

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)
        self.refuse_noise("so the two harmful gradients would differ by mask noise, not by the perturbation.")


@dataclass
class SimulatedAttackConfig(PackedSFTConfig):
    """Settings of defences that simulate an attack.

    Args:
        refresh_every: Optimizer steps between simulated attacks, whose gradients are used for all steps until the next. 1
            is the method as published; more is an approximation.
        min_perturbation: Least cosine and length of the simulated step as the forward pass sees it, relative to the
            step that was meant; checked at the first simulated attack. 0 accepts anything.
    """

    RANGES: ClassVar[dict[str, Range]] = {"refresh_every": COUNT, "min_perturbation": SHARE}

    refresh_every: int = field(
        default=1, metadata={"help": "Steps between simulated attacks; above 1 is an approximation."}
    )
    min_perturbation: float = field(
        default=0.9, metadata={"help": "Least part of the simulated step that must survive rounding; 0 for any."}
    )


class SimulatedAttackTrainer(HarmfulStreamTrainer):
    """A defence that simulates an attacker's step on the harmful stream and attenuates what it gains.

    A subclass says which gradients a simulated attack gives (`simulate`) and how they enter the update (`combine`).

    Args:
        args: Settings.
        kwargs: What `HarmfulStreamTrainer` takes.
    """

    args: SimulatedAttackConfig

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        self._perturbation_checked = False
        super().__init__(args=args, **kwargs)

    @property
    def simulated(self) -> dict[str, list[Tensor]]:
        """The gradients of the last simulated attack by name, carried for as long as they are used again."""
        return self.carried

    @property
    def draw_number(self) -> int:
        """How often was drawn from the pools before this step: once for each simulated attack."""
        return super().draw_number // self.args.refresh_every

    def simulate(self, model: Any) -> None:
        """Fill `self.simulated`, and leave `.grad` empty for the training loss."""
        raise NotImplementedError

    def combine(self) -> None:
        """Change `.grad`, the gradient of the training loss, by what is in `self.simulated`."""
        raise NotImplementedError

    def before_step(self, model: Any) -> None:
        """Simulate an attack, unless the gradients of the last one are to be used again."""
        if self.simulated and self.state.global_step % self.args.refresh_every:
            return
        last = self.simulated.get("sharpness")
        self.simulate(model)
        if last is not None:
            # How good the approximation was for the step before this one.
            norms = global_norm(last) * global_norm(self.simulated["sharpness"])
            self.record(refresh_cosine=(dot(last, self.simulated["sharpness"]) / norms).item())

    def after_step(self, model: Any) -> None:
        """Combine the gradients, and let go of those that are not used again."""
        self.combine()
        if self.args.refresh_every == 1:
            self.simulated.clear()

    @contextmanager
    def simulated_attack(self, model: Any, radius: float) -> Iterator[None]:
        """Set `self.simulated["sharpness"]` to ∇h(w) − ∇h(w'), with w' = w − radius · ∇h(w) / ‖∇h(w)‖.

        Inside the block the weights are w' and `.grad` is empty; on exit the weights are w again, bit for bit. The
        same harmful batch gives both gradients. The Jacobian of the perturbation is taken as the identity, as both
        Booster (arXiv 2409.01586) and Antibody (arXiv 2603.00498) do.
        """
        self.simulated.clear()
        harmful_loss = self.stream_backward(model, "harmful")  # .grad = ∇h(w)
        if self.args.min_perturbation and not self._perturbation_checked:
            self._perturbation_checked = self._check_perturbation(model, radius, harmful_loss)
        weights = self.trainable
        with perturbed(weights, -radius, self.compute_dtype) as perturbation:
            scale_(gradients(weights), -1.0)  # .grad = −∇h(w)
            attacked_loss = self.stream_backward(model, "harmful")  # .grad = ∇h(w') − ∇h(w)
            sharpness = take_gradients(weights)
            scale_(sharpness, -1.0)
            self.simulated["sharpness"] = sharpness
            yield
        self.record(
            harmful_loss=harmful_loss,
            sharpness=harmful_loss - attacked_loss,
            perturbation_ratio=perturbation.ratio,
            perturbation_cosine=perturbation.cosine,
        )

    def _check_perturbation(self, model: Any, radius: float, harmful_loss: float) -> bool:
        """Raise when the step that the forward pass sees is not the one that is meant; `.grad` holds ∇h(w).

        Two things can come between. Weights are rounded, when they are stored or when they are multiplied: that shows in
        the weights. Or the forward pass reads other tensors than those that are moved, all of them or some: that shows
        in the loss alone. Moved along its gradient to both sides, the loss must change at the rate ‖∇h(w)‖, but for
        terms of third order; what is missing of it is the part of ‖∇h(w)‖² whose weights were not moved.

        Args:
            model: The model that is trained.
            radius: Length of the simulated step.
            harmful_loss: h(w).

        Returns:
            Whether there was anything to check: not for a gradient of zero.
        """
        least = self.args.min_perturbation
        with perturbed(self.trainable, -radius, self.compute_dtype) as perturbation:
            pass
        if not perturbation.norm:
            return False
        if perturbation.ratio < least or perturbation.cosine < least:
            dtype = self.compute_dtype or next(iter(self.trainable.values())).dtype
            raise TiterError(
                f"The simulated attack is lost in rounding: as the model computes, in {dtype}, its step of {radius} has "
                f"{perturbation.ratio:.2f} times its length and a cosine of {perturbation.cosine:.2f} with the direction "
                f"that is meant, and {least} is asked for.",
                "Keep trained weights in float32 (a LoRA adapter costs little) and set bf16=False, or take a longer "
                "step; min_perturbation=0 accepts this one.",
            )
        # A hundredth of the loss, or of a nat, is far above the rounding of float32 and far below curvature. Rounding to
        # bfloat16 swallows 0.4 to 0.6 of so small a change, and still 0.2 of four hundredths (tiny model, all weights).
        coarse = torch.bfloat16 in {self.compute_dtype, *(weight.dtype for weight in self.model.parameters())}
        part, least = (0.04, least / 2) if coarse else (0.01, least)
        short = min(radius, part * max(harmful_loss, 1.0) / perturbation.norm)
        expected = 2 * short * perturbation.norm
        if coarse and expected < torch.finfo(torch.bfloat16).eps * harmful_loss:
            logger.warning(
                "Whether the simulated attack reaches the model could not be checked: a step of %.2g changes the harmful "
                "loss of %.3g by %.2g, which bfloat16 does not tell from rounding; bf16=False would.",
                short,
                harmful_loss,
                expected,
            )
            return True
        losses = []
        for step in (short, -short):
            with perturbed(self.trainable, step):
                losses.append(self.stream_loss(model, "harmful"))
        change = losses[0] - losses[1]
        if change < least * expected:
            raise TiterError(
                f"The simulated attack does not reach the model: moving the weights by {short:.2g} along the gradient "
                f"and against it should change the harmful loss by {expected:.2g} and changes it by {change:.2g}. The "
                "forward pass reads copies of the weights, or the step is too short for its precision.",
                "Train without an autocast of your own around it (it keeps rounded copies of weights) and without "
                "compiled or quantised copies; min_perturbation=0 goes on regardless.",
            )
        return True

    def add_simulated(self, name: str, factor: float = 1.0) -> None:
        """Add `factor` times a gradient of the simulated attack to `.grad`, where there is one of that name."""
        if name in self.simulated:
            add_(gradients(self.trainable), self.simulated[name], factor)
