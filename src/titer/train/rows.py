"""Rows of conversations as columns of token ids, and columns as the batches that a forward pass takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset

from titer.data.records import Record
from titer.errors import TiterError
from titer.models import Template
from titer.packing.batches import PackedBatch, Sample
from titer.packing.layouts import Layout, check_length, say_once
from titer.packing.streams import Pool
from titer.progress import Task

IGNORE = -100


@dataclass(frozen=True)
class Encoder:
    """Turns rows of conversations into columns of token ids.

    Args:
        template: Renders and encodes conversations.
        max_length: Longest prompt with its completion, in tokens; `None` for no limit but the model's.
        config: Of the model, where it is known.
    """

    template: Template
    max_length: int | None
    config: Any = None

    def pair(self, row: dict[str, Any], where: str) -> tuple[list[int], list[int]]:
        """Return the ids of a row's prompt and completion, the completion cut at `max_length`."""
        prompt, completion = self._whole(row, where)
        return prompt, self._cut(prompt, completion)

    def _whole(self, row: dict[str, Any], where: str) -> tuple[list[int], list[int]]:
        """Return the ids of a row's prompt and completion.

        Raises:
            TiterError: When the row has no prompt and completion, its prompt leaves no room for the completion, or it is
                longer than the model allows. A row that says `where` it was read is named by that too.
        """
        if isinstance(row.get("where"), str):
            where = f"{where} ({row['where']})"
        if row.get("input_ids") is not None:
            prompt, completion = self._tokenised_pair(row, where)
        else:
            prompt, completion = self.template.pair_ids(Record.from_row(row, where))
        if self.max_length is not None and len(prompt) >= self.max_length:
            raise TiterError(
                f"{where}: the prompt has {len(prompt)} tokens and max_length is {self.max_length}, so nothing of the "
                "completion would be trained on.",
                f"Shorten or remove the row, or set max_length above {len(prompt)}.",
            )
        if self.config is not None:
            check_length(self.config, len(prompt) + len(self._cut(prompt, completion)), where)
        return prompt, completion

    def _cut(self, prompt: list[int], completion: list[int]) -> list[int]:
        return completion if self.max_length is None else completion[: self.max_length - len(prompt)]

    def samples(self, rows: Sequence[dict[str, Any]], name: str) -> list[Sample]:
        """Return the rows of a dataset that is called `name`, each with its completion as its only branch."""
        return [Sample(prompt, [completion]) for prompt, completion in self.pairs(rows, name)]

    def pairs(self, rows: Sequence[dict[str, Any]], name: str) -> list[tuple[list[int], list[int]]]:
        """Return the ids of the prompt and the completion of each row of a dataset that is called `name`.

        Completions are cut at `max_length`; a line says how many.
        """
        pairs, longest = [], {}
        with Task(f"tokenised rows of {name}", len(rows)) as tokenised:
            for place, row in enumerate(rows):
                prompt, completion = self._whole(row, f"{name}[{place}]")
                pairs.append((prompt, self._cut(prompt, completion)))
                if len(pairs[-1][1]) < len(completion):
                    longest[row.get("where") or f"row {place}"] = len(prompt) + len(completion)
                tokenised.advance()
        if longest:
            most = max(longest, key=longest.__getitem__)
            about = f"{len(longest)} of {len(rows)} rows of {name}"
            say_once(
                "%s are longer than max_length, and trained on up to there: %d tokens, and %s has %d.",
                about, self.max_length, most, longest[most],
            )  # fmt: skip
        return pairs

    def columns(self, rows: Sequence[dict[str, Any]], name: str) -> dict[str, list[Any]]:
        """Return the columns of a dataset that is called `name`: the ids of prompts and completions, and row numbers."""
        pairs = self.pairs(rows, name)
        return {
            "prompt_ids": [prompt for prompt, _ in pairs],
            "completion_ids": [completion for _, completion in pairs],
            "row": list(range(len(rows))),
        }

    def _tokenised_pair(self, row: dict[str, Any], where: str) -> tuple[list[int], list[int]]:
        """Split a row that is tokenised already where its supervised tokens begin."""
        ids, labels = list(row["input_ids"]), row.get("labels")
        if labels is None and row.get("completion_mask") is not None:
            labels = [token if on else IGNORE for token, on in zip(ids, row["completion_mask"])]
        if labels is None:
            raise TiterError(f"{where}: tokenised rows need `labels` or `completion_mask` beside `input_ids`.")
        start = next((place for place, label in enumerate(labels) if label != IGNORE), len(ids))
        if start in (0, len(ids)) or IGNORE in labels[start:]:
            raise TiterError(
                f"{where}: the supervised tokens of a tokenised row must be its tail, after at least one prompt token.",
                "Pass prompts and completions as text, or label exactly the completion.",
            )
        return ids[:start], ids[start:]


def as_rows(dataset: Dataset | Iterable[Any], name: str) -> list[dict[str, Any]]:
    """Return the rows of a dataset: one of the `datasets` library, a list of records, or a list of dictionaries."""
    if isinstance(dataset, (str, bytes)) or not isinstance(dataset, (Dataset, Sequence)):
        raise TiterError(
            f"{name} must be a `datasets.Dataset` or a list of rows, not {type(dataset).__name__}.",
            "Streams are merged row by row, so an iterable dataset must be materialised first.",
        )
    rows = [row.to_row() if isinstance(row, Record) else dict(row) for row in dataset]
    if not rows:
        raise TiterError(f"{name} is empty.")
    return rows


def eval_datasets(datasets: Any) -> Any:
    """Return an evaluation dataset, or several by name, as TRL takes them."""
    if datasets is None:
        return None
    if isinstance(datasets, Mapping):
        return {name: Dataset.from_list(as_rows(rows, f"eval_dataset[{name!r}]")) for name, rows in datasets.items()}
    return Dataset.from_list(as_rows(datasets, "eval_dataset"))


def token_pairs(
    columns: Mapping[str, Sequence[Any]], pools: Sequence[Pool]
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Yield the prompt and the completion of every sample in columns and pools, as token ids."""
    for pool in pools:
        for samples in pool.values():
            yield from ((sample.prompt, branch) for sample in samples for branch in sample.branches)
    for name in columns:
        if name.endswith("prompt_ids"):
            yield from zip(columns[name], columns[name.replace("prompt", "completion")], strict=True)
    if "continuation_ids" in columns:
        yield from zip(columns["prompt_ids"], columns["continuation_ids"], strict=True)


@dataclass
class PackCollator:
    """Lays out the samples of a micro-batch, one batch for the training stream and one for each stream tied to it.

    Columns named `STREAM_prompt_ids` and `STREAM_completion_ids` belong to the stream `STREAM`; those without a
    stream are the training samples. A column `continuation_ids` holds a second completion of each training prompt,
    and `row` the number of each training sample in its dataset.

    Args:
        share_prefix: Compute the tokens that all prompts of a batch begin with once.
        layout: How the model wants its rows.
    """

    share_prefix: bool = True
    layout: Layout = field(default_factory=Layout)

    def __call__(self, rows: list[dict[str, Any]]) -> PackedBatch:
        """Return the batch of training samples, with each further stream as a nested batch under its name."""
        batch: PackedBatch = {"row": torch.tensor([row["row"] for row in rows])}
        for column in rows[0]:
            if not column.endswith("prompt_ids"):
                continue
            stream = column.removesuffix("prompt_ids")
            samples = [Sample(row[column], [row[f"{stream}completion_ids"]]) for row in rows]
            laid_out = self.lay_out(samples)
            if stream:
                batch[stream.removesuffix("_")] = laid_out
                continue
            batch |= laid_out
            if "continuation_ids" in rows[0]:
                continuations = [row["continuation_ids"] for row in rows]
                batch["continuation"] = self.layout.continue_from(samples, continuations, self.share_prefix)
        return batch

    def lay_out(self, samples: Sequence[Sample]) -> PackedBatch:
        """Lay samples out as the forward pass takes them."""
        return self.layout.lay_out(samples, self.share_prefix)
