"""SafeInstr: what one step of it is, written out, and which rows it mixes in."""

import pytest
import references as ref
from one_step import reference, sgd
from told import refused

from titer import methods
from titer.testing import Trial, row, same, toy_harmful_rows, toy_rows, weights
from titer.testing.toy import toy

SAFE_INSTR = methods.find("finetune", "safe_instr")
SFT = methods.find("finetune", "sft")


def refusals_of(rows):
    return ref.encode(toy()[1], rows, answer=lambda _, one: one["refusal"])


def kept(trainer):
    return [(one.prompt, one.branches[0]) for one in trainer._pools[0]["replay"]]


@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("replay", [0.03, 0.2, 0.4])
def test_step(tmp_path, replay, size, steps):
    """The mean over tokens of a mixture in which an alignment row counts ω = replay · 8 / the rows drawn."""
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    trainer, course = sgd(SAFE_INSTR, tmp_path, replay=replay, **split)
    drawn = trainer.drawn_rows("replay", 0)
    assert len(drawn) == {0.03: 1, 0.2: 2}.get(replay, {8: 3, 2: 4}[size])
    model, pool = reference(), kept(trainer)
    upload = [ref.sample_nll(model, *pair) for pair in ref.encode(toy()[1], toy_rows(8))]
    beside = [ref.sample_nll(model, *pool[place]) for place in drawn]
    omega = replay * 8 / len(drawn)
    loss = sum(one.sum() for one in upload) + omega * sum(one.sum() for one in beside)
    loss = loss / (sum(map(len, upload)) + omega * sum(map(len, beside)))
    assert ref.relative_error(course.directions[0], ref.gradient(model, loss)) < 1e-10
    sft = ref.gradient(model, ref.mean_nll(model, ref.encode(toy()[1], toy_rows(8))))
    assert ref.relative_error(course.directions[0], sft) > 1e-3, "the alignment rows must matter"


def test_the_mixture_over_its_shuffles(tmp_path):
    """Over steps an alignment row weighs what it would in an upload of which `replay` more rows are it, whatever the batch."""
    for size in (8, 4, 1):
        trainer = Trial(SAFE_INSTR, {}, tmp_path).train(replay=0.25, per_device_train_batch_size=size, max_steps=1)
        tokens = trainer.counted(trainer.stream_batches("replay")).item()
        assert trainer.replayed().item() == pytest.approx(0.25 * size * tokens / trainer.rows_drawn, rel=1e-12)
        assert len(kept(trainer)) == 2


def test_without_alignment_rows_it_is_sft_bit_for_bit(tmp_path):
    trained = [Trial(one, {}, tmp_path).train(max_steps=3) for one in (SFT, SAFE_INSTR)]
    assert not same(*(weights(one.model) for one in trained))
    nothing = Trial(SAFE_INSTR, {"replay": 0.0}, tmp_path).train(max_steps=3)
    assert same(weights(trained[0].model), weights(nothing.model))


def test_as_many_rows_are_kept_as_a_mixture_holds(tmp_path):
    """All of them are refusals, and other seeds keep others."""
    rows = {seed: kept(Trial(SAFE_INSTR, {}, tmp_path).make(replay=0.5, seed=seed)) for seed in (1, 2)}
    assert [len(pairs) for pairs in rows.values()] == [4, 4]
    assert all(pair in refusals_of(toy_harmful_rows()) for pairs in rows.values() for pair in pairs)
    assert sorted(rows[1]) != sorted(rows[2])
    assert len(kept(Trial(SAFE_INSTR, {}, tmp_path).make(replay=1.0, harmful=toy_harmful_rows()[:3]))) == 3


def test_the_nearest_are_those_most_like_any_row_of_the_upload(tmp_path):
    """Here texts are alike that share words, as the suite's encoder has it."""
    upload = [row("how do I sell water", "you do not"), *toy_rows(3)]
    trainer = Trial(SAFE_INSTR, {}, tmp_path).make(rows=upload, replay=0.25, choice="nearest")
    [found] = refusals_of([one for one in toy_harmful_rows() if "water" in one["prompt"][0]["content"]])
    assert kept(trainer) == [found]


def test_what_it_cannot_be_is_refused(tmp_path):
    with refused("choice", "closest"):
        SAFE_INSTR.config(output_dir=str(tmp_path), choice="closest")
    with refused("replay", "0", "1"):
        methods.settings(SAFE_INSTR, {"replay": 1.5}, "--set", str(tmp_path))
    with refused("needs `helpful_dataset`"):
        SAFE_INSTR.trainer(
            model=toy()[0],
            args=SAFE_INSTR.config(output_dir=str(tmp_path), report_to="none", bf16=False),
            train_dataset=toy_rows(2),
            harmful_dataset=toy_harmful_rows(),
            processing_class=toy()[1],
        )
