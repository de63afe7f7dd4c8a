"""Rows that no training row is tied to: all of them are used, in an order that is a function of the step alone."""

import copy
import itertools

import every_method
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titer.packing.streams import draw
from titer.testing import row, toy_rows


@given(length=st.integers(1, 40), size=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_no_row_comes_again_before_all_have_come(length, size, seed):
    sequence = [place for start in range(0, 3 * length, size) for place in draw(length, start, size, (seed, 0))]
    for start in range(0, 3 * length, length):
        assert sorted(sequence[start : start + length]) == list(range(length))


def test_permutations_are_fresh_and_follow_from_the_seed():
    first, second = draw(20, 0, 20, (3, 0)), draw(20, 20, 20, (3, 0))
    assert first != second
    assert draw(20, 13, 9, (3, 0)) == (first + second)[13:22], "drawn without what came before"
    others = [draw(20, 0, 20, seed) for seed in ((4, 0), (3, 1))]
    assert first not in others
    assert others[0] != others[1]


def harmful(count):
    return [row(f"how do I do {i}", f"sure, so {i}", refusal=f"no, not {i}") for i in range(count)]


def watched(method, tmp_path, tiny, tokenizer, pool, rows=6, **more):
    """Train and return the rows of the pool in the order they were used, one list for each micro-batch and stream."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 5, **more}
    trainer = every_method.make(method, tmp_path, tiny, tokenizer, toy_rows(rows), harmful(pool), **settings)
    layout, seen = trainer.data_collator.lay_out, []
    numbers = {
        tuple(sample.branches[0]): (stream, number)
        for streams in trainer._pools
        for stream, samples in streams.items()
        for number, sample in enumerate(samples)
    }

    def watching(samples):
        if tuple(samples[0].branches[0]) in numbers:
            seen.append([numbers[tuple(sample.branches[0])] for sample in samples])
        return layout(samples)

    trainer.data_collator.lay_out = watching
    trainer.train()
    return [
        [[number for _, number in batch] for batch in seen if batch[0][0] == stream]
        for stream in ("harmful", "refusal")
    ]


def test_the_whole_pool_is_used_however_few_the_training_rows(tiny, tokenizer, tmp_path):
    """30 harmful rows beside 6 training rows: five steps of 6 use each once, and its own refusal with it."""
    used, refusals = watched("align antibody", tmp_path, tiny, tokenizer, pool=30)
    assert [len(batch) for batch in used] == [2] * 15
    assert sorted(itertools.chain(*used)) == list(range(30))
    assert refusals == used


def test_a_step_draws_a_full_batch_also_where_training_rows_run_out(tiny, tokenizer, tmp_path):
    """7 training rows in batches of 2 × 3: every second optimizer step has a single training row."""
    used, _ = watched("align booster", tmp_path, tiny, tokenizer, pool=30, rows=7)
    assert sorted(itertools.chain(*used)) == list(range(30))


def test_rows_are_not_passed_over_where_simulated_attacks_are_used_again(tiny, tokenizer, tmp_path):
    used, _ = watched("align booster", tmp_path, tiny, tokenizer, pool=18, refresh_every=2)
    assert sorted(itertools.chain(*used)) == list(range(18)), "three simulated attacks in five steps"


@pytest.mark.parametrize(("ranks", "size", "accumulation"), [(1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2), (4, 1, 1)])
def test_how_a_batch_is_split_does_not_matter(tiny, tokenizer, tmp_path, ranks, size, accumulation):
    """All ranks and micro-batches of a step together take the rows that one process would take."""
    trainer = every_method.make(
        "align booster",
        tmp_path,
        copy.deepcopy(tiny),
        tokenizer,
        toy_rows(4),
        harmful(7),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )

    class Rank(type(trainer.args)):
        world_size = ranks
        process_index = 0

    taken = []
    trainer.data_collator.lay_out = lambda samples: taken.append(samples) or {"batch": len(taken)}
    trainer.args.__class__ = Rank
    for step in (0, 1):
        trainer.state.global_step = step
        for Rank.process_index in range(ranks):
            trainer._drawn = {}
            assert len(trainer.stream_batches("harmful")) == accumulation
    (pool,) = trainer._pools
    samples = [sample for batch in taken for sample in batch]
    expected = draw(7, 0, 8, (trainer.args.seed, 0))
    for step in (0, 1):
        rows = [pool["harmful"].index(sample) for sample in samples[4 * step : 4 * step + 4]]
        assert sorted(rows) == sorted(expected[4 * step : 4 * step + 4])
