"""Attention over a packed row in one kernel, on accelerators in half precision: each path of the row is a sequence of its own.

A packed row is a forest (`titer.packing.batches`). Its pieces (the prefix, a prompt with its first completion, each further
completion) lie one after the other, and a token sees its own piece up to itself and the whole of what its piece grows from.
So queries stay where they are, and each piece's keys are gathered: those of the prefix, of the prompt, and its own.
FlashAttention (arXiv 2307.08691) takes such sequences of different lengths, with the last query of each on its last key.

Its kernel has no bound on scores and no sinks, and runs on CUDA in half precision alone. Elsewhere the loop over samples
stays, which is the reference; before the kernel is first used for a shape of heads, both compute a small forest with its
gradients, and where they part the loop stays there, too, which is said.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Pieces:
    """How the keys of a packed row's pieces are gathered, with `P` pieces and `K` keys in all.

    Attributes:
        keys: `(K,)`, the token of the row that each gathered key is.
        query_ends: `(P + 1,)`, where each piece's queries begin and end, as int32.
        key_ends: `(P + 1,)`, the same of its keys.
        longest_query: Most queries of a piece.
        longest_key: Most keys of a piece.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


def pieces_of(parts: Sequence[Sequence[int]], prefixes: Sequence[int], device: torch.device) -> Pieces:
    """Return the pieces of a packed row.

    Args:
        parts: Of each prefix and sample, how many tokens its own part of the prompt and then each completion feeds.
        prefixes: Which of them is the prefix of each, `-1` for a prefix itself.
        device: Where the row is.
    """
    begins = [0, *itertools.accumulate(sum(lengths) for lengths in parts)]
    keys: list[int] = []
    query_sizes, key_sizes = [], []
    for begin, prefix, (prompt, *completions) in zip(begins[:-1], prefixes, parts, strict=True):
        shared = range(begins[prefix], begins[prefix + 1]) if prefix >= 0 else range(0)
        asked = range(begin, begin + prompt)
        # The first completion goes with its prompt: what it grows from is its own piece.
        first, further = sum(completions[:1]), completions[1:]
        grown = [(asked[:0], range(begin, begin + prompt + first))]
        end = begin + prompt + first
        for length in further:
            grown.append((asked, range(end, end + length)))
            end += length
        for stem, own in grown:
            if own:
                keys += [*shared, *stem, *own]
                query_sizes.append(len(own))
                key_sizes.append(len(shared) + len(stem) + len(own))

    def ends(sizes: list[int]) -> Tensor:
        return torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32, device=device)

    gathered = torch.tensor(keys, device=device)
    return Pieces(gathered, ends(query_sizes), ends(key_sizes), max(query_sizes), max(key_sizes))


def attend(
    kernel: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Return causal attention of each piece to what it grows from and itself.

    Args:
        kernel: `torch.nn.attention.varlen.varlen_attn`, or what computes the same.
        query: `(1, heads, T, head_dim)`.
        key: `(1, heads, T, head_dim)`.
        value: As `key`.
        pieces: Of the row.
        scaling: Factor on the dot products, the inverse square root of `head_dim` when not given.
        window: How many tokens a token sees, itself included; all earlier ones when not given.

    Returns:
        `(1, T, heads, head_dim)`.
    """
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    if len(pieces.keys) != len(keys):
        keys, values = keys[pieces.keys], values[pieces.keys]
    output: Tensor = kernel(
        queries.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        pieces.query_ends,
        pieces.key_ends,
        pieces.longest_query,
        pieces.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )
    return output[None]


def kernel_for(query: Tensor, precision: torch.dtype) -> Callable[..., Any] | None:
    """Return the kernel that computes heads like these on their device and in that precision rightly, if there is one."""
    if query.device.type != "cuda" or precision not in HALVES:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # of an older torch
        return None
    kernel: Callable[..., Any] = varlen_attn
    return kernel if _holds(kernel, query.device, precision, query.shape[1], query.shape[3]) else None


@functools.cache
def _holds(kernel: Callable[..., Any], device: torch.device, dtype: torch.dtype, heads: int, size: int) -> bool:
    """Say whether a kernel's outputs and gradients on a small forest are those of the loop; says so where they are not."""
    try:
        # Whatever surrounds the first use: evaluation without gradients, autocast.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            apart = distance(kernel, device, dtype, heads, size)
    except RuntimeError as error:
        logger.warning("Attention runs sample by sample: the kernel for packed rows fails here (%s).", error)
        return False
    # Of numbers of about 1, each rounded to the precision's last place once or a few times.
    if apart > 8 * torch.finfo(dtype).eps:
        logger.warning("Attention runs sample by sample: the kernel for packed rows is off by %.2g here.", apart)
        return False
    return True


def distance(kernel: Callable[..., Any], device: torch.device, dtype: torch.dtype, heads: int, size: int) -> float:
    """Return how far a kernel is from the definition on a small forest: the largest difference, outputs and gradients alike.

    Args:
        kernel: As of `attend`.
        device: Where to compute.
        dtype: In which precision the kernel computes; the definition computes in float32 or better on the same numbers.
        heads: Of the attention.
        size: Of a head.

    Returns:
        The largest absolute difference, relative to the largest number of its tensor.
    """
    parts, prefixes = [[3], [2, 3, 2], [4, 0], [1, 5]], [-1, 0, 0, -1]
    pieces = pieces_of(parts, prefixes, device)
    draw = torch.Generator(device).manual_seed(0)
    total = sum(map(sum, parts))
    worst = 0.0
    for window in (None, 3):
        made = [torch.randn(1, heads, total, size, generator=draw, device=device).to(dtype) for _ in range(4)]
        both = []
        for own in (dtype, torch.promote_types(dtype, torch.float32)):
            query, key, value = given = [x.to(own).requires_grad_() for x in made[:3]]
            compute = kernel if own is dtype else longhand
            output = attend(compute, query, key, value, pieces, None, window)
            both.append([output, *torch.autograd.grad(output, given, made[3].to(own).transpose(1, 2))])
        for found, wanted in zip(*both, strict=True):
            apart = (found.detach().to(wanted) - wanted).abs().max() / wanted.abs().max()
            worst = max(worst, apart.item())
    return worst


def longhand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> Tensor:
    """Compute what the kernel computes, piece by piece: the last query of each on its last key, and none looks ahead.

    Args:
        query: `(T, heads, head_dim)`.
        key: `(K, heads, head_dim)`.
        value: As `key`.
        query_ends: As of `Pieces`.
        key_ends: As of `Pieces`.
        longest_query: Not needed here.
        longest_key: Not needed here.
        scale: Factor on the dot products, the inverse square root of `head_dim` when not given.
        window_size: How many keys before its own a query sees, `-1` for all, and how many after it, which is 0.
    """
    outputs = []
    pairs = zip(itertools.pairwise(query_ends.tolist()), itertools.pairwise(key_ends.tolist()), strict=True)
    for (first, last), (start, end) in pairs:
        place = torch.arange(end - start - (last - first), end - start, device=query.device)[:, None]
        other = torch.arange(end - start, device=query.device)[None]
        seen = other <= place
        if window_size[0] >= 0:
            seen &= other >= place - window_size[0]
        scores = torch.einsum("qhd,khd->hqk", query[first:last], key[start:end])
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, value[start:end]))
    return torch.cat(outputs)
