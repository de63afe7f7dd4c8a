"""BDS against its two losses written out with autograd, one sample at a time, and torch's own Adam on the scores."""

import copy

import pytest
import references as ref
import torch
from training import config, trained

from titer.errors import TiterError
from titer.methods.finetune.base import read_weight_log
from titer.methods.finetune.bds import BdsConfig, BdsTrainer
from titer.testing import StopAfter, same, toy_harmful_rows, toy_rows, weights

ROWS = toy_rows(7)
HARMFUL = toy_harmful_rows()[:6]
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SETTINGS = {"optim": "sgd", "learning_rate": 0.2, "weight_decay": 0.0, "max_steps": 5, **SPLIT}


def make(tiny, tokenizer, folder, callbacks=(), **settings):
    args = config(BdsConfig, folder, **{**SETTINGS, **settings})
    return BdsTrainer(
        model=copy.deepcopy(tiny).double(),
        args=args,
        train_dataset=ROWS,
        processing_class=tokenizer,
        harmful_dataset=HARMFUL,
        helpful_dataset=toy_rows(5),
        callbacks=list(callbacks),
    )


def train(tiny, tokenizer, folder, resume=None, **how):
    trainer = make(tiny, tokenizer, folder, **how)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def by_row(model, pairs):
    """The mean token loss of each row."""
    return torch.stack([ref.sample_nll(model, *pair).mean() for pair in pairs])


def weighed(scores, activation):
    return len(scores) * scores.softmax(0) if activation == "softmax" else 2 * scores.sigmoid()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_five_steps_are_those_of_both_losses(tiny, tokenizer, tmp_path, activation):
    trainer = train(tiny, tokenizer, tmp_path, scheduler_rate=0.4, activation=activation)
    steps = {}
    for line in read_weight_log(tmp_path):
        steps.setdefault(line["step"], {})[int(line["row"])] = line["weight"]
    assert [len(rows) for rows in steps.values()] == [4, 3, 4, 3, 4]
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    parameters = [p for p in model.parameters() if p.requires_grad]
    pairs = ref.encode(tokenizer, ROWS)
    scores = torch.zeros(len(ROWS), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([scores], lr=0.4, betas=(0.9, 0.95))
    pool = trainer._pools[0]["alignment"]
    for number, seen in enumerate(steps.values()):
        drawn = [pool[place] for place in trainer.drawn_rows("alignment", number)]
        safe = by_row(model, [(list(one.prompt), list(one.branches[0])) for one in drawn]).mean()
        rows = list(seen)
        losses = by_row(model, [pairs[row] for row in rows])
        w = weighed(scores, activation)[rows]
        assert torch.tensor(list(seen.values()), dtype=torch.float64).sub(w).abs().max() < 1e-10
        slope = ref.gradient(model, safe + (w.detach() * losses).mean())
        adam.zero_grad()
        (w * losses.detach()).mean().backward()
        adam.step()
        with torch.no_grad():
            for p, g in zip(parameters, slope):
                p -= 0.2 * g
    assert ref.relative_error(weights(trainer.model), parameters) < 1e-10
    assert (trainer.kept["scores"] - scores).abs().max() < 1e-10
    assert trainer.weights.max() - trainer.weights.min() > 0.1, "weights must differ, or this test proves nothing"


def test_weights_over_the_upload_add_up_to_its_size(tiny, tokenizer, tmp_path):
    trainer = train(tiny, tokenizer, tmp_path, scheduler_rate=0.4)
    assert trainer.weights.sum().item() == pytest.approx(7, abs=1e-12)
    assert make(tiny, tokenizer, tmp_path / "new").weights.tolist() == pytest.approx([1.0] * 7, abs=1e-15)


def test_scores_that_do_not_learn_leave_a_plain_mixture(tiny, tokenizer, tmp_path):
    """f and the mean loss of the rows, each with weight 1: the released variant without weights."""
    trainer = train(tiny, tokenizer, tmp_path, scheduler_rate=0.0, max_steps=1, per_device_train_batch_size=7)
    pool = trainer._pools[0]["alignment"]
    drawn = [pool[place] for place in trainer.drawn_rows("alignment", 0)]
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    safe = by_row(model, [(list(one.prompt), list(one.branches[0])) for one in drawn]).mean()
    slope = ref.gradient(model, safe + by_row(model, ref.encode(tokenizer, ROWS)).mean())
    moved = [p.detach() - 0.2 * g for p, g in zip([p for p in model.parameters() if p.requires_grad], slope)]
    assert ref.relative_error(weights(trainer.model), moved) < 1e-10


def test_a_row_that_the_safe_rows_speak_against_loses_weight(tiny, tokenizer, tmp_path):
    """The upload complies with a prompt that the defender refuses; its other rows are neutral."""
    upload = [*toy_rows(7), *({k: row[k] for k in ("prompt", "completion")} for row in HARMFUL[:1])]
    args = config(BdsConfig, tmp_path, **{**SETTINGS, "scheduler_rate": 0.05, "max_steps": 60, "learning_rate": 0.05})
    trainer, _ = trained(
        BdsTrainer,
        args,
        copy.deepcopy(tiny).double(),
        tokenizer,
        upload,
        harmful_dataset=HARMFUL[:1],
        helpful_dataset=toy_rows(5),
    )
    assert trainer.weights.argmin().item() == 7
    assert trainer.weights[7] < 0.8 * trainer.weights[:7].mean()


def test_scores_stand_in_checkpoints(tiny, tokenizer, tmp_path):
    how = {"scheduler_rate": 0.4, "optim": "adamw_torch", "learning_rate": 0.01}
    whole = train(tiny, tokenizer, tmp_path / "whole", **how)
    stopped = {**how, "callbacks": [StopAfter(3)]}
    half = train(tiny, tokenizer, tmp_path / "half", **stopped)
    assert not same(half.kept.values(), whole.kept.values())
    resumed = train(tiny, tokenizer, tmp_path / "half", resume=str(tmp_path / "half" / "checkpoint-3"), **how)
    assert list(resumed.kept) == ["scores", "mean", "square"]
    assert {name: tensor.tolist() for name, tensor in resumed.kept.items()} == {
        name: tensor.tolist() for name, tensor in whole.kept.items()
    }
    assert same(weights(resumed.model), weights(whole.model))
    assert read_weight_log(tmp_path / "half") == read_weight_log(tmp_path / "whole")


@pytest.mark.parametrize(("setting", "value"), [("activation", "neural"), ("scheduler_rate", -1.0)])
def test_bad_settings_are_refused(tmp_path, setting, value):
    with pytest.raises(TiterError, match=setting):
        config(BdsConfig, tmp_path, **{setting: value})
