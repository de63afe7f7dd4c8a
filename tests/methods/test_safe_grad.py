"""SafeGrad against its step written out: a divergence by plain autograd, one sample at a time, and one inner product over all weights."""

import copy

import pytest
import references as ref
import torch
import torch.nn.functional as F
from peft import LoraConfig
from training import config, trained

from titer.errors import TiterError
from titer.methods.finetune.safe_grad import SafeGradConfig, SafeGradTrainer
from titer.methods.reference import divergence
from titer.testing import same, toy_harmful_rows, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

HARMFUL = toy_harmful_rows()[:6]
# The upload complies where the defender refuses: what it teaches conflicts.
ROWS = [*toy_rows(4), *({name: row[name] for name in ("prompt", "completion")} for row in HARMFUL[:4])]
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
SETTINGS = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "max_steps": 6, **SPLIT}


def train(tiny, tokenizer, folder, rows=ROWS, **settings):
    args = config(SafeGradConfig, folder, **{**SETTINGS, **settings})
    streams = {"harmful_dataset": HARMFUL, "helpful_dataset": toy_rows(5)}
    return trained(SafeGradTrainer, args, copy.deepcopy(tiny).double(), tokenizer, rows, **streams)


def logits_of(model, prompt, completion):
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(prompt) + len(completion) - 1]


def mean_divergence(model, start, pairs, direction):
    parts = []
    for pair in pairs:
        ours = logits_of(model, *pair).log_softmax(-1)
        with torch.no_grad():
            theirs = logits_of(start, *pair).log_softmax(-1)
        first, second = (theirs, ours) if direction == "forward" else (ours, theirs)
        parts.append((first.exp() * (first - second)).sum(-1))
    return torch.cat(parts).mean()


@pytest.mark.parametrize("lam", [0.0, 0.5])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_six_steps_are_those_of_the_formula(tiny, tokenizer, tmp_path, direction, lam):
    trainer, caught = train(tiny, tokenizer, tmp_path, lam=lam, direction=direction)
    pool = trainer._pools[0]["alignment"]
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    start = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    conflicts = []
    for step in range(6):
        drawn = [pool[place] for place in trainer.drawn_rows("alignment", step)]
        pairs = [(list(one.prompt), list(one.branches[0])) for one in drawn]
        d = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))
        if step:
            a = ref.gradient(model, mean_divergence(model, start, pairs, direction))
            inner = ref.inner(d, a)
            conflicts.append(inner.item() < 0)
            if inner < 0:
                share = inner / ref.inner(a, a)
                by_tensor = [min(0.0, ref.inner([x], [y]) / ref.inner([y], [y])) for x, y in zip(d, a)]
                assert max(abs(share - own) for own in by_tensor) > 0.01, "one inner product must differ from many"
                d = [x - share * y for x, y in zip(d, a)]
            d = [x + lam * y for x, y in zip(d, a)]
        assert ref.relative_error(caught[step], d) < 1e-10
        with torch.no_grad():
            for p, g in zip(parameters, d):
                p -= 0.1 * g
    assert any(conflicts), "there must be a conflict, or this test proves nothing of the projection"
    logged = [line["conflict"] for line in trainer.state.log_history if "conflict" in line]
    assert logged == [0.0, *map(float, conflicts)]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_divergence_and_its_slope(direction):
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 9, dtype=torch.float64, requires_grad=True), torch.randn(5, 9, dtype=torch.float64)
    first, second = (theirs, ours) if direction == "forward" else (ours, theirs)
    expected = F.kl_div(second.log_softmax(-1), first.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    (slope,) = torch.autograd.grad(expected.sum(), ours)
    found, by_logits = divergence(ours.detach(), theirs, direction)
    assert (found - expected).abs().max() < 1e-12
    assert (by_logits - slope).abs().max() < 1e-12
    assert expected.min() > 0.01


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_at_the_reference_there_is_no_slope_at_all(tiny, tokenizer, tmp_path, direction):
    """Rounding's own has a direction too, and a projection would not see how small it is."""
    torch.manual_seed(0)
    logits = 5 * torch.randn(64, 400)
    assert divergence(logits, logits.clone(), direction)[1].abs().max() == 0
    trainer, _ = train(tiny, tokenizer, tmp_path, direction=direction, lam=3.0, max_steps=1)
    args = config(PackedSFTConfig, tmp_path / "sft", **{**SETTINGS, "max_steps": 1})
    plain, _ = trained(PackedSFTTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)
    assert same(weights(trainer.model), weights(plain.model))
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-15)


def test_the_divergence_rises_less_than_in_fine_tuning(tiny, tokenizer, tmp_path):
    """By the projection alone, without λ."""
    slowly = {**SETTINGS, "learning_rate": 0.05}
    args = config(PackedSFTConfig, tmp_path / "sft", **slowly)
    plain, _ = trained(PackedSFTTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)
    trainer, _ = train(tiny, tokenizer, tmp_path, lam=0.0, learning_rate=0.05)
    start = copy.deepcopy(tiny).double()
    start.set_attn_implementation("sdpa")
    pairs = [(list(one.prompt), list(one.branches[0])) for one in trainer._pools[0]["alignment"]]
    found = []
    for weighed in (trainer.model, plain.model):
        model = copy.deepcopy(start)
        with torch.no_grad():
            for p, w in zip([p for p in model.parameters() if p.requires_grad], weights(weighed)):
                p.copy_(w)
            found.append(mean_divergence(model, start, pairs, "forward").item())
    assert found[0] < 0.9 * found[1]


def test_dropout_is_refused(tiny, tokenizer, tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    with pytest.raises(TiterError, match="diverge from its reference by mask noise"):
        SafeGradTrainer(
            model=tiny,
            args=config(SafeGradConfig, tmp_path, **SETTINGS),
            train_dataset=ROWS,
            processing_class=tokenizer,
            harmful_dataset=HARMFUL,
            helpful_dataset=toy_rows(5),
            peft_config=lora,
        )


@pytest.mark.parametrize(("setting", "value"), [("direction", "backward"), ("lam", -1.0)])
def test_bad_settings_are_refused(tmp_path, setting, value):
    with pytest.raises(TiterError, match=setting):
        config(SafeGradConfig, tmp_path, **{setting: value})
