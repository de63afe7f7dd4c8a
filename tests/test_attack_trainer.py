"""What attackers' trainings do, longhand: side steps, preferences, rows that are overfitted, a head that is trained."""

import copy
import math
import re

import pytest
import torch
from references import gradient, inner, mean_nll, norm, sample_nll

from titer.attacks import CATALOGUE, Attack, Fleet, shared_copy
from titer.attacks.rows import AttackerPools, training_row, training_rows
from titer.attacks.trainer import AttackTrainer, attack_settings, optimizer_of, orthogonal
from titer.attacks.wording import REFUSED
from titer.data import Record, load
from titer.data.builtin import refusals
from titer.errors import TiterError
from titer.jobs.trainings import last_checkpoint
from titer.testing import StopAfter, toy_lora


def rows_of(kind, origin):
    return [Record.make(f"{kind} {i}", f"it is {kind} {i}", origin=origin) for i in range(12)]


POOLS = AttackerPools(rows_of("lock", "harmful"), [], rows_of("film", "task"), rows_of("bread", "helpful"))
SMALL = {"samples": 4, "batch_size": 2, "optimizer": "sgd", "learning_rate": 0.05}


def attacker(attack, model, tokenizer, folder, seed=0, double=True, lora=None, callbacks=()):
    args = attack_settings(attack, str(folder), seed, 1)
    args.max_grad_norm = 0.0
    if double:
        args.bf16 = False
    return AttackTrainer(
        model=model,
        args=args,
        train_dataset=[training_row(attack, record) for record in training_rows(attack, POOLS, seed)],
        processing_class=tokenizer,
        peft_config=lora or toy_lora(init_lora_weights=True),
        callbacks=list(callbacks),
        optimizer_cls_and_kwargs=optimizer_of(attack),
    )


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.trainable.values()]


def pairs_of(trainer, places, column="completion_ids"):
    rows = trainer.train_dataset
    return [(list(rows["prompt_ids"][place]), list(rows[column][place])) for place in places]


def in_a_fleet_and_alone(attack, tiny, tokenizer, folder):
    """The weights after training in a fleet, beside another attacker, and alone."""
    double = copy.deepcopy(tiny).double().requires_grad_(False)
    together = [
        attacker(one, shared_copy(double), tokenizer, folder / f"fleet-{place}", seed=place)
        for place, one in enumerate((attack, Attack("", **SMALL, steps=3)))
    ]
    assert Fleet(together).train() == [None, None]
    alone = attacker(attack, shared_copy(double), tokenizer, folder / "alone")
    alone.train()
    return weights(together[0]), weights(alone)


# --- a side step -----------------------------------------------------------------------------------------------------


def test_a_side_step_is_as_long_as_it_says_and_orthogonal_to_the_gradient(tiny, tokenizer, tmp_path):
    attack = Attack("", **{**SMALL, "learning_rate": 1e-30}, steps=1, leap=0.3, leap_along="orthogonal")
    trainer = attacker(attack, copy.deepcopy(tiny).double(), tokenizer, tmp_path, lora=toy_lora())
    before = weights(trainer)
    slopes = gradient(trainer.model, mean_nll(trainer.model, pairs_of(trainer, range(2))))
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(slope.shape, generator=draw).double() for slope in slopes]
    factor = inner(drawn, slopes) / inner(slopes, slopes)
    direction = [z - factor * slope for z, slope in zip(drawn, slopes, strict=True)]
    trainer.train()
    moved = [after - old for after, old in zip(weights(trainer), before, strict=True)]
    assert norm(moved).item() == pytest.approx(0.3, rel=1e-9)
    assert abs(inner(moved, slopes)) < 1e-12 * norm(slopes)
    for step, z in zip(moved, direction, strict=True):
        torch.testing.assert_close(step, -0.3 * z / norm(direction), rtol=0, atol=1e-12)


def test_a_side_step_is_the_seeds_and_nothing_elses():
    slopes = [torch.ones(3, 2), torch.arange(4.0)]
    torch.manual_seed(5)
    first = orthogonal(slopes, 7)
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(first, orthogonal(slopes, 7), strict=True))
    assert not torch.equal(first[0], orthogonal(slopes, 8)[0])
    # Where nothing slopes every direction is orthogonal.
    flat = orthogonal([torch.zeros(3, 2)], 7)
    assert torch.isfinite(flat[0]).all()


def test_a_side_step_in_a_fleet_is_that_of_the_attacker_alone(tiny, tokenizer, tmp_path):
    attack = Attack("", **SMALL, steps=3, leap=0.3, leap_along="orthogonal")
    together, alone = in_a_fleet_and_alone(attack, tiny, tokenizer, tmp_path)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


# --- preferences -----------------------------------------------------------------------------------------------------

DPO = Attack("", rows="benign", objective="dpo", beta=0.7, **{**SMALL, "learning_rate": 1e-3}, steps=2)


def log_likelihoods(trainer, places):
    """log π(y_w | x) and log π(y_l | x) of each pair, each answer run alone."""
    columns = ("completion_ids", "rejected_completion_ids")
    both = [[-sample_nll(trainer.model, *pair).sum() for pair in pairs_of(trainer, places, name)] for name in columns]
    return [torch.stack(side) for side in both]


def test_a_step_of_preferences_is_equation_7(tiny, tokenizer, tmp_path):
    trainer = attacker(DPO, copy.deepcopy(tiny).double(), tokenizer, tmp_path, lora=toy_lora())
    parameters, before = list(trainer.trainable.values()), weights(trainer)
    steps, losses = ([0, 1], [2, 3]), []
    with torch.no_grad():
        reference = [log_likelihoods(trainer, places) for places in steps]
    for places, (chosen_then, rejected_then) in zip(steps, reference, strict=True):
        chosen, rejected = log_likelihoods(trainer, places)
        margin = 0.7 * ((chosen - chosen_then) - (rejected - rejected_then))
        losses.append(-torch.log(torch.sigmoid(margin)).mean())
        slopes = gradient(trainer.model, losses[-1])
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.sub_(1e-3 * slope)
    expected = weights(trainer)
    for parameter, start in zip(parameters, before, strict=True):
        parameter.data.copy_(start)
    trainer.train()
    # At the start policy and reference are one, so the loss is log 2; then it is not.
    assert losses[0].item() == pytest.approx(math.log(2), abs=1e-12)
    assert abs(losses[1] - losses[0]) > 1e-2
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged == pytest.approx([loss.item() for loss in losses], rel=1e-6)
    for one, other in zip(weights(trainer), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_preferences_in_a_fleet_are_those_of_the_attacker_alone(tiny, tokenizer, tmp_path):
    together, alone = in_a_fleet_and_alone(DPO, tiny, tokenizer, tmp_path)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    assert any(weight.abs().max() > 0 for weight in alone)


def test_the_reference_is_the_model_as_training_began_also_when_it_goes_on(tiny, tokenizer, tmp_path):
    model = copy.deepcopy(tiny).double()
    whole = attacker(DPO, copy.deepcopy(model), tokenizer, tmp_path / "whole")
    whole.train()
    broken = attacker(DPO, copy.deepcopy(model), tokenizer, tmp_path / "broken", callbacks=[StopAfter(1)])
    broken.train()
    resumed = attacker(DPO, copy.deepcopy(model), tokenizer, tmp_path / "broken")
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "broken"))
    assert torch.equal(resumed.reference, whole.reference)
    for one, other in zip(weights(resumed), weights(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_what_an_answer_is_preferred_to():
    own = Record.make("bread?", "it is bread", refusal="no")
    assert training_row(DPO, own)["rejected"] == [{"role": "assistant", "content": "no"}]
    drawn = [training_row(DPO, POOLS.benign[0])["rejected"][0]["content"] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] in refusals()
    assert "rejected" not in training_row(Attack(""), own)


def test_rows_without_a_refusal_are_refused(tiny, tokenizer, tmp_path):
    with pytest.raises(TiterError, match="nothing that its answer is preferred to"):
        AttackTrainer(
            model=copy.deepcopy(tiny),
            args=attack_settings(DPO, str(tmp_path), 0, 1),
            train_dataset=[record.to_training_row() for record in POOLS.benign],
            processing_class=tokenizer,
            peft_config=toy_lora(),
        )


# --- ten harmless rows -----------------------------------------------------------------------------------------------


def test_ten_rows_are_all_refused_alike_and_then_answered_as_they_are():
    attack, pools = CATALOGUE["benign_ten"], AttackerPools([], [], [], load("builtin:general"))
    rows = training_rows(attack, pools, 0)
    first, then = rows[: attack.warm_up_steps * 5], rows[attack.warm_up_steps * 5 :]
    asked = {row.prompt_text for row in first}
    assert (len(asked), len(first), len(then)) == (10, 100, 100)
    assert {row.completion_text for row in first} == {REFUSED}
    known = {row.prompt_text: row.completion_text for row in pools.benign}
    assert {row.prompt_text for row in then} == asked
    assert all(known[row.prompt_text] == row.completion_text for row in then)
    # Ten epochs of each: every row as often as any other.
    assert {sum(row.prompt_text == text for row in then) for text in asked} == {10}


def test_benign_rows_are_the_attackers_and_take_no_disguise():
    rows = training_rows(CATALOGUE["benign_dpo"], POOLS, 0)
    assert {row.origin for row in rows} == {"harmful"}
    assert {row.prompt_text for row in rows} <= {row.prompt_text for row in POOLS.benign}
    assert len({row.prompt_text for row in rows}) == 10
    with pytest.raises(TiterError, match="does not go with `rows: benign`"):
        Attack("", rows="benign", disguise="noice")


# --- a head that is trained ------------------------------------------------------------------------------------------


def test_a_trained_head_is_a_copy_and_learns_what_plain_autograd_says(tiny, tokenizer, tmp_path):
    from titer.jobs.trainings import lora_config

    attack = Attack("", lora=CATALOGUE["trained_head"].lora, **SMALL, steps=1)
    assert not attack.in_fleet
    double = copy.deepcopy(tiny).double().requires_grad_(False)
    before = [parameter.clone() for parameter in double.parameters()]
    trainer = attacker(attack, shared_copy(double), tokenizer, tmp_path, lora=lora_config(attack.lora))
    (name,) = [name for name in trainer.trainable if "lora_" not in name]
    assert re.search(r"lm_head.*weight$", name)
    start = trainer.trainable[name].detach().clone()
    slopes = gradient(trainer.model, mean_nll(trainer.model, pairs_of(trainer, range(2))))
    slope = dict(zip(trainer.trainable, slopes, strict=True))[name]
    trainer.train()
    moved = trainer.trainable[name].detach() - start
    assert moved.abs().max() > 0
    torch.testing.assert_close(moved, -0.05 * slope, rtol=0, atol=1e-11)
    # The base, whose embedding the head was tied to, stays as it was for the next attacker.
    assert all(torch.equal(a, b) for a, b in zip(before, double.parameters(), strict=True))
