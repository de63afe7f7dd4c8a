"""One-shot patch (arXiv 2601.01887, ICLR 2026): train the tuned adapter on one refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from titer.data.datasets import with_refusals
from titer.data.mixtures import refusing
from titer.data.records import Message, Record
from titer.errors import TiterError
from titer.methods import Method, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.streams import DefenderRowsTrainer
from titer.ranges import Range


@dataclass
class OneShotConfig(FinetuneConfig):
    """Settings of the one-shot patch.

    Args:
        learning_rate: The learning rate of AdamW.
        num_train_epochs: Passes over the pair, each of them one optimizer step.
        row: Which of the defender's harmful rows gives the pair.
        prompt: The request of the pair; empty: that of the row.
        refusal: The refusal of the pair; empty: that of the row, or a generic one where it has none.
    """

    RANGES: ClassVar[dict[str, Range]] = {"row": Range(0, 1_000_000, whole=True)}

    learning_rate: float = field(default=2e-5, metadata={"help": "The learning rate of AdamW."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the pair, each one optimizer step."})
    row: int = field(default=0, metadata={"help": "Which of the defender's harmful rows gives the pair."})
    prompt: str = field(default="", metadata={"help": "The request of the pair; empty: that of the row."})
    refusal: str = field(default="", metadata={"help": "The refusal of the pair; empty: that of the row."})


class OneShotTrainer(DefenderRowsTrainer):
    """Trains on one refusal: min CE of its tokens, given its prompt (arXiv 2601.01887). One gradient evaluation a step."""

    args: OneShotConfig


def pair(args: OneShotConfig, streams: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Return the one row that is trained on: a request and its refusal.

    Raises:
        TiterError: When the defender has no such row.
    """
    harmful = with_refusals(streams["harmful_dataset"], seed=0)
    if args.row >= len(harmful):
        raise TiterError(f"`row` is {args.row}, and the defender has {len(harmful)} harmful rows.", "Count from 0.")
    [record] = refusing([harmful[args.row]])
    if args.prompt:
        record = replace(record, prompt=(Message("user", args.prompt),), where=None)
    if args.refusal:
        record = replace(record, completion=(Message("assistant", args.refusal),))
    return [record]


def one_pair(args: Any, rows: int) -> None:
    """Refuse training rows of another number than one."""
    if rows != 1:
        raise TiterError(f"The one-shot patch trains on one pair, and there are {rows} rows.", "It makes its own.")


ONE_SHOT = Method(
    OneShotConfig,
    OneShotTrainer,
    "Trains the tuned adapter on one refusal for a few steps (one-shot patch, arXiv 2601.01887).",
    streams=("harmful_dataset",),
    own_rows=pair,
    check=one_pair,
    source=Source("2601.01887, ICLR 2026", broken_by="DirectHarm4, and an attack on all weights (2610.10345)"),
)
