"""The sieve (ours): what the detector lets through teaches, beside rows the model was aligned on, and is held to the aligned model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.data.datasets import with_refusals
from titer.errors import check_known
from titer.methods import Gradients, Held, Method
from titer.methods.finetune.gate import GateConfig, GateTrainer, check_cleared, scored_first
from titer.methods.finetune.replay import ReplayTrainer
from titer.methods.reference import DivergenceTrainer
from titer.methods.streams import alignment_rows, as_texts
from titer.packing.batches import PackedBatch, Sample
from titer.packing.losses import RATIOS
from titer.packing.streams import Pool
from titer.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from titer.train.rows import Encoder

NONE = "none"
HELD = "held"
"""The stream of beginnings of alignment rows, at which the model is held to the aligned one."""
HELD_HELPFUL = 1
"""Helpful answers for each refusal among them: with refusals alone, the model comes to refuse what only looks harmful."""
HELPFUL = 3
"""Helpful answers for each refusal among the rows that are replayed, as in alignment: with one, the model comes to refuse what only looks harmful."""


@dataclass
class SieveConfig(GateConfig):
    """Settings of the sieve.

    Args:
        kl_weight: λ, the weight of the divergence from the aligned model at the beginnings of refusals and of as many helpful
            answers; 0 for none.
        kl_tokens: K, how many first tokens of such an answer are held.
        threshold: Rows with P(harmful) above it get weight 0 and the others weight 1; `None` for weights 1 − P.
        replay: Rows of the alignment data in the batch beside each row of the upload, a quarter of them refusals of harmful
            prompts, the others helpful answers.
        ratio: What the current model says of a row at every step, which multiplies its weight by σ(r / τ): `sum`, `mean` or
            `calibrated`, as of Antibody (arXiv 2603.00498), or `none`.
        tau: τ.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        **GateConfig.RANGES,
        "replay": SHARE,
        "kl_weight": NOT_NEGATIVE,
        "kl_tokens": COUNT,
        "tau": POSITIVE,
    }

    threshold: float | None = field(default=0.1, metadata={"help": "Drop rows above it, or null to weigh them."})
    replay: float = field(default=0.1, metadata={"help": "Alignment rows beside each row of the upload."})
    kl_weight: float = field(default=0.0, metadata={"help": "Weight of the KL from the aligned model."})
    kl_tokens: int = field(default=5, metadata={"help": "First tokens of an answer that the KL is of."})
    ratio: str = field(
        default=NONE,
        metadata={
            "help": "Likelihoods that weights go by too: sum, mean, calibrated or none.",
            "choices": [NONE, *RATIOS],
        },
    )
    tau: float = field(default=0.1, metadata={"help": "Temperature of the ratio."})

    def __post_init__(self) -> None:
        check_known([self.ratio], (NONE, *RATIOS), "ratio")
        super().__post_init__()


class SieveTrainer(ReplayTrainer, DivergenceTrainer, GateTrainer):
    """Fine-tunes on the rows that a frozen gate lets through, and on alignment rows beside them, held to its refusals.

    Minimises what the gate does, Σ_i w_i Σ_t CE_it / Σ_i N_i over the optimizer batch, in which a few rows more, of weight 1,
    are of those that the model was aligned on (SafeInstr, arXiv 2309.07875), drawn anew at each step: they hold refusals and
    helpful answers where fine-tuning on one narrow task would let both drift away. To it comes λ KL(π_0‖π_w), over the vocabulary
    and in the mean over the first K tokens of other alignment rows, as many at each step as the batch has, half of them refusals:
    π_0 is the model as it was when the trainer was made. With a `ratio` the gate's weights are multiplied by σ(r_i / τ), r_i being
    one of Antibody's ratios of answer to refusal under the current model, through which no gradient flows.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `GateTrainer` takes; rows of `harmful_dataset` may hold a `refusal` of their own.
    """

    args: SieveConfig

    def __init__(self, model: Any, args: SieveConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        if args.kl_weight:
            self.refuse_noise("so the model would diverge from its reference by mask noise; or set kl_weight=0.")
            self.keep_weights()

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Return the refusal of each row, where answers are compared with them."""
        super().streams(rows, encoder)
        return {} if self.args.ratio == NONE else self.refusal_column(rows, encoder)

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return the alignment rows that are replayed, and the beginnings of those that are held, if any."""
        pools: list[Pool] = []
        if self.args.replay:
            pools.append({"replay": self._alignment(encoder, HELPFUL)})
        if self.args.kl_weight:
            cut = self.args.kl_tokens
            whole = self._alignment(encoder, HELD_HELPFUL)
            pools.append({HELD: [Sample(sample.prompt, [sample.branches[0][:cut]]) for sample in whole]})
        return pools

    def _alignment(self, encoder: Encoder, helpful_each: int) -> list[Sample]:
        """Return alignment rows, as many refusals as leave each its helpful answers."""
        refusals = with_refusals(as_texts(self.harmful_rows, "harmful_dataset"), seed=0)
        rows = alignment_rows(refusals, as_texts(self.helpful_rows, "helpful_dataset"), helpful_each)
        return encoder.samples([row.to_training_row() for row in rows], "alignment rows")

    def rows_of(self, stream: str) -> int:
        """How many rows of a stream each rank draws: of rows to be held as many as a full batch has."""
        return self.args.optimizer_batch_size // self.args.world_size if stream == HELD else super().rows_of(stream)

    def before_step(self, model: Any) -> None:
        """Leave the gradients of the alignment rows and of the divergence."""
        super().before_step(model)
        if self.args.kl_weight:
            self.record(kl=self.divergence_backward(model, HELD, factor=self.args.kl_weight))

    def row_weights(self, model: Any, inputs: PackedBatch, output: Any, answer: Tensor, tokens: Tensor) -> Tensor:
        """Return what each row of a micro-batch counts, `(B,)`: by the frozen gate, and by the current model's ratio."""
        weights = super().row_weights(model, inputs, output, answer, tokens)
        if self.args.ratio == NONE:
            return weights
        ratio = self.log_ratio(model, inputs, output, answer, tokens, self.args.ratio)
        by_ratio = torch.sigmoid(ratio / self.args.tau)
        self.record(ratio_weight=by_ratio.mean().item())
        return weights * by_ratio


def _gradients(args: SieveConfig) -> Gradients:
    return Gradients(replay=float(args.replay > 0), prompts=float(args.kl_weight > 0))


def _held(args: SieveConfig) -> Held:
    reference = float(args.kl_weight > 0)
    return Held(copies=reference, onto=reference + bool(args.replay or args.kl_weight))


SIEVE = Method(
    SieveConfig,
    SieveTrainer,
    "Lets through what frozen models find harmless, and trains alignment rows beside it (ours).",
    streams=("harmful_dataset", "helpful_dataset"),
    gradients=_gradients,
    scores_first=scored_first,
    check=check_cleared,
    variants={
        "": {"signal": "states", "replay": 0.25, "kl_weight": 0.7, "kl_tokens": 2},
        "ratio": {"signal": "states", "replay": 0.25, "kl_weight": 0.0, "ratio": "mean", "tau": 0.5},
    },
    memory="with `kl_weight`, 1 copy of the trained weights and the logits of K tokens a row twice",
    holds=_held,
)
