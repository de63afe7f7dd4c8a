"""Arithmetic on gradients and weights in place, and what `perturbed` reports and restores."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from told import refused
from torch.nn import Parameter

from titer.testing import same
from titer.train.gradients import (
    NORM_EPSILON,
    add_,
    dot,
    global_norm,
    gradients,
    perturbed,
    scale_,
    take_gradients,
    trainable_parameters,
)


def parameters_with_gradients(dtype=torch.float32, seed=0, shapes=((7, 5), (11,), (1,), ()), scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for place, shape in enumerate(shapes):
        parameter = Parameter(torch.randn(shape, generator=generator).to(dtype))
        parameter.grad = (scale * torch.randn(shape, generator=generator)).to(dtype)
        made[f"layer.{place}"] = parameter
    return made


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def values(parameters):
    return [parameter.detach().clone() for parameter in parameters.values()]


def test_norm_and_product_are_those_of_one_long_vector():
    left, right = (gradients(parameters_with_gradients(torch.float64, seed)) for seed in (1, 2))
    assert global_norm(left).item() == pytest.approx(flat(left).norm().item(), rel=1e-14)
    assert dot(left, right).item() == pytest.approx((flat(left) @ flat(right)).item(), rel=1e-12)
    with pytest.raises(ValueError, match="zip"):
        dot(left, right[:2])


def test_scale_and_add_work_in_place():
    left, right = (gradients(parameters_with_gradients(seed=seed)) for seed in (1, 2))
    places = [tensor.data_ptr() for tensor in left]
    expected = -2.0 * flat(left) + 0.5 * flat(right)
    scale_(left, -2.0)
    add_(left, right, 0.5)
    assert torch.allclose(flat(left), expected, atol=1e-6)
    assert [tensor.data_ptr() for tensor in left] == places
    scale_(left, torch.tensor(0.0, dtype=torch.float64))
    assert not flat(left).any()


def test_trainable_parameters_leaves_out_frozen_ones(tiny):
    for name, parameter in tiny.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    shapes = {name: tuple(parameter.shape) for name, parameter in trainable_parameters(tiny).items()}
    assert shapes == {f"model.layers.{layer}.self_attn.q_proj.weight": (32, 32) for layer in (0, 1)}


@pytest.mark.parametrize(
    "taking", [gradients, take_gradients, lambda parameters: perturbed(parameters, -0.1).__enter__()]
)
def test_a_missing_gradient_is_an_error_and_no_zero(taking):
    parameters = parameters_with_gradients()
    before = values(parameters)
    parameters["layer.1"].grad = None
    with refused("1 of 4", "no gradient", "`layer.1`", "`requires_grad_(False)`"):
        taking(parameters)
    for parameter in parameters.values():
        parameter.grad = None
    with refused("none of the 4", "gradient", "other tensors", "`trainer.trainable`"):
        taking(parameters)
    assert same(values(parameters), before)


def test_an_expert_that_no_token_was_sent_to_has_a_gradient_of_zero():
    """Whatever autograd knows of has a gradient; only what the loss is no function of has none."""
    experts = Parameter(torch.ones(3, 2))
    experts[torch.tensor([0, 2])].sum().backward()
    (found,) = gradients({"experts": experts})
    assert found.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_taken_gradients_are_not_copied():
    parameters = parameters_with_gradients()
    places = [parameter.grad.data_ptr() for parameter in parameters.values()]
    taken = take_gradients(parameters)
    assert [tensor.data_ptr() for tensor in taken] == places
    assert all(parameter.grad is None for parameter in parameters.values())


@pytest.mark.parametrize("radius", [-0.1, 0.1, -3.0])
def test_perturbed_moves_along_the_normalised_gradient(radius):
    parameters = parameters_with_gradients(torch.float64)
    before, directions = values(parameters), [gradient.clone() for gradient in gradients(parameters)]
    with perturbed(parameters, radius) as report:
        moved = flat(values(parameters)) - flat(before)
        expected = radius * flat(directions) / (flat(directions).norm() + NORM_EPSILON)
        assert torch.allclose(moved, expected, rtol=1e-12, atol=1e-15)
        assert same(gradients(parameters), directions), "gradients are left alone"
    assert same(values(parameters), before)
    assert report.ratio == pytest.approx(1, rel=1e-6)
    assert report.cosine == pytest.approx(1, rel=1e-6)


def test_perturbation_report_in_float32():
    """The case of LoRA adapters: nothing is lost."""
    parameters = parameters_with_gradients(torch.float32, shapes=((100, 100), (300,)))
    with perturbed(parameters, -0.1) as report:
        pass
    assert report.ratio == pytest.approx(1, abs=1e-4)
    assert report.cosine == pytest.approx(1, abs=1e-4)


def test_perturbation_report_tells_what_bfloat16_loses():
    """Weights around 1 lie 2⁻⁸ apart in bfloat16: a small step mostly vanishes in the rounding, and turns."""
    parameters = parameters_with_gradients(torch.bfloat16, shapes=((200, 200),))
    before, directions = flat(values(parameters)), flat(gradients(parameters))
    with perturbed(parameters, -0.02) as report:
        moved = flat(values(parameters)) - before
    assert 0 < report.cosine < 0.7
    assert report.cosine == pytest.approx(-(moved @ directions / moved.norm() / directions.norm()).item(), abs=1e-2)
    assert report.ratio == pytest.approx((moved.norm() / 0.02).item(), rel=1e-2)
    with perturbed(parameters, -50.0) as report:
        pass
    assert report.cosine > 0.95, "a large step survives"
    assert report.ratio == pytest.approx(1, abs=0.05)


def test_a_perturbation_is_judged_as_the_forward_pass_sees_it():
    """Weights in float32 that are rounded to bfloat16 for every product lose as much as those stored so."""
    parameters = parameters_with_gradients(torch.float32, shapes=((200, 200),))
    with perturbed(parameters, -0.02) as report:
        assert report.cosine > 0.999
    with perturbed(parameters, -0.02, torch.bfloat16) as report:
        rounded = [weight.bfloat16() for weight in values(parameters)]
    moved = flat(rounded) - flat([weight.bfloat16() for weight in values(parameters)])
    directions = flat(gradients(parameters))
    assert report.cosine == pytest.approx(-(moved @ directions / moved.norm() / directions.norm()).item(), rel=1e-4)
    assert report.cosine < 0.7


def test_a_perturbation_that_vanishes_altogether():
    parameter = Parameter(torch.full((10,), 256.0, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    with perturbed({"weight": parameter}, -1e-3) as report:
        assert (parameter == 256.0).all()
    assert (report.ratio, report.cosine) == (0, 0), "the log must show it"


def test_the_other_way_is_seen_in_the_cosine():
    """The cosine is that with the intended direction: for a descent step it is with minus the gradient."""
    parameters = parameters_with_gradients(torch.float64)
    for radius in (-0.1, 0.1):
        with perturbed(parameters, radius) as report:
            assert report.cosine > 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_perturbed_restores_bit_for_bit_when_the_block_raises(dtype, error):
    parameters = parameters_with_gradients(dtype)
    before = values(parameters)

    def step():
        with perturbed(parameters, -0.37):
            assert not same(values(parameters), before)
            parameters["layer.0"].data.mul_(3)  # whatever the block does to the weights
            raise error

    with pytest.raises(error):
        step()
    assert same(values(parameters), before)


def test_zero_gradients_move_nothing():
    parameters = parameters_with_gradients(scale=0.0)
    before = values(parameters)
    with perturbed(parameters, -0.1) as report:
        assert same(values(parameters), before)
    assert math.isnan(report.ratio)
    assert math.isnan(report.cosine)


def test_gradients_that_are_not_finite_do_not_stay_in_the_weights():
    parameters = parameters_with_gradients()
    parameters["layer.0"].grad[0, 0] = torch.inf
    before = values(parameters)
    with perturbed(parameters, -0.1):
        pass
    assert same(values(parameters), before)


@given(
    weights=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6),
    directions=st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6),
    radius=st.floats(-10, 10),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
@settings(max_examples=200, deadline=None)
def test_perturbed_always_restores(weights, directions, radius, dtype):
    parameter = Parameter(torch.tensor(weights).to(dtype))
    parameter.grad = torch.tensor(directions[: len(weights)]).to(dtype)
    before = parameter.detach().clone()
    with perturbed({"weight": parameter}, radius) as report:
        pass
    assert torch.equal(parameter.detach(), before)
    assert math.isnan(report.cosine) or abs(report.cosine) <= 1 + 1e-2
