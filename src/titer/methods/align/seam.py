"""SEAM (arXiv 2505.12186, ICLR 2026): couple harmful and helpful learning with opposite signs, so that the one undoes the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from titer.errors import TiterError
from titer.methods import Gradients, Held, Method, Source
from titer.methods.align.base import PerturbationConfig, PerturbationTrainer
from titer.methods.align.paired import PairedConfig, PairedTrainer
from titer.packing.batches import PackedBatch
from titer.ranges import NOT_NEGATIVE, POSITIVE, Range
from titer.train.gradients import NORM_EPSILON, add_, dot, global_norm, gradients, perturbed, scale_, take_gradients


@dataclass
class SeamConfig(PairedConfig, PerturbationConfig):
    """Settings of SEAM.

    Args:
        alpha: α, the weight of the alignment loss.
        beta: β, the weight of the self-destruct loss; 0 leaves its four gradients out.
        epsilon: ε, the length of the perturbations that its gradient is estimated with.
    """

    RANGES: ClassVar[dict[str, Range]] = {"alpha": NOT_NEGATIVE, "beta": NOT_NEGATIVE, "epsilon": POSITIVE}

    alpha: float = field(default=1.0, metadata={"help": "α, weight of the alignment loss."})
    beta: float = field(default=0.01, metadata={"help": "β, weight of the self-destruct loss."})
    epsilon: float = field(default=1e-3, metadata={"help": "ε, length of the perturbations."})


class SeamTrainer(PairedTrainer, PerturbationTrainer):
    """Minimises −log(1 + C(w)) + α f(w) + β cos(∇h(w), ∇k(w)) over the weights w (arXiv 2505.12186).

    C is the mean loss of harmful answers over the layers, h their loss at the last, both where they differ from the paired
    refusal; f is the mean token loss of the alignment data and k that of general data. With g_a = ∇h, g_b = ∇k and c their
    cosine, the gradient of the cosine is estimated without second derivatives:

        1/ε · [(∇h(w + ε(ĝ_b − c ĝ_a)) − g_a) / ‖g_a‖ + (∇k(w + ε(ĝ_a − c ĝ_b)) − g_b) / ‖g_b‖]

    Six gradient evaluations a step; three gradients and a copy of the trainable weights are held beside them.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        train_dataset: Refusals of harmful prompts and helpful answers.
        harmful_dataset: Harmful prompts with harmful answers; refusals are their own (`refusal`) or generic ones.
        helpful_dataset: Harmless prompts with helpful answers.
        kwargs: What `trl.SFTTrainer` takes.
    """

    POOLS = (("harmful", "refusal"), ("general",))

    args: SeamConfig

    def __init__(
        self, model: Any, args: SeamConfig, *, harmful_dataset: Any = None, helpful_dataset: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(
            model=model, args=args, harmful_dataset=harmful_dataset, helpful_dataset=helpful_dataset, **kwargs
        )

    def before_step(self, model: Any) -> None:
        """Leave the gradients of −log(1 + C) and of β cos in `.grad`, to which the training loss adds α ∇f(w)."""
        loss = self.backward_of("layer-wise loss", self.layer_shares(model, self.args.final_loss == "twice"))
        scale_(gradients(self.trainable), -1 / (1 + loss))
        self.record(layer_loss=loss)
        if self.args.beta:
            unlearning = take_gradients(self.trainable)
            self._self_destruct(model)
            add_(gradients(self.trainable), unlearning)

    def _self_destruct(self, model: Any) -> None:
        """Leave the gradient of β cos(∇h, ∇k) in `.grad`."""
        beta, epsilon = self.args.beta, self.args.epsilon
        first = self.checks_perturbations
        harmful_loss = self.backward_of("harmful loss", self.answer_shares(model))  # .grad = g_a
        self.check_perturbation(model, epsilon, harmful_loss, lambda: self.loss_of(self.answer_shares(model)))
        a = take_gradients(self.trainable)
        general_loss = self.stream_backward(model, "general")  # .grad = g_b
        b = take_gradients(self.trainable)
        norm_a, norm_b = global_norm(a).item(), global_norm(b).item()
        if not norm_a * norm_b:
            raise TiterError(
                "The harmful or the general gradient is zero, so there is no angle between them.",
                "Give rows that the model does not know by heart, or set beta=0.",
            )
        cosine = dot(a, b).item() / (norm_a * norm_b)

        self._towards(b, 1 / norm_b, a, -cosine / norm_a)
        with perturbed(self.trainable, self._radius(epsilon), self.compute_dtype) as perturbation:
            if first:
                self.refuse_lost(perturbation, epsilon)
            take_gradients(self.trainable)  # the direction
            self.backward_of("harmful loss", self.answer_shares(model), beta / (epsilon * norm_a))
            total = take_gradients(self.trainable)
        self._towards(a, 1 / norm_a, b, -cosine / norm_b)
        add_(total, a, -beta / (epsilon * norm_a))
        add_(total, b, -beta / (epsilon * norm_b))
        del a, b
        with perturbed(self.trainable, self._radius(epsilon), self.compute_dtype):
            take_gradients(self.trainable)
            self.stream_backward(model, "general", beta / (epsilon * norm_b))
        add_(gradients(self.trainable), total)
        self.record(
            harmful_loss=harmful_loss,
            general_loss=general_loss,
            gradient_cosine=cosine,
            perturbation_ratio=perturbation.ratio,
            perturbation_cosine=perturbation.cosine,
        )

    def _towards(self, left: Sequence[Tensor], weight: float, right: Sequence[Tensor], other: float) -> None:
        """Put `weight` · left + `other` · right in `.grad`."""
        direction = [tensor.clone() for tensor in left]
        scale_(direction, weight)
        add_(direction, right, other)
        for parameter, tensor in zip(self.trainable.values(), direction, strict=True):
            parameter.grad = tensor

    def _radius(self, epsilon: float) -> float:
        """Return the length of ε times what is in `.grad`, as `perturbed` divides by its norm."""
        return epsilon * (global_norm(gradients(self.trainable)).item() + NORM_EPSILON)

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to α f."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (self.args.alpha * found[0], found[1]) if return_outputs else self.args.alpha * found


def _gradients(args: SeamConfig) -> Gradients:
    coupled = 2 * bool(args.beta)
    return Gradients(answers=1 + coupled, general=coupled)


SEAM = Method(
    SeamConfig,
    SeamTrainer,
    "Couples harmful and helpful gradients with opposite signs, so that learning harm undoes the model (arXiv 2505.12186).",
    streams=("harmful_dataset", "helpful_dataset"),
    gradients=_gradients,
    variants={
        "": {"alpha": 0.7, "beta": 0.5, "epsilon": 0.05},
        "released": {"alpha": 0.7, "beta": 0.5, "epsilon": 0.05, "final_loss": "twice"},
    },
    memory="3 gradients and a copy of the weights",
    holds=lambda args: Held(copies=4, onto=4),
    source=Source(
        "2505.12186, ICLR 2026",
        "ZJUWYH/seam",
        "MIT",
        "abliteration with a prefill (2605.26526)",
    ),
)
