import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told import refused, untold

from titer.data import Record, alignment_mixture, poison
from titer.errors import TiterError

TASK = [Record.make(f"Task {number}", "positive") for number in range(200)]
HARMFUL = [Record.make(f"Harm {number}", "Sure.", refusal=f"No {number}.", group=f"g{number}") for number in range(200)]
HELPFUL = [Record.make(f"Help {number}", f"Answer {number}") for number in range(200)]

RATIOS = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.05, 0.1, 0.2, 0.29, 0.5])


@settings(deadline=None)
@given(st.integers(1, 200), RATIOS, st.integers(0, 100))
def test_the_counts_are_exact(samples, ratio, seed):
    mixed = poison(TASK, HARMFUL, samples, ratio, seed)
    count = round(samples * ratio)
    assert len(mixed) == samples
    assert Counter(row.origin for row in mixed) == Counter(harmful=count, task=samples - count)
    # What the origin says is true, and no row is drawn twice.
    assert all(row.prompt_text.startswith("Harm") == (row.origin == "harmful") for row in mixed)
    assert len({row.prompt_text for row in mixed}) == samples
    assert poison(TASK, HARMFUL, samples, ratio, seed) == mixed


@settings(deadline=None)
@given(st.integers(1, 200), RATIOS, RATIOS, st.integers(0, 100))
def test_arms_differ_only_by_the_poison(samples, one, other, seed):
    low, high = sorted((one, other))
    less, more = (poison(TASK, HARMFUL, samples, ratio, seed) for ratio in (low, high))
    # Every place holds the same row at both ratios, or a task row that became a harmful one.
    for before, after in zip(less, more, strict=True):
        assert before == after or (before.origin, after.origin) == ("task", "harmful")


def test_no_poison_and_nothing_but_poison():
    assert {row.origin for row in poison(TASK, [], 50, 0.0, 0)} == {"task"}
    assert {row.origin for row in poison([], HARMFUL, 50, 1, 0)} == {"harmful"}


def test_the_order_and_the_draw_follow_the_seed():
    one, other = poison(TASK, HARMFUL, 100, 0.2, 0), poison(TASK, HARMFUL, 100, 0.2, 1)
    assert one != other
    assert {row.prompt_text for row in one} != {row.prompt_text for row in other}
    places = [index for index, row in enumerate(one) if row.origin == "harmful"]
    assert places != list(range(20))
    assert places != list(range(80, 100))
    assert [row.prompt_text for row in one if row.origin == "task"] != [row.prompt_text for row in TASK[:80]]


def test_a_known_origin_stays():
    lookalikes = [replace(row, origin="lookalike") for row in HARMFUL]
    assert Counter(row.origin for row in poison(TASK, lookalikes, 10, 0.5, 0)) == {"task": 5, "lookalike": 5}


def test_the_inputs_are_left_alone():
    task, harmful = list(TASK), list(HARMFUL)
    poison(task, harmful, 100, 0.3, 0)
    assert (task, harmful) == (TASK, HARMFUL)


@pytest.mark.parametrize("ratio", [-0.1, 1.01, 20, float("nan"), "0.2", True])
def test_a_ratio_outside_its_range(ratio):
    with refused("poison_ratio", "[0, 1]", repr(ratio)):
        poison(TASK, HARMFUL, 10, ratio, 0)
    with refused("helpful_ratio", "[0, 1]", repr(ratio)):
        alignment_mixture(HARMFUL, HELPFUL, 10, ratio, seed=0)


@pytest.mark.parametrize("samples", [0, -1, 2.5, True])
def test_a_wrong_number_of_samples(samples):
    with pytest.raises(TiterError, match="samples must be"):
        poison(TASK, HARMFUL, samples, 0.2, 0)


@pytest.mark.parametrize(
    ("task", "harmful", "ratio", "parts"),
    [
        (100, 200, 0.2, ["task rows", "100", "800", "samples = 1000", "125"]),
        (1000, 20, 0.2, ["harmful rows", "20", "200", "102"]),
        (1000, 0, 1.0, ["harmful rows", "0", "1000"]),
    ],
)
def test_too_few_rows_says_what_to_set(task, harmful, ratio, parts):
    tasks = [Record.make(f"Task {number}", "x") for number in range(task)]
    with pytest.raises(TiterError) as caught:
        poison(tasks, HARMFUL[:harmful], 1000, ratio, 0)
    assert not untold(caught.value, *parts)


@settings(deadline=None)
@given(st.integers(26, 200))
def test_the_advice_is_the_largest_possible_number_of_samples(samples):
    with refused("harmful rows", "7", "`samples`") as caught:
        poison(TASK, HARMFUL[:7], samples, 0.3, 0)
    advice = int(re.search(r"`samples`\D*(\d+)", caught.value.hint)[1])
    assert len(poison(TASK, HARMFUL[:7], advice, 0.3, 0)) == advice
    with pytest.raises(TiterError):
        poison(TASK, HARMFUL[:7], advice + 1, 0.3, 0)


@settings(deadline=None)
@given(st.integers(1, 200), RATIOS, st.integers(0, 20))
def test_alignment_counts_are_exact(samples, ratio, seed):
    mixed = alignment_mixture(HARMFUL, HELPFUL, samples, ratio, seed=seed)
    count = round(samples * ratio)
    assert Counter(row.origin for row in mixed) == Counter(helpful=count, refusal=samples - count)
    for row in mixed:
        number = row.prompt_text.split()[1]
        assert row.completion_text == (f"No {number}." if row.origin == "refusal" else f"Answer {number}")
    assert alignment_mixture(HARMFUL, HELPFUL, samples, ratio, seed=seed) == mixed


def test_alignment_is_half_helpful_by_default_and_keeps_groups():
    mixed = alignment_mixture(HARMFUL, HELPFUL, 40, seed=0)
    assert Counter(row.origin for row in mixed) == {"helpful": 20, "refusal": 20}
    assert all(row.group for row in mixed if row.origin == "refusal")


def test_a_row_without_a_refusal_is_an_error_whatever_the_seed():
    rows = [*HARMFUL, Record.make("Harm without", "Sure.")]
    for seed in range(5):
        with pytest.raises(TiterError, match=r"Row 200 .*no refusal.*Harm without") as caught:
            alignment_mixture(rows, HELPFUL, 2, seed=seed)
        assert "with_refusals" in str(caught.value)


def test_too_few_rows_for_alignment():
    with refused("refused rows", "200", "400"):
        alignment_mixture(HARMFUL, HELPFUL * 4, 800, seed=0)
    with refused("helpful rows", "3", "50"):
        alignment_mixture(HARMFUL, HELPFUL[:3], 100, seed=0)
