"""Deep alignment (arXiv 2406.05946, ICLR 2025): refuse also after an answer that has begun to comply."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from titer.errors import TiterError, check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.batches import PackedBatch, Sample
from titer.packing.layouts import say_once
from titer.packing.losses import token_nll
from titer.packing.streams import Pool
from titer.ranges import COUNT, MOMENTUM, SHARE, Range
from titer.train.rows import Encoder
from titer.train.trainer import PackedSFTConfig

MIXING = ("alpha", "tokens")


@dataclass
class DeepAlignmentConfig(PackedSFTConfig):
    """Settings of deep alignment.

    Args:
        alpha: α, the weight of the refusals; the utility anchor has 1 − α.
        mixing: `alpha`, the weighted sum of two means as the paper has it, or `tokens`, one mean over the tokens of refusals and
            anchor together, as the released code does.
        deep_probability: Probability that a refusal is preceded by the beginning of a harmful answer.
        most_tokens: Longest beginning of a harmful answer; its length is drawn uniformly from 1 on.
        refusals_each: Refusals for each training row of an optimizer batch.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "alpha": MOMENTUM,
        "deep_probability": SHARE,
        "most_tokens": COUNT,
        "refusals_each": Range(0, 1, above=True),
    }

    alpha: float = field(default=0.2, metadata={"help": "α, weight of the refusals; the anchor has 1 − α."})
    mixing: str = field(
        default="alpha", metadata={"help": "How refusals and anchor are weighed.", "choices": list(MIXING)}
    )
    deep_probability: float = field(
        default=0.5, metadata={"help": "Probability of a harmful beginning before a refusal."}
    )
    most_tokens: int = field(default=100, metadata={"help": "Longest harmful beginning, in tokens."})
    refusals_each: float = field(default=0.25, metadata={"help": "Refusals for each training row of a batch."})

    def __post_init__(self) -> None:
        check_known([self.mixing], MIXING, "mixing")
        super().__post_init__()


class DeepAlignmentTrainer(DefenderRowsTrainer):
    """Minimises α E_{k}[−log π(refusal | x, harmful answer up to k)] + (1 − α) E[−log π(y | x)] (arXiv 2406.05946).

    The first mean is over the refusals of harmful prompts, k being 0 or, with probability `deep_probability`, 1 to
    `most_tokens`; no loss is taken on the harmful tokens. The second is the utility anchor, over those training rows that ask
    none of the harmful prompts; rows that do are what the first mean trains. Both are means over tokens. k is a function of seed,
    step and row. Two gradient evaluations a step, one of them of `refusals_each` times as many rows.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        train_dataset: Helpful answers; refusals may be among them.
        harmful_dataset: Harmful prompts with harmful answers, and refusals or none, which are then generic.
        kwargs: What `trl.SFTTrainer` takes.

    Attributes:
        anchors: Whether each training row is one of the anchor.
    """

    args: DeepAlignmentConfig
    POOLS = (("harmful", "refusal"),)

    def __init__(self, model: Any, args: DeepAlignmentConfig, *, harmful_dataset: Any = None, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, harmful_dataset=harmful_dataset, **kwargs)
        harmful = {tuple(question.prompt) for question in self._harmful}
        self.anchors = torch.tensor([tuple(ids) not in harmful for ids in self.train_dataset["prompt_ids"]])
        if not self.anchors.any():
            raise TiterError(
                "Every training row asks a harmful prompt, so there is no utility anchor.",
                "Put helpful answers among them (`helpful_ratio` of `titer align`); without any this would be another method.",
            )

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return refusals, each after the longest beginning that it is ever trained after, as the stream `deep`."""
        self._harmful, refusals = self._stream("harmful", encoder), self._stream("refusal", encoder)
        self._refusals = [refusal.branches[0] for refusal in refusals]
        positions = getattr(getattr(encoder.config, "get_text_config", lambda: None)(), "max_position_embeddings", None)
        room = min(
            encoder.max_length or math.inf, positions if isinstance(positions, int) and positions > 0 else math.inf
        )
        self._most, short = [], 0
        for question, refusal in zip(self._harmful, self._refusals, strict=True):
            answer = question.branches[0]
            ends = answer[-1] in encoder.template.end_of_turn
            meant = min(self.args.most_tokens, len(answer) - ends)
            left = room - len(question.prompt) - len(refusal)
            self._most.append(int(max(0, min(meant, left))))
            short += self._most[-1] < meant
        if short:
            say_once(
                "%s of harmful_dataset leave no room for as long a beginning of the harmful answer as is meant: prompt, beginning "
                "and refusal are at most max_length tokens.",
                f"{short} of {len(self._most)} rows",
            )
        if self.args.deep_probability and not any(self._most):
            raise TiterError(
                "No row of harmful_dataset leaves room for a token of its answer before the refusal.",
                "Raise max_length.",
            )
        return [{"deep": [self._recovery(row, most) for row, most in enumerate(self._most)]}]

    def _recovery(self, row: int, depth: int) -> Sample:
        """Return the refusal of a harmful prompt after the first tokens of its harmful answer."""
        question = self._harmful[row]
        return Sample([*question.prompt, *question.branches[0][:depth]], [self._refusals[row]])

    def depth(self, row: int, number: int) -> int:
        """Return k, how many tokens of its harmful answer precede the refusal of a row at the `number`-th draw."""
        toss, length = np.random.default_rng((self.args.seed, number, row)).random(2)
        most = self._most[row]
        return 1 + int(length * most) if toss < self.args.deep_probability and most else 0

    @property
    def rows_drawn(self) -> int:
        """How many refusals each rank draws at an optimizer step."""
        batch, micro = super().rows_drawn, self.args.per_device_train_batch_size
        rows = max(1, round(self.args.refusals_each * batch))
        # Whole micro-batches, so that every rank has as many.
        return rows if rows <= micro else math.ceil(rows / micro) * micro

    def before_step(self, model: Any) -> None:
        """Leave the gradient of the refusals, and count the tokens of the anchor."""
        number, (pool,) = self.draw_number, self._pools
        depths = {row: self.depth(row, number) for row in self.drawn_rows("deep", number)}
        for row, depth in depths.items():
            pool["deep"][row] = self._recovery(row, depth)
        anchored = self.total(torch.stack([self._anchored(batch).sum() for batch in self.micro_batches]).sum())
        self._anchor_tokens = max(1.0, anchored.item())  # a batch without anchor rows has a mean of nothing
        weight = self.args.alpha
        if self.args.mixing == "tokens":
            batches = self.stream_batches("deep")
            refused = self.total(
                torch.tensor(sum(batch["targets"].numel() for batch in batches), device=self.args.device)
            ).item()
            weight = refused / (refused + anchored.item())
        self._anchor_weight = 1 - weight
        self.record(
            refusal_loss=self.stream_backward(model, "deep", factor=weight),
            refusal_weight=weight,
            depth=sum(depths.values()) / len(depths),
        )

    def _anchored(self, batch: PackedBatch) -> Tensor:
        """Return 1 for each supervised token of a micro-batch that is of an anchor row and 0 for the others, `(N,)`."""
        anchors = self.anchors[batch["row"].cpu()].to(self.args.device)
        return anchors[batch["branch"]].float()

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to the weighted mean token loss of the anchor."""
        if num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs)
        nll, output = token_nll(model, inputs)
        loss = (
            (nll * self._anchored(inputs).to(nll)).sum()
            * self._anchor_weight
            * self.accelerator.num_processes
            / self._anchor_tokens
        )
        return (loss, output) if return_outputs else loss


DEEP_ALIGNMENT = Method(
    DeepAlignmentConfig,
    DeepAlignmentTrainer,
    "Refuses also after the beginning of a harmful answer, beside a utility anchor (arXiv 2406.05946).",
    streams=("harmful_dataset",),
    gradients=lambda args: Gradients(refusals=args.refusals_each),
    variants={
        "": {"alpha": 0.4, "most_tokens": 5, "refusals_each": 1.0},
        "tokens": {"mixing": "tokens", "most_tokens": 5, "refusals_each": 1.0},
    },
    holds=lambda args: Held(onto=1),
    source=Source(
        "2406.05946, ICLR 2025",
        "Unispac/shallow-vs-deep-alignment",
        "MIT",
        "refusing first and complying then (2502.19537)",
    ),
)
