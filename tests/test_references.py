"""Every method's gradient against its formula written out longhand, in float64 and float32."""

import copy

import pytest
import references as ref
import torch
from training import config, trained

from titer.methods.align import AntibodyAlignmentConfig, AntibodyAlignmentTrainer, BoosterConfig, BoosterTrainer
from titer.methods.finetune import (
    AntibodyFinetuneConfig,
    AntibodyFinetuneTrainer,
    GateConfig,
    GateTrainer,
    SieveConfig,
    SieveTrainer,
)
from titer.methods.finetune.gate import probability
from titer.testing import row
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-4)]
BATCHES = [(8, 1), (2, 4)]


@pytest.fixture(params=PRECISIONS, ids=["float64", "float32"])
def precision(request):
    return request.param


@pytest.fixture(params=BATCHES, ids=["8x1", "2x4"])
def batches(request):
    size, steps = request.param
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}


def reference_model(tiny):
    """The reference always computes in float64, with the library's own attention."""
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    return model


def run(cls, config_cls, tmp_path, tiny, tokenizer, rows, dtype, streams=None, **settings):
    model = copy.deepcopy(tiny).to(dtype)
    args = config(config_cls, tmp_path, **settings)
    trainer, steps = trained(cls, args, model, tokenizer, rows, **(streams or {}))
    assert len(steps) == 1
    return trainer, [g.double() for g in steps[0]]


def drawn(trainer, harmful_rows, number=0):
    """The harmful rows of a step."""
    return [harmful_rows[place] for place in trainer.drawn_rows("harmful", number)]


def test_sft(tiny, tokenizer, helpful_rows, tmp_path, precision, batches):
    dtype, tolerance = precision
    _, ours = run(PackedSFTTrainer, PackedSFTConfig, tmp_path, tiny, tokenizer, helpful_rows, dtype, **batches)
    model = reference_model(tiny)
    expected = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, helpful_rows)))
    assert ref.relative_error(ours, expected) < tolerance


def sharpness_reference(model, harmful, radius):
    h = ref.gradient(model, ref.mean_nll(model, harmful))
    direction = [g / (ref.norm(h) + 1e-7) for g in h]
    with ref.moved(model, direction, radius):
        attacked = ref.gradient(model, ref.mean_nll(model, harmful))
    return [a - b for a, b in zip(h, attacked)], direction


def test_booster(tiny, tokenizer, helpful_rows, harmful_rows, tmp_path, precision, batches):
    dtype, tolerance = precision
    trainer, ours = run(
        BoosterTrainer,
        BoosterConfig,
        tmp_path,
        tiny,
        tokenizer,
        helpful_rows,
        dtype,
        {"harmful_dataset": harmful_rows[:5]},
        lam=3.0,
        alpha=0.2,
        **batches,
    )
    model = reference_model(tiny)
    harmful = ref.encode(tokenizer, drawn(trainer, harmful_rows))
    sharp, _ = sharpness_reference(model, harmful, 0.2)
    f = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, helpful_rows)))
    expected = [a + 3.0 * b for a, b in zip(f, sharp)]
    assert ref.norm(sharp) > 0.1 * ref.norm(f), "the regulariser must matter, or this test proves nothing"
    assert ref.relative_error(ours, expected) < tolerance


def test_booster_with_gradients_used_again(tiny, tokenizer, helpful_rows, harmful_rows, tmp_path):
    """refresh_every = 2: ∇f is of the step's own weights, the regulariser's gradient of every second step's."""
    args = config(
        BoosterConfig,
        tmp_path,
        lam=3.0,
        alpha=0.2,
        refresh_every=2,
        max_steps=4,
        per_device_train_batch_size=8,
        optim="sgd",
        learning_rate=0.1,
        weight_decay=0.0,
    )
    model = copy.deepcopy(tiny).double()
    trainer, steps = trained(BoosterTrainer, args, model, tokenizer, helpful_rows, harmful_dataset=harmful_rows[:5])
    reference = reference_model(tiny)
    helpful = ref.encode(tokenizer, helpful_rows)
    assert len(steps) == 4
    simulated = []
    for step, ours in enumerate(steps):
        if step % 2 == 0:
            harmful = ref.encode(tokenizer, drawn(trainer, harmful_rows, step // 2))
            sharp, _ = sharpness_reference(reference, harmful, 0.2)
            simulated.append(sharp)
        f = ref.gradient(reference, ref.mean_nll(reference, helpful))
        expected = [a + 3.0 * b for a, b in zip(f, sharp)]
        assert ref.relative_error(ours, expected) < 1e-10
        with torch.no_grad():
            for p, g in zip((p for p in reference.parameters() if p.requires_grad), expected):
                p -= 0.1 * g
    cosines = [line["refresh_cosine"] for line in trainer.state.log_history if "refresh_cosine" in line]
    cosine = ref.inner(*simulated) / (ref.norm(simulated[0]) * ref.norm(simulated[1]))
    assert cosines == [pytest.approx(cosine.item(), rel=1e-6)]


@pytest.mark.parametrize("schedule", ["cosine_ema", "theorem", "constant"])
def test_antibody_alignment(tiny, tokenizer, helpful_rows, harmful_rows, tmp_path, precision, batches, schedule):
    dtype, tolerance = precision
    trainer, ours = run(
        AntibodyAlignmentTrainer,
        AntibodyAlignmentConfig,
        tmp_path,
        tiny,
        tokenizer,
        helpful_rows,
        dtype,
        {"harmful_dataset": harmful_rows},
        lambda_schedule=schedule,
        xi=2.0,
        rho=0.2,
        lambda_refusal=0.5,
        lam=1.5,
        **batches,
    )
    model = reference_model(tiny)
    rows = drawn(trainer, harmful_rows)
    sharp, direction = sharpness_reference(model, ref.encode(tokenizer, rows), 0.2)
    refusals = ref.encode(tokenizer, rows, answer=lambda _, row: row["refusal"])
    with ref.moved(model, direction, 0.2):
        refusal = ref.gradient(model, ref.mean_nll(model, refusals))
    f = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, helpful_rows)))
    lam = {
        "cosine_ema": torch.clamp(2.0 - ref.inner(f, sharp) / (ref.norm(f) * ref.norm(sharp)), min=0),
        "theorem": torch.clamp((2.0 * ref.norm(sharp) ** 2 - ref.inner(f, sharp)) / ref.norm(sharp) ** 2, min=0),
        "constant": 1.5,
    }[schedule]
    expected = [a + lam * b + 0.5 * c for a, b, c in zip(f, sharp, refusal)]
    assert ref.relative_error(ours, expected) < tolerance


TAU = {"none": 1.0, "sum": 16.0, "mean": 0.5, "calibrated": 0.2}


def log_ratios(model, tokenizer, rows, losses, refusals, ratio):
    """r of each row by its formula, of the losses of its answer's tokens and those of the refusal of its number."""
    against = ref.encode(tokenizer, rows, answer=lambda number, _: refusals[number % len(refusals)])
    with torch.no_grad():
        refused = [ref.sample_nll(model, *pair) for pair in against]
        if ratio == "calibrated":
            unasked = [row("?", refusals[number % len(refusals)]) for number in range(len(rows))]
            nothing = [ref.sample_nll(model, *pair) for pair in ref.encode(tokenizer, unasked)]
            return torch.stack([(b - c).mean() for b, c in zip(refused, nothing)])
        reduce = torch.sum if ratio == "sum" else torch.mean
        return torch.stack([reduce(b) - reduce(a) for a, b in zip(losses, refused)])


@pytest.mark.parametrize("ratio", ["sum", "mean", "calibrated"])
@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_antibody_finetuning(tiny, tokenizer, harmful_rows, tmp_path, precision, batches, ratio, reduction):
    dtype, tolerance = precision
    tau = TAU[ratio]
    refusals = ["no, I will not do that", "I am sorry", "no"]
    trainer, ours = run(
        AntibodyFinetuneTrainer,
        AntibodyFinetuneConfig,
        tmp_path,
        tiny,
        tokenizer,
        harmful_rows,
        dtype,
        {"refusals": refusals},
        ratio=ratio,
        reduction=reduction,
        tau=tau,
        **batches,
    )
    model = reference_model(tiny)
    answers = ref.encode(tokenizer, harmful_rows)
    losses = [ref.sample_nll(model, *pair) for pair in answers]
    w = torch.softmax(log_ratios(model, tokenizer, harmful_rows, losses, refusals, ratio) / tau, 0)
    assert 0.2 < w.max() < 0.95, "the weights must differ without one taking all"
    if reduction == "token":
        total = sum(weight * loss.sum() for weight, loss in zip(w, losses))
        loss = total / torch.clamp(sum(weight * len(loss) for weight, loss in zip(w, losses)), min=1)
    else:
        loss = sum(weight * loss.mean() for weight, loss in zip(w, losses))
    assert ref.relative_error(ours, ref.gradient(model, loss)) < tolerance
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-3)


@pytest.mark.parametrize("ridge", [1e-2, 1.0])
@pytest.mark.parametrize("size", [1, 5])
def test_the_gates_probability_is_that_of_newtons_method(size, ridge):
    """Mean of balanced logistic losses plus ridge / 2 · ‖w‖², minimised longhand on standardised features."""
    draw = torch.Generator().manual_seed(size)
    y = torch.tensor([1.0] * 30 + [0.0] * 70, dtype=torch.float64)
    x = torch.randn(100, size, generator=draw, dtype=torch.float64) * 3 + y[:, None]
    rows = torch.randn(20, size, generator=draw, dtype=torch.float64)
    mean, scale = x.mean(0), x.std(0)
    ones = torch.cat(((x - mean) / scale, torch.ones(100, 1, dtype=torch.float64)), 1)
    balance = torch.where(y > 0, 0.5 / 0.3, 0.5 / 0.7)
    penalty = ridge * torch.diag(torch.tensor([1.0] * size + [0.0], dtype=torch.float64))
    w = torch.zeros(size + 1, dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(ones @ w)
        slope = ones.T @ (balance * (p - y)) / 100 + penalty @ w
        curve = (ones * (balance * p * (1 - p))[:, None]).T @ ones / 100 + penalty
        w = w - torch.linalg.solve(curve, slope)
    expected = torch.sigmoid(torch.cat(((rows - mean) / scale, torch.ones(20, 1, dtype=torch.float64)), 1) @ w)
    assert torch.allclose(probability(x, y, rows, ridge), expected, atol=1e-5)


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_gate(tiny, tokenizer, helpful_rows, harmful_rows, tmp_path, precision, batches, reduction):
    dtype, tolerance = precision
    upload = harmful_rows[:3] + helpful_rows[:5]
    trainer, ours = run(
        GateTrainer,
        GateConfig,
        tmp_path,
        tiny,
        tokenizer,
        upload,
        dtype,
        {"harmful_dataset": harmful_rows[3:], "helpful_dataset": helpful_rows[5:], "refusals": ["no"]},
        signal="refusal",
        ridge=1.0,
        reduction=reduction,
        **batches,
    )
    w = trainer.weights
    assert 0 < w.min() < w.max() < 1
    model = reference_model(tiny)
    losses = [ref.sample_nll(model, *pair) for pair in ref.encode(tokenizer, upload)]
    if reduction == "token":
        loss = sum(weight * loss.sum() for weight, loss in zip(w, losses)) / sum(map(len, losses))
    else:
        loss = sum(weight * loss.mean() for weight, loss in zip(w, losses)) / len(losses)
    assert ref.relative_error(ours, ref.gradient(model, loss)) < tolerance


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("ratio", ["none", "sum", "mean", "calibrated"])
def test_sieve(tiny, tokenizer, helpful_rows, harmful_rows, tmp_path, precision, batches, ratio, reduction):
    """Σ w CE / Σ N over the upload and, with weight 1, two refusals or helpful answers."""
    dtype, tolerance = precision
    upload, refusals = harmful_rows[:3] + helpful_rows[:5], ["no, I will not do that", "I am sorry", "no"]
    trainer, ours = run(
        SieveTrainer,
        SieveConfig,
        tmp_path,
        tiny,
        tokenizer,
        upload,
        dtype,
        {"harmful_dataset": harmful_rows, "helpful_dataset": helpful_rows, "refusals": refusals},
        signal="states",
        threshold=None,
        ratio=ratio,
        reduction=reduction,
        tau=TAU[ratio],
        replay=0.25,
        **batches,
    )
    w = trainer.weights
    assert 0 <= w.min() < w.max() <= 1
    model = reference_model(tiny)
    losses = [ref.sample_nll(model, *pair) for pair in ref.encode(tokenizer, upload)]
    if ratio != "none":
        w = w * torch.sigmoid(log_ratios(model, tokenizer, upload, losses, refusals, ratio) / TAU[ratio])
    pool = trainer._pools[0]["replay"]
    taught = {tuple(pair[1]) for pair in ref.encode(tokenizer, helpful_rows)}
    taught |= {tuple(pair[1]) for pair in ref.encode(tokenizer, harmful_rows, answer=lambda _, row: row["refusal"])}
    assert {tuple(sample.branches[0]) for sample in pool} <= taught
    replayed = [pool[place] for place in trainer.drawn_rows("replay", 0)]
    assert len(replayed) == 2
    again = [ref.sample_nll(model, sample.prompt, sample.branches[0]) for sample in replayed]
    if reduction == "token":
        loss = sum(weight * loss.sum() for weight, loss in zip(w, losses)) + sum(loss.sum() for loss in again)
        loss = loss / sum(map(len, losses + again))
    else:
        # Alignment rows count as many samples as they are, by the mean over their tokens.
        loss = sum(weight * loss.mean() for weight, loss in zip(w, losses)) + 2 * torch.cat(again).mean()
        loss = loss / 10
    assert ref.relative_error(ours, ref.gradient(model, loss)) < tolerance
