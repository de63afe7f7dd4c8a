"""What weighted fine-tuning methods share: rows by number, and a record of every weight given."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.compat import detach_cache
from titer.data.records import is_blank
from titer.errors import TiterError
from titer.files import replacing, writing
from titer.infer.signals import unasked_refusals
from titer.models import Template
from titer.packing.batches import PackedBatch
from titer.packing.losses import branch_nll, log_likelihood_ratio, token_nll
from titer.ranges import Range
from titer.train.rows import Encoder
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

WEIGHT_LOG = "sample_weights.jsonl"


@dataclass
class FinetuneConfig(PackedSFTConfig):
    """Settings of plain fine-tuning on user data; every fine-tuning method's settings extend these.

    The learning rate is that of the released code's fine-tuning stage (arXiv 2409.01586, 2603.00498).
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The learning rate of AdamW."})


@dataclass
class AlignmentRowsConfig(FinetuneConfig):
    """Settings of fine-tuning methods that train on alignment rows beside the upload.

    Args:
        helpful_each: Helpful answers for each refusal among the alignment rows. The papers' safety data are refusals
            alone, 0; with 3, as in alignment, a model keeps answering what only looks harmful (ours).
    """

    RANGES: ClassVar[dict[str, Range]] = {"helpful_each": Range(0, 100)}

    helpful_each: int = field(
        default=0, metadata={"help": "Helpful answers for each refusal among the alignment rows."}
    )


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


class WeightLogTrainer(PackedSFTTrainer):
    """Fine-tuning that writes down what each row counted at each step.

    Args:
        kwargs: What `PackedSFTTrainer` takes.
    """

    _logged: int | None = None
    """Up to which step this training has logged its weights."""

    def log_weights(self, rows: Tensor, weights: Tensor, **more: Tensor) -> None:
        """Append this rank's rows and weights of this step to `sample_weights.jsonl` in the output folder.

        A training that begins, or goes on from a checkpoint, first cuts off what an earlier one wrote of later steps.
        """
        suffix = f".rank{self.args.process_index}" if self.args.process_index else ""
        path = Path(self.args.output_dir) / (WEIGHT_LOG + suffix)
        done = self.state.global_step
        if self._logged != done:
            before = [line for line in _log_lines(path) if line["step"] <= done] if path.is_file() else []
            with replacing(path) as file:
                file.writelines(json.dumps(line).encode() + b"\n" for line in before)
        columns = {"row": rows, "weight": weights, **more}
        # `r+` does not create the file: if somebody removed the log, a new one would look complete and lack the first steps.
        with writing(path), path.open("r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            for values in zip(*(column.tolist() for column in columns.values()), strict=True):
                line = {"step": done + 1, **dict(zip(columns, values, strict=True))}
                file.write(json.dumps(line) + "\n")
        self._logged = done + 1


class RefusalTrainer(WeightLogTrainer):
    """Fine-tuning in which every user row has a refusal of the same prompt to be compared with.

    About 100 generic refusals are assigned to rows by index and stay with them for the run (arXiv 2603.00498).

    Args:
        refusals: Refusal texts; titer's own when not given.
        kwargs: What `PackedSFTTrainer` takes.
    """

    def __init__(self, *, args: PackedSFTConfig, refusals: Sequence[str] | None = None, **kwargs: Any) -> None:
        self.refusals = refusal_completions(refusals)
        super().__init__(args=args, **kwargs)
        ids = refusal_ids(self.template, self.refusals)
        self.unasked = unasked_refusals(self.model, self.template, ids, getattr(args, "ratio", ""))

    def refusal_column(self, rows: Sequence[Any], encoder: Encoder) -> dict[str, list[Any]]:
        """Return the column of refusals that `log_ratio` compares answers with: one for each row, by index."""
        refusals = refusal_ids(encoder.template, self.refusals)
        return {"continuation_ids": [refusals[place % len(refusals)] for place in range(len(rows))]}

    @torch.no_grad()
    def log_ratio(
        self, model: Any, inputs: PackedBatch, output: Any, answer_nll: Tensor, answer_tokens: Tensor, ratio: str
    ) -> Tensor:
        """Return how much likelier than refusals the answers of a micro-batch are to the current model, `(B,)` in nats.

        The refusals' likelihood is that of their tokens alone, on the keys and values that the training forward left (with
        gradient checkpointing, or a model that cannot be packed, of prompt and refusal).

        Args:
            model: The model that is trained.
            inputs: The micro-batch; its column `continuation` is what `refusal_column` made.
            output: Of the training forward.
            answer_nll: Summed loss of each answer in it, `(B,)`.
            answer_tokens: Tokens of each answer, `(B,)`.
            ratio: One of `titer.packing.losses.RATIOS`.
        """
        on_cache: dict[str, Any] = {}
        if self.layout.cached:
            cache = output.past_key_values
            if cache is None:
                raise TiterError(
                    "The training forward left no keys and values to score the refusals with.",
                    "Switch gradient checkpointing on before the trainer is made, or by `gradient_checkpointing=True`.",
                )
            detach_cache(cache)
            on_cache = {"past_key_values": cache, "use_cache": True}
        continuation = inputs["continuation"]
        nll, _ = token_nll(model, continuation, **on_cache)
        refused = branch_nll(nll, continuation["branch"], len(inputs["row"]))
        own = None if self.unasked is None else self.unasked.to(answer_nll)[inputs["row"] % len(self.unasked)]
        return log_likelihood_ratio(answer_nll.detach(), answer_tokens, *refused, ratio, own)


def read_weight_log(folder: Path) -> list[dict[str, float]]:
    """Return what `log_weights` wrote on all ranks: the last line of each step and row, by step.

    Raises:
        TiterError: Naming file and line, for a line that `log_weights` did not write.
    """
    paths = sorted(folder.glob(f"{WEIGHT_LOG}*"))
    lines = {(line["step"], line["row"]): line for path in paths for line in _log_lines(path)}
    return [lines[key] for key in sorted(lines)]


def _log_lines(path: Path) -> list[dict[str, float]]:
    """Return the lines of a log of weights; one without an end was being written when the training broke off."""
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
            _ = line["step"], line["row"]
        except (ValueError, TypeError, KeyError):
            raise TiterError(
                f"{path}:{number}: no JSON object with `step` and `row`.", "The file is damaged; remove it."
            ) from None
        lines.append(line)
    return lines


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
