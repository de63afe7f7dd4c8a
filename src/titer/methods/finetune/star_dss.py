"""STAR-DSS (arXiv 2505.17196, NeurIPS 2025): a guard says, chunk by chunk, what of an answer may teach."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from titer.data.records import Record
from titer.errors import check_known
from titer.methods import Method, Source
from titer.methods.finetune.guard import GuardConfig, GuardTrainer
from titer.packing.batches import PackedBatch
from titer.packing.losses import token_nll
from titer.ranges import COUNT, NOT_NEGATIVE, Range

PER = ("chunk", "row")
UNITS = ("tokens", "words")


@dataclass
class StarDssConfig(GuardConfig):
    """Settings of STAR-DSS.

    Args:
        kappa: κ, the weight of the pull towards the reference where an answer is not safe.
        per: One value for each `chunk` of an answer, of all that was said up to its end, or one for each `row`.
        chunk: How long a chunk is.
        unit: In what chunks are counted: `tokens`, or `words` as the released code does.
        hard: Values rounded to 0 or 1, as the released code's rejection sampling does.
    """

    RANGES: ClassVar[dict[str, Range]] = {"kappa": NOT_NEGATIVE, "chunk": COUNT}

    kappa: float = field(default=0.5, metadata={"help": "κ, weight of the pull towards the reference."})
    per: str = field(default="chunk", metadata={"help": "One value per chunk, or per row.", "choices": list(PER)})
    chunk: int = field(default=5, metadata={"help": "Length of a chunk."})
    unit: str = field(
        default="tokens", metadata={"help": "Chunks are counted in tokens or words.", "choices": list(UNITS)}
    )
    hard: bool = field(default=False, metadata={"help": "Round values to 0 or 1."})

    def __post_init__(self) -> None:
        check_known([self.per], PER, "per")
        check_known([self.unit], UNITS, "unit")
        super().__post_init__()


def chunk_ends(tokens: int, size: int, words: Callable[[int], int] | None = None) -> list[int]:
    """Return after how many tokens each chunk of an answer ends; the last one ends with the answer.

    Args:
        tokens: Tokens of the answer, end of turn included.
        size: Tokens of a chunk, or words.
        words: How many words there are in the answer's first so many tokens, where chunks are counted in words.
    """
    if words is None:
        return [*range(size, tokens, size), tokens]
    of = [max(1, math.ceil(words(token) / size)) for token in range(1, tokens + 1)]
    # A token belongs to the chunk of the word that it ends in.
    return [place for place in range(1, tokens) if of[place] != of[place - 1]] + [tokens]


class StarDssTrainer(GuardTrainer):
    """Minimises Σ_t [V_t CE_t + (1 − V_t) κ k2_t] / N over the answer tokens of the optimizer batch (arXiv 2505.17196).

    V_t is P(safe) of the answer up to the end of the chunk that token t is in, by a guard that also reads the prompt. k2_t =
    ½ (log π_w(y_t) − log π_0(y_t))², the k2 estimate of the divergence from the reference on the answer's own token: where
    a chunk is not safe, the model is held to what it would have said before. One gradient a step. Before training a
    forward pass over the rows, and as many verdicts as the answers have chunks. Extra memory: two numbers an answer token.

    Args:
        model: The aligned model with its adapter; it is the reference as it is when the trainer is made.
        args: Settings.
        kwargs: What `trl.SFTTrainer` takes.

    Attributes:
        safety: V of every answer token, a tensor for each training row.
    """

    args: StarDssConfig

    SCORES_ROWS = True

    def __init__(self, model: Any, args: StarDssConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        ends = [self._ends(row) for row in range(len(self.train_dataset))]
        asked = [(row, self.answer(row, end)) for row, places in enumerate(ends) for end in places]
        values = 1 - self.harm(asked)
        if args.hard:
            values = (values > 0.5).double()
        lengths = [torch.tensor(places).diff(prepend=torch.zeros(1, dtype=torch.long)) for places in ends]
        by_row = values.split([len(places) for places in ends])
        self.safety = [value.repeat_interleave(length) for value, length in zip(by_row, lengths, strict=True)]

    def _ends(self, row: int) -> list[int]:
        """Return after how many tokens each part of a row's answer ends that has a value of its own."""
        tokens = len(self.train_dataset[row]["completion_ids"])
        if self.args.per == "row":
            return [tokens]
        by_words = None if self.args.unit == "tokens" else lambda first: len(self.answer(row, first).split())
        return chunk_ends(tokens, self.args.chunk, by_words)

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to the shaped loss of the optimizer batch."""
        nll, output = token_nll(model, inputs)
        safe = torch.cat([self.safety[row] for row in inputs["row"].tolist()]).to(nll)
        # log π_w − log π_0 = NLL_0 − NLL_w.
        k2 = (self.reference_of(inputs).to(nll) - nll).square() / 2
        shaped = safe * nll + (1 - safe) * self.args.kappa * k2
        self.record(safety=safe.mean().item(), k2=k2.mean().item())
        loss = shaped.sum() * self.accelerator.num_processes / self.tokens
        return (loss, output) if return_outputs else loss


def reads_upload(args: Any, rows: Sequence[Record], streams: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    """Return the rows that are scored under the reference: all of the upload."""
    return rows


STAR_DSS = Method(
    StarDssConfig,
    StarDssTrainer,
    "Learns the safe chunks of an answer, and is held to the reference in the others (arXiv 2505.17196).",
    scores_first=reads_upload,
    variants={
        "chunk": {"kappa": 2.0},
        "words": {"kappa": 2.0, "unit": "words", "chunk": 2},
        "row": {"kappa": 2.0, "per": "row"},
    },
    memory="2 numbers an answer token",
    source=Source(
        "2505.17196, NeurIPS 2025",
        "poloclub/star-dss",
        "MIT",
        "what its guard passes (2505.17196)",
    ),
)
