"""SafeInstr (arXiv 2309.07875, ICLR 2024): a few alignment rows among those of the upload."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.data.records import Record
from titer.errors import check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.finetune.base import AlignmentRowsConfig
from titer.methods.finetune.replay import ReplayTrainer
from titer.methods.streams import DefenderRowsTrainer, as_texts
from titer.packing.batches import PackedBatch
from titer.packing.streams import Pool
from titer.ranges import SHARE, Range
from titer.train.rows import Encoder

CHOICES = ("random", "nearest")


@dataclass
class SafeInstrConfig(AlignmentRowsConfig):
    """Settings of SafeInstr.

    Args:
        replay: Alignment rows for each row of the upload; 0 is plain fine-tuning.
        choice: Which of the defender's alignment rows are mixed in: `random` ones, or those whose prompts are `nearest` to the
            upload's by a sentence encoder.
    """

    RANGES: ClassVar[dict[str, Range]] = {**AlignmentRowsConfig.RANGES, "replay": SHARE}

    replay: float = field(default=0.03, metadata={"help": "Alignment rows for each row of the upload."})
    choice: str = field(
        default="random", metadata={"help": "Which alignment rows are mixed in.", "choices": list(CHOICES)}
    )

    def __post_init__(self) -> None:
        check_known([self.choice], CHOICES, "choice")
        super().__post_init__()


class SafeInstrTrainer(ReplayTrainer, DefenderRowsTrainer):
    """Fine-tunes on the upload and a few alignment rows: what a mixture of both teaches, in the mean over its shuffles.

    Minimises (Σ_i Σ_t CE_it + ω Σ_j Σ_t CE_jt) / (Σ_i N_i + ω Σ_j N_j), where i are the rows of the optimizer batch and j
    alignment rows drawn beside it, one at least; ω, the rows that the mixture would have there over those that are drawn,
    makes `replay` exact however small a batch is. Two gradients a step, that of the alignment rows of few rows.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `DefenderRowsTrainer` takes: `harmful_dataset`, whose rows may hold a `refusal`, and `helpful_dataset`.
    """

    args: SafeInstrConfig
    POOLS = (("alignment",),)
    reduction = "token"

    def __init__(self, model: Any, args: SafeInstrConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Keep the upload's rows for the choice; no row has anything beside it."""
        self._upload = rows
        return {}

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return as many alignment rows as the mixture holds, or all where there are fewer."""
        if not self.args.replay:
            return []
        records = self.records("alignment")
        count = min(len(records), max(1, round(self.args.replay * len(self._upload))))
        if self.args.choice == "nearest":
            kept = self._nearest(records, count)
        else:
            kept = random.Random(f"titer.safe_instr:{self.args.seed}").sample(records, count)
        return [{"replay": encoder.samples([record.to_training_row() for record in kept], "alignment")}]

    def _nearest(self, records: Sequence[Record], count: int) -> list[Record]:
        """Return the records whose prompts have the largest cosine with any prompt of the upload."""
        from titer.infer.encoder import SentenceEncoder

        upload = as_texts(self._upload, "train_dataset")
        encode = SentenceEncoder(device=self.args.device)
        ours, theirs = (encode([record.prompt_text for record in rows]) for rows in (records, upload))
        nearness = (ours @ theirs.T).amax(1)
        return [records[place] for place in torch.argsort(nearness, descending=True, stable=True)[:count].tolist()]

    def replayed(self) -> Tensor:
        """Return ω Σ_j N_j."""
        drawn = super().replayed()
        rows = torch.tensor([sum(len(batch["row"]) for batch in self.micro_batches), self.rows_drawn])
        upload, beside = self.total(rows.to(drawn)).tolist()
        exact = torch.promote_types(next(iter(self.trainable.values())).dtype, torch.float32)
        return drawn.to(exact) * (self.args.replay * upload / beside)

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch of the upload adds to the mean over the mixture."""
        return self.counted_loss(model, inputs, return_outputs)


SAFE_INSTR = Method(
    SafeInstrConfig,
    SafeInstrTrainer,
    "Mixes a few refusals into the upload (arXiv 2309.07875).",
    streams=("harmful_dataset", "helpful_dataset"),
    gradients=lambda args: Gradients(replay=float(args.replay > 0)),
    variants={"": {"replay": 0.2}, "helpful": {"replay": 0.45, "helpful_each": 1}},
    holds=lambda args: Held(onto=float(args.replay > 0)),
    source=Source(
        "2309.07875, ICLR 2024",
        "vinid/safety-tuned-llamas",
        "none",
        "four attacks by fine-tuning, through 3 % of random rows (2605.28030)",
    ),
)
