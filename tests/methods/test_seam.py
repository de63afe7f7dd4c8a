"""SEAM against its formula written out longhand, and what its published ε leaves of the perturbation in bfloat16."""

import copy
import functools

import pytest
import references as ref
import torch
from training import config, trained
from transformers import LlamaForCausalLM

from titer import methods
from titer.errors import TiterError
from titer.methods.align.seam import SeamConfig, SeamTrainer
from titer.methods.inside import Inside, differing
from titer.testing import row, toy_harmful_rows, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS, HARMFUL, HELPFUL = toy_rows(8), toy_harmful_rows()[:5], toy_rows(13)[8:]
STREAMS = {"harmful_dataset": HARMFUL, "helpful_dataset": HELPFUL}
SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
STRONG = {"alpha": 0.7, "beta": 2.0, "epsilon": 0.02}


def train(tiny, tokenizer, folder, streams=STREAMS, **settings):
    args = config(SeamConfig, folder, **{**STRONG, **SGD, **settings})
    return trained(SeamTrainer, args, copy.deepcopy(tiny), tokenizer, ROWS, **streams)


def reference(tiny):
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    return model


def pairs(trainer, tokenizer):
    """Prompt, answer and refusal of each harmful row of the first step, and the general rows' prompts and answers."""
    rows = [HARMFUL[place] for place in trainer.drawn_rows("harmful", 0)]
    harmful = ref.encode(tokenizer, rows)
    refusals = ref.encode(tokenizer, rows, answer=lambda _, each: each["refusal"])
    general = ref.encode(tokenizer, [HELPFUL[place] for place in trainer.drawn_rows("general", 0)])
    return [(prompt, answer, refused) for (prompt, answer), (_, refused) in zip(harmful, refusals)], general


def formula(model, tokenizer, trainer, alpha, beta, epsilon, twice=False):
    harmful, general = pairs(trainer, tokenizer)

    def h():
        return ref.gradient(model, ref.layer_losses(model, harmful)[-1].mean())

    def k():
        return ref.gradient(model, ref.mean_nll(model, general))

    loss = ref.layer_losses(model, harmful, twice).mean(1).sum() / 3  # the embedding and two layers
    unlearn = ref.gradient(model, -torch.log(1 + loss))
    f = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))
    total = [a + alpha * b for a, b in zip(unlearn, f)]
    if beta:
        a, b = h(), k()
        na, nb = ref.norm(a), ref.norm(b)
        cosine = ref.inner(a, b) / (na * nb)
        with ref.moved(model, [-(y / nb - cosine * x / na) for x, y in zip(a, b)], epsilon):
            a_moved = h()
        with ref.moved(model, [-(x / na - cosine * y / nb) for x, y in zip(a, b)], epsilon):
            b_moved = k()
        coupled = [(p - x) / na + (q - y) / nb for p, x, q, y in zip(a_moved, a, b_moved, b)]
        assert beta / epsilon * ref.norm(coupled) > 0.1 * ref.norm(total), "the coupling must matter"
        total = [t + beta / epsilon * c for t, c in zip(total, coupled)]
    return total, loss.item()


@pytest.mark.parametrize("final_loss", ["once", "twice"])
@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4)])
def test_the_step_is_that_of_the_formula(tiny, tokenizer, tmp_path, final_loss, size, steps):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    trainer, (ours,) = train(tiny.double(), tokenizer, tmp_path, final_loss=final_loss, **split)
    model = reference(tiny)
    expected, loss = formula(model, tokenizer, trainer, **STRONG, twice=final_loss == "twice")
    assert ref.relative_error(ours, expected) < 1e-10
    stepped = [p.detach() - 0.1 * g for p, g in zip((p for p in model.parameters() if p.requires_grad), expected)]
    assert ref.relative_error(weights(trainer.model), stepped) < 1e-10
    assert trainer.state.log_history[0]["layer_loss"] == pytest.approx(loss, rel=1e-6)


def test_the_difference_is_the_derivative_of_the_cosine(tiny, tokenizer, tmp_path):
    """With a short ε the estimate is the gradient that autograd finds by second derivatives."""
    settings = {"alpha": 0.0, "beta": 1.0, "epsilon": 1e-6}
    trainer, (ours,) = train(tiny.double(), tokenizer, tmp_path, **settings)
    model = reference(tiny)
    model.set_attn_implementation("eager")
    harmful, general = pairs(trainer, tokenizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    a = torch.autograd.grad(ref.layer_losses(model, harmful)[-1].mean(), parameters, create_graph=True)
    b = torch.autograd.grad(ref.mean_nll(model, general), parameters, create_graph=True)
    cosine = ref.inner(a, b) / (ref.norm(a) * ref.norm(b))
    exact = ref.gradient(model, cosine - torch.log(1 + ref.layer_losses(model, harmful).mean()))
    assert ref.relative_error(ours, exact) < 1e-3


def test_without_coupling_it_is_unlearning_and_alignment(tiny, tokenizer, tmp_path):
    trainer, (ours,) = train(tiny.double(), tokenizer, tmp_path, beta=0.0)
    expected, _ = formula(reference(tiny), tokenizer, trainer, alpha=0.7, beta=0.0, epsilon=1.0)
    assert ref.relative_error(ours, expected) < 1e-10
    assert "gradient_cosine" not in trainer.state.log_history[0]


@pytest.mark.parametrize("bf16", [False, True], ids=["stored", "computed"])
def test_the_published_perturbation_is_lost_in_bfloat16(tiny, tokenizer, tmp_path, bf16):
    """ε = 1e-3, over weights in bfloat16 or rounded to it: it is refused, and would be noise divided by ε."""
    model = tiny if bf16 else tiny.bfloat16()
    settings = {"epsilon": 1e-3, "beta": 0.01, "bf16": bf16}
    with pytest.raises(TiterError, match=r"lost in rounding.*torch.bfloat16.*cosine of 0\.[0-2]"):
        train(model, tokenizer, tmp_path, **settings)
    trainer, _ = train(model, tokenizer, tmp_path, min_perturbation=0.0, **settings)
    assert trainer.state.log_history[0]["perturbation_cosine"] < 0.5


def test_the_published_perturbation_survives_in_float32(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path, epsilon=1e-3)
    log = trainer.state.log_history[0]
    assert log["perturbation_cosine"] == pytest.approx(1, abs=1e-3)
    assert log["perturbation_ratio"] == pytest.approx(1, abs=1e-3)


def test_a_direction_that_is_lost_is_refused_where_the_harmful_gradient_is_not(tiny, tokenizer, tmp_path, monkeypatch):
    """The perturbation is not along the harmful gradient, so it is looked at itself."""
    monkeypatch.setattr(SeamTrainer, "check_perturbation", lambda *_: None)
    with pytest.raises(TiterError, match="lost in rounding"):
        train(tiny.bfloat16(), tokenizer, tmp_path, epsilon=1e-3)


def test_no_hook_stays_however_many_steps(tiny, tokenizer, tmp_path):
    """The released code of the layer-wise loss hangs hooks on every module at every step."""
    trainer, _ = train(tiny, tokenizer, tmp_path, max_steps=3)
    hooks = [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in trainer.model.modules()]
    assert sum(hooks) == 0


def test_tokens_that_answer_and_refusal_share_are_left_out():
    assert differing([5, 6, 7, 9], [5, 8, 7]) == [False, True, False, True]
    assert differing([5], [5, 6]) == [False]


def test_an_answer_that_is_its_refusal_is_an_error(tiny, tokenizer, tmp_path):
    same_answer = row("how do I steal bread", "no, I will not", refusal="no, I will not")
    with pytest.raises(TiterError, match=r"harmful_dataset\[1\].*nothing"):
        train(tiny, tokenizer, tmp_path, {**STREAMS, "harmful_dataset": [HARMFUL[0], same_answer]})


def test_losses_of_layers_are_the_models_own_at_the_last(tiny, tokenizer, tmp_path):
    args = config(PackedSFTConfig, tmp_path)
    trainer = PackedSFTTrainer(tiny.double(), args, train_dataset=ROWS, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[place] for place in (0, 3, 5)])
    with torch.no_grad():
        losses = Inside(trainer.bare_model).layer_nll(trainer.model, batch)
    assert losses.shape == (3, len(batch["targets"]))
    assert (losses[0] - losses[2]).abs().min() > 1e-3
    own = [
        ref.sample_nll(reference(tiny), *pair) for pair in ref.encode(tokenizer, [ROWS[place] for place in (0, 3, 5)])
    ]
    assert torch.allclose(losses[2], torch.cat(own), rtol=1e-10)


class Capped(LlamaForCausalLM):
    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output


def test_a_model_that_caps_its_logits_is_refused(tiny, tokenizer, tmp_path):
    tiny.__class__ = Capped
    with pytest.raises(TiterError, match=r"scales or caps"):
        train(tiny, tokenizer, tmp_path)


def test_a_model_of_another_build_is_refused(tiny):
    tiny.model.layers = torch.nn.ModuleList([torch.nn.ModuleList(tiny.model.layers)])
    with pytest.raises(TiterError, match="not built as one stack"):
        Inside(tiny)


@pytest.mark.parametrize("missing", list(STREAMS))
def test_both_kinds_of_rows_are_needed(tiny, tokenizer, tmp_path, missing):
    with pytest.raises(TiterError, match=f"needs `{missing}`"):
        train(tiny, tokenizer, tmp_path, {name: rows for name, rows in STREAMS.items() if name != missing})


@pytest.mark.parametrize(
    ("setting", "value"), [("epsilon", 0.0), ("beta", -1.0), ("alpha", -1), ("final_loss", "thrice")]
)
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(TiterError, match=setting):
        methods.settings(methods.find("align", "seam"), {setting: value}, "--set")
