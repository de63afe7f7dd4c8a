"""SPARD against both of its steps written out, one sample at a time, and its choice of safe rows against determinants."""

import copy
import logging

import pytest
import references as ref
import torch
from training import config, trained

from titer.errors import TiterError
from titer.infer.signals import prompt_states
from titer.methods.finetune.spard import SpardConfig, SpardTrainer, greedy_dpp, relevance_diversity
from titer.testing import same, toy_harmful_rows, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS = toy_rows(8)
HARMFUL = toy_harmful_rows()
SPLIT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
SETTINGS = {"weight_decay": 0.0, "max_grad_norm": 1.0, "max_steps": 2, "replay": 0.5, "ratio": 0.75, **SPLIT}
RATES = {"sgd": 0.2, "adamw_torch": 0.02}


def train(tiny, tokenizer, folder, rows=ROWS, **settings):
    args = config(SpardConfig, folder, **{**SETTINGS, **settings})
    streams = {"harmful_dataset": HARMFUL, "helpful_dataset": toy_rows(5)}
    trainer, _ = trained(SpardTrainer, args, copy.deepcopy(tiny).double(), tokenizer, rows, **streams)
    return trainer


def fine_tuned(tiny, tokenizer, folder, **settings):
    known = {name: value for name, value in {**SETTINGS, **settings}.items() if name not in ("replay", "ratio")}
    args = config(PackedSFTConfig, folder / "sft", **known)
    return trained(PackedSFTTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)[0]


def safe_pairs(trainer, step):
    rows = trainer._pools[0]["alignment"]
    return [(list(rows[p].prompt), list(rows[p].branches[0])) for p in trainer.drawn_rows("alignment", step)]


def clipped(gradients, limit):
    norm = ref.norm(gradients)
    return [g * min(1.0, (limit / (norm + 1e-6)).item()) for g in gradients]


@pytest.mark.parametrize("optim", RATES)
@pytest.mark.parametrize(
    "how",
    [
        {"projection": "code"},
        {"projection": "code", "alpha_max": 100.0, "tau": 4.0},
        {"projection": "closed-form", "eta_safe": 1e6},
        {"projection": "closed-form", "eta_safe": 0.1},
    ],
    ids=lambda how: " ".join(str(value) for value in how.values()),
)
def test_two_steps_are_those_of_the_formula(tiny, tokenizer, tmp_path, how, optim):
    rate = RATES[optim]
    trainer = train(tiny, tokenizer, tmp_path, optim=optim, learning_rate=rate, **{"tau": 0.5, **how})
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    parameters = [p for p in model.parameters() if p.requires_grad]
    kind = torch.optim.SGD if optim == "sgd" else torch.optim.AdamW
    optimizer = kind(parameters, lr=rate, weight_decay=0.0)

    def step(gradients):
        for p, g in zip(parameters, gradients):
            p.grad = g
        optimizer.step()

    for number in range(2):
        step(clipped(ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS))), 1.0))
        plain = [p.detach().clone() for p in parameters]
        loss = ref.mean_nll(model, safe_pairs(trainer, number))
        slope = ref.gradient(model, loss)
        excess = loss.item() - how.get("tau", 0.5)
        assert excess > 0.1, "the second step must be taken, or this test proves nothing of it"
        if how["projection"] == "code":
            step([g * min(excess / (g.norm().item() + 1e-8), how.get("alpha_max", 1.0)) for g in clipped(slope, 1.0)])
        else:
            # The first is where f would be τ if it were linear, the second the bound on the step.
            lengths = excess / ref.norm(slope).item() ** 2, how["eta_safe"] * rate
            assert (lengths[0] < lengths[1]) == (how["eta_safe"] > 1)
            with torch.no_grad():
                for p, g in zip(parameters, slope):
                    p -= min(lengths) * g
        assert max((a - b).abs().max().item() for a, b in zip(plain, parameters)) > 1e-3
    assert ref.relative_error(weights(trainer.model), parameters) < 1e-10


def test_both_steps_share_the_moments(tiny, tokenizer, tmp_path):
    trainer = train(tiny, tokenizer, tmp_path, optim="adamw_torch", learning_rate=0.01, tau=0.0, tolerance=0.0)
    assert {state["step"].item() for state in trainer.optimizer.state.values()} == {4}
    trainer = train(tiny, tokenizer, tmp_path, optim="adamw_torch", learning_rate=0.01, projection="closed-form")
    assert {state["step"].item() for state in trainer.optimizer.state.values()} == {2}


@pytest.mark.parametrize("projection", ["code", "closed-form"])
def test_where_the_bound_holds_it_is_fine_tuning(tiny, tokenizer, tmp_path, projection):
    how = {"optim": "sgd", "learning_rate": 0.1}
    plain = fine_tuned(tiny, tokenizer, tmp_path, **how)
    held = train(tiny, tokenizer, tmp_path, projection=projection, tau=50.0, **how)
    assert same(weights(plain.model), weights(held.model))
    assert {line["corrected"] for line in held.state.log_history if "corrected" in line} == {0.0}


def test_no_step_of_the_closed_form_is_fine_tuning(tiny, tokenizer, tmp_path):
    how = {"optim": "sgd", "learning_rate": 0.1}
    plain = fine_tuned(tiny, tokenizer, tmp_path, **how)
    none = train(tiny, tokenizer, tmp_path, projection="closed-form", eta_safe=0.0, **how)
    assert same(weights(plain.model), weights(none.model))


def test_the_code_lets_pass_what_is_within_its_tolerance(tiny, tokenizer, tmp_path):
    how = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1}
    plain = fine_tuned(tiny, tokenizer, tmp_path, **how)
    seen = train(tiny, tokenizer, tmp_path, tau=50.0, **how).state.log_history[0]["safe_loss"]
    for projection, within, moved in [("code", 0.05, False), ("code", 0.2, True), ("closed-form", 0.05, True)]:
        trainer = train(tiny, tokenizer, tmp_path, projection=projection, tau=seen - within, **how)
        assert same(weights(plain.model), weights(trainer.model)) != moved


def test_the_kernel_is_that_of_the_formula():
    torch.manual_seed(0)
    safe, upload = torch.randn(5, 7), torch.randn(4, 7) + 0.5
    kernel = relevance_diversity(safe, upload, 3.0)

    def cosine(a, b):
        return (a @ b / (a.norm() * b.norm())).item()

    quality = [max(0.0, *(cosine(a.double(), b.double()) for b in upload)) for a in safe]
    for i in range(5):
        for j in range(5):
            expected = (quality[i] * quality[j]) ** 3 * cosine(safe[i].double(), safe[j].double()) + 1e-6 * (i == j)
            assert kernel[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_each_row_raises_the_determinant_most():
    torch.manual_seed(1)
    kernel = relevance_diversity(torch.randn(9, 6), torch.randn(5, 6), 1.0)
    chosen = greedy_dpp(kernel, 6)
    for place, row in enumerate(chosen):
        others = [other for other in range(9) if other not in chosen[:place]]
        worth = {}
        for other in others:
            some = [*chosen[:place], other]
            worth[other] = torch.linalg.slogdet(kernel[some][:, some]).logabsdet.item()
        assert row == max(worth, key=worth.__getitem__)
    assert greedy_dpp(kernel, 9)[:6] == chosen
    assert sorted(greedy_dpp(kernel, 9)) == list(range(9))


def test_of_twins_one_is_chosen():
    safe = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.1, 0.0], [0.9, -0.4, 0.3]])
    chosen = greedy_dpp(relevance_diversity(safe, torch.tensor([[1.0, 0.0, 0.0]]), 4.0), 2)
    assert chosen == [0, 2]


def longhand_states(model, prompts, skipped):
    means = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        means.append(output.hidden_states[-1][0, skipped:].mean(0))
    return torch.stack(means).detach()


@pytest.mark.parametrize("skipped", [0, 3])
def test_prompts_are_read_one_by_one(tiny, tokenizer, skipped):
    prompts = [prompt for prompt, _ in ref.encode(tokenizer, toy_rows(20))]
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    expected = longhand_states(model, prompts, skipped)
    found = prompt_states(copy.deepcopy(tiny).double(), prompts, skipped)
    assert (found - expected).abs().max() < 1e-5
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_the_safe_rows_are_those_that_the_states_choose(tiny, tokenizer, tmp_path):
    trainer = train(tiny, tokenizer, tmp_path, ratio=0.5, max_steps=1)
    safe = [prompt for prompt, _ in ref.encode(tokenizer, HARMFUL)]
    everything = [*safe, *(prompt for prompt, _ in ref.encode(tokenizer, ROWS))]
    shared = next(i for i in range(99) if len({tuple(prompt[: i + 1]) for prompt in everything}) > 1)
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    states = longhand_states(model, everything, shared)
    kernel = relevance_diversity(states[:8], states[8:], 4.0)
    best = kernel.diagonal().argmax().item()
    rows = [tuple(sample.prompt) for sample in trainer._pools[0]["alignment"]]
    assert len(set(rows)) == 4
    assert rows[0] == tuple(safe[best])
    assert set(rows) == {tuple(safe[place]) for place in greedy_dpp(kernel, 4)}
    others = [
        {tuple(sample.prompt) for sample in made._pools[0]["alignment"]}
        for made in (
            train(tiny, tokenizer, tmp_path, ratio=0.5, max_steps=1, selection="random", seed=seed)
            for seed in (4, 4, 5)
        )
    ]
    assert others[0] == others[1] != others[2]
    assert all(len(other) == 4 for other in others)


def test_too_few_safe_rows_are_told(tiny, tokenizer, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="titer.methods.finetune.spard")
    trainer = train(tiny, tokenizer, tmp_path, rows=toy_rows(12), ratio=1.0, max_steps=1)
    assert len(trainer.chosen) == 8
    assert "12 safe rows are asked for and there are 8" in caplog.text


def test_the_learning_rate_bounds_the_closed_form(tiny, tokenizer, tmp_path):
    """η_safe is in learning rates, so a schedule that ends at 0 ends the second step too."""
    trainer = train(tiny, tokenizer, tmp_path, projection="closed-form", learning_rate=0.0, optim="sgd")
    assert [p.double().equal(q) for p, q in zip(weights(tiny), weights(trainer.model))].count(False) == 0
    assert {line["corrected"] for line in trainer.state.log_history if "corrected" in line} == {1.0}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("projection", "closed"), ("selection", "best"), ("tau", -0.1), ("replay", 0.0), ("ratio", 2.0), ("power", -1.0)],
)
def test_bad_settings_are_refused(tmp_path, setting, value):
    with pytest.raises(TiterError, match=setting):
        config(SpardConfig, tmp_path, **{setting: value})
