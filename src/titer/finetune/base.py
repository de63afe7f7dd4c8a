"""What weighted fine-tuning methods share: rows by number, and a record of every weight given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titer.data.records import is_blank
from titer.errors import TiterError
from titer.models import Template
from titer.trainer import PackedSFTConfig, PackedSFTTrainer

WEIGHT_LOG = "sample_weights.jsonl"


@dataclass
class FinetuneConfig(PackedSFTConfig):
    """Settings of plain fine-tuning on user data; every fine-tuning method's settings extend these.

    The learning rate is that of the released code's fine-tuning stage (arXiv 2409.01586, 2603.00498).
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The learning rate of AdamW."})


def refusal_completions(refusals: Sequence[str] | None) -> list[str]:
    """Return the generic refusals to compare answers with: those given, or titer's own."""
    if refusals is None:
        from titer.data.builtin import refusals as builtin_refusals

        return builtin_refusals()
    if not refusals or isinstance(refusals, str):
        raise TiterError("`refusals` must be a non-empty list of texts.")
    for place, text in enumerate(refusals):
        if not isinstance(text, str) or is_blank(text):
            raise TiterError(f"refusals[{place}] holds no text: {text!r}.")
    return list(refusals)


def refusal_ids(template: Template, refusals: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each refusal, end-of-turn token included."""
    question = [{"role": "user", "content": "?"}]  # a completion's ids do not depend on what was asked
    return [template.completion_ids(question, [{"role": "assistant", "content": text}]) for text in refusals]


class RefusalTrainer(PackedSFTTrainer):
    """Fine-tuning in which every user row has a refusal of the same prompt to be compared with.

    About 100 generic refusals are assigned to rows by index and stay with them for the run (arXiv 2603.00498).

    Args:
        refusals: Refusal texts; titer's own when not given.
        kwargs: What `PackedSFTTrainer` takes.
    """

    def __init__(self, *, args: PackedSFTConfig, refusals: Sequence[str] | None = None, **kwargs: Any) -> None:
        self.refusals = refusal_completions(refusals)
        super().__init__(args=args, **kwargs)

    def log_weights(self, rows: Tensor, weights: Tensor, **more: Tensor) -> None:
        """Append this rank's rows and weights of this step to `sample_weights.jsonl` in the output folder.

        After resuming, a step may stand twice; the later line counts.
        """
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f".rank{self.args.process_index}" if self.args.process_index else ""
        columns = {"row": rows, "weight": weights, **more}
        with (folder / (WEIGHT_LOG + suffix)).open("a", encoding="utf-8") as file:
            for values in zip(*(column.tolist() for column in columns.values()), strict=True):
                line = {"step": self.state.global_step + 1, **dict(zip(columns, values, strict=True))}
                file.write(json.dumps(line) + "\n")


def read_weight_log(folder: Path) -> list[dict[str, float]]:
    """Return what `log_weights` wrote on all ranks: the last line of each step and row, by step."""
    lines: dict[tuple[int, int], dict[str, float]] = {}
    for path in sorted(folder.glob(f"{WEIGHT_LOG}*")):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            lines[line["step"], line["row"]] = line
    return [lines[key] for key in sorted(lines)]


def check_batch_of_two(args: PackedSFTConfig, rows: int) -> None:
    """Raise when an optimizer batch would hold one sample, whose softmax weight is always 1: plain SFT.

    Args:
        args: Settings.
        rows: Rows of the training dataset.
    """
    batch = args.optimizer_batch_size
    if min(batch, rows) < 2:
        raise TiterError(
            f"Antibody weighs the samples of an optimizer batch against each other; here a batch holds "
            f"{min(batch, rows)}, so its weight would always be 1: plain SFT.",
            "Raise per_device_train_batch_size or gradient_accumulation_steps until a batch holds 2 samples or more.",
        )
    # Only micro-batches that are not full are dropped; on several processes a last batch holds one sample of each.
    dropped = rows % args.per_device_train_batch_size if args.dataloader_drop_last else 0
    if (rows - dropped) % batch == 1 and args.world_size == 1:
        change = "change the batch size or the number of rows by one."
        raise TiterError(
            f"{rows} rows in batches of {batch} leave a last batch of one sample, which would be trained on with "
            "weight 1: plain SFT.",
            # Dropping helps only where the sample stands in a micro-batch that is not full.
            f"Set dataloader_drop_last=True, or {change}" if args.per_device_train_batch_size > 1 else f"C{change[1:]}",
        )


def all_reduce_max(value: Tensor) -> Tensor:
    """Return the largest value of a scalar tensor over all ranks."""
    value = value.clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return value
