"""T-Vaccine against longhand references: scores, samples of layers, the step, and what is frozen."""

import itertools

import numpy as np
import pytest
import references as ref
import torch
from attention_longhand import attention_of, copied, perturbed_gradient, slopes_of
from training import config

from titer import methods
from titer.data import Record
from titer.errors import TiterError
from titer.jobs import rehearsal
from titer.methods.align import TVaccineConfig
from titer.methods.align.t_vaccine import T_VACCINE
from titer.methods.align.vaccine import VACCINE
from titer.packing.streams import draw
from titer.testing import StopAfter, Trial, same, toy_harmful_rows, toy_rows, weights

ROWS = toy_rows(8)
ONE = {"rho": 1.5, "sampled_layers": 1, "sample_every": 1, "score_every": 1, "score_rows": 8}
ALL = ["q_proj", "v_proj", "up_proj"]


def make(tmp_path, with_lora=True, **settings):
    torch.manual_seed(0)
    return Trial(T_VACCINE, {**ONE, **settings}, tmp_path).make(with_lora=with_lora)


@pytest.mark.parametrize("with_lora", [{"target_modules": ALL}, False])
@pytest.mark.parametrize("seed", [1, 3, 4, 5])
def test_a_step_perturbs_and_moves_the_sampled_layer_alone(tmp_path, tokenizer, with_lora, seed):
    trainer = make(tmp_path, with_lora, optim="sgd", weight_decay=0.0, seed=seed)
    model = copied(trainer.model)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    before = dict(zip(names, weights(trainer.model), strict=True))
    trainer.train()
    after = dict(zip(names, weights(trainer.model), strict=True))
    (layer,) = [place for place, name in enumerate(trainer.attention) if name in trainer.sampled]
    other = f"layers.{1 - layer}."
    slopes = dict(zip(names, perturbed_gradient(model, ref.encode(tokenizer, ROWS), 1.5, [layer]), strict=True))
    kept = [name for name in names if other not in name]
    assert ref.relative_error([(before[n] - after[n]) / 1e-2 for n in kept], [slopes[n] for n in kept]) < 1e-10
    frozen = [name for name in names if other in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def test_seeds_sample_both_layers(tmp_path):
    sampled = set()
    for seed in (1, 3, 4, 5):
        trainer = make(tmp_path, seed=seed)
        trainer.train()
        sampled |= set(trainer.sampled)
    assert len(sampled) == 2


def test_frozen_attention_leaves_the_rest_of_the_layer_to_train(tmp_path):
    """As the released code does, which freezes adapters of the attention modules alone."""
    trainer = make(tmp_path, {"target_modules": ALL}, frozen="attention")
    names = list(trainer.trainable)
    before = dict(zip(names, weights(trainer.model), strict=True))
    trainer.train()
    after = dict(zip(names, weights(trainer.model), strict=True))
    layer = int(trainer.sampled[0].split(".")[2])
    still = {name for name in names if torch.equal(before[name], after[name])}
    assert still == {name for name in names if f"layers.{1 - layer}.self_attn" in name}


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_scores_are_norms_of_harmful_gradients(tmp_path, tokenizer, rows):
    trainer = make(tmp_path, score_rows=rows, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    model, harmful = copied(trainer.model), ref.encode(tokenizer, toy_harmful_rows())
    trainer.train()
    drawn = draw(8, 0, rows, (trainer.args.seed, 0))
    assert len(set(drawn)) == rows
    slopes = slopes_of(model, [harmful[row] for row in drawn], [0, 1])
    for place, name in enumerate(trainer.attention):
        expected = ref.norm([sample[place] for sample in slopes]).item()
        assert trainer.step_state.values[f"score.{name}"] == pytest.approx(expected, rel=1e-10)
    assert len(attention_of(model)) == len(trainer.attention) == 2


def test_layers_are_sampled_in_proportion_to_their_scores(tmp_path):
    trainer = make(tmp_path)
    first, second = trainer.attention
    trainer.step_state.values |= {f"score.{first}": 3.0, f"score.{second}": 1.0}
    counts = np.zeros(2)
    for window in range(1000):
        trainer._sample(window)
        counts += [first in trainer.sampled, second in trainer.sampled]
    assert counts.sum() == 1000
    assert counts[0] == pytest.approx(750, abs=42)  # three standard deviations


def test_measured_and_sampled_as_often_as_settings_say(tmp_path):
    seen = []
    trainer = make(tmp_path, sample_every=2, score_every=3, max_steps=6, learning_rate=0.05)
    trainer._measure = lambda number, original=trainer._measure: (seen.append(("measure", number)), original(number))
    trainer._sample = lambda number, original=trainer._sample: (seen.append(("sample", number)), original(number))
    trainer.train()
    assert seen == [("measure", 0), ("sample", 0), ("sample", 1), ("measure", 1), ("sample", 2)]


def test_a_sample_outlives_a_new_measurement_also_when_training_is_gone_on_with(tmp_path):
    """Measured in the middle of a window, scores change and the layers do not."""
    how = {"sample_every": 4, "score_every": 3, "max_steps": 6, "optim": "sgd"}
    trial = Trial(T_VACCINE, {**ONE, **how}, tmp_path)
    whole = trial.train("whole")
    trial.train("stopped", callbacks=[StopAfter(3)], save_strategy="steps", save_steps=1)
    resumed = trial.train("stopped", resume=str(tmp_path / "stopped" / "checkpoint-3"))
    assert same(weights(whole.model), weights(resumed.model))
    assert whole.step_state.values == resumed.step_state.values


def test_all_layers_sampled_are_vaccine(tmp_path):
    how = {"rho": 1.5, "max_steps": 3}
    ours = Trial(T_VACCINE, {**ONE, "sampled_layers": 2, **how}, tmp_path).train()
    vaccine = Trial(VACCINE, how, tmp_path).train()
    assert same(weights(ours.model), weights(vaccine.model))


def test_optimizers_leave_frozen_layers_alone(tmp_path):
    """AdamW would decay weights and go on by its moments, had they a gradient of zero."""
    trainer = make(tmp_path, optim="adamw_torch", weight_decay=0.1, max_steps=8, seed=4)
    history = []
    trainer.after_step = lambda model, original=trainer.after_step: (
        original(model),
        history.append((dict(zip(trainer.trainable, weights(trainer.model), strict=True)), set(trainer.sampled))),
    )
    trainer.train()
    history.append((dict(zip(trainer.trainable, weights(trainer.model), strict=True)), set()))
    for (before, sampled), (after, _) in itertools.pairwise(history):
        moved = {name.split("layers.")[1][0] for name in before if not torch.equal(before[name], after[name])}
        assert moved == {name.split("layers.")[1][0] for name in sampled}
    assert len({name for _, sampled in history for name in sampled}) == 2


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(TiterError, match="sampled_layers is 3, and the model has 2 layers"):
        make(tmp_path, sampled_layers=3)
    with pytest.raises(TiterError, match="Unknown frozen: `layer`"):
        config(TVaccineConfig, tmp_path, frozen="layer")
    for name in ("sampled_layers", "sample_every", "score_every", "score_rows"):
        with pytest.raises(TiterError, match=name):
            methods.settings(T_VACCINE, {name: 0}, "--set", str(tmp_path))
    without = methods.Method(T_VACCINE.config, T_VACCINE.trainer)
    with pytest.raises(TiterError, match="needs `harmful_dataset`"):
        Trial(without, ONE, tmp_path).make()


def test_a_layer_without_trained_weights_cannot_be_all_that_is_sampled(tmp_path):
    trainer = make(tmp_path, {"layers_to_transform": [1]})
    trainer._sample = lambda number: trainer.step_state.values.update(
        {f"sampled.{name}": float(place == 0) for place, name in enumerate(trainer.attention)}
    )
    with pytest.raises(TiterError, match="no weight is trained"):
        trainer.train()


def test_scores_of_zero_are_an_error(tmp_path):
    trainer = make(tmp_path)
    trainer.step_state.values |= {f"score.{name}": 0.0 for name in trainer.attention}
    with pytest.raises(TiterError, match="has a gradient in 0 layers"):
        trainer._sample(0)


def test_a_rehearsal_has_as_many_layers_as_the_model(tiny_folder, monkeypatch):
    """Or the eight of the default would be refused on a toy of two, and ten of a model with two only once it is loaded."""
    rows = [Record.make(f"a {place}", "b", origin="harmful") for place in range(3)]

    def rehearse(number):
        monkeypatch.setattr(rehearsal, "_done", set())
        rehearsal.rehearse(
            T_VACCINE, {"sampled_layers": number}, "x", str(tiny_folder), {}, rows, {"harmful_dataset": rows}
        )

    monkeypatch.setattr(rehearsal, "_depth", lambda name: 8)
    rehearse(8)
    monkeypatch.undo()
    rehearse(2)
    with pytest.raises(TiterError, match="sampled_layers is 3, and the model has 2 layers"):
        rehearse(3)
