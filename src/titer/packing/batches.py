"""How samples become a batch: packed in one row, or padded for models that cannot be packed.

A packed batch is one row of `T` tokens laid out as a forest. All prompts of a chat model begin with the same tokens (the
system prompt): that common *prefix* stands once at the front. Each sample follows as its own prompt and then one or
more *branches*, completions of that same prompt (an answer and a refusal, say) which see the prompt but not each other:

    prefix | prompt 1, answer 1, refusal 1 | prompt 2, answer 2, refusal 2 | …

A token attends to itself and to what comes before it on its own path prefix → prompt → branch, and its position is its
distance from the start of that path. So each branch computes exactly what it would compute alone in a padded row, and
its gradient reaches the shared tokens once for every branch that uses them.

Whether a model computes in a packed row what it computes alone is probed, not assumed (`titer.packing.layouts`); where it
does not, `pad` lays the same samples out as anybody would, one row for each branch, filled up at the end. Losses read both
alike. Only completion tokens are ever supervised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PackedBatch = dict[str, Any]
"""What `pack` and `pad` return: tensors and lists by name, so that data loaders and devices treat it as any other batch."""


@dataclass(frozen=True)
class Sample:
    """One prompt and the completions that branch off from it, as token ids.

    Attributes:
        prompt: Token ids of the rendered prompt, at least one.
        branches: Token ids of each completion, at least one token each, ending in the end-of-turn token.
    """

    prompt: Sequence[int]
    branches: Sequence[Sequence[int]]


def common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all `rows` share, leaving every row at least one token of its own."""
    if len(rows) < 2:
        return 0
    lists = [list(row) for row in rows]
    first, last = min(lists), max(lists)
    shared = 0
    for left, right in zip(first, last):
        if left != right:
            break
        shared += 1
    return min(shared, min(len(row) for row in rows) - 1)


def pack(samples: Sequence[Sample], share_prefix: bool = True) -> PackedBatch:
    """Lay `samples` out in one row without padding.

    Args:
        samples: At least one sample.
        share_prefix: Compute the tokens that all prompts begin with only once. The result is the same either way.

    Returns:
        A dictionary, with `T` tokens, `N` supervised tokens, `B` branches and `S` samples:

        - `input_ids`, `position_ids`: `(1, T)`.
        - `masks`: for the prefix and each sample `(1, 1, length, prefix + length)`, true where its tokens may look (the
          prefix, which may be empty, sees only itself).
        - `prefixes`: for each of them which of them is its prefix, `-1` for the prefix itself.
        - `parts`: for each of them how many tokens its own part of the prompt and each branch feed.
        - `predict_from`: `(N,)`, the token whose output predicts each supervised token.
        - `targets`: `(N,)`, the supervised token ids.
        - `branch`: `(N,)`, the branch a supervised token belongs to, numbered sample by sample.
        - `labels`, `shift_labels`: `(1, N)`, the targets again under the names that `Trainer` counts tokens by.

    The last token of a completion is a target but no input: nothing is predicted from it.
    """
    prefix = common_prefix_length([sample.prompt for sample in samples]) if share_prefix else 0
    input_ids: list[int] = list(samples[0].prompt[:prefix])
    position_ids: list[int] = list(range(prefix))
    predict_from: list[int] = []
    targets: list[int] = []
    branch: list[int] = []
    masks = [torch.ones(1, 1, prefix, prefix, dtype=torch.bool).tril()]
    parts = [[prefix]]
    branches = 0

    for sample in samples:
        start = len(input_ids)
        own_prompt = sample.prompt[prefix:]
        input_ids += own_prompt
        position_ids += range(prefix, len(sample.prompt))
        prompt_end = len(input_ids)
        starts = []
        for completion in sample.branches:
            here = len(input_ids)
            # The first token of a branch is predicted by the last token of the prompt, the others by their neighbour.
            predict_from += [prompt_end - 1, *range(here, here + len(completion) - 1)]
            targets += completion
            branch += [branches] * len(completion)
            branches += 1
            input_ids += completion[:-1]
            position_ids += range(len(sample.prompt), len(sample.prompt) + len(completion) - 1)
            starts.append(here - start)
        length = len(input_ids) - start
        parts.append([len(own_prompt), *(len(completion) - 1 for completion in sample.branches)])
        # Causal, and each branch is hidden from its siblings.
        own = torch.ones(length, length, dtype=torch.bool).tril()
        for here in starts[1:]:
            own[here:, prompt_end - start : here] = False
        masks.append(torch.cat((torch.ones(length, prefix, dtype=torch.bool), own), dim=1)[None, None])

    return {
        "input_ids": torch.tensor([input_ids]),
        "position_ids": torch.tensor([position_ids]),
        "masks": masks,
        "prefixes": [-1] + [0] * len(samples),
        "parts": parts,
        "predict_from": torch.tensor(predict_from),
        "targets": torch.tensor(targets),
        "branch": torch.tensor(branch),
        "labels": torch.tensor([targets]),
        "shift_labels": torch.tensor([targets]),
    }


def pack_continuations(
    samples: Sequence[Sample], continuations: Sequence[Sequence[int]], share_prefix: bool = True
) -> PackedBatch:
    """Lay out other completions of prompts that `pack` has laid out, to be run on the keys and values it left.

    Each continuation begins with the last token of its prompt, fed again to predict the first token, and sees what
    comes before it in the packed row of `pack(samples, share_prefix)` and itself, but no completion of that row.

    Args:
        samples: What was packed.
        continuations: Token ids of one further completion of each sample's prompt.
        share_prefix: As it was packed.

    Returns:
        As of `pack`, with `R` fed tokens; in place of `masks` and `prefixes` stands `attention_mask`,
        `(1, 1, R, T + R)` over cached and own tokens.
    """
    prefix = common_prefix_length([sample.prompt for sample in samples]) if share_prefix else 0
    input_ids: list[int] = []
    position_ids: list[int] = []
    targets: list[int] = []
    branch: list[int] = []
    paths: list[tuple[int, int, int, int]] = []
    row_length = prefix
    for number, (sample, continuation) in enumerate(zip(samples, continuations, strict=True)):
        own_prompt = len(sample.prompt) - prefix
        here = len(input_ids)
        input_ids += [sample.prompt[-1], *continuation[:-1]]
        position_ids += range(len(sample.prompt) - 1, len(sample.prompt) - 1 + len(continuation))
        targets += continuation
        branch += [number] * len(continuation)
        paths.append((here, len(input_ids), row_length, row_length + own_prompt - 1))
        row_length += own_prompt + sum(len(completion) - 1 for completion in sample.branches)

    fed = len(input_ids)
    mask = torch.zeros(fed, row_length + fed, dtype=torch.bool)
    mask[:, :prefix] = True
    for start, end, prompt_start, prompt_end in paths:
        mask[start:end, prompt_start:prompt_end] = True
        own = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        mask[start:end, row_length + start : row_length + end] = own
    return {
        "input_ids": torch.tensor([input_ids]),
        "position_ids": torch.tensor([position_ids]),
        "attention_mask": mask[None, None],
        "predict_from": torch.arange(fed),
        "targets": torch.tensor(targets),
        "branch": torch.tensor(branch),
    }


def pad(samples: Sequence[Sample], padding: int = 0) -> PackedBatch:
    """Lay `samples` out as plain rows, one for each branch with its prompt, filled up at the end.

    Args:
        samples: At least one sample.
        padding: The token id to fill up with; no token of a row sees it.

    Returns:
        A dictionary, with `R` rows (one for each branch) of `L` tokens:

        - `input_ids`, `attention_mask`: `(R, L)`.
        - `predict_from`, `targets`, `branch`, `labels`, `shift_labels`: as of `pack`, `predict_from` counting the tokens
          of all rows in order, row · L + place.
    """
    rows = [
        ([*sample.prompt, *completion[:-1]], sample, completion) for sample in samples for completion in sample.branches
    ]
    width = max(len(ids) for ids, _, _ in rows)
    predict_from = [
        number * width + len(sample.prompt) - 1 + place
        for number, (_, sample, completion) in enumerate(rows)
        for place in range(len(completion))
    ]
    targets = [token for _, _, completion in rows for token in completion]
    return {
        "input_ids": torch.tensor([ids + [padding] * (width - len(ids)) for ids, _, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _, _ in rows]),
        "predict_from": torch.tensor(predict_from),
        "targets": torch.tensor(targets),
        "branch": torch.tensor([number for number, (_, _, completion) in enumerate(rows) for _ in completion]),
        "labels": torch.tensor([targets]),
        "shift_labels": torch.tensor([targets]),
    }


def join(batches: Sequence[PackedBatch]) -> PackedBatch:
    """Lay batches of one layout side by side in one, in which none sees another.

    Packed rows are laid end to end; padded rows one below the other, filled up to the longest.

    Returns:
        As of `pack` or `pad`, but for what tells branches apart and the labels' other names.
    """
    if is_padded(batches[0]):
        return _join_padded(batches)
    prefixes: list[int] = []
    predict_from = []
    offset = 0
    for batch in batches:
        prefixes += [prefix if prefix < 0 else prefix + len(prefixes) for prefix in batch["prefixes"]]
        predict_from.append(batch["predict_from"] + offset)
        offset += batch["input_ids"].shape[1]
    return {
        "input_ids": torch.cat([batch["input_ids"] for batch in batches], dim=1),
        "position_ids": torch.cat([batch["position_ids"] for batch in batches], dim=1),
        "masks": [mask for batch in batches for mask in batch["masks"]],
        "parts": [lengths for batch in batches for lengths in batch["parts"]],
        "prefixes": prefixes,
        "predict_from": torch.cat(predict_from),
        "targets": torch.cat([batch["targets"] for batch in batches]),
    }


def _join_padded(batches: Sequence[PackedBatch]) -> PackedBatch:
    width = max(batch["input_ids"].shape[1] for batch in batches)
    predict_from = []
    rows = 0
    for batch in batches:
        row, place = (
            batch["predict_from"] // batch["input_ids"].shape[1],
            batch["predict_from"] % batch["input_ids"].shape[1],
        )
        predict_from.append((rows + row) * width + place)
        rows += len(batch["input_ids"])
    return {
        **{
            # What is filled up with does not matter, since no token of a row sees it.
            name: torch.cat([F.pad(batch[name], (0, width - batch[name].shape[1])) for batch in batches])
            for name in ("input_ids", "attention_mask")
        },
        "predict_from": torch.cat(predict_from),
        "targets": torch.cat([batch["targets"] for batch in batches]),
    }


def is_padded(batch: PackedBatch) -> bool:
    """Say whether a batch holds padded rows, and not a packed one."""
    return "masks" not in batch and batch["attention_mask"].dim() == 2


def to_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """Return the batch with all its tensors on `device`; trainers do this by themselves."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in batch.items()}


@dataclass(frozen=True)
class Layout:
    """How rows are laid out for one model.

    Attributes:
        packed: Whether samples are packed in one row; else they are padded.
        cached: Whether further completions can run on the keys and values that a packed row left; else they run with
            their prompts once more.
        padding: The token id that padded rows are filled up with.
        fused: Whether the output head computes losses without holding all logits.
        reason: Why samples are not packed.
    """

    packed: bool = True
    cached: bool = True
    padding: int = 0
    fused: bool = False
    reason: str = ""

    def lay_out(self, samples: Sequence[Sample], share_prefix: bool = True) -> PackedBatch:
        """Return the samples as one batch.

        Args:
            samples: At least one sample.
            share_prefix: In a packed row, compute the tokens that all prompts begin with once.
        """
        return pack(samples, share_prefix) if self.packed else pad(samples, self.padding)

    def continue_from(
        self, samples: Sequence[Sample], completions: Sequence[Sequence[int]], share_prefix: bool = True
    ) -> PackedBatch:
        """Return one further completion of each sample's prompt as a batch, to run on the cache of `lay_out` if `cached`."""
        if self.cached:
            return pack_continuations(samples, completions, share_prefix)
        return self.lay_out([Sample(s.prompt, [c]) for s, c in zip(samples, completions, strict=True)], share_prefix)
