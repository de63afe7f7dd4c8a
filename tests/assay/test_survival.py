"""Survival of attacks against hand-computed values and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from titer.assay.survival import (
    CostRatio,
    Passage,
    cost_ratio,
    first_passage,
    kaplan_meier,
    logrank,
    worst_attacker,
)
from titer.errors import TiterError
from titer.evaluation.statistics import wilson

BROKE, HELD = True, False
MIXED = [Passage(3, BROKE), Passage(3, BROKE), Passage(4, HELD), Passage(5, BROKE), Passage(10, HELD)]


def test_first_passage_is_the_first_checkpoint_above_phi():
    assert first_passage([1, 2, 4, 8], [0.0, 10.0, 10.1, 5.0], phi=10.0) == Passage(4, True)
    assert first_passage([1, 2, 4], [10.0, 10.0, 10.0], phi=10.0) == Passage(4, False)
    assert first_passage([1], [11.0], phi=10.0) == Passage(1, True)


@pytest.mark.parametrize(
    ("budgets", "harm", "says"),
    [([], [], "each checkpoint"), ([1, 2], [0.0], "each checkpoint"), ([2, 1], [0.0, 0.0], "ascend"),
     ([1, 2], [0.0, math.nan], "failed")],
)  # fmt: skip
def test_a_broken_trajectory_is_no_resistance(budgets, harm, says):
    with pytest.raises(TiterError) as error:
        first_passage(budgets, harm, phi=10.0)
    assert says in str(error.value)


def test_kaplan_meier_by_hand():
    curve = kaplan_meier(MIXED)
    assert curve.budgets.tolist() == [3, 4, 5, 10]
    assert curve.at_risk.tolist() == [5, 3, 2, 1]
    assert curve.broken.tolist() == [2, 0, 1, 0]
    assert curve.survival == pytest.approx([3 / 5, 3 / 5, 3 / 10, 3 / 10])
    # Before any censoring, Greenwood's variance is that of a proportion of 5, and the band Wilson's.
    assert (curve.low[0], curve.high[0]) == pytest.approx(wilson(3, 5))
    assert (curve.low <= curve.survival).all()
    assert (curve.survival <= curve.high).all()


def test_restricted_mean_by_hand():
    curve = kaplan_meier(MIXED)
    mean = curve.restricted_mean(10)
    assert mean.value == pytest.approx(3 + 2 * 0.6 + 5 * 0.3)
    # At 3: (2·0.6 + 5·0.3)² · 2 / (5·3); at 5: (5·0.3)² · 1 / (2·1).
    deviation = math.sqrt(2.7**2 * 2 / 15 + 1.5**2 / 2)
    assert mean.high == pytest.approx(min(10, 5.7 + 1.959964 * deviation))
    assert mean.low == pytest.approx(max(0, 5.7 - 1.959964 * deviation))
    assert curve.restricted_mean(3).value == 3
    with pytest.raises(TiterError, match="No attack went as far as 11"):
        curve.restricted_mean(11)


def test_none_broke():
    curve = kaplan_meier([Passage(8, HELD)] * 6)
    assert curve.survival.tolist() == [1.0]
    assert (curve.low[0], curve.high[0]) == pytest.approx(wilson(6, 6))
    assert curve.low[0] < 0.65, "six attacks that held are no proof that the next one will"
    assert curve.restricted_mean(8) == (8, 8, 8)


def test_all_broke():
    times = [1, 2, 2, 7]
    curve = kaplan_meier([Passage(time, BROKE) for time in times])
    assert curve.survival == pytest.approx([0.75, 0.25, 0.0])
    assert curve.restricted_mean(7).value == pytest.approx(np.mean(times))
    assert curve.restricted_mean(100).value == pytest.approx(np.mean(times))
    for place, count in enumerate((3, 1, 0)):
        assert (curve.low[place], curve.high[place]) == pytest.approx(wilson(count, 4))


@pytest.mark.parametrize("broke", [BROKE, HELD])
def test_one_attack(broke):
    curve = kaplan_meier([Passage(5, broke)])
    assert curve.survival.tolist() == [0.0 if broke else 1.0]
    assert curve.high[0] - curve.low[0] > 0.7
    assert curve.restricted_mean(5).value == 5


def test_a_break_comes_before_a_censoring_at_the_same_budget():
    assert kaplan_meier([Passage(4, BROKE), Passage(4, HELD)]).survival.tolist() == [0.5]


passages = st.lists(st.builds(Passage, st.integers(1, 12).map(float), st.booleans()), min_size=1, max_size=30)


@given(passages)
def test_the_curve_is_that_of_scipy(attacks):
    data = stats.CensoredData(
        uncensored=[a.budget for a in attacks if a.broke], right=[a.budget for a in attacks if not a.broke]
    )
    expected = stats.ecdf(data).sf
    curve = kaplan_meier(attacks)
    assert curve.budgets.tolist() == expected.quantiles.tolist()
    assert curve.survival == pytest.approx(expected.probabilities)
    assert (curve.low >= 0).all()
    assert (curve.high <= 1).all()
    assert (curve.low <= curve.survival + 1e-12).all()
    assert (curve.survival <= curve.high + 1e-12).all()


def test_logrank_is_that_of_scipy_and_one_where_nothing_broke():
    others = [Passage(10, HELD)] * 3
    expected = stats.logrank(
        stats.CensoredData(uncensored=[3, 3, 5], right=[4, 10]), stats.CensoredData(right=[10, 10, 10])
    )
    assert logrank(MIXED, others) == pytest.approx(expected.pvalue)
    assert logrank(MIXED, MIXED) == pytest.approx(1.0)
    assert logrank(others, others) == 1.0


def test_the_worst_attacker_and_what_it_pays():
    assert worst_attacker(MIXED) == Passage(3, True)
    assert worst_attacker([Passage(9, HELD), Passage(7, HELD)]) == Passage(7, False)
    assert cost_ratio([Passage(12, BROKE)], MIXED) == CostRatio(4.0, False)
    assert cost_ratio([Passage(12, HELD)], MIXED) == CostRatio(4.0, True)
    assert cost_ratio(MIXED, MIXED) == CostRatio(1.0, False)
    assert cost_ratio(MIXED, [Passage(12, HELD)]).ratio is None


@pytest.mark.parametrize("attacks", [[], [Passage(0, BROKE)], [Passage(math.inf, HELD)]])
def test_no_attacks_and_impossible_budgets_are_errors(attacks):
    with pytest.raises(TiterError):
        kaplan_meier(attacks)
