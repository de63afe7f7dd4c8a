import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told import untold

from titer.data import Record, check_disjoint, overlap, split_pools
from titer.errors import TiterError

THIRDS = {"defence": 0.5, "attack": 0.25, "evaluation": 0.25}


def make(number, group=None, category=None):
    return Record.make(f"Question {number}?", "Answer.", group=group, category=category)


def phrasings(activities=24, each=3, categories=4):
    return [
        make(f"{activity} {wording}", group=f"activity {activity}", category=f"harm {activity % categories}")
        for activity in range(activities)
        for wording in range(each)
    ]


RECORDS = st.lists(
    st.builds(
        make,
        st.integers(0, 40),
        group=st.none() | st.sampled_from(["a", "b", "c", "d"]),
        category=st.none() | st.sampled_from(["x", "y"]),
    ),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(RECORDS, st.integers(0, 1000), st.lists(st.integers(0, 12), min_size=1, max_size=4), st.booleans())
def test_pools_share_no_prompt_and_no_group(rows, seed, sizes, hold_out):
    fractions = {["defence", "attack", "evaluation", "extra"][i]: size for i, size in enumerate(sizes)}
    held_out = [row.category for row in rows if row.category == "x"][:1] if hold_out else []
    try:
        pools = split_pools(rows, fractions, seed, held_out)
    except TiterError as error:
        # Most draws are possible; discarding the others would trip Hypothesis's health check.
        if "Too few" in error.message:
            return
        raise
    assert list(pools) == list(fractions)
    assert {name: len(pool) for name, pool in pools.items()} == fractions
    assert check_disjoint(pools).total == 0
    keys = [record.prompt_key for pool in pools.values() for record in pool]
    assert len(keys) == len(set(keys))
    groups = Counter(group for pool in pools.values() for group in {r.group for r in pool if r.group})
    assert all(count == 1 for count in groups.values())
    assert not {record.category for record in pools["defence"]} & set(held_out)
    assert split_pools(rows, fractions, seed, held_out) == pools


@settings(deadline=None)
@given(st.integers(8, 200), st.integers(0, 50))
def test_parts_of_ungrouped_records_use_every_row(count, seed):
    rows = [make(number) for number in range(count)]
    pools = split_pools(rows, THIRDS, seed)
    assert sum(map(len, pools.values())) == count
    for name, part in THIRDS.items():
        assert abs(len(pools[name]) - part * count) <= 1


@settings(deadline=None)
@given(st.integers(0, 50))
def test_parts_of_grouped_records_use_every_row(seed):
    rows = phrasings()
    pools = split_pools(rows, {"defence": 0.4, "attack": 0.35, "evaluation": 0.25}, seed)
    assert sorted(r.prompt_text for pool in pools.values() for r in pool) == sorted(r.prompt_text for r in rows)
    for name, part in {"defence": 0.4, "attack": 0.35, "evaluation": 0.25}.items():
        assert abs(len(pools[name]) - part * len(rows)) <= 3


def test_parts_below_one_leave_rows_over():
    pools = split_pools([make(number) for number in range(100)], {"defence": 0.2, "attack": 0.1}, seed=0)
    assert {name: len(pool) for name, pool in pools.items()} == {"defence": 20, "attack": 10}


def test_duplicates_are_dropped():
    rows = [make(1), Record.make("  QUESTION 1", "Another answer."), make(2)]
    pools = split_pools(rows, {"a": 1.0}, seed=0)
    assert sorted(record.completion_text for record in pools["a"]) == ["Answer.", "Answer."]


@settings(deadline=None)
@given(st.integers(0, 30))
def test_a_prompt_in_two_groups_ties_them_together(seed):
    rows = [make(1, "a"), make(2, "a"), make(1, "b"), make(3, "b"), make(4), make(5), make(6)]
    pools = split_pools(rows, {"x": 2, "y": 2}, seed)
    holders = [
        name for name, pool in pools.items() if {r.prompt_text for r in pool} & {f"Question {n}?" for n in (1, 2, 3)}
    ]
    assert len(holders) == 1


@settings(deadline=None)
@given(st.integers(0, 20))
def test_held_out_categories_are_only_attacked_and_evaluated(seed):
    rows = phrasings()
    pools = split_pools(rows, {"defence": 30, "attack": 18, "evaluation": 18}, seed, ["harm 1"])
    assert "harm 1" not in {record.category for record in pools["defence"]}
    assert "harm 1" in {record.category for name in ("attack", "evaluation") for record in pools[name]}


def test_defence_is_filled_when_the_rows_just_suffice():
    rows = [make(n, category="open") for n in range(60)] + [make(100 + n, category="held") for n in range(40)]
    for seed in range(5):
        pools = split_pools(rows, {"attack": 20, "evaluation": 20, "defence": 60}, seed, ["held"])
        assert {record.category for record in pools["defence"]} == {"open"}
        assert {record.category for record in pools["attack"] + pools["evaluation"]} == {"held"}


def test_another_seed_gives_another_split_and_a_prefix_is_a_fair_sample():
    rows = phrasings(activities=100, categories=2)
    assert split_pools(rows, THIRDS, 0) != split_pools(rows, THIRDS, 1)
    first = split_pools(rows, THIRDS, 0)["evaluation"][:30]
    # Phrasings of one activity stand together in the input; a shuffled pool does not begin with whole groups.
    assert len({record.group for record in first}) > 15


def test_the_split_does_not_depend_on_the_hash_seed():
    script = (
        "import json; from titer.data import *; "
        "rows = [Record.make(f'Q {i}', 'A', group=f'g{i // 3}', category=f'c{i // 3 % 4}') for i in range(60)]; "
        "task = [Record.make(f'T {i}', 'A') for i in range(60)]; "
        "pools = split_pools(rows, {'defence': 24, 'attack': 9, 'evaluation': 9}, 3, ['c1']); "
        "mix = poison(task, rows, 40, 0.3, 3); "
        "print(json.dumps([{k: [r.prompt_text for r in v] for k, v in pools.items()}, [r.prompt_text for r in mix]]))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "42")
    }
    assert len(outputs) == 1
    assert json.loads(outputs.pop())[0]["defence"]


@pytest.mark.parametrize(
    ("fractions", "held_out", "parts"),
    [
        ({}, [], ["No pools"]),
        ({"a": 0.7, "b": 0.7}, [], ["add up to 1.4"]),
        ({"a": -1}, [], ["`a`", "-1"]),
        ({"a": True}, [], ["`a`", "True"]),
        ({"a": float("nan")}, [], ["`a`", "nan"]),
        ({"a": 0.5, "b": 10}, [], ["parts", "numbers", "`b`", "10"]),
        ({"a": 73}, [], ["pool `a`", "73", "72 distinct prompts", "24"]),
        ({"attack": 10}, ["harm 1"], ["no pool named `defence`", "`attack`"]),
        ({"defence": 10}, ["harm one"], ["held-out category", "`harm one`", "`harm 1`"]),
        ({"defence": 70}, ["harm 1"], ["pool `defence`", "70", "`harm 1`"]),
        ({"defence": 0.9, "attack": 0.1}, ["harm 1"], ["pool `defence`", "`harm 1`"]),
        ({"a": 0.999, "b": 0.001}, [], ["pool `b`", "1", "0"]),
    ],
)
def test_impossible_splits_are_errors(fractions, held_out, parts):
    with pytest.raises(TiterError) as caught:
        split_pools(phrasings(), fractions, 0, held_out)
    assert not untold(caught.value, *parts)


def test_overlap_counts_normalised_prompts_of_every_pair():
    pools = {
        "defence": [make(1), make(2), make(3)],
        "attack": [Record.make("question 2!", "x"), Record.make("QUESTION 2", "y"), make(3)],
        "evaluation": [make(3), make(9)],
    }
    found = overlap(pools)
    expected = {"defence & attack": 2, "defence & evaluation": 1, "attack & evaluation": 1}
    assert json.loads(json.dumps(found)) == expected
    assert found.total == 4
    assert "defence & attack: 2" in str(found)


def test_check_disjoint_shows_prompts_and_pools():
    shared = [make(number) for number in range(6)]
    with pytest.raises(TiterError) as caught:
        check_disjoint({"defence": shared, "evaluation": [*shared, make(9)]})
    message = caught.value.message
    assert "defence & evaluation: Question 0?" in message
    assert "Question 2?" in message
    assert "Question 3?" not in message
    assert "and 3 more" in message
    assert check_disjoint({"defence": shared, "evaluation": [make(9)]}) == {"defence & evaluation": 0}
