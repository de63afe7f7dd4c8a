"""Agreement beyond chance with an interval over groups of observations that belong together.

Answers to one prompt are judged rightly or wrongly together, so prompts are drawn anew and not answers. Every statistic here is a
function of sums over groups: drawing groups with replacement is one multinomial draw and one product of matrices, without a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from titer.errors import TiterError
from titer.stats.intervals import Estimate

Floats = NDArray[np.float64]
DRAWS = 2000


def positions(values: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return the place of each value among the different ones, in the order in which they first appear."""
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return np.array([places[value] for value in values], dtype=np.int64)


def over_groups(
    sums: Floats, statistic: Callable[[Floats], Floats], confidence: float = 0.95, seed: int = 0, draws: int = DRAWS
) -> Estimate | None:
    """Return a statistic with its percentile interval under drawing groups anew.

    Args:
        sums: (G, m): what each group adds to the m sums that the statistic is a function of.
        statistic: (B, m) sums to (B,) values; NaN where it is not defined.
        confidence: Of the interval. With few groups a percentile interval is too short.
        seed: Of the drawing.
        draws: B.

    Returns:
        The statistic of all groups, with an interval that holds it; None where it is not defined. Draws in which it is not are
        left out. Of one group the interval says nothing: it is NaN to NaN.
    """
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    if not np.isfinite(value):
        return None
    groups = len(sums)
    if groups < 2:
        return Estimate(value, float("nan"), float("nan"))
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)
    drawn = statistic(weights.astype(np.float64) @ sums)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn[np.isfinite(drawn)], (tail, 1 - tail))
    return Estimate(value, min(float(low), value), max(float(high), value))


def kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimate | None:
    """Cohen's kappa of two judges, with a bootstrap interval over groups of observations.

    Args:
        first: n labels.
        second: n labels of the other.
        groups: n names; observations with one name belong together.
        confidence: Of the interval.
        seed: Of the drawing.
        draws: How often groups are drawn anew.

    Returns:
        As `over_groups`; None when each used the same single label, so that chance alone makes them agree.

    Raises:
        TiterError: When the lengths differ.
    """
    n = len(first)
    if not n == len(second) == len(groups):
        raise TiterError(f"Two judges must judge the same, got {n} and {len(second)} labels in {len(groups)} groups.")
    if n == 0:
        return None
    codes = positions([*first, *second])
    classes, place = int(codes.max()) + 1, positions(groups)
    sums = np.zeros((int(place.max()) + 1, classes * classes))
    np.add.at(sums, (place, codes[:n] * classes + codes[n:]), 1.0)

    def statistic(tables: Floats) -> Floats:
        shares = tables.reshape(-1, classes, classes) / tables.sum(axis=1)[:, None, None]
        observed = np.trace(shares, axis1=1, axis2=2)
        chance = (shares.sum(axis=2) * shares.sum(axis=1)).sum(axis=1)
        # Of one label alone `chance` is 1 but for rounding.
        defined = 1 - chance > 1e-12
        return np.where(defined, (observed - chance) / np.where(defined, 1 - chance, 1.0), np.nan)

    return over_groups(sums, statistic, confidence, seed, draws)
