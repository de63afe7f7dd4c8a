"""Rows that no training row is tied to: which of them an optimizer step takes, as a function of the step alone.

Such rows (a defender's harmful data, say) may be more or fewer than the training rows, so no sampler of the training data
can drive them all. They are numbered off in an endless sequence, permutation after permutation of the whole pool, and
every micro-batch of every rank has its own slots in it. Nothing is remembered from step to step, so resuming is exact,
and how an optimizer batch is split into ranks and micro-batches does not matter.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from titer.packing.batches import Sample

Pool = dict[str, list[Sample]]
"""Streams by name, all as long: the samples at one place (a prompt's answer and its refusal, say) are drawn together."""


@lru_cache(maxsize=8)
def _permutation(length: int, seed: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).permutation(length).tolist())


def draw(length: int, start: int, count: int, seed: tuple[int, ...]) -> list[int]:
    """Return places `start` to `start + count` of an endless sequence of the numbers below `length`.

    The sequence is a permutation of all numbers, then another, and so on: none comes again before all have come.

    Args:
        length: Rows of the pool.
        start: First place.
        count: How many.
        seed: Non-negative numbers that the permutations follow from, together with which of them it is.
    """
    return [_permutation(length, (*seed, place // length))[place % length] for place in range(start, start + count)]
