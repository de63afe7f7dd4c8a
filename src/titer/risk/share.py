"""How much of an upload is harmful, from what a detector says of its rows, without any label of the upload."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from titer.stats.intervals import Estimate

ROUNDS = 200
DRAWS = 400


def adapted(log_odds: ArrayLike, share: float) -> NDArray[np.float64]:
    """Return P(harmful) of each row where `share` of the rows is harmful.

    Args:
        log_odds: What the detector says where half of the rows are, `(n,)`.
        share: In [0, 1].
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    if share in (0.0, 1.0):
        return np.full(odds.shape, share)
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-odds - np.log(share / (1 - share)))))


def poisoned_share(log_odds: ArrayLike, seed: int = 0) -> Estimate:
    """Estimate which share of the rows is harmful, with a 95 % interval.

    The maximum-likelihood share given the detector's likelihood ratios (the EM of Saerens, Latinne and Decaestecker 2002: the
    share is the mean of the rows' probabilities at that share). Its interval: percentiles of a bootstrap over rows, joined with
    the shares whose likelihood is within 1.92 of the largest, so that it has a width also where no row is suspicious.

    Args:
        log_odds: What the detector says where half of the rows are harmful, `(n,)`.
        seed: Of the bootstrap.
    """
    odds = np.clip(np.asarray(log_odds, dtype=np.float64), -50, 50)
    weights = np.random.default_rng(seed).multinomial(len(odds), np.full(len(odds), 1 / len(odds)), DRAWS)
    ratio = np.exp(odds)
    best = float(_most_likely(ratio, np.ones((1, len(odds))))[0])
    drawn = _most_likely(ratio, weights.astype(np.float64))
    grid = np.unique(np.concatenate((np.linspace(0, 1, 401), np.geomspace(1e-5, 1e-2, 60), [best])))
    # log Σ of a row: its likelihood under a mixture, over that under harmless rows alone.
    likelihood = np.log1p(np.outer(grid, ratio - 1).clip(-1 + 1e-300)).sum(1)
    likely = grid[likelihood >= likelihood[grid == best][0] - 1.92]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(best, float(min(low, likely[0], best)), float(max(high, likely[-1], best)))


def _most_likely(ratio: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The most likely share for each row of `weights`, which count rows of the upload."""
    share = np.full(len(weights), 0.5)
    for _ in range(ROUNDS):
        posterior = share[:, None] * ratio / (1 + share[:, None] * (ratio - 1))
        share = (weights * posterior).sum(1) / weights.sum(1)
    return share
