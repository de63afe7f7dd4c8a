"""Attention in 16 bits on CPUs: samples of like length at once, by matrix products, of which nothing but the inputs is kept.

The fused kernel of CPUs goes backward in 16 bits several times slower than in float32, as long as samples are short
(docs/benchmarks.md has the figures), and is called for each sample by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_SCORES = 160 * 160
"""Most scores of a head; samples that have more go through the fused kernel, which is as fast from about 200 tokens on."""

AT_ONCE = 2 * MOST_SCORES
"""Most scores of a head that are held at once, padding among them; of more, a core's cache does not hold those of all heads."""

FILLED = 0.7
"""Least part of such scores that is not padding."""


def computes(query: Tensor, precision: torch.dtype) -> bool:
    """Say whether short samples are computed here, on the device of `query` and in a precision."""
    return query.device.type == "cpu" and precision in (torch.bfloat16, torch.float16)


class Span(NamedTuple):
    """A prefix or sample of a packed row.

    Attributes:
        place: Its number in the row.
        queries: Which tokens are its own.
        keys: Which tokens these may see: those of its prefix, and its own.
    """

    place: int
    queries: range
    keys: list[int]


@dataclass(frozen=True)
class Group:
    """Samples of a packed row that are computed at once; B of them, with up to Q tokens of their own that see up to K.

    Attributes:
        places: Their numbers in the row.
        tokens: `(n,)`, their own tokens, one after the other.
        padded: `(n,)`, the place of each of these in `(B · Q)`.
        queries: `(B · Q,)`, the token of each place, where there is none the sample's first: what is no number stays in its sample.
        keys: `(B · K,)`, likewise.
        hidden: `(B, 1, 1, Q, K)`, true where a query does not see a key.
    """

    places: list[int]
    tokens: Tensor
    padded: Tensor
    queries: Tensor
    keys: Tensor
    hidden: Tensor


def grouped(lengths: Sequence[int], prefixes: Sequence[int], masks: Sequence[Tensor]) -> list[Group]:
    """Return the short samples of a packed row in groups, as `titer.packing.attention.Spans` describes the row.

    Args:
        lengths: Tokens of each prefix and sample, in order.
        prefixes: Which of them is the prefix of each, `-1` for a prefix itself.
        masks: Of each, `(1, 1, queries, keys)`, true where a query sees a key.
    """
    spans = [span for span in _spans(lengths, prefixes) if 0 < len(span.queries) * len(span.keys) <= MOST_SCORES]
    spans.sort(key=lambda span: (len(span.keys), len(span.queries)))
    groups: list[list[Span]] = []
    for span in spans:
        if groups and _fits([*groups[-1], span]):
            groups[-1].append(span)
        else:
            groups.append([span])
    return [_group(group, masks) for group in groups]


def _spans(lengths: Sequence[int], prefixes: Sequence[int]) -> Iterator[Span]:
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    for place, prefix in enumerate(prefixes):
        own = range(starts[place], starts[place] + lengths[place])
        before = range(starts[prefix], starts[prefix] + lengths[prefix]) if prefix >= 0 else range(0)
        yield Span(place, own, [*before, *own])


def _fits(spans: Sequence[Span]) -> bool:
    held = len(spans) * max(len(span.queries) for span in spans) * max(len(span.keys) for span in spans)
    return held <= AT_ONCE and sum(len(span.queries) * len(span.keys) for span in spans) >= FILLED * held


def _group(spans: Sequence[Span], masks: Sequence[Tensor]) -> Group:
    wide, high = (max(map(len, of)) for of in ([span.queries for span in spans], [span.keys for span in spans]))
    device = masks[0].device
    hidden = torch.ones(len(spans), 1, 1, wide, high, dtype=torch.bool, device=device)
    for sample, span in zip(hidden, spans, strict=True):
        sample[0, 0, : len(span.queries), : len(span.keys)] = ~masks[span.place][0, 0]

    def ids(found: Sequence[int]) -> Tensor:
        return torch.tensor(found, device=device)

    return Group(
        places=[span.place for span in spans],
        tokens=ids([token for span in spans for token in span.queries]),
        padded=ids([number * wide + place for number, span in enumerate(spans) for place in range(len(span.queries))]),
        queries=ids([token for span in spans for token in _filled(span.queries, wide, span)]),
        keys=ids([token for span in spans for token in _filled(span.keys, high, span)]),
        hidden=hidden,
    )


def _filled(tokens: Sequence[int], size: int, span: Span) -> list[int]:
    return [*tokens, *[span.queries[0]] * (size - len(tokens))]


def attend(query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Group], scaling: float | None = None) -> Tensor:
    """Return the attention of all samples of groups, `(1, T, heads, head_dim)`; of other tokens it is zero.

    Args:
        query: `(1, heads, T, head_dim)`, in 16 bits.
        key: `(1, key_value_heads, T, head_dim)`, likewise.
        value: As `key`.
        groups: What `grouped` returns.
        scaling: Factor on the dot products, the inverse square root of `head_dim` when not given.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _Attention.apply(query, key, value, groups, scale)  # type: ignore[no-untyped-call, unused-ignore]
    return output


class _Attention(torch.autograd.Function):
    """softmax(scale · q kᵀ) v of each sample: scores, softmax and their gradients in float32, the other products in 16 bits.

    As the fused kernel rounds; the backward pass computes the scores anew, so that it keeps no more than that one does.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Group], scale: float) -> Tensor:
        """Return what `attend` does."""
        ctx.save_for_backward(query, key, value)
        ctx.groups, ctx.scale = groups, scale
        output = query.new_zeros(query.shape[2], query.shape[1], value.shape[3])
        with torch.autocast("cpu", enabled=False):
            for group in groups:
                sample = _Samples(group, query, key, value)
                weights = sample.weights(scale)
                sample.put(output, weights.to(value.dtype) @ sample.value)
        return output[None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients by query, key and value."""
        query, key, value = ctx.saved_tensors
        by_query = query.new_zeros(query.shape[2], query.shape[1], query.shape[3])
        # In float32, for every sample with the same prefix adds to it.
        by_key, by_value = (x.new_zeros(x.shape[2], x.shape[1], x.shape[3], dtype=torch.float32) for x in (key, value))
        with torch.autocast("cpu", enabled=False):
            for group in ctx.groups:
                sample = _Samples(group, query, key, value)
                upstream, weights = sample.take(gradient[0]), sample.weights(ctx.scale)
                slopes = upstream.float() @ sample.value.float().transpose(1, 2)
                slopes -= (slopes * weights).sum(-1, keepdim=True)
                by_score = slopes.mul_(weights).mul_(ctx.scale).to(query.dtype)
                sample.put(by_query, by_score @ sample.key)
                sample.add(by_key, by_score.transpose(1, 2) @ sample.query)
                sample.add(by_value, weights.to(value.dtype).transpose(1, 2) @ upstream)
        found = (by_query, by_key.to(key.dtype), by_value.to(value.dtype))
        return *(x.transpose(0, 1)[None] for x in found), None, None


class _Samples:
    """The queries, keys and values of a group, batches for products: a batch is a sample's key-value head.

    Args:
        group: Which samples.
        query: `(1, heads, T, head_dim)` of the packed row.
        key: `(1, key_value_heads, T, head_dim)`.
        value: As `key`.

    Attributes:
        query: `(B · key_value_heads, heads / key_value_heads · Q, head_dim)`: heads with the same keys stand below each other.
        key: `(B · key_value_heads, K, head_dim)`.
        value: As `key`.
    """

    def __init__(self, group: Group, query: Tensor, key: Tensor, value: Tensor) -> None:
        self.group = group
        self.samples, _, _, self.wide, self.high = group.hidden.shape
        self.heads, self.shared = key.shape[1], query.shape[1] // key.shape[1]
        self.query = self._stacked(query[0].transpose(0, 1)[group.queries])
        self.key, self.value = (self._apart(x[0].transpose(0, 1)[group.keys]) for x in (key, value))

    def weights(self, scale: float) -> Tensor:
        """Return the softmax of the scores, `(B · key_value_heads, heads / key_value_heads · Q, K)` in float32."""
        scores = self.query.float() @ self.key.float().transpose(1, 2)
        shape = scores.shape
        scores = scores.view(self.samples, self.heads, self.shared, self.wide, self.high).mul_(scale)
        return scores.masked_fill_(self.group.hidden, torch.finfo(scores.dtype).min).softmax(-1).view(shape)

    def take(self, row: Tensor) -> Tensor:
        """Return what a row of tokens, `(T, heads, head_dim)`, holds for the queries, as `query` is; zero for padding."""
        padded = row.new_zeros(self.samples * self.wide, *row.shape[1:])
        return self._stacked(padded.index_copy_(0, self.group.padded, row[self.group.tokens]))

    def put(self, row: Tensor, found: Tensor) -> None:
        """Write what was found for the queries, as `query` is, into a row of tokens."""
        by_head = found.view(self.samples, self.heads, self.shared, self.wide, -1).permute(0, 3, 1, 2, 4)
        flat = by_head.reshape(self.samples * self.wide, *row.shape[1:])
        row.index_copy_(0, self.group.tokens, flat[self.group.padded])

    def add(self, row: Tensor, found: Tensor) -> None:
        """Add what was found for the keys, as `key` is, to a row of tokens in float32; what is padding is zero."""
        by_head = found.view(self.samples, self.heads, self.high, -1).transpose(1, 2)
        row.index_add_(0, self.group.keys, by_head.reshape(self.samples * self.high, *row.shape[1:]).to(row.dtype))

    def _stacked(self, rows: Tensor) -> Tensor:
        """From `(B · Q, heads, head_dim)`."""
        by_head = rows.view(self.samples, self.wide, self.heads, self.shared, -1).permute(0, 2, 3, 1, 4)
        return by_head.reshape(self.samples * self.heads, self.shared * self.wide, -1)

    def _apart(self, rows: Tensor) -> Tensor:
        """From `(B · K, key_value_heads, head_dim)`."""
        by_head = rows.view(self.samples, self.high, self.heads, -1).transpose(1, 2)
        return by_head.reshape(self.samples * self.heads, self.high, -1)
