"""Stability and trainability as equivalence: not worse by more than a margin, and enough data to say so."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from titer.errors import TiterError
from titer.stats.intervals import Difference, paired_mean, paired_shares

Finding = Literal["equivalent", "different", "undecided"]
FEWEST_VALUES = 30
"""Values that a t interval needs; of fewer, skewed ones, it promises too much."""


class Equivalence(NamedTuple):
    """A paired difference held against a margin.

    Attributes:
        difference: Of the means, with its 90 % interval, whose two ends are two one-sided tests at 5 %.
        margin: ε.
        finding: `equivalent` when the interval lies within ±ε, `different` when it lies outside, `undecided` when it
            straddles: too few prompts to say.
        n: Prompts.
        enough: Whether they are enough for the interval to be trusted.
    """

    difference: Difference
    margin: float
    finding: Finding
    n: int
    enough: bool

    @property
    def not_worse(self) -> bool | None:
        """Whether the difference is above −ε with confidence; `None` when the data do not tell."""
        if self.enough and self.difference.low > -self.margin:
            return True
        return False if self.enough and self.difference.high <= -self.margin else None

    @property
    def needed(self) -> float | None:
        """About how many prompts tell whether it is worse by ε, were mean and spread as they are; `None` where n does.

        Infinite where the difference is ε itself: no number of prompts tells on which side it lies.
        """
        if self.not_worse is not None:
            return None
        distance = abs(self.difference.mean + self.margin)
        if not distance:
            return math.inf
        half = (self.difference.high - self.difference.low) / 2
        return max(FEWEST_VALUES, self.n + 1, math.ceil(self.n * (half / distance) ** 2))


def equivalence(defended: ArrayLike, undefended: ArrayLike, margin: float, shares: bool = False) -> Equivalence:
    """Test whether two models do equally well on the same prompts, up to `margin` (two one-sided tests, Schuirmann 1987).

    The absence of a significant difference is no evidence of equality; an interval inside the margin is.

    Args:
        defended: One value a prompt, the defended model's.
        undefended: The same prompts in the same order, the other model's.
        margin: ε, in the units of the values.
        shares: Whether the values are shares in [0, 1], right answers for example. Two models that agree on every one of
            a few prompts have no t interval, and have shown little; `paired_shares` gives them one. Other values need to
            be `FEWEST_VALUES`.
    """
    if not margin > 0:
        raise TiterError(f"A margin of equivalence must be above 0, not {margin}.")
    if shares:
        difference = paired_shares(defended, undefended, confidence=0.9)
    else:
        difference = paired_mean(defended, undefended, confidence=0.9)
    n = np.size(defended)
    enough = shares or n >= FEWEST_VALUES
    finding: Finding = "undecided"
    if enough and -margin < difference.low and difference.high < margin:
        finding = "equivalent"
    elif enough and (difference.high <= -margin or difference.low >= margin):
        finding = "different"
    return Equivalence(difference, margin, finding, n, enough)
