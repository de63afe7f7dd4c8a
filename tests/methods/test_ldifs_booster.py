"""Booster's port of LDIFS: the distances of MLP outputs written out, layer by layer, and when a layer's is left out."""

import pytest
import references as ref
import torch
from one_step import reference, sgd
from told import refused

from titer import methods
from titer.testing import Trial, same, toy_rows, weights
from titer.testing.toy import toy

LDIFS = methods.find("finetune", "ldifs_booster")
SFT = methods.find("finetune", "sft")
SPLITS = [(8, 1), (2, 4)]


def pairs():
    return ref.encode(toy()[1], toy_rows(8))


def mlp_outputs(model, prompt, completion):
    """What each layer's MLP puts out over one row alone, but for its last token, which predicts nothing."""
    seen = []
    handles = [
        layer.mlp.register_forward_hook(lambda *words: seen.append(words[-1][0])) for layer in model.model.layers
    ]
    model(input_ids=torch.tensor([[*prompt, *completion[:-1]]]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def terms(model, rho):
    """d_l, `(layers,)`."""
    with torch.no_grad():
        before = [mlp_outputs(reference(), *pair) for pair in pairs()]
    now = [mlp_outputs(model, *pair) for pair in pairs()]
    layers = range(len(now[0]))
    return [rho / 2 * sum(((a[layer] - b[layer]) ** 2).sum() for a, b in zip(now, before)) for layer in layers]


def expected(values, rho, drop_from):
    model = reference(values)
    each = terms(model, rho)
    kept = [one for one in each if one < drop_from]
    loss = ref.mean_nll(model, pairs()) + sum(kept)
    return ref.gradient(model, loss), [one.item() for one in each], len(kept)


@pytest.mark.parametrize(("size", "steps"), SPLITS)
def test_steps(tmp_path, size, steps):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    _, course = sgd(LDIFS, tmp_path, max_steps=3, rho=1e-5, drop_from=None, **split)
    for values, direction in zip(course.weights, course.directions):
        gradient, _, _ = expected(values, 1e-5, float("inf"))
        assert ref.relative_error(direction, gradient) < 1e-10
    model = reference(values := course.weights[2])
    sft = ref.gradient(model, ref.mean_nll(model, pairs()))
    assert ref.relative_error(course.directions[2], sft) > 1e-2, "the distances must matter"


@pytest.mark.parametrize(("size", "steps"), SPLITS)
def test_a_layer_whose_term_is_too_large_is_left_out(tmp_path, size, steps):
    """By the sum over the optimizer batch, however it is split: in parts of two, each layer's would be below the cap."""
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    rho = 1e-5
    _, free = sgd(LDIFS, tmp_path, max_steps=1, rho=rho, drop_from=None)
    _, each, _ = expected(free.weights[1], rho, float("inf"))
    cap = sum(sorted(each)) / 2
    assert min(each) < cap < max(each) < 4 * cap
    trainer, course = sgd(LDIFS, tmp_path, max_steps=2, rho=rho, drop_from=cap, **split)
    gradient, _, kept = expected(course.weights[1], rho, cap)
    assert kept == 1
    assert ref.relative_error(course.directions[1], gradient) < 1e-10
    all_of_them, _, _ = expected(course.weights[1], rho, float("inf"))
    assert ref.relative_error(course.directions[1], all_of_them) > 1e-3
    shares = [line["layers_kept"] for line in trainer.state.log_history if "layers_kept" in line]
    assert shares == [1.0, 0.5]


def test_a_term_of_exactly_the_cap_is_left_out(tmp_path):
    trainer = Trial(LDIFS, {"rho": 1.0, "drop_from": 0.1}, tmp_path).make()
    numbers = torch.tensor([0.0, 0.0999, 0.1, 5.0, float("nan")])
    assert trainer.layers_kept(numbers).tolist() == [1, 1, 0, 0, 0]


def test_rho_0_is_sft_bit_for_bit(tmp_path):
    ours, plain = (
        Trial(method, settings, tmp_path).train(max_steps=3, share_prefix=False)
        for method, settings in ((LDIFS, {"rho": 0.0}), (SFT, {}))
    )
    assert same(weights(ours.model), weights(plain.model))


def test_what_it_cannot_be_is_refused(tmp_path):
    trial = Trial(LDIFS, {}, tmp_path)
    with refused("share_prefix"):
        trial.make(share_prefix=True)
    with refused("dropout"):
        trial.make(with_lora={"lora_dropout": 0.5})
    with refused("drop_from", "0"):
        trial.make(drop_from=0.0)
    from transformers import OPTConfig, OPTForCausalLM

    with refused("mlp", "OPTForCausalLM"):
        trial.make(
            model=OPTForCausalLM(
                OPTConfig(
                    vocab_size=400, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, dropout=0.0
                )
            ),
            with_lora=False,
        )
