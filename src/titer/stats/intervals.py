"""Intervals and agreement: every figure titer reports comes with n and one of these.

Proportions and differences are plain fractions here; percent is made once, in `titer.results.scoring`.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from titer.errors import TiterError


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value with the ends of its confidence interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference with its interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


class Agreement(NamedTuple):
    """How far two judges agree.

    Attributes:
        n: Responses that both judged.
        excluded: Responses on which either failed; they enter nothing else.
        agreement: Share of the n on which they agree, in [0, 1].
        kappa: Cohen's kappa; None when chance alone would make them agree fully (each used the same single label).
    """

    n: int
    excluded: int
    agreement: float
    kappa: float | None


def log_odds(chance: float, least: float = 1e-6) -> float:
    """Return the log odds of a probability, of one that is `least` away from 0 and 1 where it is closer: they can be drawn."""
    chance = min(max(chance, least), 1 - least)
    return math.log(chance) - math.log1p(-chance)


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927, without continuity correction).

    Unlike the textbook interval it stays in [0, 1], and keeps a width at 0 of n and n of n. Neither number need be whole:
    the successes of an average over runs are not, nor is an effective sample size.

    Raises:
        TiterError: When n is not positive, or `successes` is not in [0, n].
    """
    if n <= 0:
        raise TiterError("An interval needs at least one observation, got n = 0.")
    if not 0 <= successes <= n:
        raise TiterError(f"{successes} successes of {n} are impossible.")
    z = z_score(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the formula gives exactly 0 and 1; rounding must not push the bound past the estimate.
    return Interval(
        0.0 if successes == 0 else min(p, max(0.0, centre - half)),
        1.0 if successes == n else max(p, min(1.0, centre + half)),
    )


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counting one half.

    Exact (the Mann-Whitney statistic on midranks), not an integral over thresholds.

    Args:
        scores: n scores; higher means more likely positive.
        labels: n truth values.

    Raises:
        TiterError: When a score is not finite, the lengths differ, or one of the two classes is missing.
    """
    values, positive = _scores_and_labels(scores, labels)
    return _auroc(values, positive)


def auroc_interval(scores: ArrayLike, labels: ArrayLike, confidence: float = 0.95) -> Estimate:
    """AUROC with a score interval (Newcombe 2006, "Part 2: asymptotic methods", method 5).

    Solves |A - θ| = z · sd(θ) for θ with the Hanley-McNeil variance taken at θ, as Wilson's interval does for a proportion.
    DeLong's and the bootstrap interval have no width at A = 1, where a good separator lives; this one does.

    Raises:
        TiterError: As `auroc`.
    """
    values, positive = _scores_and_labels(scores, labels)
    area = _auroc(values, positive)
    m, n = int(positive.sum()), int((~positive).sum())
    z = z_score(confidence)
    from scipy.optimize import brentq

    def outside(theta: float) -> float:
        """Above 0 outside of the interval; the variance is Hanley and McNeil's with Newcombe's N* = (m + n)/2 - 1."""
        pooled = (m + n) / 2 - 1
        spread = 1 + pooled * (1 - theta) / (2 - theta) + pooled * theta / (1 + theta)
        return float((area - theta) ** 2 - z * z * theta * (1 - theta) * spread / (m * n))

    # 0 and 1 themselves solve the equation where A is one of them; the other end is looked for from just inside.
    inside = min(max(area, 1e-12), 1 - 1e-12)
    low, high = (brentq(outside, inside, end, xtol=1e-15) for end in (0.0, 1.0))
    return Estimate(area, min(low, area), max(high, area))


def paired_mean(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Difference:
    """The mean of a - b over the same prompts, with Student's t interval and p-value (Miller, arXiv 2411.00640, section 4.2).

    A percentile bootstrap of a dozen values is too short: its 90 % interval holds the truth in 81-86 % of all cases.

    Raises:
        TiterError: When the lengths differ, there are fewer than two prompts, or a value is not finite.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if first.shape != second.shape or first.size < 2:
        raise TiterError(
            f"A paired comparison needs the same prompts in both arms, two at least, got {first.size} and {second.size}."
        )
    from scipy.special import stdtr

    mean, low, high = mean_interval(first - second, confidence)
    error = float((first - second).std(ddof=1)) / math.sqrt(first.size)
    p = 2 * float(stdtr(first.size - 1, -abs(mean) / error)) if error else float(mean == 0)
    return Difference(mean, low, high, p)


def paired_shares(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Difference:
    """The mean of a - b over the same prompts, for values in [0, 1], with a width also where all pairs agree.

    The adjusted Wald interval of Bonett and Price (2012): that of the differences with one pair of +1 and one of -1 put in.
    For zeros and ones these are a discordant pair more each way; shares in between (means over seeds) vary less than that.

    Returns:
        The plain mean, and interval and two-sided p-value of the adjusted one.

    Raises:
        TiterError: When the lengths differ, there is no prompt, or a value does not lie in [0, 1].
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if first.shape != second.shape or first.size == 0:
        raise TiterError(f"A paired comparison needs the same prompts, got {first.size} and {second.size}.")
    if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) > 1:
        raise TiterError("Shares lie between 0 and 1.")
    adjusted = np.concatenate((first - second, [1.0, -1.0]))
    centre, error = float(adjusted.mean()), float(adjusted.std()) / math.sqrt(adjusted.size)
    half = z_score(confidence) * error
    p = 2 * NormalDist().cdf(-abs(centre) / error)
    return Difference(float((first - second).mean()), max(-1.0, centre - half), min(1.0, centre + half), p)


def difference_of(first: Estimate, second: Estimate) -> Estimate:
    """first - second of two independent groups, its interval made of theirs (Zou and Donner 2008, "MOVER").

    Of two Wilson intervals it is Newcombe's (1998, "Interval estimation for the difference between independent proportions",
    method 10). Two models that answer the same prompts are mostly alike in which they find hard; then it is too wide, if
    anything, and `paired_shares` is narrower where the pairs are known.
    """
    mean = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(mean, mean - below, mean + above)


def prompts_needed(first: float, second: float, within: float, confidence: float = 0.95) -> int:
    """The fewest prompts a group that bring both ends of the interval of first - second within `within` of it.

    Args:
        first: A share, in [0, 1].
        second: The other group's.
        within: Largest distance of an end of `difference_of` two Wilson intervals from the difference; above 0.
        confidence: Of the intervals.
    """
    if not within > 0:
        raise TiterError(f"No number of prompts makes an interval as narrow as {within}.")

    def narrow(n: int) -> bool:
        difference = difference_of(*(Estimate(share, *wilson(share * n, n, confidence)) for share in (first, second)))
        return max(difference.value - difference.low, difference.high - difference.value) <= within

    # At one half, where n must be largest, z √(1 / 2n) is an upper bound of the distance; (z / within)² is twice that n.
    most = 1 + math.ceil((z_score(confidence) / within) ** 2)
    return 1 + bisect_left(range(1, most), True, key=narrow)


def seeds_needed(values: ArrayLike, within: float, confidence: float = 0.95) -> int:
    """The fewest seeds whose `mean_interval` ends within `within` of the mean, if seeds differ as those of `values` do.

    Raises:
        TiterError: When there are fewer than two values, or `within` is not above 0.
    """
    if not within > 0:
        raise TiterError(f"No number of seeds makes an interval as narrow as {within}.")
    half = (found := mean_interval(values, confidence)).high - found.value
    given = np.size(values)
    from scipy.special import stdtrit

    def reach(seeds: int) -> float:
        return float(stdtrit(seeds - 1, (1 + confidence) / 2)) / math.sqrt(seeds)

    return next(seeds for seeds in itertools.count(2) if half * reach(seeds) / reach(given) <= within)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean over seeds with Student's t interval (n - 1 degrees of freedom).

    Raises:
        TiterError: When there are fewer than two values: one seed says nothing about the spread.
    """
    given = _finite(values, "values")
    if given.size < 2:
        raise TiterError(f"An interval over seeds needs at least two seeds, got {given.size}.")
    from scipy.special import stdtrit

    mean = float(given.mean())
    half = float(stdtrit(given.size - 1, (1 + confidence) / 2)) * float(given.std(ddof=1)) / math.sqrt(given.size)
    return Estimate(mean, mean - half, mean + half)


def share_interval(shares: ArrayLike, n: int, confidence: float = 0.95) -> Interval:
    """Student's t interval over seeds for a share, on the scale of logits, where seeds differ additively.

    Where seeds differ by two logits (40 prompts each, three seeds), an interval over the prompts of one covers the mean in
    55-80 % of all cases, Student's on the shares themselves in 83-92 % and this one in 89-96 %.

    Args:
        shares: A seed's share, in [0, 1].
        n: Prompts of a seed; a half is added to both counts, so that 0 and 1 have a logit.
        confidence: Of the interval.

    Raises:
        TiterError: When there are fewer than two seeds, or no prompts.
    """
    given = _finite(shares, "shares")
    if n < 1:
        raise TiterError("An interval needs at least one observation, got n = 0.")
    logits = mean_interval(np.log((given * n + 0.5) / (n - given * n + 0.5)), confidence)
    low, high = (1 / (1 + np.exp(-np.clip(end, -700, 700))) for end in logits[1:])
    return Interval(float(low), float(high))


def agreement(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> Agreement:
    """Agreement and Cohen's kappa of two judges on the same responses; None marks a judge's failure.

    Raises:
        TiterError: When the lengths differ, or no response was judged by both.
    """
    if len(first) != len(second):
        raise TiterError(f"Two judges must judge the same responses, got {len(first)} and {len(second)}.")
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        raise TiterError("No response was judged by both judges.")
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    ours, theirs = (Counter(labels) for labels in zip(*pairs))
    chance = sum(ours[label] * theirs[label] for label in ours) / n**2
    kappa = None if chance == 1 else (observed - chance) / (1 - chance)
    return Agreement(n, len(first) - n, observed, kappa)


def z_score(confidence: float) -> float:
    """Return the quantile of the standard normal distribution that bounds a two-sided interval."""
    if not 0 < confidence < 1:
        raise TiterError(f"A confidence lies between 0 and 1, got {confidence}.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise TiterError(f"`{name}` must be a flat list of numbers, got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise TiterError(f"`{name}` holds values that are not finite.")
    return array


def _scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, truth = _finite(scores, "scores"), np.asarray(labels)
    if truth.shape != values.shape:
        raise TiterError(f"AUROC needs one label a score, got {values.size} scores and {truth.size} labels.")
    # Anything but 0 and 1 would silently become True: -1/+1 labels, for example.
    if not np.isin(truth, (0, 1)).all():
        raise TiterError("AUROC needs labels that are true or false (1 or 0).")
    positive = truth.astype(bool)
    if positive.all() or not positive.any():
        raise TiterError("AUROC needs at least one positive and one negative.")
    return values, positive


def _auroc(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    from scipy.stats import rankdata

    m = int(positive.sum())
    return float((rankdata(values)[positive].sum() - m * (m + 1) / 2) / (m * (len(values) - m)))
