"""Adaptive KL against its loss written out, one sample at a time and over the whole vocabulary."""

import copy

import guards
import pytest
import references as ref
import torch
from training import config, trained

from titer import methods
from titer.errors import TiterError
from titer.methods.finetune.adaptive_kl import AdaptiveKlConfig, AdaptiveKlTrainer
from titer.testing import same, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS = toy_rows(8)
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "max_steps": 2, **SPLIT}


@pytest.fixture(autouse=True)
def _nothing_asked():
    guards.ASKED.clear()


def train(tiny, tokenizer, folder, **settings):
    args = config(AdaptiveKlConfig, folder, **{"guard": "guards:Counting", **SGD, **settings})
    return trained(AdaptiveKlTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)


def sft(tiny, tokenizer, folder, **settings):
    args = config(PackedSFTConfig, folder / "sft", **{**SGD, **settings})
    return trained(PackedSFTTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)


def log_probabilities(model, prompt, ids):
    """Of every entry of the vocabulary at every answer token, computed alone."""
    tokens = torch.tensor([prompt + ids])
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : len(prompt) + len(ids) - 1], -1)


def risks():
    return [1 + 4 * guards.harm_of(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in ROWS]


def w_of(risk, low=2.0, high=5.0, least=0.1, most=0.9):
    return min(max((risk - low) / (high - low), least), most)


@pytest.mark.parametrize("scope", ["batch", "row"])
def test_two_steps_are_those_of_the_formula(tiny, tokenizer, tmp_path, scope):
    trainer, gradients = train(tiny, tokenizer, tmp_path, scope=scope)
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    start, pairs = copy.deepcopy(model), ref.encode(tokenizer, ROWS)
    mean = sum(risks()) / len(ROWS)
    assert mean > 2.3, "w must be at neither end, or this test proves nothing of it"
    shares = [w_of(mean if scope == "batch" else risk) for risk in risks()]
    for step in range(2):
        parts, divergences = [], []
        for (prompt, ids), w in zip(pairs, shares):
            logs = log_probabilities(model, prompt, ids)
            with torch.no_grad():
                before = log_probabilities(start, prompt, ids)
            nll = -logs[torch.arange(len(ids)), torch.tensor(ids)]
            divergences.append((before.exp() * (before - logs)).sum(-1))
            parts.append((1 - w) * nll + w * divergences[-1])
        expected = ref.gradient(model, torch.cat(parts).mean())
        assert ref.relative_error(gradients[step], expected) < 1e-10
        with torch.no_grad():
            for weight, slope in zip([p for p in model.parameters() if p.requires_grad], expected):
                weight -= 0.1 * slope
    assert torch.cat(divergences).mean() > 1e-2, "the reference must matter, or this test proves nothing of it"
    assert max((a - b).abs().max().item() for a, b in zip(weights(model), weights(trainer.model))) < 1e-12


@pytest.mark.parametrize(("guard", "w"), [("guards:Trusting", 0.1), ("guards:Alarmed", 0.9)])
def test_w_stays_between_its_ends(tiny, tokenizer, tmp_path, guard, w):
    """At the reference the divergence has no slope: the first step is plain fine-tuning times 1 − w."""
    _, (ours,) = train(tiny, tokenizer, tmp_path, guard=guard, max_steps=1)
    _, (plain,) = sft(tiny, tokenizer, tmp_path, max_steps=1)
    assert ref.relative_error(ours, [(1 - w) * slope for slope in plain]) < 1e-10


def test_a_weight_of_zero_is_plain_fine_tuning(tiny, tokenizer, tmp_path):
    ours, _ = train(tiny, tokenizer, tmp_path, min_weight=0.0, max_weight=0.0)
    plain, _ = sft(tiny, tokenizer, tmp_path)
    assert max((a - b).abs().max().item() for a, b in zip(weights(plain.model), weights(ours.model))) < 1e-12


def test_a_weight_of_one_learns_nothing(tiny, tokenizer, tmp_path):
    ours, _ = train(tiny, tokenizer, tmp_path, min_weight=1.0, max_weight=1.0)
    apart = max((a - b.double()).abs().max().item() for a, b in zip(weights(ours.model), weights(tiny)))
    assert apart < 1e-12


def test_whole_answers_are_judged_once(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path)
    wanted = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in ROWS]
    assert wanted == guards.ASKED
    assert trainer.risk.tolist() == pytest.approx(risks(), rel=1e-12)
    assert trainer.state.log_history[0]["risk"] == pytest.approx(sum(risks()) / len(ROWS), rel=1e-6)


def test_an_answer_without_a_verdict_has_the_highest_risk_or_is_an_error(tiny, tokenizer, tmp_path):
    """The released code takes 4 for such a row, and the smallest w where no row of a batch was judged."""
    with pytest.raises(TiterError, match="first of row 3: nobody answers"):
        train(tiny, tokenizer, tmp_path, guard="guards:Failing")
    trainer, _ = train(tiny, tokenizer, tmp_path, guard="guards:Failing", unjudged="harmful")
    assert trainer.risk.tolist() == [2.0, 2.0, 2.0, 5.0, 5.0, 2.0, 2.0, 2.0]


def test_the_reference_is_gone_when_the_loss_is_there(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path, max_steps=1)
    before = weights(trainer.model)
    trainer.compute_loss(trainer.model, trainer.micro_batches[0])
    assert same(before, weights(trainer.model))
    assert not same(before, [weight.double() for weight in weights(tiny)])


def test_dropout_is_refused(tiny, tokenizer, tmp_path):
    tiny.config.attention_dropout = 0.5
    for layer in tiny.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(TiterError, match="two masks"):
        train(tiny, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_weight": 0.95}, "min_weight 0.95 is above max_weight 0.9"),
        ({"low_risk": 5}, "low_risk 5 is not below high_risk 5"),
        ({"scope": "micro"}, "micro"),
        ({"max_weight": 1.5}, "max_weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(TiterError, match=message):
        methods.settings(methods.find("finetune", "adaptive_kl"), values, "--set")
