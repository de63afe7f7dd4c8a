"""Rows that a defender holds beside the training rows, as streams that a method draws from at every optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from titer.data.datasets import with_refusals
from titer.data.mixtures import alignment_mixture, refusing
from titer.data.records import Record
from titer.errors import TiterError
from titer.packing.streams import Pool
from titer.train.rows import Encoder, as_rows
from titer.train.trainer import PackedSFTTrainer

NEEDED = {
    "harmful": ("harmful_dataset",),
    "refusal": ("harmful_dataset",),
    "general": ("helpful_dataset",),
    "alignment": ("harmful_dataset", "helpful_dataset"),
}
"""The streams there are, and the datasets that each is made of."""
ABOUT = {
    "harmful_dataset": "rows of harmful prompts with harmful answers",
    "helpful_dataset": "rows of harmless prompts with helpful answers",
}


class DefenderRowsTrainer(PackedSFTTrainer):
    """Supervised fine-tuning with streams of rows that the defender holds, of which nothing is learnt unless a method does it.

    A subclass says in `POOLS` which streams it draws. Those of one pool are drawn together, row by row: `("harmful",
    "refusal")` are answers and refusals of the same prompts. Each pool is drawn from by itself, `rows_drawn` rows at every
    optimizer step, each row once before any comes again (`titer.packing.streams`).

    - `harmful`: harmful prompts with harmful answers (D_harm of the papers).
    - `refusal`: the same prompts with refusals: a row's own `refusal`, or a generic one by its index.
    - `general`: harmless prompts with helpful answers.
    - `alignment`: refusals of harmful prompts, and `helpful_each` helpful answers for each of them.

    Args:
        args: Settings.
        harmful_dataset: Harmful prompts with harmful answers, held by the defender.
        helpful_dataset: Harmless prompts with helpful answers, held by the defender.
        kwargs: What `PackedSFTTrainer` takes.
    """

    POOLS: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def __init__(self, *, args: Any, harmful_dataset: Any = None, helpful_dataset: Any = None, **kwargs: Any) -> None:
        given = {"harmful_dataset": harmful_dataset, "helpful_dataset": helpful_dataset}
        for stream in [stream for pool in self.POOLS for stream in pool]:
            for name in NEEDED[stream]:
                if given[name] is None:
                    raise TiterError(
                        f"{type(self).__name__} needs `{name}`: {ABOUT[name]}.",
                        "Pass one (`builtin:harmful` and `builtin:general` are titer's own); without it this would be "
                        "another method.",
                    )
        self.harmful_rows, self.helpful_rows = (
            [] if rows is None else as_rows(rows, name) for name, rows in given.items()
        )
        super().__init__(args=args, **kwargs)

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return the pools that `POOLS` names."""
        return [{stream: self._stream(stream, encoder) for stream in pool} for pool in self.POOLS]

    def _stream(self, stream: str, encoder: Encoder) -> Any:
        if stream == "harmful":
            return encoder.samples(self.harmful_rows, "harmful_dataset")
        if stream == "general":
            return encoder.samples(self.helpful_rows, "helpful_dataset")
        return encoder.samples([record.to_training_row() for record in self.records(stream)], stream)

    def records(self, stream: str) -> list[Record]:
        """Return the rows of a stream that are made of others: `refusal` or `alignment`."""
        refusals = with_refusals(as_texts(self.harmful_rows, "harmful_dataset"), seed=0)
        if stream == "refusal":
            return refusing(refusals)
        return alignment_rows(refusals, as_texts(self.helpful_rows, "helpful_dataset"), self.args.helpful_each)


def alignment_rows(refusals: Sequence[Record], helpful: Sequence[Record], helpful_each: int) -> list[Record]:
    """Return harmful prompts with refusals, mixed with helpful answers: as many refusals as leave each its helpful answers.

    Args:
        refusals: Harmful prompts, each with its `refusal`.
        helpful: Harmless prompts with their answers.
        helpful_each: Helpful answers for each refusal.
    """
    kept = max(1, min(len(refusals), len(helpful) // helpful_each)) if helpful_each else len(refusals)
    answers = min(len(helpful), helpful_each * kept)
    return alignment_mixture(refusals, helpful, kept + answers, answers / (kept + answers), seed=0)


def as_texts(rows: Sequence[dict[str, Any]], name: str) -> list[Record]:
    """Return rows as records; rows that are tokenised already have no text to read.

    Raises:
        TiterError: For tokenised rows.
    """
    if any(row.get("input_ids") is not None for row in rows):
        raise TiterError(
            f"{name} is tokenised already, and its texts are wanted here.", "Give prompts and completions as text."
        )
    return [Record.from_row(row, f"{name}[{place}]") for place, row in enumerate(rows)]
