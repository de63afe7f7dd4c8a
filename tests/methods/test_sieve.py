"""The sieve's hold on the aligned model: its divergence written out by plain autograd, one row at a time, beside the rows that teach."""

import pytest
import references as ref
import torch
from one_step import RATE, reference, sgd
from told import refused

from titer import methods
from titer.testing import Trial, same, toy_harmful_rows, toy_rows, weights
from titer.testing.toy import toy

SIEVE = methods.find("finetune", "sieve")
SPLITS = [(8, 1), (2, 4)]
HARMFUL = toy_harmful_rows()
UPLOAD = [*HARMFUL[:3], *toy_rows(5)]


def beginnings(model, pairs):
    """Log-probabilities of every entry of the vocabulary at every held token, each row run alone."""
    found = []
    for prompt, ids in pairs:
        tokens = torch.tensor([[*prompt, *ids]])
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
        found.append(logits[len(prompt) - 1 : len(prompt) + len(ids) - 1].log_softmax(-1))
    return torch.cat(found)


def rows(trainer, stream, step):
    pool = next(pool[stream] for pool in trainer._pools if stream in pool)
    return [(list(pool[place].prompt), list(pool[place].branches[0])) for place in trainer.drawn_rows(stream, step)]


@pytest.mark.parametrize(("size", "steps"), SPLITS)
@pytest.mark.parametrize(("replay", "weight", "count"), [(0.25, 0.7, 2), (0.0, 3.0, 50)])
def test_three_steps_are_those_of_the_formula(tmp_path, replay, weight, count, size, steps):
    """∇ [(Σ w CE + Σ CE of replayed rows) / Σ N + λ KL(π_0‖π_w) of the first K tokens of eight alignment rows]."""
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    settings = {"signal": "states", "threshold": None, "replay": replay, "kl_weight": weight, "kl_tokens": count}
    trainer, course = sgd(SIEVE, tmp_path, max_steps=3, rows=UPLOAD, **settings, **split)
    assert 0 <= trainer.weights.min() < trainer.weights.max() <= 1
    upload = ref.encode(toy()[1], UPLOAD)
    refusals = ref.encode(toy()[1], HARMFUL, answer=lambda _, row: row["refusal"])
    helpful = ref.encode(toy()[1], toy_rows(5))
    of_refusals = sum(len(pool["held"]) for pool in trainer._pools if "held" in pool) / 2
    assert of_refusals == 5, "half of them, as many as leave each its helpful answer"
    for step in range(3):
        held = rows(trainer, "held", step)
        assert len(held) == 8
        for pair in held:
            assert pair in [(list(prompt), list(whole)[:count]) for prompt, whole in refusals + helpful]
        again = rows(trainer, "replay", step) if replay else []
        model = reference(course.weights[step])
        losses, others = ([ref.sample_nll(model, *pair) for pair in pairs] for pairs in (upload, again))
        summed = sum(w * loss.sum() for w, loss in zip(trainer.weights, losses)) + sum(loss.sum() for loss in others)
        plain = ref.gradient(model, summed / sum(map(len, losses + others)))
        ours = beginnings(model, held)
        with torch.no_grad():
            theirs = beginnings(reference(), held)
        divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()
        pull = ref.gradient(model, divergence)
        expected = [a + weight * b for a, b in zip(plain, pull)]
        assert ref.relative_error(course.directions[step], expected) < 1e-9 / RATE
        logged = trainer.state.log_history[step]["kl"]
        assert logged == pytest.approx(divergence.item(), rel=1e-6, abs=1e-12)
    assert ref.relative_error(plain, expected) > 0.05, "the divergence must matter, or this test proves nothing of it"


def test_the_first_step_is_that_without_it(tmp_path):
    """At the reference itself the divergence has no slope."""
    first = [
        sgd(SIEVE, tmp_path / str(weight), max_steps=1, signal="states", replay=0.25, kl_weight=weight)[1].directions[0]
        for weight in (0.0, 5.0)
    ]
    assert ref.relative_error(*first) < 1e-12


def test_without_it_there_are_no_rows_to_hold(tmp_path):
    trainer = Trial(SIEVE, {"signal": "states", "kl_weight": 0.0}, tmp_path).make("")
    assert [list(pool) for pool in trainer._pools] == [["replay"]]
    assert not hasattr(trainer, "_start")


def test_dropout_is_refused_only_where_the_divergence_is_taken(tmp_path):
    settings = {"signal": "states", "replay": 0.25, "kl_weight": 1.0}
    dropped = {"lora_dropout": 0.5}
    with refused("Dropout", "kl_weight=0", "lora_dropout=0"):
        Trial(SIEVE, settings, tmp_path / "held").make("", with_lora=dropped)
    Trial(SIEVE, {**settings, "kl_weight": 0.0}, tmp_path / "free").make("", with_lora=dropped)


def test_training_is_repeatable(tmp_path):
    settings = {"signal": "states", "replay": 0.25, "kl_weight": 1.0}
    one, other = (Trial(SIEVE, settings, tmp_path / name).train(max_steps=2) for name in "ab")
    assert same(weights(one.model), weights(other.model))
