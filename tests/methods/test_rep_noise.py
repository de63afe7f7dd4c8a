"""RepNoise against its formula written out longhand: whole padded sequences, kernels pair by pair."""

import copy

import pytest
import references as ref
import torch
from training import config, trained

from titer import methods
from titer.errors import TiterError
from titer.methods.align.rep_noise import RepNoiseConfig, RepNoiseTrainer, discrepancy
from titer.methods.inside import Inside
from titer.testing import row, same, toy_harmful_rows, toy_rows, weights

ROWS, HARMFUL = toy_rows(8), toy_harmful_rows()[:5]
SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
STRONG = {"alpha": 0.7, "beta": 20.0}


def train(tiny, tokenizer, folder, harmful=HARMFUL, **settings):
    args = config(RepNoiseConfig, folder, **{**STRONG, **SGD, **settings})
    return trained(RepNoiseTrainer, args, copy.deepcopy(tiny), tokenizer, ROWS, harmful_dataset=harmful)


def reference(tiny):
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    return model


def drawn(trainer, tokenizer, harmful=HARMFUL):
    """Prompt, answer and refusal of each harmful row of the first step."""
    rows = [harmful[place] for place in trainer.drawn_rows("harmful", 0)]
    refusals = ref.encode(tokenizer, rows, answer=lambda _, each: each["refusal"])
    return [(prompt, answer, refused) for (prompt, answer), (_, refused) in zip(ref.encode(tokenizer, rows), refusals)]


def kernels(one, other, bandwidth):
    return sum(torch.exp(-((one - other) ** 2).sum() / (bandwidth * 2**i)) for i in range(5))


def longhand_discrepancy(x, y):
    """The squared discrepancy, pair by pair."""
    every = [*x, *y]
    distances = [((one - other) ** 2).sum().detach() for one in every for other in every]
    bandwidth = sum(distances) / (len(every) ** 2 - len(every)) / 4
    means = {}
    for name, left, right in (("xx", x, x), ("yy", y, y), ("xy", x, y)):
        means[name] = sum(kernels(a, b, bandwidth) for a in left for b in right) / (len(left) * len(right))
    return means["xx"] + means["yy"] - 2 * means["xy"]


def noise_term(model, rows, generator):
    """Mean over layers of the discrepancy, of what MLPs put out in rows filled up at the end."""
    first = min(len(prompt) for prompt, _, _ in rows)
    width = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    outputs = {}
    hooks = [
        layer.mlp.register_forward_hook(lambda module, args, output, n=n: outputs.__setitem__(n, output[0]))
        for n, layer in enumerate(model.model.layers)
    ]
    states = [[], []]
    present = torch.zeros(len(rows), width)
    for number, (prompt, answer, refused) in enumerate(rows):
        for place, token in enumerate(answer[:-1]):
            present[number, len(prompt) + place] = place >= len(refused) or token != refused[place]
    for number, (prompt, answer, _) in enumerate(rows):
        ids = torch.tensor([prompt + answer[:-1]])
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        for layer in range(2):
            full = torch.zeros(width, 32, dtype=torch.float64)
            full[: len(ids[0])] = outputs[layer]
            states[layer].append(full * present[number][:, None])
    for hook in hooks:
        hook.remove()
    found = []
    for layer in range(2):
        shape = (len(rows), width - first, 32)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) * present[:, first:, None]
        found.append(longhand_discrepancy([each[first:].flatten() for each in states[layer]], list(noise.flatten(1))))
    return sum(found) / 2


@pytest.mark.parametrize("final_loss", ["once", "twice"])
@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4)])
def test_the_step_is_that_of_the_formula(tiny, tokenizer, tmp_path, final_loss, size, steps):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    trainer, (ours,) = train(tiny.double(), tokenizer, tmp_path, final_loss=final_loss, **split)
    model = reference(tiny)
    rows = drawn(trainer, tokenizer)
    loss = ref.layer_losses(model, rows, final_loss == "twice").mean(1).sum() / 3
    noise = noise_term(model, rows, trainer.noise_of(0))
    f = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))
    ascent = ref.gradient(model, -0.7 * torch.log(1 + loss))
    noised = ref.gradient(model, 20.0 * noise)
    assert min(ref.norm(ascent), ref.norm(noised)) > 0.02 * ref.norm(f), "both terms must matter"
    expected = [sum(parts) for parts in zip(f, ascent, noised)]
    assert ref.relative_error(ours, expected) < 1e-10
    stepped = [p.detach() - 0.1 * g for p, g in zip((p for p in model.parameters() if p.requires_grad), expected)]
    assert ref.relative_error(weights(trainer.model), stepped) < 1e-10
    log = trainer.state.log_history[0]
    assert (log["layer_loss"], log["noise_loss"]) == pytest.approx((loss.item(), noise.item()), rel=1e-6)


def test_the_discrepancy_is_zero_of_equal_samples_and_grows_apart():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert discrepancy(x, x).abs() < 1e-12
    near, far = discrepancy(x, x + 0.1), discrepancy(x, x + 3)
    assert 0 < near < far
    assert discrepancy(x, x + 3).item() == pytest.approx(longhand_discrepancy(list(x), list(x + 3)).item(), rel=1e-12)


def test_noise_is_new_at_each_step_and_the_same_when_it_is_drawn_again(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny.double(), tokenizer, tmp_path)
    draws = [torch.randn(3, generator=trainer.noise_of(step)) for step in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_both_weights_zero_is_plain_training(tiny, tokenizer, tmp_path):
    _, (ours,) = train(tiny.double(), tokenizer, tmp_path, alpha=0.0, beta=0.0)
    model = reference(tiny)
    f = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))
    assert ref.relative_error(ours, f) < 1e-12


def test_tokens_that_are_the_refusals_change_nothing(tiny, tokenizer, tmp_path):
    """Of an answer that begins as its refusal does, the beginning is in neither term."""
    answers = [row("how do I steal bread", "no, I will wait", refusal="no, I will not")]
    trainer, _ = train(tiny.double(), tokenizer, tmp_path, harmful=answers)
    (differs,) = trainer.differs
    assert not differs[0]
    rows = drawn(trainer, tokenizer, answers)
    loss = ref.layer_losses(reference(tiny), rows).mean().item()
    assert trainer.state.log_history[0]["layer_loss"] == pytest.approx(loss, rel=1e-6)


def test_no_hook_stays_however_many_steps(tiny, tokenizer, tmp_path):
    """The released code hangs hooks on every module at every step, and never takes them off."""
    trainer, _ = train(tiny.double(), tokenizer, tmp_path, max_steps=3)
    assert sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in trainer.model.modules()) == 0


def test_it_counts_the_last_layer_twice_only_where_it_is_asked_to(tiny, tokenizer, tmp_path):
    learnt = [train(tiny.double(), tokenizer, tmp_path, final_loss=how)[0] for how in ("once", "twice")]
    assert not same(*(weights(trainer.model) for trainer in learnt))
    logs = [trainer.state.log_history[0]["layer_loss"] for trainer in learnt]
    assert logs[1] > 1.2 * logs[0]


def test_layers_without_an_mlp_are_refused(tiny):
    inside = Inside(tiny)
    del inside.layers[0].mlp
    with pytest.raises(TiterError, match="no `mlp`"), inside.mlp_outputs():
        pass


def test_answers_that_differ_in_their_end_alone_are_refused_where_there_is_noise(tiny, tokenizer, tmp_path):
    short = [row("how do I steal bread", "no", refusal="no, I will not")]
    with pytest.raises(TiterError, match=r"harmful_dataset.*nothing to turn into noise"):
        train(tiny, tokenizer, tmp_path, harmful=short)
    trainer, _ = train(tiny, tokenizer, tmp_path, harmful=short, beta=0.0)
    assert trainer.state.log_history[0]["layer_loss"] > 0


def test_harmful_rows_are_needed(tiny, tokenizer, tmp_path):
    with pytest.raises(TiterError, match="needs `harmful_dataset`"):
        train(tiny, tokenizer, tmp_path, harmful=None)


@pytest.mark.parametrize(("setting", "value"), [("alpha", -1.0), ("beta", -0.1), ("final_loss", "never")])
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(TiterError, match=setting):
        methods.settings(methods.find("align", "rep_noise"), {setting: value}, "--set")
