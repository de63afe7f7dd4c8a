"""A simulated attack that does not reach the model is an error, whatever keeps it away."""

import copy
import logging

import every_method
import pytest
import torch
from told import refused, untold
from transformers import TrainerCallback

from titer import BoosterTrainer
from titer.errors import TiterError
from titer.testing import toy_rows, weights


def booster(tiny, tokenizer, harmful_rows, tmp_path, **settings):
    return every_method.make("align booster", tmp_path, tiny, tokenizer, toy_rows(8), harmful_rows, **settings)


class Replace(TrainerCallback):
    """Puts new parameters in place of the model's when training begins, as sharding does."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        copies = {parameter: torch.nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()}
        for module in model.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                setattr(module, name, copies[parameter])


def test_weights_are_those_that_the_model_holds_now(tiny, tokenizer, harmful_rows, tmp_path):
    settings = {"max_steps": 1, "learning_rate": 0.0}
    logs = []
    for callbacks in ([], [Replace()]):
        trainer = booster(tiny, tokenizer, harmful_rows, tmp_path, callbacks=callbacks, **settings)
        trainer.train()
        logs.append([line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line])
    assert logs[0] == logs[1]


def test_weights_that_were_remembered_are_an_error(tiny, tokenizer, harmful_rows, tmp_path, monkeypatch):
    """Once sharding trained on harm: gradients of zero were made up for weights that the model no longer had."""
    trainer = booster(tiny, tokenizer, harmful_rows, tmp_path, callbacks=[Replace()])
    stale = dict(trainer.trainable)
    monkeypatch.setattr(BoosterTrainer, "trainable", stale)
    with refused("none of the 20", "gradient", "other tensors", "`trainer.trainable`"):
        trainer.train()


def test_a_forward_pass_on_copies_of_the_weights_is_an_error(tiny, tokenizer, harmful_rows, tmp_path):
    """An autocast around the training keeps its rounded weights: the tensors move as they should, and nothing happens."""
    trainer = booster(tiny, tokenizer, harmful_rows, tmp_path)
    before = weights(trainer.model)
    with torch.autocast("cpu", dtype=torch.bfloat16), refused("attack", "harmful loss", "copies"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer.model)))


@pytest.mark.parametrize("how", ["stored", "computed"])
def test_a_step_that_is_lost_in_rounding_is_an_error(tiny, tokenizer, harmful_rows, tmp_path, how):
    """Weights in bfloat16, or in float32 and multiplied in bfloat16."""
    model = copy.deepcopy(tiny).bfloat16() if how == "stored" else tiny
    settings = {"alpha": 0.01, "bf16": how == "computed"}
    with pytest.raises(TiterError, match=r"lost in rounding.*torch.bfloat16.*cosine of 0\.[1-8]") as error:
        booster(model, tokenizer, harmful_rows, tmp_path, **settings).train()
    assert "min_perturbation=0" in error.value.hint
    trainer = booster(model, tokenizer, harmful_rows, tmp_path, min_perturbation=0.0, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["perturbation_cosine"] < 0.9


def test_only_the_first_simulated_attack_is_checked(tiny, tokenizer, harmful_rows, tmp_path):
    """A run is not broken off halfway; the log shows what survives of later steps."""

    class Round(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            trainer.args.bf16 = True
            trainer.accelerator.state._mixed_precision = "bf16"

    trainer = booster(tiny, tokenizer, harmful_rows, tmp_path, alpha=0.01, max_steps=2, callbacks=[Round()])
    try:
        trainer.train()
    finally:
        trainer.accelerator.state._mixed_precision = "no"
    cosines = [line["perturbation_cosine"] for line in trainer.state.log_history if "perturbation_cosine" in line]
    assert cosines[0] > 0.99
    assert cosines[1] < 0.9


def test_a_step_too_short_to_be_seen_in_bfloat16_is_said_to_be_unchecked(
    tiny, tokenizer, harmful_rows, tmp_path, caplog
):
    """From zeros a step is exact, however short; but a loss in bfloat16 does not tell so short a step from rounding."""
    fresh = {"init_lora_weights": True}
    trainer = booster(tiny, tokenizer, harmful_rows, tmp_path, with_lora=fresh, bf16=True, alpha=1e-3)
    with caplog.at_level(logging.WARNING, "titer"):
        trainer.train()
    assert not untold(caplog.text, "attack", "not be checked", "harmful loss", "bf16=False")
