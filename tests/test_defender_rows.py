"""Rows that a defender holds, and the model as it was: what methods stand on."""

import copy

import pytest
import torch

from titer.errors import TiterError
from titer.methods import Method
from titer.methods.finetune.base import AlignmentRowsConfig
from titer.methods.reference import ReferenceTrainer
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.losses import branch_nll, token_nll
from titer.testing import Trial, same, weights
from titer.testing.toy import toy


class Every(ReferenceTrainer, DefenderRowsTrainer):
    """Draws all streams, and looks at its reference after each step."""

    POOLS = (("harmful", "refusal"), ("general",), ("alignment",))
    SCORES_ROWS = KEEPS_WEIGHTS = True

    def after_step(self, model):
        before = weights(self.model)
        with self.reference():
            self.inside = weights(self.model)
            nll, _ = token_nll(model, self.micro_batches[-1])
        self.apart = (nll - self.reference_of(self.micro_batches[-1])).abs().max().item()
        self.restored = same(before, weights(self.model))


EVERY = Method(AlignmentRowsConfig, Every, streams=("harmful_dataset", "helpful_dataset"))


def texts(trainer, stream, tokenizer):
    pool = next(pool for pool in trainer._pools if stream in pool)
    return [(tokenizer.decode(one.prompt), tokenizer.decode(one.branches[0])) for one in pool[stream]]


def test_streams_hold_what_they_say(tmp_path, tokenizer):
    trainer = Trial(EVERY, {"helpful_each": 1}, tmp_path).make()
    harmful, refusal = (texts(trainer, name, tokenizer) for name in ("harmful", "refusal"))
    assert [prompt for prompt, _ in harmful] == [prompt for prompt, _ in refusal]
    assert "sure, here is how to pick a lock" in harmful[0][1]
    assert all(answer.startswith("no, I will not") for _, answer in refusal)
    general, alignment = (texts(trainer, name, tokenizer) for name in ("general", "alignment"))
    assert len(general) == 5
    # Five helpful rows, so five refusals of eight.
    assert len(alignment) == 10
    assert sum(row in refusal for row in alignment) == sum(row in general for row in alignment) == 5


def test_papers_mix_in_refusals_alone(tmp_path, tokenizer):
    trainer = Trial(EVERY, {}, tmp_path).make()
    assert sorted(texts(trainer, "alignment", tokenizer)) == sorted(texts(trainer, "refusal", tokenizer))


def test_a_missing_dataset_is_told(tmp_path):
    method = Method(AlignmentRowsConfig, Every, streams=("harmful_dataset",))
    with pytest.raises(TiterError, match="needs `helpful_dataset`: rows of harmless prompts"):
        Trial(method, {}, tmp_path).make()


@pytest.mark.parametrize("with_lora", [True, False])
def test_the_reference_is_the_model_that_training_began_with(tmp_path, with_lora):
    trial = Trial(EVERY, {}, tmp_path)
    before = weights(trial.make(with_lora=with_lora).model) if not with_lora else None
    torch.manual_seed(0)
    trainer = trial.make(with_lora=with_lora, max_steps=3)
    start = weights(trainer.model)
    assert before is None or same(before, start)
    trainer.train()
    assert same(trainer.inside, start)
    assert not same(weights(trainer.model), start)
    assert trainer.restored
    assert trainer.apart < 1e-12


def test_under_autocast_neither_is_taken_for_the_other(tmp_path):
    """Autocast keeps rounded copies of weights for as long as it is on."""
    trainer = Trial(EVERY, {}, tmp_path).train(model=copy.deepcopy(toy()[0]).float(), max_steps=2)
    [batch] = trainer.micro_batches
    with torch.autocast("cpu", torch.bfloat16):
        before, _ = token_nll(trainer.model, batch)
        with trainer.reference():
            inside, _ = token_nll(trainer.model, batch)
        after, _ = token_nll(trainer.model, batch)
    assert torch.equal(before, after)
    assert (before - inside).abs().max() > 0.01


def test_the_reference_scores_every_answer_token(tmp_path):
    trainer = Trial(EVERY, {}, tmp_path).make()
    rows = trainer.train_dataset
    assert [len(score) for score in trainer.reference_nll] == [len(ids) for ids in rows["completion_ids"]]
    batch = trainer.data_collator([rows[place] for place in (5, 0, 3)])
    with torch.no_grad():
        sums, _ = branch_nll(token_nll(trainer.model, batch)[0], batch["branch"], 3)
    expected = torch.stack([trainer.reference_nll[place].sum() for place in (5, 0, 3)])
    assert torch.allclose(sums, expected, rtol=1e-12)
