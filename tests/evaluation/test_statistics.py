import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, mannwhitneyu, ttest_rel
from scipy.stats import t as student
from told import refused

from titer.errors import TiterError
from titer.stats.intervals import (
    Estimate,
    agreement,
    auroc,
    auroc_interval,
    difference_of,
    mean_interval,
    paired_mean,
    prompts_needed,
    seeds_needed,
    share_interval,
    wilson,
)


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[float], list[bool]]:
    """Scores with many ties, and labels of both classes."""
    scores = draw(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=30))
    labels = draw(
        st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)).filter(lambda x: len(set(x)) == 2)
    )
    return scores, labels


@given(
    st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99])
)
def test_wilson_is_scipys_and_holds_the_estimate(counts: tuple[int, int], confidence: float) -> None:
    k, n = counts
    low, high = wilson(k, n, confidence)
    expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high


def test_wilson_by_hand() -> None:
    # 0 of n: the upper end is z² / (n + z²).
    z2 = 1.959963984540054**2
    assert wilson(0, 40) == pytest.approx((0, z2 / (40 + z2)))
    assert wilson(40, 40) == pytest.approx((40 / (40 + z2), 1))


@pytest.mark.parametrize(("k", "n", "confidence"), [(0, 0, 0.95), (5, 4, 0.95), (-1, 4, 0.95), (1, 4, 1.0)])
def test_wilson_rejects_impossible_counts(k: int, n: int, confidence: float) -> None:
    with pytest.raises(TiterError):
        wilson(k, n, confidence)


@given(scored())
def test_auroc_is_the_mann_whitney_statistic(data: tuple[list[float], list[bool]]) -> None:
    scores, labels = np.array(data[0]), np.array(data[1])
    u = mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert auroc(scores, labels) == pytest.approx(u / (labels.sum() * (~labels).sum()), abs=1e-12)


@given(scored())
def test_auroc_is_the_share_of_ordered_pairs(data: tuple[list[float], list[bool]]) -> None:
    pairs = [(p, n) for p, a in zip(*data, strict=True) if a for n, b in zip(*data, strict=True) if not b]
    assert auroc(*data) == pytest.approx(sum((p > n) + (p == n) / 2 for p, n in pairs) / len(pairs), abs=1e-12)


@given(scored())
def test_auroc_symmetry(data: tuple[list[float], list[bool]]) -> None:
    scores, labels = data
    negated, swapped = [-s for s in scores], [not label for label in labels]
    assert auroc(negated, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)
    assert auroc(scores, swapped) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)
    assert auroc(negated, swapped) == auroc(scores, labels)
    assert auroc([math.exp(s) for s in scores], labels) == auroc(scores, labels)


@given(scored())
def test_auroc_interval_holds_the_estimate_and_mirrors(data: tuple[list[float], list[bool]]) -> None:
    scores, labels = data
    value, low, high = auroc_interval(scores, labels)
    assert value == auroc(scores, labels)
    assert 0 <= low <= value <= high <= 1
    assert low < high
    mirrored = auroc_interval([-s for s in scores], labels)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_auroc_interval_solves_newcombes_equation() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) < 24
    value, low, high = auroc_interval(generator.normal(labels * 1.2, 1), labels)
    for theta in (low, high):
        pooled = 60 / 2 - 1
        spread = 1 + pooled * (1 - theta) / (2 - theta) + pooled * theta / (1 + theta)
        deviation = math.sqrt(theta * (1 - theta) * spread / (24 * 36))
        assert abs(value - theta) == pytest.approx(1.959963984540054 * deviation, rel=1e-9)


def test_auroc_interval_covers_at_its_level_also_near_one() -> None:
    generator = np.random.default_rng(1)
    for shift in (0.0, 1.0, 2.5):
        truth = 0.5 * (1 + math.erf(shift / 2))  # P(N(shift, 1) > N(0, 1))
        hits = 0
        for _ in range(400):
            labels = np.arange(80) < 40
            interval = auroc_interval(generator.normal(labels * shift, 1), labels)
            hits += interval.low <= truth <= interval.high
        assert 0.92 <= hits / 400 <= 0.99, shift


def test_auroc_interval_keeps_a_width_when_the_classes_are_separated() -> None:
    value, low, high = auroc_interval([0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1])
    assert (value, high) == (1, 1)
    assert 0.3 < low < 0.8


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1, 1], "positive.* negative"),
        ([1.0, 2.0], [1], r"\b2 scores.* 1 label"),
        ([1.0, 2.0], [1, -1], "true or false"),
        ([1.0, math.nan], [1, 0], "not finite"),
        ([[1.0, 2.0]], [[1, 0]], "flat list"),
    ],
)
def test_auroc_rejects(scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(TiterError, match=message):
        auroc(scores, labels)


def test_paired_mean_is_that_of_scipy_and_its_mirror() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(0, 1, 30), generator.normal(0.3, 1, 30)
    expected = ttest_rel(a, b)
    forth, back = paired_mean(a, b), paired_mean(b, a)
    assert forth.p == pytest.approx(expected.pvalue)
    assert (forth.low, forth.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (back.mean, back.low, back.high, back.p) == pytest.approx((-forth.mean, -forth.high, -forth.low, forth.p))


def test_paired_mean_pairs_prompts() -> None:
    # Both arms vary a lot between prompts, and always by the same: paired, the difference is certain.
    a = np.arange(20.0)
    assert paired_mean(a + 1, a) == (1, 1, 1, 0)
    assert paired_mean(a, a) == (0, 0, 0, 1)


def test_paired_mean_covers_with_a_dozen_prompts() -> None:
    """A percentile bootstrap of 12 values held the truth in 81-86 % of all cases with its 90 % interval."""
    draw = np.random.default_rng(0)
    found = [paired_mean(draw.normal(0, 1, 12), np.zeros(12), confidence=0.9) for _ in range(400)]
    assert 0.87 < np.mean([d.low <= 0 <= d.high for d in found]) < 0.93


def test_paired_mean_rejects_unpaired() -> None:
    for a, b in (([1, 0], [1]), ([], []), ([1], [0])):
        with pytest.raises(TiterError, match="same prompts"):
            paired_mean(a, b)


def test_share_interval_covers_where_seeds_differ() -> None:
    draw = np.random.default_rng(0)
    truth = (1 / (1 + np.exp(-draw.normal(0, 2, 100_000)))).mean()
    shares = draw.binomial(40, 1 / (1 + np.exp(-draw.normal(0, 2, (500, 3))))) / 40
    found = [share_interval(seeds, 40) for seeds in shares]
    assert np.mean([low <= truth <= high for low, high in found]) > 0.93
    assert share_interval([1.0, 1.0], 40) == pytest.approx((40.5 / 41, 40.5 / 41))
    with pytest.raises(TiterError, match="n = 0"):
        share_interval([0.5, 0.5], 0)


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_mean_interval_is_students(values: list[float]) -> None:
    mean, low, high = mean_interval(values)
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    assert (mean, low, high) == pytest.approx(
        (np.mean(values), np.mean(values) - half, np.mean(values) + half), abs=1e-9
    )


def test_mean_interval_by_hand_and_of_one_seed() -> None:
    # Three seeds: t(0.975, 2) = 4.302653, s = 1.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    with refused("two seeds", "1"):
        mean_interval([1.0])


def test_agreement_by_hand() -> None:
    # The textbook table 20, 5 / 10, 15: observed 0.7, chance 0.5, kappa 0.4.
    first = ["harmful"] * 25 + ["benign"] * 25
    second = ["harmful"] * 20 + ["benign"] * 5 + ["harmful"] * 10 + ["benign"] * 15
    assert agreement(first, second) == (50, 0, pytest.approx(0.7), pytest.approx(0.4))
    assert agreement(second, first).kappa == pytest.approx(0.4)


def test_agreement_leaves_out_failures_and_says_so() -> None:
    result = agreement(["harmful", None, "benign", "benign"], ["harmful", "harmful", None, "harmful"])
    assert (result.n, result.excluded, result.agreement) == (2, 2, 0.5)
    assert agreement(["refused"] * 3, ["refused"] * 3).kappa is None
    with pytest.raises(TiterError, match="judged by both"):
        agreement([None], ["harmful"])
    with pytest.raises(TiterError, match="same responses"):
        agreement(["harmful"], [])


def test_the_interval_of_a_difference_is_newcombes():
    # Newcombe (1998), table II, (a): 56 of 70 against 48 of 80, method 10: 0.0524 to 0.3339.
    first, second = (Estimate(k / n, *wilson(k, n)) for k, n in ((56, 70), (48, 80)))
    difference = difference_of(first, second)
    assert difference.value == pytest.approx(0.2)
    assert difference[1:] == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_of(second, first)[1:] == pytest.approx((-difference.high, -difference.low))


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.5, 0.5), (0.4, 0.05), (1.0, 0.9)])
@pytest.mark.parametrize("within", [0.02, 0.05, 0.3])
def test_the_prompts_needed_are_the_fewest_that_suffice(shares, within):
    def reach(n):
        ends = [Estimate(share, *wilson(share * n, n)) for share in shares]
        value, low, high = difference_of(*ends)
        return max(value - low, high - value)

    n = prompts_needed(*shares, within)
    assert reach(n) <= within
    assert n == 1 or reach(n - 1) > within


def test_what_is_never_narrow_enough_is_an_error():
    with pytest.raises(TiterError, match="0"):
        prompts_needed(0.5, 0.5, 0.0)
    with pytest.raises(TiterError, match="0"):
        seeds_needed([1.0, 2.0], 0.0)
