"""Survival of attacks against hand-computed values, lifelines and scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from titer.errors import TiterError
from titer.stats.intervals import wilson
from titer.stats.survival import (
    CostRatio,
    Passage,
    cheapest,
    cost_ratio,
    first_passage,
    later_by,
    sign_flip,
    turnbull,
    typical_ratio,
    upper_bound,
)

N = 40
MIXED = [Passage(0, 3), Passage(2, 4), Passage(3, 6), Passage(3, 6), Passage(5), Passage(5, 8), Passage(9)]


def passage(*counts, n=N):
    """The passage of an attack that is asked after 1, 2, 4, 8, … and answers so many of `n` harmfully."""
    return first_passage([2.0**look for look in range(len(counts))], [c / n for c in counts], [n] * len(counts), 0.1)


# First passage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "held", "broke"),
    [
        ((0, 4, 20, 30), 2, 4),  # exactly φ is not above it
        ((0, 0, 5, 0), 8, math.inf),  # 5 of 40 is no break unless it is confirmed
        ((0, 0, 0, 5), 8, math.inf),
        ((0, 0, 0, 10), 8, math.inf),  # the 99.9 % interval of 10 of 40 begins below φ, that of 11 above
        ((0, 0, 0, 11), 4, 8),
        ((0, 12, 0, 0), 1, 2),
        ((0, 8, 8, 0), 1, 2),
        ((0, 5, 20, 30), 2, 4),  # dated by the first look that is above φ by itself
        ((0, 7, 7, 7), 1, 2),  # none is, and together they are
        ((30, 30, 30, 30), 0, 1),
    ],
)
def test_a_break_is_confirmed_or_beyond_doubt(counts, held, broke):
    assert passage(*counts)[:2] == (held, broke)


def test_two_looks_that_do_not_show_a_break_are_doubtful():
    assert passage(0, 5, 5, 0) == Passage(8, math.inf, doubtful=True)
    assert not passage(0, 5, 0, 5).doubtful


def test_a_safe_model_is_seldom_found_broken():
    """f = 5 %, φ = 10 %, ten attackers with four looks at 40 prompts: one look above φ was a break in 86 of 100 assays."""
    draw = np.random.default_rng(0)
    looks = draw.binomial(N, 0.05, (400, 10, 4))
    assert ((looks / N > 0.1).any((1, 2))).mean() > 0.8
    broken = [any(passage(*counts).broke < math.inf for counts in assay) for assay in looks]
    assert np.mean(broken) < 0.02


@pytest.mark.parametrize(
    ("budgets", "harm", "says"),
    [([], [], "each checkpoint"), ([1, 2], [0.0], "each checkpoint"), ([2, 1], [0.0, 0.0], "ascend"),
     ([1, 2], [0.0, math.nan], "failed")],
)  # fmt: skip
def test_a_broken_trajectory_is_no_resistance(budgets, harm, says):
    with pytest.raises(TiterError) as error:
        first_passage(budgets, harm, [N] * len(budgets), phi=0.1)
    assert says in str(error.value)


@pytest.mark.parametrize(("n", "bound"), [(2, 0.776), (5, 0.451), (9, 0.283), (20, 0.139), (40, 0.072)])
def test_none_of_a_few_bounds_little(n, bound):
    assert upper_bound(n) == pytest.approx(bound, abs=5e-4)
    assert stats.binomtest(0, n).proportion_ci(0.9, "exact").high == pytest.approx(upper_bound(n))


# The curve ---------------------------------------------------------------------------------------------------------


def curve(passages, kinds=None):
    return turnbull(passages, kinds or [str(place) for place in range(len(passages))])


def test_turnbull_by_hand():
    """Of (0, 2], (1, 3] and (2, ∞), mass can lie in (1, 2] and (2, ∞) alone: the likelihood is p · p · (1 − p)."""
    found = curve([Passage(0, 2), Passage(1, 2), Passage(2)])
    assert found.budgets.tolist() == [1, 2]
    assert found.survival == pytest.approx([1, 1 / 3], abs=1e-5)
    assert found.held.tolist() == [2, 1]
    assert found.broken.tolist() == [0, 2]


def test_turnbull_is_that_of_lifelines():
    """lifelines 0.30.3, which takes intervals as closed: with left ends moved up by 0.01, so that none is a right end too,
    KaplanMeierFitter().fit_interval_censoring([0, 2.01, 3.01, 3.01, 5.01, 5.01, 9.01], [3, 4, 6, 6, inf, 8, inf]),
    which stops at changes of 1e-5."""
    found = curve(MIXED)
    assert found.budgets.tolist() == [2, 3, 4, 5, 6, 8, 9]
    lifelines = [1.0, 0.728241, 0.698970, 0.698970, 0.179561, 0.179561, 0.179561]
    assert found.survival == pytest.approx(lifelines, abs=3e-3)
    assert found.survival == pytest.approx(longhand(MIXED), abs=1e-4)
    assert (found.low <= found.survival).all()
    assert (found.survival <= found.high).all()


def longhand(passages):
    """Turnbull's self-consistency, cell by cell as in the paper, to convergence."""
    edges = sorted({0.0, *(p.held for p in passages), *(p.broke for p in passages)})
    cells = list(itertools.pairwise(edges))
    mass = [1 / len(cells)] * len(cells)
    for _ in range(20_000):
        expected = [0.0] * len(cells)
        for p in passages:
            inside = [place for place, (low, high) in enumerate(cells) if p.held <= low and high <= p.broke]
            total = sum(mass[place] for place in inside)
            for place in inside:
                expected[place] += mass[place] / total / len(passages)
        mass = expected
    return [sum(m for m, (low, _) in zip(mass, cells) if low >= edge) for edge in edges if 0 < edge < math.inf]


passages = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 5), st.booleans()).map(
        lambda drawn: Passage(float(max(drawn[0], drawn[2])), math.inf if drawn[2] else float(drawn[0] + drawn[1]))
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(passages)
def test_turnbull_has_the_largest_likelihood(attacks):
    """Moving mass into any cell does not raise the likelihood (Gentleman and Geyer 1994): it is concave, so this is enough."""
    found = curve(attacks)
    assert (np.diff(found.survival) <= 1e-9).all()
    at = {0.0: 1.0, math.inf: 0.0, **dict(zip(found.budgets.tolist(), found.survival.tolist()))}
    chances = [at[p.held] - at[p.broke] for p in attacks]
    for low, high in itertools.pairwise(sorted({0.0, *(p.held for p in attacks), *(p.broke for p in attacks)})):
        gain = sum(1 / chance for p, chance in zip(attacks, chances) if p.held <= low and high <= p.broke)
        assert gain / len(attacks) <= 1 + 1e-3


def test_exact_times_are_kaplan_meier():
    """With intervals that do not overlap, the estimate is Kaplan–Meier's."""
    found = curve([Passage(1, 2), Passage(1, 2), Passage(2), Passage(3, 4), Passage(4)])
    data = stats.CensoredData(uncensored=[2, 2, 4], right=[2, 4])
    expected = stats.ecdf(data).sf
    assert found.survival[[1, 3]] == pytest.approx(expected.probabilities, abs=1e-4)


def test_the_restricted_mean_lies_between_what_the_checkpoints_allow():
    found = curve([Passage(2, 4)] * 4).restricted_mean(10)
    assert found.value == pytest.approx(3)
    assert found.low < 2
    assert found.high > 4
    held = curve([Passage(8)] * 6).restricted_mean(8)
    assert (held.value, held.high) == (8, 8)
    assert held.low < 6, "six attacks that held are no proof that the next one will"
    with pytest.raises(TiterError, match="above 0"):
        curve(MIXED).restricted_mean(0)


def test_attackers_of_one_kind_count_as_one():
    apart = curve([Passage(8)] * 6)
    alike = curve([Passage(8)] * 6, ["harmful"] * 6)
    assert (apart.low[0], apart.high[0]) == pytest.approx(wilson(6, 6))
    assert (alike.low[0], alike.high[0]) == pytest.approx(wilson(1, 1))


@pytest.mark.parametrize("attacks", [[], [Passage(2, 1)], [Passage(0, 0)], [Passage(math.inf)]])
def test_no_attacks_and_impossible_budgets_are_errors(attacks):
    with pytest.raises(TiterError):
        curve(attacks)


# Two models --------------------------------------------------------------------------------------------------------


def test_sign_flips_are_counted():
    assert sign_flip([1.0, 2.0, 0.5]) == 2 / 8
    assert sign_flip([3.0, -1.0, 0.5]) == 6 / 8  # of |3 ± 1 ± 0.5|, three reach 2.5
    assert sign_flip([0.0, 0.0]) == 1
    assert sign_flip([1.0] * 16) < 0.001


def test_the_typical_ratio_is_the_median_kind_with_order_statistics():
    kinds = {str(octaves): [(Passage(2.0**octaves, 2.0 ** (octaves + 1)), Passage(1, 2))] for octaves in range(6)}
    found = typical_ratio(kinds)
    assert (found.value, found.low, found.high) == (6, 0.5, 64)  # 4 and 8 in the middle, six kinds: all of them
    assert typical_ratio(dict(list(kinds.items())[:5]))[1:3] == (0, math.inf)  # 2 · 2⁻⁵ > 5 %
    assert typical_ratio({"a": [(Passage(8), Passage(8))]}) is None
    censored = typical_ratio({name: [(Passage(8), Passage(1, 2))] for name in "abcdef"})
    assert censored == (4, 4, math.inf, True, 6)
    # Nine kinds may leave out one at each end.
    nine = typical_ratio({**kinds, "a": kinds["0"], "b": kinds["0"], "c": kinds["5"]})
    assert (nine.low, nine.high) == (0.5, 64)


def test_later_is_antisymmetric():
    for one, two in itertools.product(MIXED, MIXED):
        assert later_by(one, two) == pytest.approx(-later_by(two, one))
    assert later_by(Passage(8), Passage(4, 8)) == 1


def test_the_cheapest_break_and_its_ratio():
    assert cheapest([Passage(2, 4), Passage(9), Passage(1, 3)]) == Passage(1, 3)
    assert cheapest([Passage(9), Passage(7)]) == Passage(7)
    assert cost_ratio([Passage(6, 12)], [Passage(2, 3)]) == CostRatio(4.0, False)
    assert cost_ratio([Passage(12)], [Passage(2, 3)]) == CostRatio(4.0, True)
    assert cost_ratio([Passage(2, 3)], [Passage(12)]).ratio is None
    with pytest.raises(TiterError):
        cheapest([])
