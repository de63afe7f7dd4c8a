"""Attention in 16 bits on CPUs, by matrix products of which nothing but the inputs is kept.

The fused kernel of CPUs goes backward in 16 bits several times slower than in float32, as long as samples are short
(docs/benchmarks.md has the figures); of short samples all scores can be held for the time of a product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST = 160 * 160
"""Most scores of a head; samples that have more go through the fused kernel, which is as fast from about 200 tokens on."""


def takes(query: Tensor, key: Tensor, precision: torch.dtype) -> bool:
    """Say whether a sample's attention is computed here.

    Args:
        query: `(1, heads, queries, head_dim)`.
        key: `(1, heads, keys, head_dim)`.
        precision: What it is computed in.
    """
    half = precision in (torch.bfloat16, torch.float16)
    return half and query.device.type == "cpu" and query.shape[2] * key.shape[2] <= LARGEST


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None = None) -> Tensor:
    """Return the attention of a sample, `(1, heads, queries, head_dim)`.

    Args:
        query: `(1, heads, queries, head_dim)`, in 16 bits.
        key: `(1, heads, keys, head_dim)`, likewise.
        value: As `key`.
        mask: `(1, 1, queries, keys)`, true where a query sees a key; each sees one at least.
        scaling: Factor on the dot products, the inverse square root of `head_dim` when not given.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _Attention.apply(query, key, value, mask, scale)  # type: ignore[no-untyped-call, unused-ignore]
    return output


class _Attention(torch.autograd.Function):
    """softmax(scale · q kᵀ) v under a mask: scores, softmax and their gradients in float32, the other products in 16 bits.

    As the fused kernel rounds; the backward pass computes the scores anew, so that it keeps no more than that one does.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        """Return what `attend` does."""
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        with torch.autocast("cpu", enabled=False):
            return _weights(query, key, mask, scale).to(value.dtype) @ value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients by query, key and value."""
        query, key, value, mask = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            weights = _weights(query, key, mask, ctx.scale)
            slopes = gradient.float() @ value.float().transpose(2, 3)
            slopes -= (slopes * weights).sum(-1, keepdim=True)
            by_score = slopes.mul_(weights).mul_(ctx.scale).to(query.dtype)
            by_value = weights.to(value.dtype).transpose(2, 3) @ gradient
            return by_score @ key, by_score.transpose(2, 3) @ query, by_value, None, None


def _weights(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return the softmax of the scores, `(1, heads, queries, keys)` in float32."""
    scores = query.float() @ key.float().transpose(2, 3)
    return scores.mul_(scale).masked_fill_(~mask, torch.finfo(scores.dtype).min).softmax(-1)
