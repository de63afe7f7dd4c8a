"""How many there truly are, of what an imperfect judge counted: Rogan and Gladen's estimator with Lang and Reiczigel's interval.

A judge finds a share `se` of what is there (sensitivity) and leaves alone a share `sp` of the rest (specificity). Of n things of
which a share p is truly there it reports q = p se + (1 - p)(1 - sp), so that

    p = (q + sp - 1) / (se + sp - 1)            (Rogan and Gladen 1978, "Estimating prevalence from the results of a screening test")

`se` and `sp` are themselves known from counts, on things whose truth is known. Lang and Reiczigel (2014, "Confidence limits for
prevalence of disease adjusted for estimated sensitivity and specificity") carry that uncertainty by the delta
method on counts to which a few observations are added. In `tests/test_misclassification.py` the 95 % interval covers the truth in
93 % of all cases or more, at p from 0 to 1, n from 10 on, and labelled samples from 20 on; where a judge makes no errors it is wider
than it need be. Equal-tailed intervals of Beta posteriors (Jeffreys) were tried: 89 % in places.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from titer.errors import TiterError
from titer.stats.intervals import Estimate, difference_of, wilson, z_score


class Counted(NamedTuple):
    """How many of how many.

    Attributes:
        hits: How many.
        n: Of how many; 0 where there was none to count.
    """

    hits: int
    n: int

    @property
    def share(self) -> float | None:
        """The share, in [0, 1]."""
        return self.hits / self.n if self.n else None

    def estimate(self, confidence: float = 0.95) -> Estimate | None:
        """The share with Wilson's interval."""
        return Estimate(self.hits / self.n, *wilson(self.hits, self.n, confidence)) if self.n else None


class TrueShare(NamedTuple):
    """The true share behind a reported one.

    Attributes:
        estimate: In [0, 1], with its interval; None where the judge tells the two kinds apart too badly: se + sp - 1 is not above 0,
            or its interval reaches 0, so that any true share could be behind the reported one. None too where it is contradicted.
        clipped: Whether the formula gave a number outside of [0, 1], which stands as the nearer end.
        informedness: se + sp - 1 (Youden's index), with Newcombe's interval: what the difference that is reported is divided by.
        contradicted: Whether the whole interval lies outside of [0, 1]: no true share makes a judge with these errors report so few,
            or so many, so it errs otherwise on what it looked at. Held to the nearer end, the interval would have no width.
    """

    estimate: Estimate | None
    clipped: bool
    informedness: Estimate
    contradicted: bool = False


def true_share(reported: Counted, found: Counted, alarms: Counted, confidence: float = 0.95) -> TrueShare:
    """Return the share that is truly there, of what a judge reported and its known errors.

    Args:
        reported: What the judge reported, of all that it looked at.
        found: What it found of things that were known to be there: a of n, sensitivity.
        alarms: What it reported of things that were known not to be: b of m, one minus specificity.
        confidence: Of the interval. It says nothing of whether the errors are the same on what is looked at now.

    Raises:
        TiterError: When any of the three counts is of nothing, or is more than there is.
    """
    for name, counted in (("reported", reported), ("found", found), ("alarms", alarms)):
        if counted.n < 1 or not 0 <= counted.hits <= counted.n:
            raise TiterError(f"`{name}` counts {counted.hits} of {counted.n}: that is no share.")
    se, miss = (Estimate(one.hits / one.n, *wilson(one.hits, one.n, confidence)) for one in (found, alarms))
    informedness = difference_of(se, miss)
    if informedness.low <= 0:
        return TrueShare(None, False, informedness)
    plain = (reported.hits / reported.n - miss.value) / informedness.value
    value = min(max(plain, 0.0), 1.0)
    low, high = _lang_reiczigel(reported, found, alarms, z_score(confidence))
    if high < 0 or low > 1:
        return TrueShare(None, False, informedness, contradicted=True)
    # The interval is about the adjusted counts; with few observations it can leave out the plain estimate at an end.
    ends = min(max(low, 0.0), value), max(min(high, 1.0), value)
    return TrueShare(Estimate(value, *ends), plain != value, informedness)


def _lang_reiczigel(reported: Counted, found: Counted, alarms: Counted, z: float) -> tuple[float, float]:
    """Return the ends of the interval, which may lie outside of [0, 1]."""
    n = reported.n + z * z
    q = (reported.hits + z * z / 2) / n
    se = (found.hits + 1) / (found.n + 2)
    sp = (alarms.n - alarms.hits + 1) / (alarms.n + 2)
    p = (q + sp - 1) / (se + sp - 1)
    of_se, of_sp = se * (1 - se) / (found.n + 2), sp * (1 - sp) / (alarms.n + 2)
    shift = 2 * z * z * (p * of_se - (1 - p) * of_sp)
    half = z * math.sqrt(q * (1 - q) / n + p * p * of_se + (1 - p) ** 2 * of_sp) / (se + sp - 1)
    return p + shift - half, p + shift + half
