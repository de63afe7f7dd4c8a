"""How Antibody's λ_t follows the gradients: the KKT property of Theorem 4.1, the released code's cosine, its average."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import config, trained

from titer import AntibodyAlignmentConfig, AntibodyAlignmentTrainer
from titer.methods.align.antibody import cosine_lambda, theorem_lambda
from titer.testing import same, toy_rows
from titer.train.gradients import add_, dot, global_norm, gradients

values = st.floats(-10, 10, allow_nan=False, width=32)


@st.composite
def gradient_lists(draw):
    shapes = draw(st.lists(st.sampled_from([(1,), (3,), (2, 2), (4,)]), min_size=1, max_size=3))

    def tensor(shape):
        size = int(torch.tensor(shape).prod())
        flat = draw(st.lists(values, min_size=size, max_size=size))
        return torch.tensor(flat, dtype=torch.float64).reshape(shape)

    return [tensor(shape) for shape in shapes], [tensor(shape) for shape in shapes]


@given(lists=gradient_lists(), xi=st.floats(0, 10), seed=st.integers(0, 2**31))
@settings(max_examples=300, deadline=None)
def test_theorem_is_the_projection_onto_its_constraint(lists, xi, seed):
    align, sharp = lists
    square = global_norm(sharp).item() ** 2
    lam = theorem_lambda(dot(sharp, align).item(), square, xi)
    update = [tensor.clone() for tensor in align]
    add_(update, sharp, lam)

    bound = xi * square
    slack = dot(sharp, update).item() - bound
    tolerance = 1e-9 * (1 + bound + abs(dot(sharp, align).item()))
    assert slack >= -tolerance, "the constraint holds always"
    if lam > 0:
        assert abs(slack) <= tolerance, "and is tight where it acts"
    else:
        assert same(update, align), "a λ of zero leaves the gradient alone"
    if square == 0:
        return
    # δ* is the nearest feasible point: no other feasible point is nearer to ∇L_align.
    distance = global_norm([a - b for a, b in zip(update, align)]).item()
    generator = torch.Generator().manual_seed(seed)
    for scale in (1e-3, 1.0, 10.0):
        other = [u + scale * torch.randn(u.shape, generator=generator, dtype=u.dtype) for u in update]
        missing = bound - dot(sharp, other).item()
        if missing > 0:
            add_(other, sharp, missing / square)  # brought onto the boundary
        further = global_norm([a - b for a, b in zip(other, align)]).item()
        assert further >= distance - 1e-6 * (1 + distance)


@given(lists=gradient_lists(), xi=st.floats(0, 10))
@settings(max_examples=100, deadline=None)
def test_released_lambda_lies_between_its_bounds(lists, xi):
    align, sharp = lists
    lam = cosine_lambda(dot(sharp, align).item(), global_norm(sharp).item() ** 2, global_norm(align).item() ** 2, xi)
    assert max(0.0, xi - 1) - 1e-9 <= lam <= xi + 1 + 1e-9


@pytest.mark.parametrize("lambda_refusal", [0.0, 0.5])
@pytest.mark.parametrize("xi", [0.01, 3.0])
def test_the_trainer_obeys_the_theorem(tiny, tokenizer, harmful_rows, tmp_path, xi, lambda_refusal):
    """The gradient that reaches the optimizer, without its refusal part, satisfies the constraint at every step."""
    steps = []

    class Watched(AntibodyAlignmentTrainer):
        def after_step(self, model):
            sharp = [tensor.clone() for tensor in self.simulated["sharpness"]]
            refusal = [tensor.clone() for tensor in self.simulated.get("refusal", [])]
            align = [tensor.clone() for tensor in gradients(self.trainable)]
            super().after_step(model)
            update = [tensor.clone() for tensor in gradients(self.trainable)]
            if refusal:
                add_(update, refusal, -1.0)
            steps.append((align, sharp, update))

    args = config(
        AntibodyAlignmentConfig,
        tmp_path,
        lambda_schedule="theorem",
        xi=xi,
        rho=0.2,
        max_steps=4,
        lambda_refusal=lambda_refusal,
        per_device_train_batch_size=4,
    )
    trainer, _ = trained(
        Watched, args, copy.deepcopy(tiny).double(), tokenizer, toy_rows(8), harmful_dataset=harmful_rows
    )
    lambdas = [line["lambda_t"] for line in trainer.state.log_history if "lambda_t" in line]
    assert len(steps) == len(lambdas) == 4
    for (align, sharp, update), lam in zip(steps, lambdas):
        bound = xi * global_norm(sharp).item() ** 2
        product = dot(sharp, update).item()
        assert product >= bound * (1 - 1e-9)
        if lam > 0:
            assert product == pytest.approx(bound, rel=1e-9)
        else:
            assert same(update, align) or lambda_refusal
    if xi == 3.0:
        assert min(lambdas) > 0


def test_cosine_schedule_averages_over_steps(tiny, tokenizer, harmful_rows, tmp_path):
    def lambdas(momentum):
        args = config(
            AntibodyAlignmentConfig,
            tmp_path,
            max_steps=3,
            learning_rate=0.0,
            xi=2.0,
            rho=0.2,
            lambda_momentum=momentum,
            lambda_refusal=0.0,
            per_device_train_batch_size=2,
        )
        trainer, _ = trained(
            AntibodyAlignmentTrainer,
            args,
            copy.deepcopy(tiny),
            tokenizer,
            toy_rows(6),
            harmful_dataset=harmful_rows,
        )
        return [line["lambda_t"] for line in trainer.state.log_history if "lambda_t" in line]

    raw = lambdas(0.0)
    assert len({round(value, 6) for value in raw}) == 3
    second = 0.75 * raw[0] + 0.25 * raw[1]
    expected = [raw[0], second, 0.75 * second + 0.25 * raw[2]]
    assert lambdas(0.75) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("product", "square", "xi", "expected"),
    [
        (0.0, 4.0, 5.0, 5.0),  # orthogonal: λ is ξ
        (4.0, 4.0, 5.0, 4.0),
        (-8.0, 4.0, 5.0, 7.0),  # against each other: more
        (40.0, 4.0, 5.0, 0.0),  # the update holds enough already
        (0.0, 0.0, 5.0, 0.0),  # flat: there is nothing to hold
    ],
)
def test_theorem_lambda(product, square, xi, expected):
    assert theorem_lambda(product, square, xi) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("product", "square", "align_square", "xi", "expected"),
    [
        (0.0, 4.0, 9.0, 5.0, 5.0),
        (6.0, 4.0, 9.0, 5.0, 4.0),  # parallel
        (-6.0, 4.0, 9.0, 5.0, 6.0),  # opposite
        (6.0, 4.0, 9.0, 0.5, 0.0),
        (0.0, 0.0, 9.0, 5.0, 5.0),  # a cosine with nothing counts as none
        (0.0, 4.0, 0.0, 5.0, 5.0),
    ],
)
def test_cosine_lambda(product, square, align_square, xi, expected):
    lam = cosine_lambda(product, square, align_square, xi)
    assert lam == pytest.approx(expected)
    assert math.isfinite(lam)


def test_theorem_lambda_ignores_the_scale_of_the_sharpness_only_together_with_the_product():
    """Scaling ∇L_sharp by c divides the part of λ that comes from ∇L_align by c, so that λ ∇L_sharp stays as it is."""
    lam, scaled = theorem_lambda(-3.0, 4.0, 0.0), theorem_lambda(-3.0 * 10, 4.0 * 100, 0.0)
    assert scaled == pytest.approx(lam / 10)
