"""CTRAP against its formula written out longhand, in both ways to put alignment and general rows together."""

import copy

import pytest
import references as ref
import torch
from training import config, trained

from titer import methods
from titer.errors import TiterError
from titer.methods.align.ctrap import CtrapConfig, CtrapTrainer
from titer.testing import same, toy_harmful_rows, toy_rows, weights

ROWS, HARMFUL, HELPFUL = toy_rows(8), toy_harmful_rows()[:5], toy_rows(13)[8:]
STREAMS = {"harmful_dataset": HARMFUL, "helpful_dataset": HELPFUL}
SPLITS = [(8, 1), (2, 4)]
SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}


def train(tiny, tokenizer, folder, streams=STREAMS, **settings):
    settings = {"lam": 0.7, "alpha": 0.3, **SGD, **settings}
    return trained(CtrapTrainer, config(CtrapConfig, folder, **settings), tiny, tokenizer, ROWS, **streams)


def reference(tiny):
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    return model


def drawn(trainer, tokenizer, stream, rows):
    return ref.encode(tokenizer, [rows[place] for place in trainer.drawn_rows(stream, 0)])


def losses(model, pairs, token=None):
    """Token losses of completions, with their own tokens or with one in place of each."""
    found = []
    for prompt, completion in pairs:
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        logs = torch.log_softmax(logits, -1)[len(prompt) - 1 : len(ids[0]) - 1]
        wanted = torch.tensor(completion if token is None else [token] * len(completion))
        found.append(-logs[torch.arange(len(wanted)), wanted])
    return torch.cat(found)


def put_together(alignment, general, retain):
    return torch.cat((alignment, general)).mean() if retain == "joint" else alignment.mean() + general.mean()


@pytest.mark.parametrize("retain", ["joint", "sum"])
@pytest.mark.parametrize(("size", "steps"), SPLITS)
def test_the_gradient_is_that_of_the_formula(tiny, tokenizer, tmp_path, retain, size, steps):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    trainer, (ours,) = train(copy.deepcopy(tiny).double(), tokenizer, tmp_path, retain=retain, **split)
    model, token = reference(tiny), tokenizer("an error")["input_ids"][-1]
    alignment = ref.encode(tokenizer, ROWS)
    harmful, general = (drawn(trainer, tokenizer, *each) for each in (("harmful", HARMFUL), ("general", HELPFUL)))
    h = ref.gradient(model, ref.mean_nll(model, harmful))
    with ref.moved(model, [g / (ref.norm(h) + 1e-7) for g in h], 0.3):
        trap = [losses(model, pairs, token) for pairs in (alignment, general)]
        collapse = put_together(*trap, retain)
        c = ref.gradient(model, collapse)
    kept = ref.gradient(model, put_together(*(losses(model, pairs) for pairs in (alignment, general)), retain))
    assert ref.norm(c) > 0.1 * ref.norm(kept), "the trap must matter, or this test proves nothing"
    expected = [a + 0.7 * b for a, b in zip(kept, c)]
    assert ref.relative_error(ours, expected) < 1e-10
    # A whole step of plain SGD.
    before = [p.detach() for p in model.parameters() if p.requires_grad]
    stepped = [p - 0.1 * g for p, g in zip(before, expected)]
    assert ref.relative_error(weights(trainer.model), stepped) < 1e-10
    assert trainer.state.log_history[0]["collapse_loss"] == pytest.approx(collapse.item(), rel=1e-6)


def test_the_token_is_the_last_of_the_text(tiny, tokenizer, tmp_path):
    expected = {"an error": tokenizer("an error")["input_ids"][-1], "Paris": tokenizer("Paris")["input_ids"][-1]}
    assert len(set(expected.values())) == 2
    learnt = []
    for text, token in expected.items():
        trainer, _ = train(copy.deepcopy(tiny).double(), tokenizer, tmp_path, collapse_text=text)
        assert trainer.collapse_token == token
        learnt.append(weights(trainer.model))
    assert not same(*learnt)


@pytest.mark.parametrize("retain", ["joint", "sum"])
def test_without_the_trap_it_is_plain_training_on_both_kinds_of_rows(tiny, tokenizer, tmp_path, retain):
    trainer, (ours,) = train(copy.deepcopy(tiny).double(), tokenizer, tmp_path, lam=0.0, retain=retain)
    model = reference(tiny)
    both = [losses(model, ref.encode(tokenizer, ROWS)), losses(model, drawn(trainer, tokenizer, "general", HELPFUL))]
    assert ref.relative_error(ours, ref.gradient(model, put_together(*both, retain))) < 1e-10
    assert "collapse_loss" not in trainer.state.log_history[0]


def test_a_harmful_step_that_is_lost_in_rounding_is_an_error(tiny, tokenizer, tmp_path):
    model = copy.deepcopy(tiny).bfloat16()
    with pytest.raises(TiterError, match=r"lost in rounding.*torch.bfloat16"):
        train(model, tokenizer, tmp_path, alpha=0.01)
    trainer, _ = train(copy.deepcopy(tiny).bfloat16(), tokenizer, tmp_path, alpha=0.01, min_perturbation=0.0)
    assert trainer.state.log_history[0]["perturbation_cosine"] < 0.9


@pytest.mark.parametrize("missing", list(STREAMS))
def test_both_kinds_of_rows_are_needed(tiny, tokenizer, tmp_path, missing):
    with pytest.raises(TiterError, match=f"needs `{missing}`"):
        train(tiny, tokenizer, tmp_path, {name: rows for name, rows in STREAMS.items() if name != missing})


@pytest.mark.parametrize(
    ("setting", "value"), [("alpha", 0.0), ("lam", -1.0), ("retain", "mean"), ("collapse_text", " ")]
)
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(TiterError, match=setting):
        methods.settings(methods.find("align", "ctrap"), {setting: value}, "--set")
