"""Equivalence within a margin: what is decided, and what is not."""

import math

import numpy as np
import pytest

from titer.errors import TiterError
from titer.stats.equivalence import equivalence


def right(share, count):
    return (np.arange(count) < share * count).astype(float)


def test_a_model_is_equivalent_to_itself():
    result = equivalence(right(0.7, 50), right(0.7, 50), margin=0.05)
    assert result.finding == "equivalent"
    assert result.difference.mean == 0
    assert result.not_worse


def test_a_large_loss_is_different_and_a_small_sample_decides_nothing():
    assert equivalence(right(0.3, 400), right(0.9, 400), margin=0.05).finding == "different"
    few = np.random.default_rng(0)
    a, b = few.integers(0, 2, 12), few.integers(0, 2, 12)
    assert equivalence(a, b, margin=0.05).finding == "undecided"


def test_no_significant_difference_is_not_enough():
    # 3 of 20 prompts differ, two of them one way: p is large, and so is the interval.
    a, b = np.ones(20), np.ones(20)
    a[0], b[1], b[2] = 0, 0, 0
    result = equivalence(a, b, margin=0.05)
    assert result.difference.p > 0.5
    assert result.finding == "undecided"


def test_the_ends_of_the_interval_are_one_sided_tests_at_five_percent():
    values = np.random.default_rng(1).normal(0.5, 1, 400)
    result = equivalence(values, np.zeros(400), margin=1.0)
    expected = values.mean() + np.array([-1, 1]) * 1.644854 * values.std() / 20  # at 399 degrees of freedom t is z
    assert (result.difference.low, result.difference.high) == pytest.approx(tuple(expected), abs=0.01)


def test_a_margin_of_nothing_is_an_error():
    with pytest.raises(TiterError, match="above 0"):
        equivalence([1.0], [1.0], margin=0)


def test_shares_that_agree_everywhere_have_an_interval():
    # By hand: 20 pairs agree; with one of +1 and one of -1 put in, the variance is 2/22, the error sqrt(2)/22.
    result = equivalence(np.ones(20), np.ones(20), margin=0.05, shares=True)
    assert result.difference.mean == 0
    assert (result.difference.low, result.difference.high) == pytest.approx(
        (-1.644854 * 2**0.5 / 22, 1.644854 * 2**0.5 / 22), rel=1e-5
    )
    assert result.finding == "undecided"
    assert equivalence(np.ones(200), np.ones(200), margin=0.05, shares=True).finding == "equivalent"


def test_the_interval_of_shares_is_bonett_and_prices():
    # 12 discordant pairs one way and 4 the other, of 60.
    a, b = np.ones(60), np.ones(60)
    b[:12], a[12:16] = 0, 0
    found = equivalence(a, b, margin=0.05, shares=True).difference
    p12, p21 = 13 / 62, 5 / 62
    half = 1.644854 * ((p12 + p21 - (p12 - p21) ** 2) / 62) ** 0.5
    assert found.mean == pytest.approx(8 / 60)
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), rel=1e-5)


def test_shares_outside_of_the_unit_interval_are_an_error():
    with pytest.raises(TiterError, match="between 0 and 1"):
        equivalence([2.0], [1.0], margin=0.1, shares=True)


@pytest.mark.parametrize("worse", [4, 8, 14])
def test_the_prompts_needed_are_about_those_that_tell(worse):
    # Of 100 prompts the defended model misses some that the other gets right, and the reverse in 4.
    theirs = np.array([1.0] * worse + [0.0] * 4 + [1.0] * (96 - worse))
    ours = np.array([0.0] * worse + [1.0] * 4 + [1.0] * (96 - worse))
    once = equivalence(ours[::2], theirs[::2], 0.05, shares=True)
    assert once.not_worse is None
    for factor, told in ((0.6, False), (1.6, True)):
        times = max(1, round(factor * once.needed / 50))
        again = equivalence(np.tile(ours[::2], times), np.tile(theirs[::2], times), 0.05, shares=True)
        assert (again.not_worse is not None) is told
    assert again.needed is None


def test_no_number_of_prompts_tells_a_difference_of_the_margin():
    assert equivalence([0.5] * 40, [0.75] * 40, 0.25, shares=True).needed == math.inf
