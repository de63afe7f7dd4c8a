"""TOSS: its two references trained by hand, its scores, what they leave out, and the loss of what stays."""

import copy

import pytest
import references as ref
import torch
from safetensors.torch import load_file
from training import config, trained

from titer import methods
from titer.errors import TiterError
from titer.methods.finetune.toss import TossConfig, TossTrainer, kept_tokens
from titer.packing.streams import draw
from titer.testing import StopAfter, same, toy_harmful_rows, toy_rows, weights
from titer.train.checkpoints import KEPT_FILE
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS = [*toy_rows(5), *toy_harmful_rows()[:3]]
HARMFUL, HELPFUL = toy_harmful_rows()[:5], toy_rows(9)[4:]
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, **SPLIT}
REFERENCES = {"reference_steps": 4, "reference_rate": 1e-2, "reference_batch_size": 3}
STREAMS = {"harmful_dataset": HARMFUL, "helpful_dataset": HELPFUL}


def train(tiny, tokenizer, folder, streams=STREAMS, rows=ROWS, **settings):
    args = config(TossConfig, folder, **{**SGD, **REFERENCES, **settings})
    return trained(TossTrainer, args, copy.deepcopy(tiny).double(), tokenizer, rows, **streams)


def plain(tiny):
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    return model


def reference(tiny, tokenizer, rows, which, steps=4, size=3, rate=1e-2, seed=3):
    """A copy of the model after some steps of AdamW on batches of rows, in the order of the seed."""
    model, pairs = plain(tiny), ref.encode(tokenizer, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        batch = [pairs[row] for row in draw(len(pairs), step * size, size, (seed, which))]
        optimizer.zero_grad()
        ref.mean_nll(model, batch).backward()
        optimizer.step()
    return model


def scores(tiny, tokenizer):
    harmed, helped = reference(tiny, tokenizer, HARMFUL, 0), reference(tiny, tokenizer, HELPFUL, 1)
    with torch.no_grad():
        pairs = ref.encode(tokenizer, ROWS)
        return [ref.sample_nll(helped, *pair) - ref.sample_nll(harmed, *pair) for pair in pairs]


def test_scores_and_gradient_are_those_of_the_formula(tiny, tokenizer, tmp_path):
    trainer, (ours,) = train(tiny, tokenizer, tmp_path, drop=0.3)
    assert trainer.state.global_step == 1
    expected = scores(tiny, tokenizer)
    for mine, longhand in zip(trainer.scores, expected):
        assert (mine - longhand).abs().max() < 1e-10
    cut = sorted(torch.cat(expected).tolist(), reverse=True)
    last = cut[int(0.3 * len(cut)) - 1]
    model = plain(tiny)
    nll = torch.cat([ref.sample_nll(model, *pair) for pair in ref.encode(tokenizer, ROWS)])
    stays = torch.cat(expected) < last
    assert stays.sum() == len(cut) - int(0.3 * len(cut))
    everything = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))
    assert ref.relative_error(ours, everything) > 0.1, "what is left out must matter, or this test proves nothing"
    assert ref.relative_error(ours, ref.gradient(model, nll[stays].mean())) < 1e-10


def test_what_harm_makes_likelier_is_left_out(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path, drop=0.3)
    shares = [1 - kept.double().mean().item() for kept in trainer.kept_by_row]
    assert max(shares[:5]) < min(shares[5:])


def test_dropping_nothing_is_plain_fine_tuning(tiny, tokenizer, tmp_path):
    ours, _ = train(tiny, tokenizer, tmp_path, drop=0.0, max_steps=2)
    args = config(PackedSFTConfig, tmp_path / "sft", **SGD, max_steps=2)
    sft, _ = trained(PackedSFTTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)
    assert same(weights(ours.model), weights(sft.model))


def test_the_references_leave_weights_and_random_numbers_as_they_were(tiny, tokenizer, tmp_path):
    model = copy.deepcopy(tiny).double()
    args = config(TossConfig, tmp_path, **SGD, **REFERENCES)
    torch.manual_seed(5)
    trainer = TossTrainer(model, args, train_dataset=ROWS, processing_class=tokenizer, **STREAMS)
    after = torch.get_rng_state()
    assert same(weights(trainer.model), [weight.double() for weight in weights(tiny)])
    assert all(weight.grad is None for weight in trainer.trainable.values())
    torch.manual_seed(5)
    args = config(PackedSFTConfig, tmp_path, **SGD)
    PackedSFTTrainer(copy.deepcopy(tiny), args, train_dataset=ROWS, processing_class=tokenizer)
    assert torch.equal(after, torch.get_rng_state())


def test_an_interrupted_reference_leaves_the_weights(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path)
    before = weights(trainer.model)
    moved = []

    def interrupted():
        with trainer.trained_on("harmful"):
            moved.append(not same(before, weights(trainer.model)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert moved == [True]
    assert same(before, weights(trainer.model))


def test_how_many_are_left_out():
    values = torch.tensor([0.5, 3.0, 1.0, 3.0, -2.0, 3.0, 0.0])
    assert kept_tokens(values, 0.3).tolist() == [True, False, True, False, True, True, True]  # 2.1, rounded down
    assert kept_tokens(values, 0.1).all()
    assert kept_tokens(values, 0.99).sum() == 1


def test_a_batch_of_which_nothing_stays_teaches_nothing(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path, max_steps=1, drop=0.3)
    trainer.kept["tokens"] = torch.zeros(sum(trainer._lengths), dtype=torch.uint8)
    before = weights(trainer.model)
    trainer.train()
    assert same(before, weights(trainer.model))


def test_a_training_that_goes_on_leaves_out_what_it_left_out_before(tiny, tokenizer, tmp_path):
    """Also where the references would come out otherwise, as they may on accelerators."""
    args = config(TossConfig, tmp_path, **SGD, **REFERENCES, drop=0.3, max_steps=4, save_strategy="steps", save_steps=1)
    model = copy.deepcopy(tiny)

    def make(**changed):
        own = copy.deepcopy(args)
        for name, value in changed.items():
            setattr(own, name, value)
        callbacks = [StopAfter(2)] if not changed else []
        return TossTrainer(
            copy.deepcopy(model), own, train_dataset=ROWS, processing_class=tokenizer, callbacks=callbacks, **STREAMS
        )

    stopped = make()
    stopped.train()
    kept = torch.cat(stopped.kept_by_row)
    resumed = make(reference_rate=1e-3)
    assert not torch.equal(torch.cat(resumed.kept_by_row), kept)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(torch.cat(resumed.kept_by_row), kept)
    assert torch.equal(load_file(tmp_path / "checkpoint-4" / KEPT_FILE)["tokens"].bool(), kept)


@pytest.mark.parametrize("missing", ["harmful_dataset", "helpful_dataset"])
def test_both_kinds_of_rows_are_needed(tiny, tokenizer, tmp_path, missing):
    with pytest.raises(TiterError, match=f"needs `{missing}`"):
        train(tiny, tokenizer, tmp_path, streams={name: rows for name, rows in STREAMS.items() if name != missing})


def test_references_that_run_away_are_told(tiny, tokenizer, tmp_path, monkeypatch):
    scored = TossTrainer.scored
    monkeypatch.setattr(TossTrainer, "scored", lambda self, rows: [nll * torch.nan for nll in scored(self, rows)])
    with pytest.raises(TiterError, match="no number"):
        train(tiny, tokenizer, tmp_path)


@pytest.mark.parametrize(("setting", "value"), [("drop", 1.0), ("drop", -0.1), ("reference_steps", 0)])
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(TiterError, match=setting):
        methods.settings(methods.find("finetune", "toss"), {setting: value}, "--set")
