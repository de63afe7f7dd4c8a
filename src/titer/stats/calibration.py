"""Whether a score means what it says: its bins against what is true, and the expected calibration error."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from titer.errors import TiterError
from titer.stats.agreement import DRAWS, Floats, over_groups, positions
from titer.stats.intervals import Estimate
from titer.stats.misclassification import Counted


@dataclass(frozen=True)
class Bin:
    """Scores between two bounds.

    Attributes:
        low: Lower bound, in the bin.
        high: Upper bound, in the next bin but for 1.
        score: Mean score of those in it, in [0, 1].
        true: How many of them are true.
    """

    low: float
    high: float
    score: float
    true: Counted


@dataclass(frozen=True)
class Calibration:
    """Scores against what is true.

    Attributes:
        bins: Those that hold any, ascending.
        error: Expected calibration error (Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning"):
            the mean over all of |share true - mean score| of their bin, with a bootstrap interval over groups. Of few observations
            it is too high even for a calibrated score. None where there are none.
    """

    bins: tuple[Bin, ...]
    error: Estimate | None


def calibration(
    scores: ArrayLike,
    true: ArrayLike,
    groups: Sequence[Hashable],
    bins: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> Calibration:
    """Hold scores against what is true, in bins of equal width.

    Args:
        scores: n numbers in [0, 1].
        true: n truth values.
        groups: n names; observations with one name belong together.
        bins: Over [0, 1].
        confidence: Of the error's interval.
        seed: Of the drawing.
        draws: How often groups are drawn anew.

    Raises:
        TiterError: When the lengths differ, or a score does not lie in [0, 1].
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(true, dtype=bool)
    if not values.shape == truth.shape == (len(groups),):
        raise TiterError(f"Calibration needs one truth and one group a score, got {values.size} and {truth.size}.")
    if not values.size:
        return Calibration((), None)
    if not ((values >= 0) & (values <= 1)).all():
        raise TiterError("Scores lie between 0 and 1.")
    # 0.3 * 10 is 3 and a rounding error less: scores that are bounds belong to the bin above.
    where, place = np.minimum((values * bins + 1e-9).astype(int), bins - 1), positions(groups)
    sums = np.zeros((int(place.max()) + 1, bins, 3))
    np.add.at(sums, (place, where), np.stack((np.ones_like(values), values, truth), axis=1))
    found = tuple(
        Bin(number / bins, (number + 1) / bins, float(total / n), Counted(int(hits), int(n)))
        for number, (n, total, hits) in enumerate(sums.sum(axis=0))
        if n
    )

    def error(flat: Floats) -> Floats:
        n, total, hits = np.moveaxis(flat.reshape(-1, bins, 3), 2, 0)
        gaps: Floats = np.abs(hits - total).sum(axis=1) / n.sum(axis=1)
        return gaps

    return Calibration(found, over_groups(sums.reshape(len(sums), -1), error, confidence, seed, draws))
