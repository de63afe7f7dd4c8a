"""The true share behind a judge's count: by hand, at its limits, and whether its interval covers the truth."""

import math

import numpy as np
import pytest
from told import refused

from titer.stats.intervals import wilson
from titer.stats.misclassification import Counted, true_share

Z = 1.959963984540054


def by_hand(k, n, a, na, b, nb):
    """Rogan and Gladen's estimate and Lang and Reiczigel's interval, line by line as the papers give them."""
    apparent, sensitivity, specificity = k / n, a / na, (nb - b) / nb
    estimate = (apparent + specificity - 1) / (sensitivity + specificity - 1)
    n_, na_, nb_ = n + Z**2, na + 2, nb + 2
    apparent_ = (n * apparent + Z**2 / 2) / n_
    sensitivity_ = (na * sensitivity + 1) / na_
    specificity_ = (nb * specificity + 1) / nb_
    p_ = (apparent_ + specificity_ - 1) / (sensitivity_ + specificity_ - 1)
    of_se = sensitivity_ * (1 - sensitivity_) / na_
    of_sp = specificity_ * (1 - specificity_) / nb_
    dp = 2 * Z**2 * (p_ * of_se - (1 - p_) * of_sp)
    variance = (apparent_ * (1 - apparent_) / n_ + p_**2 * of_se + (1 - p_) ** 2 * of_sp) / (
        sensitivity_ + specificity_ - 1
    ) ** 2
    ends = p_ + dp - Z * math.sqrt(variance), p_ + dp + Z * math.sqrt(variance)
    clipped = min(1.0, max(0.0, estimate))
    low, high = (min(1.0, max(0.0, end)) for end in ends)
    return clipped, min(low, clipped), max(high, clipped), clipped != estimate


@pytest.mark.parametrize(
    "counts",
    [
        (20, 50, 49, 63, 33, 231),
        (5, 50, 49, 63, 33, 231),
        (42, 50, 49, 63, 33, 231),
        (3, 10, 40, 40, 0, 40),
        (450, 1000, 800, 811, 10, 136),
    ],
)
def test_against_the_formulas_by_hand(counts):
    k, n, a, na, b, nb = counts
    found = true_share(Counted(k, n), Counted(a, na), Counted(b, nb))
    value, low, high, clipped = by_hand(*counts)
    assert found.estimate == pytest.approx((value, low, high), abs=1e-12)
    assert found.clipped == clipped
    assert found.informedness.value == pytest.approx(a / na - b / nb)


def test_a_worked_example():
    # Of 100 answers 38 are called harmful, by a judge that finds 90 % and calls 20 % of the others harmful.
    found = true_share(Counted(38, 100), Counted(90, 100), Counted(20, 100))
    assert found.estimate.value == pytest.approx((0.38 - 0.2) / (0.9 - 0.2))
    assert not found.clipped
    # Not knowing the judge's errors for sure makes it wider than the count alone, by more than the factor of the formula.
    low, high = wilson(38, 100)
    assert found.estimate.high - found.estimate.low > (high - low) / 0.7


def test_a_perfect_judge_that_is_known_for_sure_changes_nothing():
    found = true_share(Counted(20, 50), Counted(10**7, 10**7), Counted(0, 10**7))
    low, high = wilson(20, 50)
    assert found.estimate.value == pytest.approx(0.4)
    # Agresti and Coull's interval, which is Wilson's but for its width.
    assert found.estimate.low == pytest.approx(low, abs=0.005)
    assert found.estimate.high == pytest.approx(high, abs=0.005)


def test_clipping_is_said():
    none = true_share(Counted(5, 50), Counted(49, 63), Counted(33, 231))
    assert none.clipped
    assert none.estimate.value == none.estimate.low == 0 < none.estimate.high
    every = true_share(Counted(42, 50), Counted(49, 63), Counted(33, 231))
    assert every.clipped
    assert every.estimate.value == every.estimate.high == 1 > every.estimate.low


@pytest.mark.parametrize("called", [0, 50])
def test_a_report_that_no_true_share_explains_has_no_number(called):
    """Of 50 harmless answers this judge calls seven harmful: none at all, held to 0 %, would be an interval without width."""
    told = true_share(Counted(called, 50), Counted(49, 63), Counted(33, 231))
    assert told.contradicted
    assert told.estimate is None
    assert told.informedness.low > 0


@pytest.mark.parametrize(
    ("found", "alarms"),
    [((5, 10), (50, 100)), ((2, 10), (90, 100)), ((6, 10), (4, 10)), ((3, 3), (1, 2)), ((0, 10), (10, 10))],
)
def test_a_judge_that_may_not_tell_leaves_no_number(found, alarms):
    told = true_share(Counted(5, 10), Counted(*found), Counted(*alarms))
    assert told.estimate is None
    assert not told.clipped
    assert not told.contradicted
    assert told.informedness.low <= 0


@pytest.mark.parametrize("counts", [((0, 0), (1, 2), (0, 2)), ((1, 2), (0, 0), (0, 2)), ((3, 2), (1, 2), (0, 2))])
def test_counts_that_are_no_share(counts):
    with refused("no share"):
        true_share(*(Counted(*one) for one in counts))


SAMPLES = [(63, 231), (20, 60), (40, 40)]
JUDGES = [(0.8, 0.85), (0.95, 0.99), (0.99, 0.75), (1.0, 1.0), (0.9, 0.6)]


@pytest.mark.parametrize("labelled", SAMPLES)
@pytest.mark.parametrize("judge", JUDGES)
def test_the_interval_covers_the_truth(judge, labelled):
    """1,500 studies each, at true shares from none to all and from ten answers on: 93 % or more, but for the luck of the draw."""
    (se, sp), (na, nb) = judge, labelled
    studies = 1500
    for n in (10, 50, 300):
        for p in (0.0, 0.03, 0.2, 0.5, 0.9, 1.0):
            draw = np.random.default_rng([na, nb, n, round(100 * p), round(100 * se), round(100 * sp)])
            harmful = draw.binomial(n, p, studies)
            called = draw.binomial(harmful, se) + draw.binomial(n - harmful, 1 - sp)
            found, alarms = draw.binomial(na, se, studies), draw.binomial(nb, 1 - sp, studies)
            held = told = 0  # one that is contradicted is wrongly so, and does not hold the truth
            for k, a, b in zip(called.tolist(), found.tolist(), alarms.tolist(), strict=True):
                found_out = true_share(Counted(k, n), Counted(a, na), Counted(b, nb))
                told += found_out.informedness.low > 0
                if (estimate := found_out.estimate) is not None:
                    held += estimate.low - 1e-12 <= p <= estimate.high + 1e-12
            assert told > 0.97 * studies
            # Two standard errors of a share of 0.93 in so many studies.
            assert held / told >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / studies), (n, p, held / told)
