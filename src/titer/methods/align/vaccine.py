"""Vaccine (arXiv 2402.01109, NeurIPS 2024): align under the worst small drift of the attention outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from titer.errors import TiterError
from titer.methods import Gradients, Held, Method, Source
from titer.methods.inside_attention import add_to_output, attention_modules, watched
from titer.packing.batches import PackedBatch
from titer.packing.layouts import say_once
from titer.packing.losses import token_nll
from titer.ranges import NOT_NEGATIVE, Range
from titer.train.gradients import NORM_EPSILON, reshard
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

Slopes = Mapping[str, Tensor]
"""By attention module, the gradient of a loss by what it put out for a micro-batch."""


@dataclass
class VaccineConfig(PackedSFTConfig):
    """Settings of Vaccine.

    Args:
        rho: ρ, the length of the perturbation, over all attention outputs of an optimizer batch.
    """

    RANGES: ClassVar[dict[str, Range]] = {"rho": NOT_NEGATIVE}

    rho: float = field(default=2.0, metadata={"help": "ρ, length of the perturbation of all attention outputs."})
    share_prefix: bool = field(
        default=False, metadata={"help": "Cannot be on: a perturbation belongs to the tokens of one sample."}
    )

    def __post_init__(self) -> None:
        if self.share_prefix:
            raise TiterError(
                "share_prefix: tokens that all prompts begin with would be perturbed once for all samples.",
                "Leave share_prefix off.",
            )
        super().__post_init__()


class VaccineTrainer(PackedSFTTrainer):
    """Minimises max_{‖ε‖ ≤ ρ} f(w; e + ε), e the outputs of all attention modules (arXiv 2402.01109, Eq. 2).

    ε is the maximiser to first order, ε_l = ρ ∇_{e_l} f / ‖(∇_{e_1} f, …, ∇_{e_L} f)‖, with one norm over all layers, tokens,
    micro-batches and ranks; no gradient flows through it, and the step is along ∇_w f(w; e + ε) alone. Two gradient
    evaluations a step, of which the first asks for no gradient of weights, and a tensor as large as each attention output of
    the optimizer batch.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        kwargs: What `trl.SFTTrainer` takes.

    Attributes:
        attention: The attention modules by name, in the order in which they run.
    """

    args: VaccineConfig

    def __init__(self, model: Any, args: VaccineConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.refuse_noise("so the perturbation would be that of another pass.")
        self.attention = attention_modules(self.bare_model)

    @property
    def perturbed_attention(self) -> Mapping[str, Module]:
        """The attention modules whose outputs are perturbed in this step."""
        return self.attention

    def before_step(self, model: Any) -> None:
        """Compute ε from a first pass over the optimizer batch, and let the second add it."""
        slopes = list(self.attention_slopes(self.micro_batches, self.perturbed_attention))
        squares = sum((square(slope) for batch in slopes for slope in batch.values()), self._zero())
        norm = self.total(squares).sqrt()  # over layers, micro-batches and ranks
        scale = self.args.rho / (norm.item() + NORM_EPSILON)
        self.record(attention_gradient_norm=norm.item())
        self._moved: dict[tuple[str, int], Tensor] = {}
        for name, module in self.perturbed_attention.items():
            epsilon = [batch[name] * scale for batch in slopes]
            self.during_step.callback(add_to_output(module, self._adding(name, epsilon)))

    def attention_slopes(self, batches: Sequence[PackedBatch], modules: Mapping[str, Module]) -> Iterator[Slopes]:
        """Yield ∇_{e_l} of the mean token loss of all `batches`, of all ranks, for the tokens of each batch."""
        tokens = self.total(torch.tensor(sum(batch["targets"].numel() for batch in batches), device=self.args.device))
        for batch in batches:
            with watched(modules) as outputs, self.compute_loss_context_manager():
                # Not the wrapper of DDP, which would wait for gradients of weights.
                nll, _ = token_nll(self.model, batch)
            slopes = torch.autograd.grad(nll.sum() / tokens, list(outputs.values()))
            reshard(self.model)
            yield dict(zip(outputs, slopes, strict=True))

    def _adding(self, name: str, epsilon: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        def add(states: Tensor) -> Tensor:
            move = epsilon[self.micro_batch]
            moved = states + move
            if (name, self.micro_batch) not in self._moved:  # computed anew by gradient checkpointing, it counts once
                real = (moved.detach() - states.detach()).to(_precise(move))
                wanted = move.to(real.dtype)
                self._moved[name, self.micro_batch] = torch.stack([(real * wanted).sum(), square(real), square(wanted)])
            return moved

        return add

    def after_step(self, model: Any) -> None:
        """Say how much of ε was left once it was rounded to the precision of the attention outputs."""
        product, real, wanted = self.total(torch.stack(list(self._moved.values())).sum(0)).tolist()
        if wanted == 0:
            return
        cosine = product / (real * wanted) ** 0.5 if real else 0.0
        self.record(perturbation_ratio=(real / wanted) ** 0.5, perturbation_cosine=cosine)
        if cosine < 0.9:
            say_once(
                "%s: rounding leaves of the perturbation a cosine of %.2f with the one that is meant; bf16=False would not.",
                type(self).__name__,
                cosine,
            )

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.args.device)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def square(tensor: Tensor) -> Tensor:
    """Return the squared length of a tensor, in at least float32."""
    length = torch.linalg.vector_norm(tensor.detach(), dtype=_precise(tensor))
    return length * length


VACCINE = Method(
    VaccineConfig,
    VaccineTrainer,
    "Aligns under the worst perturbation of attention outputs (arXiv 2402.01109).",
    gradients=lambda args: Gradients(training=1),
    variants={"": {"rho": 2.0}},
    memory="1 perturbation of each attention output",
    holds=lambda args: Held(states=1),
    source=Source(
        "2402.01109, NeurIPS 2024",
        "git-disl/Vaccine",
        "Apache-2.0",
        "sweeps of rates and steps (2602.06911); stepping aside (2605.14605)",
    ),
)
