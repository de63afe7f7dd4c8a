"""TAR (arXiv 2408.00761, ICLR 2025), in a small form: train against an adversary who fine-tunes for a few steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import TiterError, check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.align.base import HarmfulStreamTrainer
from titer.packing.batches import PackedBatch
from titer.packing.losses import token_logits, token_nll
from titer.packing.streams import Pool
from titer.ranges import COUNT, INNER_SHARE, NOT_NEGATIVE, POSITIVE, Range
from titer.train.gradients import add_, restored, take_gradients
from titer.train.rows import Encoder
from titer.train.trainer import PackedSFTConfig

LOSSES = ("entropy", "ascent")
OPTIMIZERS = ("adamw", "sgd")


@dataclass
class TarConfig(PackedSFTConfig):
    """Settings of TAR.

    Args:
        lam: λ_TR, the weight of the tamper-resistance loss; 0 is supervised fine-tuning.
        retain: λ_retain, the weight of the alignment loss.
        inner_steps: K, steps that the adversary takes.
        inner_every: The tamper-resistance gradient is taken after every so many of them.
        inner_rate: The adversary's learning rate.
        inner_optimizer: What the adversary takes steps with: `adamw`, or plain `sgd`.
        inner_loss: The tamper-resistance loss: `entropy`, minus the entropy of the model over answer tokens, or `ascent`, minus
            the loss of harmful answers, which has no lower bound.
        schedule: γ; the gradient after step i counts exp(γ (i − K)).
        held_out: Share of the harmful rows that the adversary never sees, and on which the tamper-resistance loss is taken.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "lam": NOT_NEGATIVE,
        "retain": NOT_NEGATIVE,
        "inner_steps": COUNT,
        "inner_every": COUNT,
        "inner_rate": POSITIVE,
        "schedule": NOT_NEGATIVE,
        "held_out": INNER_SHARE,
    }

    lam: float = field(default=4.0, metadata={"help": "λ_TR, weight of the tamper-resistance loss."})
    retain: float = field(default=1.0, metadata={"help": "λ_retain, weight of the alignment loss."})
    inner_steps: int = field(default=4, metadata={"help": "K, steps of the adversary."})
    inner_every: int = field(default=2, metadata={"help": "Adversary's steps between tamper-resistance gradients."})
    inner_rate: float = field(default=5e-4, metadata={"help": "The adversary's learning rate."})
    inner_optimizer: str = field(
        default="adamw", metadata={"help": "The adversary's optimizer: adamw or sgd.", "choices": [*OPTIMIZERS]}
    )
    inner_loss: str = field(
        default="entropy", metadata={"help": "The tamper-resistance loss: entropy or ascent.", "choices": [*LOSSES]}
    )
    schedule: float = field(
        default=0.0625, metadata={"help": "γ of exp(γ (i − K)), what the gradient of step i counts."}
    )
    held_out: float = field(default=0.25, metadata={"help": "Share of the harmful rows that the adversary never sees."})

    def __post_init__(self) -> None:
        check_known([self.inner_optimizer], OPTIMIZERS, "inner_optimizer")
        check_known([self.inner_loss], LOSSES, "inner_loss")
        super().__post_init__()
        if self.lam and self.inner_every > self.inner_steps:
            raise TiterError(
                f"`inner_every` is {self.inner_every} and the adversary takes {self.inner_steps} steps, so no "
                "tamper-resistance gradient would be taken: plain SFT.",
                "Set inner_every to inner_steps or less, or lam=0.",
            )


class TarTrainer(HarmfulStreamTrainer):
    """Minimises λ_retain f(w) + λ_TR Σ_i exp(γ (i − K)) T(w_i) over w, w_i being where an adversary is after i steps from w.

    f is the mean token loss of the alignment data, T the tamper-resistance loss on harmful rows that the adversary does not see.
    To first order: the gradient of T at w_i is taken for that at w (arXiv 2408.00761, Algorithm 1). The adversary trains on
    harmful rows, each step on another batch, and its optimizer begins anew at every step of this one. K + K/n + 1 gradient
    evaluations a step, n being `inner_every`; a gradient, a copy of the trainable weights and the adversary's moments are held
    beside them.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        train_dataset: Refusals of harmful prompts and helpful answers.
        harmful_dataset: Harmful prompts with harmful answers, two at least.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: TarConfig

    def __init__(self, model: Any, args: TarConfig, *, harmful_dataset: Any = None, **kwargs: Any) -> None:
        self._inner: int | None = None  # the adversary's step
        super().__init__(model=model, args=args, harmful_dataset=harmful_dataset, **kwargs)

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return the adversary's rows, and those that are held out, spread evenly over all."""
        (pool,) = super().pools(encoder)
        samples = pool["harmful"]
        if len(samples) < 2:
            raise TiterError(
                "harmful_dataset has one row, and some are held out from the adversary.", "Give two rows at least."
            )
        count = min(max(1, round(self.args.held_out * len(samples))), len(samples) - 1)
        apart = {int((number + 0.5) * len(samples) / count) for number in range(count)}
        held_out = [samples[place] for place in sorted(apart)]
        return [
            {"harmful": [sample for place, sample in enumerate(samples) if place not in apart]},
            {"held_out": held_out},
        ]

    @property
    def draw_number(self) -> int:
        """How often was drawn from a pool before: from the adversary's at each of its steps."""
        steps = super().draw_number
        return steps if self._inner is None else steps * self.args.inner_steps + self._inner

    @contextmanager
    def adversary(self, step: int) -> Iterator[None]:
        """Inside the block the harmful stream has the rows of one of the adversary's steps."""
        self._inner = step
        self._drawn.pop("harmful", None)
        try:
            yield
        finally:
            self._inner = None

    def before_step(self, model: Any) -> None:
        """Leave λ_TR Σ_i exp(γ (i − K)) ∇T(w_i) in `.grad`, to which the training loss adds λ_retain ∇f(w)."""
        if not self.args.lam:
            return
        total: list[Tensor] = []
        harmful, tampered = [], []
        with restored(self.trainable):
            kind = torch.optim.AdamW if self.args.inner_optimizer == "adamw" else torch.optim.SGD
            optimizer: torch.optim.Optimizer = kind(list(self.trainable.values()), lr=self.args.inner_rate)
            for step in range(self.args.inner_steps):
                with self.adversary(step):
                    harmful.append(self.stream_backward(model, "harmful"))
                weights = self.trainable
                optimizer.step()
                take_gradients(weights)  # the adversary has used it
                if (step + 1) % self.args.inner_every == 0:
                    weight = math.exp(self.args.schedule * (step + 1 - self.args.inner_steps))
                    tampered.append(self._resist(model, self.args.lam * weight))
                    if total:
                        add_(total, take_gradients(self.trainable))
                    else:
                        total = take_gradients(self.trainable)
        for parameter, gradient_of in zip(self.trainable.values(), total, strict=True):
            parameter.grad = gradient_of
        self.record(harmful_loss=harmful[0], attacked_loss=harmful[-1], tamper_loss=sum(tampered) / len(tampered))

    def _resist(self, model: Any, factor: float) -> float:
        """Add `factor` times the gradient of T at the weights as they are to `.grad`; return T."""
        batches = self.stream_batches("held_out")
        count = self.counted(batches)
        shares = [partial(self.resistance_share, model, batch, count) for batch in batches]
        return self.backward_of("tamper-resistance loss", shares, factor)

    def resistance_share(self, model: Any, batch: PackedBatch, count: int) -> Tensor:
        """Return what a micro-batch of held-out rows, `count` answer tokens in all, adds to T."""
        if self.args.inner_loss == "ascent":
            return -token_nll(model, batch)[0].sum() / count
        logits = token_logits(model, batch)
        logs = (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).log_softmax(-1)
        return (logs.exp() * logs).sum() / count  # minus the entropy

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to λ_retain f."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (self.args.retain * found[0], found[1]) if return_outputs else self.args.retain * found


def _gradients(args: TarConfig) -> Gradients:
    return Gradients(answers=bool(args.lam) * (args.inner_steps + args.inner_steps // args.inner_every))


def _held(args: TarConfig) -> Held:
    """The weights, the sum of gradients where there are several, and the adversary's moments."""
    if not args.lam:
        return Held()
    several, moments = args.inner_steps >= 2 * args.inner_every, 2 * (args.inner_optimizer == "adamw")
    return Held(copies=1 + several + moments, onto=1, logits=3 * (args.inner_loss == "entropy"))


TAR = Method(
    TarConfig,
    TarTrainer,
    "Trains against an adversary who fine-tunes for a few steps, in a small form (arXiv 2408.00761).",
    streams=("harmful_dataset",),
    gradients=_gradients,
    variants={
        "": {"lam": 1.0, "inner_steps": 3, "inner_every": 1, "inner_rate": 0.05, "inner_optimizer": "sgd"},
        "ascent": {"lam": 0.5, "inner_rate": 0.02, "inner_loss": "ascent", "schedule": 0.5},
    },
    memory="a gradient, a copy of the weights, two moments",
    holds=_held,
    source=Source(
        "2408.00761, ICLR 2025",
        "rishub-tamirisa/tamper-resistance",
        "MIT",
        "sweeps of rates and steps (2602.06911); abliteration with a prefill (2605.26526)",
    ),
)
