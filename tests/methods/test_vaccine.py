"""Vaccine against its two passes written out, one sample at a time, in float64."""

import copy

import pytest
import references as ref
import torch
from attention_longhand import copied, perturbed_gradient
from small_models import small_model
from training import config, trained

from titer import methods
from titer.errors import TiterError
from titer.methods.align import VaccineConfig, VaccineTrainer
from titer.methods.align.vaccine import VACCINE
from titer.methods.inside_attention import attention_modules
from titer.testing import Trial, same, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS = toy_rows(8)
BATCHES = [(8, 1), (2, 4), (1, 8)]


def start(tmp_path, with_lora, **settings):
    torch.manual_seed(0)
    return Trial(VACCINE, settings, tmp_path).make(with_lora=with_lora, optim="sgd", weight_decay=0.0)


@pytest.mark.parametrize("with_lora", [True, False])
@pytest.mark.parametrize(("size", "steps"), BATCHES)
def test_a_step_is_along_the_gradient_at_perturbed_outputs(tmp_path, tokenizer, size, steps, with_lora):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    trainer = start(tmp_path, with_lora, rho=1.5, **split)
    model, before = copied(trainer.model), weights(trainer.model)
    trainer.train()
    slopes = perturbed_gradient(model, ref.encode(tokenizer, ROWS), 1.5, [0, 1])
    moved = [(b - a) / trainer.args.learning_rate for a, b in zip(weights(trainer.model), before, strict=True)]
    assert ref.relative_error(moved, slopes) < 1e-10
    assert ref.relative_error(slopes, ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))) > 0.05


def test_the_norm_is_over_the_optimizer_batch(tmp_path, tokenizer):
    """Not over each micro-batch, as the released code has it: there the length grows with their number."""
    split = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "train_sampling_strategy": "sequential",
    }
    trainer = start(tmp_path, False, rho=1.5, **split)
    model, before = copied(trainer.model), weights(trainer.model)
    trainer.train()
    parts = [range(start, start + 2) for start in range(0, 8, 2)]
    other = perturbed_gradient(model, ref.encode(tokenizer, ROWS), 1.5, [0, 1], parts)
    moved = [(b - a) / trainer.args.learning_rate for a, b in zip(weights(trainer.model), before, strict=True)]
    assert ref.relative_error(moved, other) > 0.01


def test_without_a_perturbation_it_is_plain_alignment(tiny, tokenizer, tmp_path):
    learnt = []
    for cls, args in (
        (VaccineTrainer, config(VaccineConfig, tmp_path, max_steps=2, rho=0.0)),
        (PackedSFTTrainer, config(PackedSFTConfig, tmp_path, max_steps=2, share_prefix=False)),
    ):
        trainer, _ = trained(cls, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)
        learnt.append(weights(trainer.model))
    assert same(*learnt)


def test_outputs_are_perturbed_where_nothing_below_them_is_trained(tmp_path, tokenizer):
    """With an adapter on the last layer alone, the first layer's outputs need no gradient otherwise."""
    lora = {"layers_to_transform": [1]}
    trainer = start(tmp_path, lora, rho=1.5)
    model, before = copied(trainer.model), weights(trainer.model)
    for name, weight in model.named_parameters():  # so that autograd follows the first layer's outputs
        weight.requires_grad_("lora" in name or "embed" in name)
    trainer.train()
    slopes = perturbed_gradient(model, ref.encode(tokenizer, ROWS), 1.5, [0, 1])
    named = [name for name, weight in model.named_parameters() if weight.requires_grad]
    slopes = [slope for name, slope in zip(named, slopes, strict=True) if "lora" in name]
    moved = [(b - a) / trainer.args.learning_rate for a, b in zip(weights(trainer.model), before, strict=True)]
    assert ref.relative_error(moved, slopes) < 1e-10


def test_what_rounding_leaves_of_the_perturbation_is_logged(tiny, tokenizer, tmp_path, caplog):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        args = config(VaccineConfig, tmp_path, rho=0.02)
        trainer, _ = trained(VaccineTrainer, args, copy.deepcopy(tiny).to(dtype), tokenizer, ROWS)
        found[dtype] = trainer.state.log_history[0]
    assert found[torch.float32]["perturbation_cosine"] > 0.999
    assert found[torch.float32]["perturbation_ratio"] == pytest.approx(1, abs=1e-3)
    assert found[torch.bfloat16]["perturbation_cosine"] < 0.9
    assert "VaccineTrainer: rounding leaves of the perturbation a cosine of 0." in caplog.text


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(TiterError, match="share_prefix"):
        VaccineConfig(output_dir=str(tmp_path), share_prefix=True)
    with pytest.raises(TiterError, match=r"`--set rho` must be a number from 0"):
        methods.settings(VACCINE, {"rho": -1.0}, "--set", str(tmp_path))
    with pytest.raises(TiterError, match="another pass"):
        Trial(VACCINE, {}, tmp_path).make(with_lora={"lora_dropout": 0.1})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpt2", "transformer.h.0.attn"),
        ("gpt_neo", "transformer.h.0.attn"),
        ("opt", "model.decoder.layers.0.self_attn"),
        ("mpt", "transformer.blocks.0.attn"),
        ("bart", "model.decoder.layers.0.self_attn"),
        ("gemma2", "model.layers.0.self_attn"),
        ("gpt_oss", "model.layers.0.self_attn"),
    ],
)
def test_attention_is_found_in_any_family(kind, name):
    model = small_model(kind)
    modes = [module.training for module in model.modules()]
    found = attention_modules(model)
    assert next(iter(found)) == name
    assert len(found) == model.config.get_text_config().num_hidden_layers
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_in_mixed_models_the_blocks_with_attention_are_found():
    model = small_model("jamba")
    kinds = model.config.layers_block_type
    assert list(attention_modules(model)) == [
        f"model.layers.{place}.self_attn" for place, kind in enumerate(kinds) if kind == "attention"
    ]


def test_a_model_without_attention_is_refused():
    with pytest.raises(TiterError, match="No attention module was found in MambaForCausalLM"):
        attention_modules(small_model("mamba"))


def test_attention_that_blocks_share_is_refused(tiny):
    tiny.model.layers[1].self_attn = tiny.model.layers[0].self_attn
    with pytest.raises(TiterError, match="runs 2 times in a pass"):
        attention_modules(tiny)
