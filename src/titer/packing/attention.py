"""Attention over a packed row, one sample at a time, and how a model is switched to it and back.

`PACKED_ATTENTION` has a small mask for each sample, so that neither time nor memory grows with the square of the packed length.
On accelerators in half precision one kernel takes the whole row (`titer.packing.varlen`); on CPUs short samples go through
products of matrices (`titer.packing.halves`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titer.compat import attention_of, library_attention, register_attention
from titer.packing.batches import PackedBatch
from titer.packing.halves import Group, computes, grouped
from titer.packing.halves import attend as attend_in_halves
from titer.packing.varlen import Pieces, kernel_for, pieces_of
from titer.packing.varlen import attend as attend_in_one

PACKED_ATTENTION = "titer_packed"


@dataclass(frozen=True)
class Spans:
    """How a packed row divides, for `packed_attention`; made once and used by every layer.

    Attributes:
        lengths: Tokens of each prefix and sample, in order.
        prefixes: Which of them is the prefix of each, `-1` for a prefix itself.
        masks: Of each, as `pack` makes them.
        positions: `(T,)`, the distance of each token from the start of its path.
        parts: Of each, how many tokens its own part of the prompt and each branch feed.
    """

    lengths: list[int]
    prefixes: list[int]
    masks: list[Tensor]
    positions: Tensor
    parts: list[list[int]]
    _windowed: dict[int, list[Tensor]] = field(default_factory=dict)
    _grouped: dict[int | None, list[Group]] = field(default_factory=dict)

    def within(self, window: int | None) -> list[Tensor]:
        """Return the masks of a layer in which a token sees only itself and the `window` − 1 tokens before it."""
        # By shapes alone, for which no accelerator is waited for, and which tensors without numbers have too.
        if window is None or max(mask.shape[3] for mask in self.masks) <= window:
            return self.masks
        if window not in self._windowed:
            places = self.positions.split(self.lengths)
            self._windowed[window] = [
                mask & (own[:, None] - (torch.cat((places[prefix], own)) if prefix >= 0 else own)[None, :] < window)
                for own, prefix, mask in zip(places, self.prefixes, self.masks, strict=True)
            ]
        return self._windowed[window]

    def groups(self, window: int | None) -> list[Group]:
        """Return the short samples, in groups that are computed at once, for a layer with such a window."""
        if window not in self._grouped:
            self._grouped[window] = grouped(self.lengths, self.prefixes, self.within(window))
        return self._grouped[window]

    @functools.cached_property
    def pieces(self) -> Pieces:
        """What one kernel for the whole row wants to know of it."""
        return pieces_of(self.parts, self.prefixes, self.positions.device)


def spans_of(batch: PackedBatch) -> Spans:
    """Return how a packed row divides."""
    lengths = [mask.shape[2] for mask in batch["masks"]]
    return Spans(lengths, batch["prefixes"], batch["masks"], batch["position_ids"][0], batch["parts"])


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    spans: Spans | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed row, one sample at a time; without `spans` plain attention under the mask given.

    Args:
        module: The attention layer that calls.
        query: `(1, heads, T, head_dim)`.
        key: `(1, key_value_heads, T, head_dim)`.
        value: As `key`.
        attention_mask: What the library's attention functions take; not read with `spans`.
        dropout: Attention dropout probability.
        scaling: Factor on the dot products, the inverse square root of `head_dim` when not given.
        spans: How the row divides.
        sliding_window: How many tokens a token sees, itself included; all earlier ones when not given.
        softcap: c of c · tanh(score / c), which bounds attention scores (Gemma 2, arXiv 2408.00118).
        s_aux: `(heads,)`, a score in each head's softmax that belongs to no token (gpt-oss).
        kwargs: What else the library hands to attention functions.

    Returns:
        The output `(1, T, heads, head_dim)` and no attention weights.

    Raises:
        NotImplementedError: For a further tensor of real numbers, which some models add to the scores.
    """
    for name, given in kwargs.items():
        if isinstance(given, Tensor) and given.is_floating_point():
            raise NotImplementedError(f"packed attention does not know what `{name}` does to attention")
    if spans is None and softcap is None and s_aux is None:
        return library_attention(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    attend = functools.partial(_attend, dropout=dropout, scaling=scaling, softcap=softcap, sinks=s_aux)
    if spans is None:
        if attention_mask is None:
            causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            attention_mask = causal.tril(key.shape[2] - query.shape[2])[None, None]
        key, value = (_for_each_head(x, query) for x in (key, value))
        return attend(query, key, value, attention_mask).transpose(1, 2).contiguous(), None
    kernel, groups = None, []
    if softcap is None and s_aux is None and not dropout:
        precision = query.dtype
        if torch.is_autocast_enabled(query.device.type) and query.dtype != torch.float64:  # which autocast leaves alone
            precision = torch.get_autocast_dtype(query.device.type)
        kernel = kernel_for(query, precision)
        groups = spans.groups(sliding_window) if computes(query, precision) else []
        if kernel is not None or groups:
            # Autocast does that for operations that it knows.
            query, key, value = (x.to(precision) for x in (query, key, value))
    done: dict[int, Tensor] = {}
    if groups:
        output = attend_in_halves(query, key, value, groups, scaling)
        pieces = output.split(spans.lengths, dim=1)
        done = {place: pieces[place] for group in groups for place in group.places}
        if all(place in done for place, length in enumerate(spans.lengths) if length):
            return output, None
    key, value = (_for_each_head(x, query) for x in (key, value))
    if kernel is not None:
        return attend_in_one(kernel, query, key, value, spans.pieces, scaling, sliding_window), None
    # `split` and not slices: the gradient of a slice is a whole row of zeros, that of a split one concatenation.
    queries, keys, values = (x.split(spans.lengths, dim=2) for x in (query, key, value))
    for place, (prefix, mask) in enumerate(zip(spans.prefixes, spans.within(sliding_window), strict=True)):
        if spans.lengths[place] == 0 or place in done:
            continue
        shared = prefix >= 0 and spans.lengths[prefix] > 0
        done[place] = attend(
            queries[place],
            torch.cat((keys[prefix], keys[place]), dim=2) if shared else keys[place],
            torch.cat((values[prefix], values[place]), dim=2) if shared else values[place],
            mask,
        ).transpose(1, 2)
    # Transposed before they are joined, so that what comes out lies in memory as layers expect it.
    return torch.cat([done[place] for place in sorted(done)], dim=1), None


def _for_each_head(tensor: Tensor, query: Tensor) -> Tensor:
    """Return keys or values, `(1, key_value_heads, T, head_dim)`, once for each head of the queries."""
    groups = query.shape[1] // tensor.shape[1]
    return tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return softmax(scores) · value under a mask, `(batch, heads, queries, head_dim)`."""
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    # No fused kernel bounds scores or has sinks; a sample's scores are small.
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask.dtype == torch.bool:
        # Not minus infinity: padding that may look nowhere would become nan, and so all that multiplies it by zero.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    precise = scores if scores.dtype == torch.float64 else scores.float()
    if sinks is not None:
        sink = sinks.to(precise).reshape(1, -1, 1, 1).expand(*precise.shape[:3], 1)
        precise = torch.cat((precise, sink), dim=-1)
    weights = precise.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return F.dropout(weights, dropout) @ value


def use_packed_attention(model: Any) -> None:
    """Switch a bare model to packed attention, whether it computes packed rows rightly then or not."""
    register_attention(PACKED_ATTENTION, packed_attention)
    model.set_attn_implementation(PACKED_ATTENTION)
    if attention_of(model.config) != PACKED_ATTENTION:
        raise NotImplementedError("its attention is its own and cannot be exchanged")


@contextmanager
def eager_attention(bare: Any) -> Iterator[None]:
    """Run a model under its `eager` attention, which is its definition, where it has one."""
    attention = attention_of(bare.config)
    if attention != "eager":
        bare.set_attn_implementation("eager")
    try:
        yield
    finally:
        if attention != "eager":
            bare.set_attn_implementation(attention)
