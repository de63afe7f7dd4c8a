"""What alignment-stage defences share: a harmful stream, perturbed weights, and a simulated step of an attacker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import TiterError
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.batches import PackedBatch
from titer.ranges import COUNT, SHARE, Range
from titer.train.gradients import (
    Perturbation,
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

    POOLS: ClassVar[tuple[tuple[str, ...], ...]] = (("harmful",),)

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)
        self.refuse_noise("so the two harmful gradients would differ by mask noise, not by the perturbation.")

    def backward_of(self, what: str, shares: Iterable[Callable[[], Tensor]], factor: float = 1.0) -> float:
        """Add `factor` times the gradient of a loss to `.grad`; return that loss over all ranks.

        Args:
            what: What the loss is called, should it be no number.
            shares: Each runs a micro-batch of this rank and returns what it adds to the loss of the optimizer batch.
            factor: What the gradient is multiplied by.
        """
        loss = torch.zeros((), device=self.args.device)
        for share in shares:
            with self.compute_loss_context_manager():
                value = share()
            self.accelerator.backward(factor * self.accelerator.num_processes * value)  # DDP takes the mean over ranks
            loss = loss + value.detach()
        found = self.total(loss).item()
        self._refuse_divergence(what, found)
        return found

    def counted(self, batches: Sequence[PackedBatch]) -> int:
        """Return how many supervised tokens batches of this rank and of the others have together."""
        own = sum(batch["targets"].numel() for batch in batches)
        return int(self.total(torch.tensor(own, device=self.args.device)).item())


@dataclass
class PerturbationConfig(PackedSFTConfig):
    """Settings of defences that take gradients at perturbed weights.

    Args:
        min_perturbation: Least cosine and length of a perturbation as the forward pass sees it, relative to the one that was
            meant; checked at the first one. 0 accepts anything.
    """

    RANGES: ClassVar[dict[str, Range]] = {"min_perturbation": SHARE}

    min_perturbation: float = field(
        default=0.9, metadata={"help": "Least part of a perturbation that must survive rounding; 0 for any."}
    )


class PerturbationTrainer(HarmfulStreamTrainer):
    """A defence that takes gradients at perturbed weights, and raises when the perturbation does not reach the model.

    Args:
        args: Settings.
        kwargs: What `HarmfulStreamTrainer` takes.
    """

    args: PerturbationConfig

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        self._perturbation_checked = False
        super().__init__(args=args, **kwargs)

    @property
    def checks_perturbations(self) -> bool:
        """Whether perturbations are still to be checked: up to the first that there was anything to check of."""
        return self.args.min_perturbation > 0 and not self._perturbation_checked

    def check_perturbation(
        self, model: Any, radius: float, loss: float, evaluate: Callable[[], float] | None = None
    ) -> None:
        """Raise when the first step against the gradient of a loss is not what the forward pass sees; `.grad` holds it.

        Two things can come between. Weights are rounded, when they are stored or when they are multiplied: that shows in
        the weights. Or the forward pass reads other tensors than those that are moved, all of them or some: that shows
        in the loss alone. Moved along its gradient to both sides, the loss must change at the rate ‖∇h(w)‖, but for
        terms of third order; what is missing of it is the part of ‖∇h(w)‖² whose weights were not moved.

        Args:
            model: The model that is trained.
            radius: Length of the step.
            loss: h(w).
            evaluate: Returns h at the weights that the model has; by default the mean loss of the harmful stream.
        """
        if not self.checks_perturbations:
            return
        with perturbed(self.trainable, -radius, self.compute_dtype) as perturbation:
            pass
        if not perturbation.norm:
            return  # a gradient of zero: there was nothing to check
        self.refuse_lost(perturbation, radius)
        self._check_reach(radius, loss, perturbation.norm, evaluate or (lambda: self.stream_loss(model, "harmful")))
        self._perturbation_checked = True

    def refuse_lost(self, perturbation: Perturbation, radius: float) -> None:
        """Raise when too little of a perturbation survived rounding."""
        least = self.args.min_perturbation
        if perturbation.ratio < least or perturbation.cosine < least:
            dtype = self.compute_dtype or next(iter(self.trainable.values())).dtype
            raise TiterError(
                f"The simulated attack is lost in rounding: as the model computes, in {dtype}, its step of {radius} has "
                f"{perturbation.ratio:.2f} times its length and a cosine of {perturbation.cosine:.2f} with the direction "
                f"that is meant, and {least} is asked for.",
                "Keep trained weights in float32 (a LoRA adapter costs little) and set bf16=False, or take a longer "
                "step; min_perturbation=0 accepts this one.",
            )

    def _check_reach(self, radius: float, loss: float, norm: float, evaluate: Callable[[], float]) -> None:
        """Raise when moving the weights along the gradient and against it does not change the loss as it should."""
        least = self.args.min_perturbation
        # A hundredth of the loss, or of a nat, is far above the rounding of float32 and far below curvature. Rounding to
        # bfloat16 swallows 0.4 to 0.6 of so small a change, and still 0.2 of four hundredths (tiny model, all weights).
        coarse = torch.bfloat16 in {self.compute_dtype, *(weight.dtype for weight in self.model.parameters())}
        part, least = (0.04, least / 2) if coarse else (0.01, least)
        short = min(radius, part * max(loss, 1.0) / norm)
        expected = 2 * short * norm
        if coarse and expected < torch.finfo(torch.bfloat16).eps * loss:
            logger.warning(
                "Whether the simulated attack reaches the model could not be checked: a step of %.2g changes the harmful "
                "loss of %.3g by %.2g, which bfloat16 does not tell from rounding; bf16=False would.",
                short,
                loss,
                expected,
            )
            return
        losses = []
        for step in (short, -short):
            with perturbed(self.trainable, step):
                losses.append(evaluate())
        change = losses[0] - losses[1]
        if change < least * expected:
            raise TiterError(
                f"The simulated attack does not reach the model: moving the weights by {short:.2g} along the gradient "
                f"and against it should change the harmful loss by {expected:.2g} and changes it by {change:.2g}. The "
                "forward pass reads copies of the weights, or the step is too short for its precision.",
                "Train without an autocast of your own around it (it keeps rounded copies of weights) and without "
                "compiled or quantised copies; min_perturbation=0 goes on regardless.",
            )


@dataclass
class SimulatedAttackConfig(PerturbationConfig):
    """Settings of defences that simulate an attack.

    Args:
        refresh_every: Optimizer steps between simulated attacks, whose gradients are used for all steps until the next. 1
            is the method as published; more is an approximation.
    """

    RANGES: ClassVar[dict[str, Range]] = {"refresh_every": COUNT}

    refresh_every: int = field(
        default=1, metadata={"help": "Steps between simulated attacks; above 1 is an approximation."}
    )


class SimulatedAttackTrainer(PerturbationTrainer):
    """A defence that simulates an attacker's step on the harmful stream and attenuates what it gains.

    A subclass says which gradients a simulated attack gives (`simulate`) and how they enter the update (`combine`).

    Args:
        args: Settings.
        kwargs: What `PerturbationTrainer` takes.
    """

    args: SimulatedAttackConfig

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
        self.check_perturbation(model, radius, harmful_loss)
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

    def add_simulated(self, name: str, factor: float = 1.0) -> None:
        """Add `factor` times a gradient of the simulated attack to `.grad`, where there is one of that name."""
        if name in self.simulated:
            add_(gradients(self.trainable), self.simulated[name], factor)
