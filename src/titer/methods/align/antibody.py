"""Antibody, stage 1 (arXiv 2603.00498, ICLR 2026): align where the loss of harmful samples is flat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.data.records import Record
from titer.errors import TiterError, check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.align.base import SimulatedAttackConfig, SimulatedAttackTrainer
from titer.packing.streams import Pool
from titer.ranges import MOMENTUM, NOT_NEGATIVE, POSITIVE, Range
from titer.train.gradients import dot, global_norm, gradients, take_gradients
from titer.train.rows import Encoder, as_rows

SCHEDULES = ("cosine_ema", "theorem", "constant")


@dataclass
class AntibodyAlignmentConfig(SimulatedAttackConfig):
    """Settings of Antibody's alignment stage.

    Args:
        rho: ρ, the radius of the perturbation.
        xi: ξ, how much of the sharpness gradient the update must hold.
        lambda_refusal: λ_refusal, the weight of the refusal loss at the perturbed weights.
        lambda_schedule: How λ_t follows the gradients: `cosine_ema` (released code), `theorem` (Theorem 4.1) or
            `constant`.
        lambda_momentum: Momentum of the moving average of `cosine_ema`.
        lam: λ of the `constant` schedule, which with `lambda_refusal` 0 is Booster.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "rho": POSITIVE,
        "xi": NOT_NEGATIVE,
        "lambda_refusal": NOT_NEGATIVE,
        "lambda_momentum": MOMENTUM,
        "lam": NOT_NEGATIVE,
    }

    per_device_train_batch_size: int = field(default=16, metadata={"help": "Samples of a micro-batch."})
    rho: float = field(default=0.1, metadata={"help": "ρ, radius of the perturbation."})
    xi: float = field(default=5.0, metadata={"help": "ξ of λ_t."})
    lambda_refusal: float = field(default=0.05, metadata={"help": "Weight of the refusal loss at θ_pert."})
    lambda_schedule: str = field(
        default="cosine_ema", metadata={"help": "How λ_t follows the gradients.", "choices": list(SCHEDULES)}
    )
    lambda_momentum: float = field(default=0.99, metadata={"help": "Momentum of cosine_ema."})
    lam: float = field(default=5.0, metadata={"help": "λ of the constant schedule."})

    def __post_init__(self) -> None:
        check_known([self.lambda_schedule], SCHEDULES, "lambda_schedule")
        super().__post_init__()


def theorem_lambda(product: float, square: float, xi: float) -> float:
    """Return λ_t of Theorem 4.1: max{0, (a_t − ⟨∇L_sharp, ∇L_align⟩) / ‖∇L_sharp‖²} with a_t = ξ ‖∇L_sharp‖².

    Args:
        product: ⟨∇L_sharp, ∇L_align⟩.
        square: ‖∇L_sharp‖²; where it is zero the constraint holds for any update and λ_t is 0.
        xi: ξ.
    """
    return max(0.0, xi - product / square) if square > 0 else 0.0


def cosine_lambda(product: float, square: float, align_square: float, xi: float) -> float:
    """Return max{0, ξ − cos(∇L_align, ∇L_sharp)}, the λ of the released code before averaging over steps.

    The released code adds 1e-8 to the product of norms; here a cosine with a gradient of zero is 0.
    """
    norms = (square * align_square) ** 0.5
    return max(0.0, xi - (product / norms if norms > 0 else 0.0))


class AntibodyAlignmentTrainer(SimulatedAttackTrainer):
    """Minimises L_align(θ) + λ_t L_sharp(θ) + λ_refusal L_refusal(θ_pert) over θ (arXiv 2603.00498, Eq. 11).

    L_sharp(θ) = L_harm(θ) − L_harm(θ_pert) with θ_pert = θ − ρ ∇L_harm/‖∇L_harm‖, and L_refusal is the loss of a refusal
    of the harmful prompts. Four gradient evaluations a step, and at most two extra copies of the trainable weights.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        train_dataset: Refusals of harmful prompts and helpful answers.
        harmful_dataset: Harmful prompts with harmful answers.
        refusal_dataset: The same harmful prompts with refusals; not needed when the harmful rows have a column
            `refusal`, or with `lambda_refusal` 0.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: AntibodyAlignmentConfig

    def __init__(
        self,
        model: Any,
        args: AntibodyAlignmentConfig,
        *,
        harmful_dataset: Any = None,
        refusal_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        self.refusal_rows = None if refusal_dataset is None else as_rows(refusal_dataset, "refusal_dataset")
        super().__init__(model=model, args=args, harmful_dataset=harmful_dataset, **kwargs)

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return the harmful pool with, row by row, refusals of the same prompts as the stream `refusal`."""
        (harmful,) = super().pools(encoder)
        if self.args.lambda_refusal == 0:
            return [harmful]
        return [harmful | {"refusal": encoder.samples(self._refusals(), "refusal_dataset")}]

    def _refusals(self) -> list[dict[str, Any]]:
        """Return a refusal of each harmful row's own prompt."""
        harmful = [Record.from_row(row, f"harmful_dataset[{place}]") for place, row in enumerate(self.harmful_rows)]
        if self.refusal_rows is None:
            for place, record in enumerate(harmful):
                if record.refusal is None:
                    raise TiterError(
                        f"harmful_dataset[{place}] has no `refusal`, and no `refusal_dataset` was given.",
                        "Pass `refusal_dataset` with refusals of the harmful prompts, or set lambda_refusal=0.",
                    )
            completions = [[{"role": "assistant", "content": str(record.refusal)}] for record in harmful]
        else:
            known = {}
            for place, row in enumerate(self.refusal_rows):
                record = Record.from_row(row, f"refusal_dataset[{place}]")
                known[record.prompt_key] = record.to_training_row()["completion"]
            for place, record in enumerate(harmful):
                if record.prompt_key not in known:
                    raise TiterError(
                        f"harmful_dataset[{place}] asks “{record.prompt_text[:80]}”, which refusal_dataset does not.",
                        "A refusal must answer the same prompt: give one for each harmful prompt.",
                    )
            completions = [known[record.prompt_key] for record in harmful]
        return [
            {"prompt": record.to_training_row()["prompt"], "completion": completion}
            for record, completion in zip(harmful, completions, strict=True)
        ]

    def simulate(self, model: Any) -> None:
        """Compute ∇L_sharp(θ) and λ_refusal ∇L_refusal(θ_pert)."""
        with self.simulated_attack(model, radius=self.args.rho):
            if self.args.lambda_refusal:
                loss = self.stream_backward(model, "refusal", factor=self.args.lambda_refusal)
                self.simulated["refusal"] = take_gradients(self.trainable)
                self.record(refusal_loss_perturbed=loss)

    def combine(self) -> None:
        """Turn ∇L_align(θ) into the gradient of Eq. 11."""
        lam = self.next_lambda()
        self.record(lambda_t=lam)
        self.add_simulated("sharpness", lam)
        self.add_simulated("refusal")

    def next_lambda(self) -> float:
        """Return λ_t; `.grad` holds ∇L_align, and ∇L_sharp is in `self.simulated`."""
        if self.args.lambda_schedule == "constant":
            return self.args.lam
        align, sharpness = gradients(self.trainable), self.simulated["sharpness"]
        product = dot(sharpness, align).item()
        square = global_norm(sharpness).item() ** 2
        if self.args.lambda_schedule == "theorem":
            return theorem_lambda(product, square, self.args.xi)
        lam = cosine_lambda(product, square, global_norm(align).item() ** 2, self.args.xi)
        # From the first raw value on, as in the released code.
        average = self.step_state.values.get("lambda_average", lam)
        momentum = self.args.lambda_momentum
        self.step_state.values["lambda_average"] = momentum * average + (1 - momentum) * lam
        return self.step_state.values["lambda_average"]


ANTIBODY = Method(
    AntibodyAlignmentConfig,
    AntibodyAlignmentTrainer,
    "Aligns where the loss of harmful samples is flat, and refuses there too (arXiv 2603.00498, stage 1).",
    streams=("harmful_dataset",),
    gradients=lambda args: Gradients(
        answers=2 / args.refresh_every, refusals=bool(args.lambda_refusal) / args.refresh_every
    ),
    variants={
        "": {"rho": 0.2, "xi": 2.0, "lambda_refusal": 0.5, "lambda_momentum": 0.9},
        "theorem": {"rho": 0.2, "xi": 2.0, "lambda_refusal": 0.5, "lambda_schedule": "theorem"},
    },
    memory="2 gradients",
    holds=lambda args: Held(copies=1 + bool(args.lambda_refusal), onto=2),
    source=Source("2603.00498, ICLR 2026", "minhquoc0712/Antibody", "none"),
)
