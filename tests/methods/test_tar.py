"""TAR's small form against its loop written out longhand: an adversary's steps, gradients where they lead, and the way back."""

import copy
import math

import pytest
import references as ref
import torch
from training import config, trained

from titer import methods
from titer.errors import TiterError
from titer.methods.align.tar import TarConfig, TarTrainer
from titer.testing import same, toy_harmful_rows, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS, HARMFUL = toy_rows(8), toy_harmful_rows()
SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
STRONG = {"lam": 3.0, "retain": 0.5, "inner_steps": 5, "inner_every": 2, "inner_rate": 0.05, "schedule": 0.3}


def train(tiny, tokenizer, folder, harmful=HARMFUL, **settings):
    args = config(TarConfig, folder, **{**STRONG, **SGD, **settings})
    return trained(TarTrainer, args, copy.deepcopy(tiny), tokenizer, ROWS, harmful_dataset=harmful)


def reference(tiny):
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    return model


def resistance(model, pairs, loss):
    """T: minus the mean entropy, or minus the mean loss, over answer tokens."""
    if loss == "ascent":
        return -ref.mean_nll(model, pairs)
    found = []
    for prompt, answer in pairs:
        ids = torch.tensor([prompt + answer])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        p = torch.softmax(logits, -1)[len(prompt) - 1 : len(ids[0]) - 1]
        found.append((p * torch.log(p)).sum(-1))
    return torch.cat(found).mean()


def longhand(tiny, tokenizer, trainer, optimizer, loss):
    """The gradient of a step, and the adversary's first loss and last."""
    kept = [row for place, row in enumerate(HARMFUL) if place not in (2, 6)]
    tested = [HARMFUL[2], HARMFUL[6]]
    held_out = ref.encode(tokenizer, [tested[place] for place in trainer.drawn_rows("held_out", 0)])
    attacked = reference(tiny)
    parameters = [p for p in attacked.parameters() if p.requires_grad]
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    adversary = kind(parameters, lr=0.05)
    total, harm = [torch.zeros_like(p) for p in parameters], []
    for step in range(5):
        rows = ref.encode(tokenizer, [kept[place] for place in trainer.drawn_rows("harmful", step)])
        h = ref.mean_nll(attacked, rows)
        harm.append(h.item())
        for p, g in zip(parameters, ref.gradient(attacked, h)):
            p.grad = g
        adversary.step()
        if step in (1, 3):
            weight = 3.0 * math.exp(0.3 * (step + 1 - 5))
            gradient = ref.gradient(attacked, resistance(attacked, held_out, loss))
            total = [a + weight * b for a, b in zip(total, gradient)]
    model = reference(tiny)
    f = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))
    assert ref.norm(total) > 0.1 * ref.norm(f), "the adversary must matter, or this test proves nothing"
    return [0.5 * a + b for a, b in zip(f, total)], harm, [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("loss", ["entropy", "ascent"])
@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4)])
def test_the_step_is_that_of_the_loop(tiny, tokenizer, tmp_path, optimizer, loss, size, steps):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    how = {"inner_optimizer": optimizer, "inner_loss": loss}
    trainer, (ours,) = train(tiny.double(), tokenizer, tmp_path, **how, **split)
    expected, harm, before = longhand(tiny, tokenizer, trainer, optimizer, loss)
    assert ref.relative_error(ours, expected) < 1e-10
    stepped = [p.detach() - 0.1 * g for p, g in zip(before, expected)]
    assert ref.relative_error(weights(trainer.model), stepped) < 1e-10
    log = trainer.state.log_history[0]
    assert (log["harmful_loss"], log["attacked_loss"]) == pytest.approx((harm[0], harm[-1]), rel=1e-6)


def test_the_adversary_does_not_see_what_is_held_out(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path)
    (pool, apart) = trainer._pools
    texts = [[tuple(sample.prompt) for sample in each] for each in (pool["harmful"], apart["held_out"])]
    assert [len(each) for each in texts] == [6, 2]
    assert not set(texts[0]) & set(texts[1])


def test_each_step_of_the_adversary_has_rows_of_its_own(tiny, tokenizer, tmp_path):
    """Over two optimizer steps of two each, an adversary with four batches to draw sees four different draws."""
    seen = []

    class Watching(TarTrainer):
        def drawn_rows(self, stream, number):
            seen.append((stream, number))
            return super().drawn_rows(stream, number)

    args = config(TarConfig, tmp_path, **{**SGD, **STRONG, "inner_steps": 2, "max_steps": 2})
    trained(Watching, args, tiny, tokenizer, ROWS, harmful_dataset=HARMFUL)
    assert [number for stream, number in seen if stream == "harmful"] == [0, 1, 2, 3]
    assert [number for stream, number in seen if stream == "held_out"] == [0, 1]


def test_without_the_adversary_it_is_supervised_fine_tuning(tiny, tokenizer, tmp_path):
    ours, _ = train(tiny.double(), tokenizer, tmp_path, lam=0.0, retain=1.0, max_steps=2)
    args = config(PackedSFTConfig, tmp_path / "sft", **SGD, max_steps=2)
    sft, _ = trained(PackedSFTTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)
    assert same(weights(ours.model), weights(sft.model))


def test_an_adversary_who_is_interrupted_leaves_the_weights(tiny, tokenizer, tmp_path, monkeypatch):
    before = weights(tiny)
    moved = []

    def interrupted(self, model, factor):
        moved.append(not same(before, weights(self.model)))
        raise KeyboardInterrupt

    monkeypatch.setattr(TarTrainer, "_resist", interrupted)
    args = config(TarConfig, tmp_path, **{**STRONG, **SGD})
    trainer = TarTrainer(tiny, args, train_dataset=ROWS, processing_class=tokenizer, harmful_dataset=HARMFUL)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert moved == [True]
    assert same(before, weights(trainer.model))


def test_one_harmful_row_is_too_few(tiny, tokenizer, tmp_path):
    with pytest.raises(TiterError, match="one row"):
        train(tiny, tokenizer, tmp_path, harmful=HARMFUL[:1])
    trainer, _ = train(tiny, tokenizer, tmp_path, harmful=HARMFUL[:2], held_out=0.99)
    assert [len(samples) for pool in trainer._pools for samples in pool.values()] == [1, 1]


def test_harmful_rows_are_needed(tiny, tokenizer, tmp_path):
    with pytest.raises(TiterError, match="needs `harmful_dataset`"):
        train(tiny, tokenizer, tmp_path, harmful=None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lam", -1.0),
        ("inner_steps", 0),
        ("inner_every", 5),
        ("inner_rate", 0.0),
        ("inner_optimizer", "lion"),
        ("inner_loss", "dpo"),
        ("held_out", 1.0),
        ("held_out", 0.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(TiterError, match=setting):
        methods.settings(methods.find("align", "tar"), {setting: value}, "--set")
