"""AsFT against whole matrices and plain autograd, one sample at a time."""

import copy

import pytest
import references as ref
import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import CatchGradients, config

from titer.compat import unbind_forward
from titer.errors import TiterError
from titer.methods.finetune.as_ft import AS_FT, Anchor, AsFtConfig, AsFtTrainer
from titer.methods.repair.lowrank import LowRank
from titer.testing import Trial, same, toy_lora, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS = toy_rows(8)
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
SETTINGS = {"optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, "max_steps": 3, **SPLIT}


def make(tiny, tokenizer, folder, trainer=AsFtTrainer, kind=AsFtConfig, callbacks=(), lora=None, **settings):
    torch.manual_seed(0)
    return trainer(
        model=copy.deepcopy(tiny).double(),
        args=config(kind, folder, **{**SETTINGS, **settings}),
        train_dataset=ROWS,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        peft_config=lora or toy_lora(),
    )


def pairs_of(model):
    """B and A of each layer, found by name."""
    named = dict(model.named_parameters())
    return [(named[name.replace("lora_A", "lora_B")], a) for name, a in named.items() if "lora_A" in name]


def penalty(model, start, scale, scaled):
    """Σ ‖(I − C) ΔW‖², whole matrices."""
    total = 0.0
    for (b, a), (b0, a0) in zip(pairs_of(model), start, strict=True):
        v = scale * b0 @ a0
        c = v @ v.T / v.norm()
        update = (scale if scaled else 1.0) * (b @ a - b0 @ a0)
        total = total + torch.linalg.matrix_norm((torch.eye(len(c), dtype=c.dtype) - c) @ update) ** 2
    return total


@pytest.mark.parametrize("scaled", [True, False])
def test_three_steps_are_those_of_the_formula(tiny, tokenizer, tmp_path, scaled):
    catch = CatchGradients()
    trainer = make(tiny, tokenizer, tmp_path, lam=3.0, scaled=scaled, callbacks=[catch])
    model = copy.deepcopy(trainer.model)
    unbind_forward(model.get_base_model())
    model.set_attn_implementation("sdpa")
    trainer.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [(b.detach().clone(), a.detach().clone()) for b, a in pairs_of(model)]
    assert len(start) == 6
    logged = [line["regulariser"] for line in trainer.state.log_history if "regulariser" in line]
    for step in range(3):
        task = ref.mean_nll(model, ref.encode(tokenizer, ROWS))
        held = penalty(model, start, 2.0, scaled)
        assert logged[step] == pytest.approx(held.item(), rel=1e-6, abs=1e-15)
        pull = ref.gradient(model, 3.0 * held)
        expected = [x + y for x, y in zip(ref.gradient(model, task), pull)]
        if step:
            assert ref.norm(pull) > 0.05 * ref.norm(expected), (
                "the regulariser must matter, or this proves nothing of it"
            )
        assert ref.relative_error(catch.steps[step], expected) < 1e-10
        with torch.no_grad():
            for p, g in zip(parameters, expected):
                p -= 0.05 * g
    assert ref.relative_error(weights(trainer.model), parameters) < 1e-10


def anchor(out=20, wide=24, rank=3, scale=0.5, dtype=torch.float64):
    b, a = torch.randn(out, rank, dtype=dtype), torch.randn(rank, wide, dtype=dtype)
    return Anchor(b, a, scale, LowRank(b * scale, a).norm())


def test_c_is_no_projection():
    """Its square is another matrix, and may even be larger: the formula is the paper's, whatever it is called there."""
    torch.manual_seed(0)
    one = anchor()
    x = torch.randn(20, 20, dtype=torch.float64)
    v = one.alignment.dense()
    c = v @ v.T / v.norm()
    inside = x - one.outside(x)
    assert (inside - c @ x).abs().max() < 1e-12
    assert (c @ inside - inside).norm() > 0.1 * inside.norm()
    assert torch.linalg.eigvalsh(c).max() == pytest.approx((torch.linalg.svdvals(v).max() ** 2 / v.norm()).item())


def test_a_layer_that_the_alignment_left_alone_is_held_where_it_was():
    torch.manual_seed(0)
    b, a = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    zero = Anchor(torch.zeros_like(b), a, 0.5, 0.0)
    assert zero.regulariser(b, a, True).value.item() == pytest.approx((0.5 * b @ a).norm().item() ** 2)


def test_nothing_as_large_as_the_layer_is_formed():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)), 0)
            return out

    torch.manual_seed(0)
    one = anchor(200, 300, 4)
    with Watch():
        one.regulariser(torch.randn(200, 4).double(), torch.randn(4, 300).double(), True)
    assert 0 < largest <= 300 * 8


def test_without_weight_it_is_fine_tuning(tiny, tokenizer, tmp_path):
    ours = make(tiny, tokenizer, tmp_path, lam=0.0)
    plain = make(tiny, tokenizer, tmp_path / "sft", trainer=PackedSFTTrainer, kind=PackedSFTConfig)
    for trainer in (ours, plain):
        trainer.train()
    assert same(weights(ours.model), weights(plain.model))


def test_fine_tuning_stays_closer_to_the_alignment(tiny, tokenizer, tmp_path):
    found = []
    for lam in (0.0, 3.0):
        trainer = make(tiny, tokenizer, tmp_path, lam=lam, max_steps=12)
        start = [(b.detach().clone(), a.detach().clone()) for b, a in pairs_of(trainer.model)]
        trainer.train()
        found.append(penalty(trainer.model, start, 2.0, True).item())
    assert found[1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "more than a product of two"),
        ({"lora_bias": True}, "more than a product of two"),
        ({"modules_to_save": ["norm"]}, "is trained too"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"init_lora_weights": True}, "the adapter adds nothing"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_no_plain_adapter_of_an_alignment_is_refused(tiny, tokenizer, tmp_path, lora, message):
    with pytest.raises(TiterError, match=message):
        # In float32, in which the starts that change the base are computed.
        AsFtTrainer(
            model=copy.deepcopy(tiny),
            args=config(AsFtConfig, tmp_path, **SETTINGS),
            train_dataset=ROWS,
            processing_class=tokenizer,
            peft_config=LoraConfig(
                **{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False, **lora}
            ),
        )


def test_all_weights_are_refused(tiny, tokenizer, tmp_path):
    with pytest.raises(TiterError, match="own weights are trained"):
        AsFtTrainer(
            model=copy.deepcopy(tiny),
            args=config(AsFtConfig, tmp_path, **SETTINGS),
            train_dataset=ROWS,
            processing_class=tokenizer,
        )


def test_the_contract_knows_that_it_trains_adapters_alone(tmp_path):
    trainer = Trial(AS_FT, {}, tmp_path).make(with_lora=False)
    assert all("lora_" in name for name in trainer.trainable)


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(TiterError, match="lam"):
        config(AsFtConfig, tmp_path, lam=-1.0)
