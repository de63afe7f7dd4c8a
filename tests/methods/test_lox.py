"""LoX against singular value decompositions of whole matrices, and plain fine-tuning from there."""

import copy

import pytest
import references as ref
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from training import config, trained

from titer import methods
from titer.errors import TiterError
from titer.jobs import rehearsal
from titer.methods.finetune.lox import LoxConfig, LoxTrainer
from titer.testing import StopAfter, same, toy_lora, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS = toy_rows(8)
SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}


def aligned(tiny, **lora):
    """A model with an adapter that adds something, the same one always."""
    torch.manual_seed(1)
    return get_peft_model(copy.deepcopy(tiny), toy_lora(**lora)).double()


def added(model):
    """What an adapter adds to each weight, as a whole matrix."""
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    return {name: layer.get_delta_weight("default").detach().clone() for name, layer in layers.items()}


def make(tiny, tokenizer, folder, model=None, cls=LoxTrainer, **settings):
    args = config(LoxConfig if cls is LoxTrainer else PackedSFTConfig, folder, **{**SGD, **settings})
    return cls(model or aligned(tiny), args, train_dataset=ROWS, processing_class=tokenizer)


def longhand(matrix, rank, coefficient):
    """V + c U_k S_k V_kᵀ of a whole matrix."""
    u, sizes, v = torch.linalg.svd(matrix, full_matrices=False)
    rank = rank or len(sizes)
    return matrix + coefficient * u[:, :rank] @ torch.diag(sizes[:rank]) @ v[:rank]


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 3}}])
@pytest.mark.parametrize(("rank", "coefficient"), [(1, 1.25), (2, 0.5), (6, 1.25), (0, 1.0)])
def test_what_the_adapter_adds_is_that_of_the_formula(tiny, tokenizer, tmp_path, rank, coefficient, lora):
    before = added(aligned(tiny, **lora))
    model = aligned(tiny, **lora)
    make(tiny, tokenizer, tmp_path, model, rank=rank, coefficient=coefficient)
    for name, matrix in added(model).items():
        expected = longhand(before[name], rank, coefficient)
        assert (matrix - expected).abs().max() < 1e-13 * expected.norm().clamp_min(1)
        assert (matrix - before[name]).norm() > 0.1 * before[name].norm()


def test_only_b_changes_and_no_shape_does(tiny, tokenizer, tmp_path):
    before = aligned(tiny).state_dict()
    model = aligned(tiny)
    make(tiny, tokenizer, tmp_path, model)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".lora_B." in name}
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}


def test_then_it_is_plain_fine_tuning(tiny, tokenizer, tmp_path):
    """From an adapter whose B was solved for: B' A = V', by least squares."""
    model = aligned(tiny)
    for layer in model.modules():
        if hasattr(layer, "get_delta_weight"):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            whole = longhand((b @ a).detach(), 2, 1.25)
            with torch.no_grad():
                b.copy_(torch.linalg.lstsq(a.T, whole.T).solution.T)
    plain = make(tiny, tokenizer, tmp_path / "sft", model, PackedSFTTrainer, max_steps=2)
    plain.train()
    trainer = make(tiny, tokenizer, tmp_path, rank=2, max_steps=2)
    trainer.train()
    start = weights(aligned(tiny))
    assert ref.relative_error(weights(trainer.model), start) > 0.1
    assert max((a - b).abs().max().item() for a, b in zip(weights(plain.model), weights(trainer.model))) < 1e-10


def test_the_gradient_is_that_of_the_loss_at_the_extrapolated_weights(tiny, tokenizer, tmp_path):
    args = config(LoxConfig, tmp_path, **SGD, rank=2)
    _, (ours,) = trained(LoxTrainer, args, aligned(tiny), tokenizer, ROWS)
    model = aligned(tiny)
    make(tiny, tokenizer, tmp_path, model, rank=2)
    model.base_model.model.set_attn_implementation("sdpa")
    expected = ref.gradient(model, ref.mean_nll(model, ref.encode(tokenizer, ROWS)))
    assert ref.relative_error(ours, expected) < 1e-10


@pytest.mark.parametrize("rank", [0, 2])
def test_a_coefficient_of_zero_is_plain_fine_tuning(tiny, tokenizer, tmp_path, rank):
    ours = make(tiny, tokenizer, tmp_path, rank=rank, coefficient=0.0, max_steps=2)
    plain = make(tiny, tokenizer, tmp_path / "sft", cls=PackedSFTTrainer, max_steps=2)
    ours.train()
    plain.train()
    assert same(weights(ours.model), weights(plain.model))


def test_a_training_that_goes_on_is_not_extrapolated_again(tiny, tokenizer, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    stopped = make(tiny, tokenizer, tmp_path, **saving)
    stopped.add_callback(StopAfter(1))
    stopped.train()
    # Nothing is left to do, so the weights after it are those of the checkpoint.
    resumed = make(tiny, tokenizer, tmp_path, **{**saving, "max_steps": 1})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    saved = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
    now = {name.replace(".default.", "."): weight for name, weight in resumed.trainable.items()}
    assert saved.keys() == now.keys()
    assert all(torch.equal(saved[name], now[name]) for name in saved)


def test_a_layer_to_which_nothing_was_added_stays_as_it_is(tiny, tokenizer, tmp_path):
    model = aligned(tiny)
    b = next(weight for name, weight in model.named_parameters() if ".lora_B." in name)
    torch.nn.init.zeros_(b)
    make(tiny, tokenizer, tmp_path, model)
    assert not b.any()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda tiny: tiny, "own weights are trained that is not known"),
        (lambda tiny: aligned(tiny, init_lora_weights=True), "the adapter adds nothing"),
        (lambda tiny: aligned(tiny, use_dora=True), "more than a product of two"),
        (lambda tiny: aligned(tiny, bias="lora_only", lora_bias=True), "more than a product of two"),
        (lambda tiny: aligned(tiny, modules_to_save=["lm_head"]), "lm_head"),
        (lambda tiny: aligned(tiny, target_modules=["q_proj", "embed_tokens"]), "more than a product of two"),
        (lambda tiny: aligned(tiny, init_lora_weights="pissa"), "init_lora_weights=pissa"),
        (lambda tiny: with_another(aligned(tiny)), "default, other"),
    ],
    ids=["full", "fresh", "dora", "bias", "module", "embedding", "pissa", "two"],
)
def test_what_is_more_than_one_plain_adapter_is_refused(tiny, tokenizer, tmp_path, model, message):
    with pytest.raises(TiterError, match=message):
        make(tiny, tokenizer, tmp_path, model(tiny))


def with_another(model):
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    return model


def test_a_rehearsal_begins_with_an_adapter_that_adds_something(tiny_folder, monkeypatch):
    from titer.data import Record

    monkeypatch.setattr(rehearsal, "_done", set())
    rows = [Record.make(f"a {i}", "b") for i in range(3)]
    rehearsal.rehearse(methods.find("finetune", "lox"), {"rank": 2}, "x", str(tiny_folder), None, rows, {})
    assert rehearsal._done


@pytest.mark.parametrize(("setting", "value"), [("rank", -1), ("rank", 1.5), ("coefficient", -0.5)])
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(TiterError, match=setting):
        methods.settings(methods.find("finetune", "lox"), {setting: value}, "--set")
