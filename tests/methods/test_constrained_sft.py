"""Constrained SFT: the paper's loss and the released weights, and what they are at the first step."""

import pytest
import references as ref
import torch
from one_step import reference, sgd
from told import refused

from titer import methods
from titer.testing import Trial, same, toy_rows, weights
from titer.testing.toy import toy

CONSTRAINED = methods.find("finetune", "constrained_sft")
SFT = methods.find("finetune", "sft")


def betas(length):
    """β_1 = .5, β_2–5 = 2, then .1: the paper's table, and the released defaults."""
    return torch.tensor([0.5, 2.0, 2.0, 2.0, 2.0, *[0.1] * length], dtype=torch.float64)[:length]


def log_ratios(model):
    """log π_w − log π_0 of every token of each answer, and its loss."""
    pairs = ref.encode(toy()[1], toy_rows(8))
    with torch.no_grad():
        before = [ref.sample_nll(reference(), *pair) for pair in pairs]
    now = [ref.sample_nll(model, *pair) for pair in pairs]
    return [old - new for old, new in zip(before, now)], now


def papers_loss(model, reduction):
    """−Σ_t (2/β_t) log σ(β_t log ratio), over all tokens or by sample, with plain autograd through everything."""
    ratios, _ = log_ratios(model)
    each = [-(2 / betas(len(r))) * torch.nn.functional.logsigmoid(betas(len(r)) * r) for r in ratios]
    return torch.cat(each).mean() if reduction == "token" else torch.stack([one.mean() for one in each]).mean()


@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_steps_follow_the_papers_loss(tmp_path, reduction, size, steps):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    _, course = sgd(CONSTRAINED, tmp_path, reduction=reduction, max_steps=3, min_weight=0.0, **split)
    for values, direction in zip(course.weights, course.directions):
        model = reference(values)
        assert ref.relative_error(direction, ref.gradient(model, papers_loss(model, reduction))) < 1e-10
    sft = ref.gradient(model, ref.mean_nll(model, ref.encode(toy()[1], toy_rows(8))))
    assert ref.relative_error(direction, sft) > 1e-2, "the weights must matter"


def test_weights_are_clamped(tmp_path):
    """As released: 2 (1 − σ) is at least `min_weight`, so that no token is lost for good."""
    _, course = sgd(CONSTRAINED, tmp_path, max_steps=3, min_weight=0.7)
    model = reference(course.weights[2])
    ratios, losses = log_ratios(model)
    raw = [2 * (1 - torch.sigmoid(betas(len(r)) * r)).detach() for r in ratios]
    assert torch.cat(raw).min() < 0.7
    weighted = [v.clamp(min=0.7) * loss for v, loss in zip(raw, losses)]
    assert ref.relative_error(course.directions[2], ref.gradient(model, torch.cat(weighted).mean())) < 1e-10


def test_the_first_step_is_sft(tmp_path):
    """At w = w0 every weight is 1, whatever β."""
    _, ours = sgd(CONSTRAINED, tmp_path, max_steps=2)
    _, plain = sgd(SFT, tmp_path, max_steps=2)
    assert ref.relative_error(ours.directions[0], plain.directions[0]) < 1e-12
    assert ref.relative_error(ours.directions[1], plain.directions[1]) > 1e-2


def test_beta_0_is_sft_bit_for_bit(tmp_path):
    ours, plain = (
        Trial(method, settings, tmp_path).train(max_steps=3)
        for method, settings in ((CONSTRAINED, {"beta": 0.0}), (SFT, {}))
    )
    assert same(weights(ours.model), weights(plain.model))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 2, 2, 2, 2, 0.1, 0.1]),
        ({"bias_length": 0}, [0.1] * 7),
        ({"bias_length": 1}, [0.5, *[0.1] * 6]),
        ({"bias_length": 9, "first_token_bias_factor": 1.0}, [0.1, *[2] * 6]),
    ],
)
def test_betas_by_place(tmp_path, settings, expected):
    """Counted anew in each answer, also in those shorter than `bias_length`."""
    trainer = Trial(CONSTRAINED, settings, tmp_path).make()
    found = trainer.betas(torch.tensor([0] * 7 + [1] * 2 + [2] * 7)).tolist()
    assert found == pytest.approx([*expected, *expected[:2], *expected])


def test_what_it_cannot_be_is_refused(tmp_path):
    with refused("reduction", "sum"):
        CONSTRAINED.config(output_dir=str(tmp_path), reduction="sum")
    for name, value in (("beta", -1.0), ("min_weight", 2.0), ("bias_length", 1.5)):
        with refused(name):
            methods.settings(CONSTRAINED, {name: value}, "--set", str(tmp_path))
