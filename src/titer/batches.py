"""Packing without padding: many samples in one row, shared tokens computed once.

A batch is one row of `T` tokens laid out as a forest. All prompts of a chat model begin with the same tokens (the
system prompt): that common *prefix* stands once at the front. Each sample follows as its own prompt and then one or
more *branches*, completions of that same prompt (an answer and a refusal, say) which see the prompt but not each other:

    prefix | prompt 1, answer 1, refusal 1 | prompt 2, answer 2, refusal 2 | …

A token attends to itself and to what comes before it on its own path prefix → prompt → branch, and its position is its
distance from the start of that path. So each branch computes exactly what it would compute alone in a padded row, and
its gradient reaches the shared tokens once for every branch that uses them.

Two ways to run the same row: `PACKED_ATTENTION` computes attention sample by sample, with a small mask for each, so
that neither time nor memory grows with the square of the packed length; `dense_mask` makes the one mask of shape
`(1, 1, T, T)` that any attention of transformers understands. Only completion tokens are ever supervised.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_ATTENTION = "titer_packed"

PackedBatch = dict[str, Any]
"""What `pack` returns: tensors and lists by name, so that data loaders and devices treat it as any other batch."""


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


def join(batches: Sequence[PackedBatch]) -> PackedBatch:
    """Lay packed rows end to end in one row, in which none sees another.

    Returns:
        As of `pack`, but for what tells branches apart: `input_ids`, `position_ids`, `masks`, `prefixes`,
        `predict_from` and `targets`.
    """
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
        "prefixes": prefixes,
        "predict_from": torch.cat(predict_from),
        "targets": torch.cat([batch["targets"] for batch in batches]),
    }


def to_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """Return the batch with all its tensors on `device`; trainers do this by themselves."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in batch.items()}


@dataclass(frozen=True)
class Spans:
    """How a packed row divides, for `packed_attention`; made once and used by every layer.

    Attributes:
        lengths: Tokens of each prefix and sample, in order.
        prefixes: Which of them is the prefix of each, `-1` for a prefix itself.
        masks: Of each, as `pack` makes them.
    """

    lengths: list[int]
    prefixes: list[int]
    masks: list[Tensor]


def spans_of(batch: PackedBatch) -> Spans:
    """Return how a packed row divides."""
    return Spans([mask.shape[2] for mask in batch["masks"]], batch["prefixes"], batch["masks"])


def dense_mask(batch: PackedBatch) -> Tensor:
    """Return `(1, 1, T, T)`, true where a token of a packed row may look, for attention that knows no spans."""
    spans = spans_of(batch)
    ends = list(itertools.accumulate(spans.lengths))
    mask = torch.zeros(1, 1, ends[-1], ends[-1], dtype=torch.bool, device=batch["input_ids"].device)
    for end, length, prefix, own in zip(ends, spans.lengths, spans.prefixes, spans.masks, strict=True):
        mask[..., end - length : end, end - length : end] = own[..., own.shape[3] - length :]
        if prefix >= 0:
            shared = slice(ends[prefix] - spans.lengths[prefix], ends[prefix])
            mask[..., end - length : end, shared] = own[..., : own.shape[3] - length]
    return mask


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    spans: Spans | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed row, one sample at a time; without `spans` it is the library's SDPA.

    Args:
        module: The attention layer that calls.
        query: `(1, heads, T, head_dim)`.
        key: `(1, key_value_heads, T, head_dim)`.
        value: As `key`.
        attention_mask: What the library's SDPA takes; not read with `spans`.
        dropout: Attention dropout probability.
        scaling: Factor on the dot products, the inverse square root of `head_dim` when not given.
        spans: How the row divides.
        kwargs: What else the library hands to attention functions.

    Returns:
        The output `(1, T, heads, head_dim)` and no attention weights.
    """
    if spans is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    # `split` and not slices: the gradient of a slice is a whole row of zeros, that of a split one concatenation.
    queries, keys, values = (x.split(spans.lengths, dim=2) for x in (query, key, value))
    outputs = []
    for span, (prefix, mask) in enumerate(zip(spans.prefixes, spans.masks, strict=True)):
        if spans.lengths[span] == 0:
            continue
        shared = prefix >= 0 and spans.lengths[prefix] > 0
        outputs.append(
            F.scaled_dot_product_attention(
                queries[span],
                torch.cat((keys[prefix], keys[span]), dim=2) if shared else keys[span],
                torch.cat((values[prefix], values[span]), dim=2) if shared else values[span],
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None
