"""Panacea against its step written out, one sample at a time, and where its perturbation is and is not."""

import copy

import pytest
import references as ref
import torch
from safetensors.torch import load_file
from training import config, trained

from titer.errors import TiterError
from titer.methods.finetune.panacea import PanaceaConfig, PanaceaTrainer
from titer.testing import StopAfter, same, toy_harmful_rows, toy_lora, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS = toy_rows(8)
HARMFUL = toy_harmful_rows()[:6]
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
SETTINGS = {"optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, "max_steps": 2, **SPLIT}


def train(tiny, tokenizer, folder, resume=None, callbacks=(), peft_config=None, **settings):
    trainer = PanaceaTrainer(
        model=copy.deepcopy(tiny).double(),
        args=config(PanaceaConfig, folder, **{**SETTINGS, **settings}),
        train_dataset=ROWS,
        processing_class=tokenizer,
        harmful_dataset=HARMFUL,
        callbacks=list(callbacks),
        peft_config=peft_config,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("clamp", [0.0, 9.0, 5.0])
def test_two_steps_and_the_release_are_those_of_the_formula(tiny, tokenizer, tmp_path, clamp):
    trainer = train(tiny, tokenizer, tmp_path, rho=0.3, lam=0.8, clamp=clamp)
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    parameters = [p for p in model.parameters() if p.requires_grad]
    for step in range(2):
        harmful = ref.encode(tokenizer, [HARMFUL[place] for place in trainer.drawn_rows("harmful", step)])
        task = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))
        slope = ref.gradient(model, ref.mean_nll(model, harmful))
        epsilon = [0.3 * g / (ref.norm(slope) + 1e-7) for g in slope]
        with ref.moved(model, epsilon, -1.0):
            perturbed = ref.mean_nll(model, harmful)
            clamped = torch.clamp(perturbed, max=clamp) if clamp else perturbed
            above = ref.gradient(model, clamped)
        assert (ref.norm(above) == 0) == (clamp == 5.0)
        assert not clamp or (perturbed.item() > clamp) == (clamp == 5.0)
        change = [0.8 * (a - b) for a, b in zip(above, slope)]
        assert ref.norm(change) > 0.1 * ref.norm(task), (
            "the perturbation must matter, or this test proves nothing of it"
        )
        with torch.no_grad():
            for p, g, c in zip(parameters, task, change):
                p -= 0.05 * (g - c)
    assert ref.relative_error(trainer.carried["epsilon"], epsilon) < 1e-10
    released = [p + e for p, e in zip(parameters, epsilon)]
    assert ref.relative_error(weights(trainer.model), released) < 1e-10


def test_the_perturbation_raises_the_harmful_loss(tiny, tokenizer, tmp_path):
    lines = [line for line in train(tiny, tokenizer, tmp_path, rho=0.3).state.log_history if "perturbed_loss" in line]
    assert len(lines) == 2
    assert all(line["perturbed_loss"] > line["harmful_loss"] + 0.1 for line in lines)


def test_without_the_regulariser_it_is_fine_tuning_and_then_the_perturbation(tiny, tokenizer, tmp_path):
    args = config(PackedSFTConfig, tmp_path / "sft", **SETTINGS)
    plain, _ = trained(PackedSFTTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)
    trainer = train(tiny, tokenizer, tmp_path, rho=0.3, lam=0.0)
    epsilon = trainer.carried["epsilon"]
    assert ref.norm(epsilon).item() == pytest.approx(0.3, rel=1e-6)
    unperturbed = [weight - e for weight, e in zip(weights(trainer.model), epsilon)]
    assert max((a - b).abs().max().item() for a, b in zip(unperturbed, weights(plain.model))) < 1e-12


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def apart(left, right):
    return torch.cat([(left[name] - right[name]).flatten() for name in left]).norm().item()


def test_what_is_released_holds_the_perturbation_and_no_checkpoint_does(tiny, tokenizer, tmp_path):
    how = {"rho": 0.3, "save_strategy": "steps", "save_steps": 1, "max_steps": 3, "peft_config": toy_lora()}
    torch.manual_seed(0)
    trainer = train(tiny, tokenizer, tmp_path / "run", **how)
    trainer.save_model(str(tmp_path / "released"))
    last, before = (adapter(tmp_path / "run" / f"checkpoint-{step}") for step in (3, 2))
    released = adapter(tmp_path / "released")
    assert apart(released, last) == pytest.approx(0.3, rel=1e-6)
    assert apart(last, before) < 0.3, "a step is shorter than the perturbation, so a checkpoint with it would be seen"
    carried = load_file(tmp_path / "run" / "checkpoint-3" / "carried.safetensors")
    assert sum((tensor**2).sum() for tensor in carried.values()).sqrt().item() == pytest.approx(0.3, rel=1e-6)
    # Gone on with from the middle, and from where all steps are done: added once, and to the same weights.
    for step in (2, 3):
        torch.manual_seed(0)
        resumed = train(tiny, tokenizer, tmp_path / "run", resume=str(tmp_path / "run" / f"checkpoint-{step}"), **how)
        assert same(weights(resumed.model), weights(trainer.model))


def test_a_training_that_is_stopped_early_ends_with_its_own_perturbation(tiny, tokenizer, tmp_path):
    stopped = train(tiny, tokenizer, tmp_path / "stopped", rho=0.3, max_steps=4, callbacks=[StopAfter(2)])
    whole = train(tiny, tokenizer, tmp_path / "whole", rho=0.3, max_steps=2)
    assert same(weights(stopped.model), weights(whole.model))


def test_a_run_that_breaks_off_is_not_perturbed(tiny, tokenizer, tmp_path):
    class BreakOff(StopAfter):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.step:
                raise KeyboardInterrupt

    before = weights(copy.deepcopy(tiny).double())
    trainer = PanaceaTrainer(
        model=copy.deepcopy(tiny).double(),
        args=config(PanaceaConfig, tmp_path, **{**SETTINGS, "learning_rate": 0.0}),
        train_dataset=ROWS,
        processing_class=tokenizer,
        harmful_dataset=HARMFUL,
        callbacks=[BreakOff(1)],
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert same(weights(trainer.model), before)


@pytest.mark.parametrize(("setting", "value"), [("rho", 0.0), ("lam", -1.0), ("clamp", -5.0)])
def test_bad_settings_are_refused(tmp_path, setting, value):
    with pytest.raises(TiterError, match=setting):
        config(PanaceaConfig, tmp_path, **{setting: value})


def test_the_best_weights_of_a_run_are_not_those_of_its_perturbation(tiny, tokenizer, tmp_path):
    how = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(TiterError, match="load_best_model_at_end"):
        train(tiny, tokenizer, tmp_path, load_best_model_at_end=True, **how)
