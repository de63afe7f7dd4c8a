"""VAA against longhand references: groups, the sampler, plain and perturbed steps."""

import copy
import math

import numpy as np
import pytest
import references as ref
import torch
from attention_longhand import copied
from training import config

from titer import methods
from titer.errors import TiterError
from titer.methods.align import VaaConfig, VaaTrainer
from titer.methods.align.vaa import VAA, exp3
from titer.testing import StopAfter, Trial, same, toy_harmful_rows, toy_lora, toy_rows, weights
from titer.train.gradients import NORM_EPSILON

SGD = {"optim": "sgd", "weight_decay": 0.0, "learning_rate": 1e-2}
SAID = [place in (1, 2, 6) for place in range(8)]
BATCHES = [(8, 1), (2, 4)]


def said(count=8):
    return [{**one, "vulnerable": place in (1, 2, 6)} for place, one in enumerate(toy_rows(count))]


def make(tiny, tokenizer, folder, rows=None, lora=False, **settings):
    torch.manual_seed(0)
    return VaaTrainer(
        copy.deepcopy(tiny).double(),
        config(VaaConfig, folder, **{**SGD, **settings}),
        train_dataset=rows or said(),
        processing_class=tokenizer,
        peft_config=toy_lora() if lora else None,
    )


def drawn(trainer):
    """Which rows a step was taken on."""
    return [row for batch in trainer.micro_batches for row in batch["row"].tolist()]


def moved(trainer, before):
    return [(b - a) / trainer.args.learning_rate for a, b in zip(weights(trainer.model), before, strict=True)]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(("size", "steps"), BATCHES)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_perturbed_step_is_along_the_gradient_at_perturbed_weights(
    tiny, tokenizer, tmp_path, size, steps, seed, lora
):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "seed": seed}
    trainer = make(tiny, tokenizer, tmp_path, lora=lora, rho=0.3, perturb_from=1.0, **split)
    model, before = copied(trainer.model), weights(trainer.model)
    trainer.train()
    pairs = [ref.encode(tokenizer, toy_rows(8))[row] for row in drawn(trainer)]
    slope = ref.gradient(model, ref.mean_nll(model, pairs))
    direction = [each / (ref.norm(slope) + NORM_EPSILON) for each in slope]
    with ref.moved(model, direction, -0.3):
        expected = ref.gradient(model, ref.mean_nll(model, pairs))
    assert ref.relative_error(moved(trainer, before), expected) < 1e-10
    assert ref.relative_error(slope, expected) > 0.01


def test_a_plain_step_is_along_the_gradient_of_the_group(tiny, tokenizer, tmp_path):
    trainer = make(tiny, tokenizer, tmp_path, perturb_to=0.0)
    model, before = copied(trainer.model), weights(trainer.model)
    trainer.train()
    pairs = [ref.encode(tokenizer, toy_rows(8))[row] for row in drawn(trainer)]
    expected = ref.gradient(model, ref.mean_nll(model, pairs))
    assert ref.relative_error(moved(trainer, before), expected) < 1e-10


def test_a_step_learns_from_one_group_and_each_row_comes_once_before_any_again(tiny, tokenizer, tmp_path):
    trainer = make(tiny, tokenizer, tmp_path, perturb_to=0.0, max_steps=14, per_device_train_batch_size=2)
    seen = {True: [], False: []}

    def look(model, original=trainer.after_step):
        rows = drawn(trainer)
        (group,) = {SAID[row] for row in rows}
        seen[group] += rows
        original(model)

    trainer.after_step = look
    trainer.train()
    for group, rows in seen.items():
        size = SAID.count(group)
        assert len(rows) >= size
        for start in range(0, len(rows) - size + 1, size):
            assert len(set(rows[start : start + size])) == size


def test_the_sampler_is_exp3():
    eta, least = 0.05, 0.1
    for probability in (0.1, 0.3, 0.5, 0.9):
        for loss in (0.0, 0.7, 6.0):
            one = probability * math.exp(eta * loss / probability)
            assert exp3(probability, loss, eta, least, True) == pytest.approx(
                min(0.9, one / (one + 1 - probability)), rel=1e-12
            )
            other = (1 - probability) * math.exp(eta * loss / (1 - probability))
            assert exp3(probability, loss, eta, least, False) == pytest.approx(
                max(0.1, probability / (probability + other)), rel=1e-12
            )
    assert exp3(0.5, 1e6, 1.0, least, True) == 0.9
    assert exp3(0.5, 1e6, 1.0, least, False) == 0.1


def test_the_sampler_goes_by_the_loss_of_each_step(tiny, tokenizer, tmp_path):
    """At perturbed weights where the step is perturbed, as the released code does."""
    how = {"eta": 0.02, "rho": 0.3, "max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make(tiny, tokenizer, tmp_path, **how)
    trainer.train()
    probability, groups, perturbed = 0.5, [], []
    for step, line in enumerate(trainer.state.log_history[:-1]):
        group, chance = np.random.default_rng((trainer.args.seed, step)).random(2)
        assert line["vulnerable_drawn"] == float(group < probability)
        assert line["lambda_t"] == pytest.approx(step / 6)
        assert line["perturbed"] == float(chance > 1 - step / 6)
        probability = exp3(probability, line["loss"], 0.02, 0.1, group < probability)
        assert line["vulnerable_probability"] == pytest.approx(probability, rel=1e-5)
        groups.append(line["vulnerable_drawn"])
        perturbed.append(line["perturbed"])
    assert len(set(groups)) == len(set(perturbed)) == 2


def test_a_radius_of_zero_is_group_sampling_alone(tiny, tokenizer, tmp_path):
    runs = []
    for settings in ({"rho": 0.0, "perturb_from": 1.0}, {"perturb_to": 0.0}):
        trainer = make(tiny, tokenizer, tmp_path, max_steps=4, **settings)
        trainer.train()
        runs.append((weights(trainer.model), trainer.probability))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("size", [8, 3])
def test_rows_that_a_harmful_step_forgets_are_vulnerable(tmp_path, tokenizer, size, caplog):
    settings = {"per_device_train_batch_size": size, "probe_rows": 5, "vulnerable_share": 0.4}
    trainer = Trial(VAA, settings, tmp_path).make(with_lora=False)
    model = copied(trainer.model)
    slope = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, toy_harmful_rows()[:5])))
    direction = [each / (ref.norm(slope) + NORM_EPSILON) for each in slope]
    pairs = ref.encode(tokenizer, toy_rows(8))

    def means():
        return torch.stack([ref.mean_nll(model, [pair]).detach() for pair in pairs])

    before = means()
    with ref.moved(model, direction, 0.1):
        rise = means() - before
    assert torch.allclose(torch.tensor(trainer.forgotten, dtype=torch.float64), rise, rtol=1e-9, atol=1e-12)
    assert {row for row, said in enumerate(trainer.vulnerable) if said} == set(rise.topk(3).indices.tolist())
    assert "The 3 of 8 whose loss rises most with a simulated harmful step count as vulnerable" in caplog.text
    assert same(weights(trainer.model), weights(model))
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_what_rows_say_goes_before_any_measurement(tiny, tokenizer, tmp_path):
    trainer = make(tiny, tokenizer, tmp_path)
    assert trainer.vulnerable == SAID
    assert trainer.forgotten is None


def test_a_run_that_is_resumed_while_the_perturbation_grows_is_exact(tmp_path):
    how = {"rho": 0.3, "eta": 0.05, "rows": said(7), "max_steps": 6}
    how |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trial = Trial(VAA, {}, tmp_path)
    whole = trial.train("whole", **how)
    trial.train("stopped", callbacks=[StopAfter(3)], save_strategy="steps", save_steps=1, **how)
    for step in (1, 3):
        resumed = trial.train("stopped", resume=str(tmp_path / "stopped" / f"checkpoint-{step}"), **how)
        assert same(weights(resumed.model), weights(whole.model))
        assert resumed.step_state.values == whole.step_state.values


def test_other_groups_than_training_began_with_are_an_error(tmp_path):
    trial = Trial(VAA, {"max_steps": 3, "perturb_to": 0.0}, tmp_path)
    trial.train("stopped", callbacks=[StopAfter(1)], save_strategy="steps", save_steps=1, rows=said())
    other = [{**row, "vulnerable": not row["vulnerable"]} for row in said()]
    with pytest.raises(TiterError, match="begun with other groups"):
        trial.train("stopped", resume=str(tmp_path / "stopped" / "checkpoint-1"), rows=other)


def test_what_rounding_takes_away_is_refused(tiny, tokenizer, tmp_path):
    trainer = make(tiny, tokenizer, tmp_path, rho=1e-3, perturb_from=1.0)
    trainer.model.bfloat16()
    before = weights(trainer.model)
    with pytest.raises(TiterError, match=r"perturbation of .* is lost in rounding"):
        trainer.train()
    assert same(weights(trainer.model), before)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*said()[:7], *toy_rows(8)[7:]], r"train_dataset\[7\] has `vulnerable` = None"),
        ([{**row, "vulnerable": "yes"} for row in toy_rows(4)], "neither true nor false"),
        ([{**row, "vulnerable": True} for row in toy_rows(4)], "No training row is in the group `other`"),
        (toy_rows(4), "nothing to simulate forgetting by"),
    ],
)
def test_bad_groups_are_refused(tiny, tokenizer, tmp_path, rows, message):
    with pytest.raises(TiterError, match=message):
        make(tiny, tokenizer, tmp_path, rows)


def test_bad_settings_are_refused(tiny, tokenizer, tmp_path):
    for name, value in {
        "rho": -1.0,
        "eta": -1.0,
        "least_probability": 0.0,
        "perturb_from": 1.5,
        "perturb_to": -0.1,
        "vulnerable_share": 1.0,
        "probe_radius": 0.0,
        "probe_rows": 0,
    }.items():
        with pytest.raises(TiterError, match=name):
            methods.settings(VAA, {name: value}, "--set", str(tmp_path))
    with pytest.raises(TiterError, match="balances two groups of rows, and there is 1"):
        VAA.check(config(VaaConfig, tmp_path), 1)
    with pytest.raises(TiterError, match="mask noise"):
        Trial(VAA, {}, tmp_path).make(with_lora={"lora_dropout": 0.1})
