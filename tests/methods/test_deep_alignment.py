"""Deep alignment against its objective written out, one sample at a time, in float64."""

import copy

import numpy as np
import pytest
import references as ref
import torch
from attention_longhand import copied
from training import config

from titer import methods
from titer.data import Record
from titer.errors import TiterError
from titer.jobs import rehearsal
from titer.methods.align import DeepAlignmentConfig, DeepAlignmentTrainer
from titer.methods.align.deep_alignment import DEEP_ALIGNMENT
from titer.models import Template
from titer.testing import Trial, row, toy_harmful_rows, toy_lora, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

SGD = {"optim": "sgd", "weight_decay": 0.0, "learning_rate": 1e-2}
HARMFUL = toy_harmful_rows()
MIXED = [*toy_rows(5), *(row(each["prompt"][0]["content"], each["refusal"]) for each in HARMFUL[2:5])]
"""Five rows of the anchor, and three refusals of prompts that the defender's harmful rows ask too."""


def make(tiny, tokenizer, folder, rows=MIXED, harmful=HARMFUL, lora=False, **settings):
    torch.manual_seed(0)
    return DeepAlignmentTrainer(
        copy.deepcopy(tiny).double(),
        config(DeepAlignmentConfig, folder, **{**SGD, **settings}),
        train_dataset=rows,
        harmful_dataset=harmful,
        processing_class=tokenizer,
        peft_config=toy_lora() if lora else None,
    )


def refusals_after(trainer, tokenizer, depths):
    """Prompts with the beginnings of their harmful answers, and refusals."""
    answers = ref.encode(tokenizer, HARMFUL)
    refusals = ref.encode(tokenizer, HARMFUL, lambda number, each: each["refusal"])
    return [(answers[place][0] + answers[place][1][:depth], refusals[place][1]) for place, depth in depths]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("mixing", ["alpha", "tokens"])
def test_a_step_is_along_the_gradient_of_both_means(tiny, tokenizer, tmp_path, size, steps, mixing, lora):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    trainer = make(tiny, tokenizer, tmp_path, lora=lora, alpha=0.4, mixing=mixing, refusals_each=0.75, **split)
    model, before = copied(trainer.model), weights(trainer.model)
    trainer.train()
    drawn = trainer.drawn_rows("deep", 0)
    depths = [(place, trainer.depth(place, 0)) for place in drawn]
    assert len(set(drawn)) == 6
    assert {depth > 0 for _, depth in depths} == {True, False}
    anchor = ref.encode(tokenizer, toy_rows(5))
    refused = refusals_after(trainer, tokenizer, depths)
    if mixing == "alpha":
        loss = 0.4 * ref.mean_nll(model, refused) + 0.6 * ref.mean_nll(model, anchor)
    else:
        loss = ref.mean_nll(model, [*refused, *anchor])
    moved = [(b - a) / 1e-2 for a, b in zip(weights(trainer.model), before, strict=True)]
    assert ref.relative_error(moved, ref.gradient(model, loss)) < 1e-10


def test_without_weight_on_refusals_it_is_plain_alignment(tiny, tokenizer, tmp_path):
    ours = make(tiny, tokenizer, tmp_path, rows=toy_rows(8), alpha=0.0, max_steps=3)
    torch.manual_seed(0)
    plain = PackedSFTTrainer(
        copy.deepcopy(tiny).double(),
        config(PackedSFTConfig, tmp_path, **SGD, max_steps=3),
        train_dataset=toy_rows(8),
        processing_class=tokenizer,
    )
    for trainer in (ours, plain):
        trainer.train()
    apart = [(a - b).abs().max() for a, b in zip(weights(ours.model), weights(plain.model), strict=True)]
    assert max(apart) < 1e-14


def test_half_of_the_refusals_follow_a_beginning_of_any_length(tiny, tokenizer, tmp_path):
    trainer = make(tiny, tokenizer, tmp_path, most_tokens=4)
    depths = np.array([trainer.depth(place, step) for step in range(500) for place in range(8)])
    counts = np.bincount(depths, minlength=5)
    assert len(counts) == 5
    assert counts[0] == pytest.approx(2000, abs=95)  # three standard deviations
    assert counts[1:] == pytest.approx(np.full(4, 500), abs=63)
    assert [trainer.depth(place, 3) for place in range(8)] == [trainer.depth(place, 3) for place in range(8)]
    other = make(tiny, tokenizer, tmp_path, most_tokens=4, seed=9)
    assert [other.depth(place, 0) for place in range(8)] != [trainer.depth(place, 0) for place in range(8)]


@pytest.mark.parametrize(("probability", "depths"), [(0.0, [0]), (1.0, [1])])
def test_the_probability_of_a_beginning_is_a_setting(tiny, tokenizer, tmp_path, probability, depths):
    trainer = make(tiny, tokenizer, tmp_path, deep_probability=probability, most_tokens=1)
    assert sorted({trainer.depth(place, step) for step in range(20) for place in range(8)}) == depths


def test_a_beginning_ends_before_the_end_of_the_turn(tiny, tokenizer, tmp_path):
    trainer = make(tiny, tokenizer, tmp_path)
    ends = Template(tokenizer).end_of_turn
    for place, (_, answer) in enumerate(ref.encode(tokenizer, HARMFUL)):
        deepest = max(trainer.depth(place, step) for step in range(300))
        assert deepest == len(answer) - 1 < 100
        assert answer[-1] in ends
        assert not ends & set(answer[:deepest])


def test_rows_stay_within_max_length(tiny, tokenizer, tmp_path, caplog):
    answers = ref.encode(tokenizer, HARMFUL)
    refusals = [answer for _, answer in ref.encode(tokenizer, HARMFUL, lambda number, each: each["refusal"])]
    needed = [len(prompt) + len(refusal) for (prompt, _), refusal in zip(answers, refusals, strict=True)]
    limit = max(*needed, *(len(prompt) + len(answer) for prompt, answer in ref.encode(tokenizer, MIXED))) + 1
    trainer = make(tiny, tokenizer, tmp_path, max_length=limit, max_steps=4)
    trainer.train()
    ends, bounded = Template(tokenizer).end_of_turn, 0
    for place, length in enumerate(needed):
        answer = trainer._harmful[place].branches[0]
        whole = len(answer) - (answer[-1] in ends)
        deepest = max(trainer.depth(place, step) for step in range(300))
        assert deepest == min(limit - length, whole)
        bounded += deepest < whole
    assert bounded
    assert trainer.longest_row <= limit
    assert f"{bounded} of 8 rows of harmful_dataset leave no room for as long a beginning" in caplog.text


def test_no_room_at_all_is_an_error(tiny, tokenizer, tmp_path):
    (prompt, _), *_ = ref.encode(tokenizer, HARMFUL[6:7])
    refusal = ref.encode(tokenizer, HARMFUL[6:7], lambda number, each: each["refusal"])[0][1]
    limit = len(prompt) + len(refusal)
    with pytest.raises(TiterError, match="No row of harmful_dataset leaves room"):
        make(tiny, tokenizer, tmp_path, rows=[row("a", "b"), row("c", "d")], harmful=HARMFUL[6:7], max_length=limit)


def test_rows_of_harmful_prompts_are_no_anchor(tiny, tokenizer, tmp_path):
    trainer = make(tiny, tokenizer, tmp_path)
    assert trainer.anchors.tolist() == [True] * 5 + [False] * 3
    with pytest.raises(TiterError, match="no utility anchor"):
        make(tiny, tokenizer, tmp_path, rows=MIXED[5:])


def test_a_batch_without_an_anchor_learns_from_refusals_alone(tiny, tokenizer, tmp_path):
    """One row a step: those that ask harmful prompts add nothing."""
    trainer = make(tiny, tokenizer, tmp_path, per_device_train_batch_size=1, max_steps=8, alpha=0.4, learning_rate=0.0)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(loss == 0 for loss in losses) == 3


@pytest.mark.parametrize(("share", "drawn"), [(0.25, 2), (0.01, 1), (1.0, 8)])
def test_refusals_are_a_share_of_the_batch(tiny, tokenizer, tmp_path, share, drawn):
    for size in (8, 2, 1):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer = make(tiny, tokenizer, tmp_path, refusals_each=share, **split)
        assert trainer.rows_drawn == max(drawn, 1)


def test_rows_without_a_refusal_get_a_generic_one(tiny, tokenizer, tmp_path):
    harmful = [{name: value for name, value in each.items() if name != "refusal"} for each in HARMFUL]
    trainer = make(tiny, tokenizer, tmp_path, harmful=harmful)
    texts = {tokenizer.decode(ids) for ids in trainer._refusals}
    assert len(texts) > 1


def test_evaluation_is_the_plain_mean(tiny, tokenizer, tmp_path):
    trainer = make(tiny, tokenizer, tmp_path)
    expected = ref.mean_nll(copied(trainer.model), ref.encode(tokenizer, MIXED)).item()
    assert trainer.evaluate(MIXED)["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(TiterError, match="Unknown mixing: `token`"):
        config(DeepAlignmentConfig, tmp_path, mixing="token")
    for name, value in {"alpha": 1.0, "deep_probability": 1.5, "most_tokens": 0, "refusals_each": 0.0}.items():
        with pytest.raises(TiterError, match=name):
            methods.settings(DEEP_ALIGNMENT, {name: value}, "--set", str(tmp_path))
    with pytest.raises(TiterError, match="needs `harmful_dataset`"):
        Trial(methods.Method(DEEP_ALIGNMENT.config, DEEP_ALIGNMENT.trainer), {}, tmp_path).make()


def test_a_rehearsal_takes_rows_of_the_anchor(tiny_folder, monkeypatch):
    monkeypatch.setattr(rehearsal, "_done", set())
    harmful = [Record.from_row(each, "x") for each in HARMFUL]
    records = [Record.from_row(each, "x") for each in [*MIXED[5:], *MIXED[:5]]]

    def rehearse(rows):
        streams = {"harmful_dataset": harmful}
        rehearsal.rehearse(DEEP_ALIGNMENT, {}, "x", str(tiny_folder), {}, rows, streams)

    rehearse(records)
    monkeypatch.setattr(rehearsal, "_done", set())
    with pytest.raises(TiterError, match="no utility anchor"):
        rehearse(records[:3])
