"""What must hold for every method, whatever it computes: identities, batch splits, bit-exact weights, exact resuming."""

import json
import sys

import every_method
import pytest
import torch
from every_method import EVERY, many_rows
from training import StopAfter, config, lora, same, trained, weights

import titer.trainer
from titer import (
    AntibodyAlignmentConfig,
    AntibodyAlignmentTrainer,
    BoosterConfig,
    BoosterTrainer,
    GateConfig,
    GateTrainer,
    PackedSFTConfig,
    PackedSFTTrainer,
)
from titer.finetune.base import read_weight_log


@pytest.fixture(params=[False, True], ids=["full", "lora"])
def with_lora(request):
    return request.param


def largest_difference(left, right):
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


# --- identities ------------------------------------------------------------------------------------------------------


def fit(cls, config_class, tmp_path, tiny, tokenizer, with_lora, streams, **settings):
    """Four optimizer steps of two micro-batches over rows that do not fill the last one."""
    torch.manual_seed(1)
    model = every_method.copy.deepcopy(tiny)
    args = config(
        config_class,
        tmp_path,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        **settings,
    )
    trainer = cls(
        model=model,
        args=args,
        train_dataset=many_rows(7),
        processing_class=tokenizer,
        **({"peft_config": lora()} if with_lora else {}),
        **streams,
    )
    before = weights(trainer.model)
    trainer.train()
    assert not same(before, weights(trainer.model)), "nothing was learnt, so nothing is compared"
    return weights(trainer.model)


def test_antibody_constant_without_refusals_is_booster_bit_for_bit(tiny, tokenizer, harmful_rows, tmp_path, with_lora):
    streams = {"harmful_dataset": harmful_rows[:5]}
    booster = fit(BoosterTrainer, BoosterConfig, tmp_path, tiny, tokenizer, with_lora, streams, lam=2.0, alpha=0.2)
    antibody = fit(
        AntibodyAlignmentTrainer,
        AntibodyAlignmentConfig,
        tmp_path,
        tiny,
        tokenizer,
        with_lora,
        streams,
        lambda_schedule="constant",
        lam=2.0,
        rho=0.2,
        lambda_refusal=0.0,
    )
    assert same(booster, antibody)


def test_booster_without_its_regulariser_is_sft_bit_for_bit(tiny, tokenizer, harmful_rows, tmp_path, with_lora):
    sft = fit(PackedSFTTrainer, PackedSFTConfig, tmp_path, tiny, tokenizer, with_lora, {})
    streams = {"harmful_dataset": harmful_rows}
    booster = fit(BoosterTrainer, BoosterConfig, tmp_path, tiny, tokenizer, with_lora, streams, lam=0.0, alpha=0.2)
    assert same(sft, booster)
    booster = fit(BoosterTrainer, BoosterConfig, tmp_path, tiny, tokenizer, with_lora, streams, lam=1.0, alpha=0.2)
    assert not same(sft, booster)


def test_antibody_alignment_without_its_terms_is_sft_bit_for_bit(tiny, tokenizer, harmful_rows, tmp_path):
    sft = fit(PackedSFTTrainer, PackedSFTConfig, tmp_path, tiny, tokenizer, True, {})
    antibody = fit(
        AntibodyAlignmentTrainer,
        AntibodyAlignmentConfig,
        tmp_path,
        tiny,
        tokenizer,
        True,
        {"harmful_dataset": harmful_rows},
        lambda_schedule="constant",
        lam=0.0,
        lambda_refusal=0.0,
    )
    assert same(sft, antibody)


def test_a_gate_that_lets_everything_through_is_sft(tiny, tokenizer, harmful_rows, tmp_path, with_lora):
    class OpenGate(GateTrainer):
        def _fit(self, harmful, helpful):
            return torch.zeros(len(self.train_dataset), dtype=torch.float64)

    double = tiny.double()
    sft = fit(PackedSFTTrainer, PackedSFTConfig, tmp_path, double, tokenizer, with_lora, {}, optim="sgd")
    streams = {"harmful_dataset": harmful_rows, "helpful_dataset": many_rows(4), "refusals": ["no"]}
    gate = fit(OpenGate, GateConfig, tmp_path, double, tokenizer, with_lora, streams, optim="sgd")
    assert largest_difference(sft, gate) < 1e-12


def test_a_closed_gate_teaches_nothing(tiny, tokenizer, harmful_rows, tmp_path):
    class ClosedGate(GateTrainer):
        def _fit(self, harmful, helpful):
            return torch.ones(len(self.train_dataset), dtype=torch.float64)

    streams = {"harmful_dataset": harmful_rows, "helpful_dataset": many_rows(4), "refusals": ["no"]}
    args = config(GateConfig, tmp_path, max_steps=2, weight_decay=0.0)
    trainer, _ = trained(ClosedGate, args, every_method.copy.deepcopy(tiny), tokenizer, many_rows(8), **streams)
    assert same(weights(trainer.model), weights(tiny))


# --- how a batch is split --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
def test_batch_splits_do_not_matter(tiny, tokenizer, harmful_rows, tmp_path, method):
    """8 × 1, 2 × 4 and 1 × 8 (micro-batches × samples) give the same weights after three optimizer steps."""
    tiny = tiny.double()
    results = []
    for size, steps in [(8, 1), (4, 2), (1, 8)]:
        trainer = every_method.train(
            method,
            tmp_path / str(size),
            tiny,
            tokenizer,
            many_rows(16),
            harmful_rows,
            with_lora=True,
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            max_grad_norm=1.0,
        )
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        results.append((weights(trainer.model), losses))
    (first, losses), *others = results
    for other, other_losses in others:
        assert largest_difference(first, other) < 1e-12
        # The logged loss is added up in float32.
        assert other_losses == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("method", EVERY)
def test_gradient_checkpointing_changes_nothing(tiny, tokenizer, harmful_rows, tmp_path, method):
    results = [
        weights(
            every_method.train(
                method,
                tmp_path,
                tiny.double(),
                tokenizer,
                many_rows(8),
                harmful_rows,
                with_lora=True,
                max_steps=2,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                gradient_checkpointing=on,
                optim="sgd",
            ).model
        )
        for on in (False, True)
    ]
    assert largest_difference(*results) < 1e-12


@pytest.mark.parametrize("method", EVERY)
def test_sharing_the_prefix_changes_nothing(tiny, tokenizer, harmful_rows, tmp_path, method):
    results = [
        weights(
            every_method.train(
                method,
                tmp_path,
                tiny.double(),
                tokenizer,
                many_rows(8),
                harmful_rows,
                max_steps=2,
                per_device_train_batch_size=8,
                share_prefix=share,
                optim="sgd",
            ).model
        )
        for share in (False, True)
    ]
    assert largest_difference(*results) < 1e-12


# --- weights come back bit for bit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
def test_learning_rate_zero_leaves_weights_alone(tiny, tokenizer, harmful_rows, tmp_path, with_lora, method):
    kwargs = {"learning_rate": 0.0, "max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = every_method.make(method, tmp_path, tiny, tokenizer, many_rows(8), harmful_rows, with_lora, **kwargs)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert trainer.state.global_step == 2
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("method", "failing_pass"),
    [
        ("align booster", 2),  # of the passes that check the perturbation, the first
        ("align booster", 4),
        ("align antibody", 4),
        ("align antibody", 5),
        ("align antibody theorem", 5),
    ],
)
def test_weights_come_back_when_the_perturbed_pass_fails(
    tiny, tokenizer, harmful_rows, tmp_path, monkeypatch, method, failing_pass, dtype
):
    trainer = every_method.make(method, tmp_path, tiny.to(dtype), tokenizer, many_rows(8), harmful_rows, max_steps=1)
    before = weights(trainer.model)
    original, calls = titer.trainer.token_nll, []

    def failing(model, batch, **forward):
        calls.append(same(before, weights(trainer.model)))
        if len(calls) == failing_pass:
            raise MemoryError("in the middle of a step")
        return original(model, batch, **forward)

    monkeypatch.setattr(titer.trainer, "token_nll", failing)
    with pytest.raises(MemoryError, match="in the middle"):
        trainer.train()
    assert len(calls) == failing_pass
    assert not calls[-1], "the weights were not perturbed when it failed"
    assert same(before, weights(trainer.model))


@pytest.mark.parametrize("method", EVERY)
def test_weights_are_whole_when_any_pass_is_interrupted(tiny, tokenizer, harmful_rows, tmp_path, monkeypatch, method):
    calls, stop_at = [], None

    def interruptible():
        trainer = every_method.make(method, tmp_path, tiny, tokenizer, many_rows(8), harmful_rows, max_steps=1)
        backward = trainer.accelerator.backward

        def interrupted(loss, **kwargs):
            calls.append(loss)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return backward(loss, **kwargs)

        monkeypatch.setattr(trainer.accelerator, "backward", interrupted)
        return trainer

    interruptible().train()
    passes = len(calls)
    trainer = interruptible()
    before = weights(trainer.model)
    for stop_at in range(1, passes + 1):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert same(before, weights(trainer.model)), f"backward pass {stop_at}"
    calls.clear()
    stop_at = None
    trainer.train()
    assert len(calls) == passes


# --- resuming --------------------------------------------------------------------------------------------------------


def optimizer_tensors(trainer):
    state = trainer.optimizer.state_dict()["state"]
    return [state[key][name] for key in sorted(state) for name in sorted(state[key])]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *((name, {}) for name in EVERY),
        ("align antibody", {"restore_callback_states_from_checkpoint": True}),
        ("align booster", {"refresh_every": 2}),
        ("align antibody", {"refresh_every": 4}),
    ],
)
def test_resumed_is_uninterrupted(tiny, tokenizer, harmful_rows, tmp_path, method, settings):
    """Stopped in the middle of the second epoch, of 7 rows in batches of 2 × 2, and gone on with."""
    run = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        **settings,
    }

    def go(folder, **more):
        return every_method.train(
            method, tmp_path / folder, tiny, tokenizer, many_rows(7), harmful_rows[:5], with_lora=True, **run, **more
        )

    whole = go("whole")
    stopped = go("stopped", callbacks=[StopAfter(3)])
    assert stopped.state.global_step == 3
    resumed = go("stopped", resume=str(tmp_path / "stopped" / "checkpoint-3"))

    assert resumed.state.global_step == whole.state.global_step == 6
    assert not same(weights(stopped.model), weights(whole.model))
    assert same(weights(resumed.model), weights(whole.model))
    assert same(optimizer_tensors(resumed), optimizer_tensors(whole))
    assert resumed.step_state.values == whole.step_state.values
    assert whole.step_state.values or method != "align antibody", "its λ is a moving average"
    timing = {
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "total_flos",
        "train_loss",
        "epoch",
    }
    logs = [
        [{name: value for name, value in line.items() if name not in timing} for line in trainer.state.log_history]
        for trainer in (whole, resumed)
    ]
    assert logs[0] == logs[1]
    if method.startswith("finetune antibody"):
        assert read_weight_log(tmp_path / "stopped") == read_weight_log(tmp_path / "whole")


def test_resuming_goes_on_with_dropout_masks(tiny, tokenizer, harmful_rows, tmp_path):
    def go(folder, resume=None, dropout=0.3, **more):
        return every_method.train(
            "finetune antibody sum",
            tmp_path / folder,
            tiny,
            tokenizer,
            many_rows(7),
            harmful_rows,
            resume=resume,
            max_steps=4,
            with_lora={"lora_dropout": dropout},
            per_device_train_batch_size=4,
            **more,
        )

    whole = go("whole")
    assert not same(weights(whole.model), weights(go("without", dropout=0.0).model))
    go("stopped", callbacks=[StopAfter(3)])
    resumed = go("stopped", resume=True)
    assert same(weights(resumed.model), weights(whole.model))


# --- what is trained on, and what is written down --------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
def test_prompt_tokens_are_never_trained_on(tiny, tokenizer, harmful_rows, tmp_path, monkeypatch, method):
    """The targets of every pass over the model, taken together, are completions and refusals and nothing else."""
    seen = []
    original = titer.trainer.token_nll

    def watching(model, batch, **forward):
        branches = batch["branch"].unique().tolist()
        seen.extend(tuple(batch["targets"][batch["branch"] == number].tolist()) for number in branches)
        return original(model, batch, **forward)

    for kind in every_method.DECLARED[method][0].trainer.__mro__:
        if getattr(sys.modules[kind.__module__], "token_nll", None) is original:
            monkeypatch.setattr(f"{kind.__module__}.token_nll", watching)
    trainer = every_method.train(method, tmp_path, tiny, tokenizer, many_rows(8), harmful_rows, max_steps=1)
    stop = tokenizer.eos_token_id

    def ids(text):
        return (*tokenizer(text, add_special_tokens=False)["input_ids"], stop)

    allowed = {ids(r["completion"][0]["content"]) for r in [*many_rows(8), *harmful_rows]}
    allowed |= {ids(r["refusal"]) for r in harmful_rows} | {ids(text) for text in every_method.REFUSALS}
    assert {ids(r["completion"][0]["content"]) for r in many_rows(8)} <= set(seen) <= allowed
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("method", ["finetune antibody sum", "finetune antibody mean"])
@pytest.mark.parametrize("batches", [(8, 1), (1, 8), (3, 2)], ids=lambda batch: f"{batch[0]}x{batch[1]}")
def test_logged_weights_sum_to_one_in_every_step(tiny, tokenizer, harmful_rows, tmp_path, method, batches):
    size, steps = batches
    trainer = every_method.train(
        method,
        tmp_path,
        tiny,
        tokenizer,
        many_rows(11),
        harmful_rows,
        max_steps=4,
        tau=2.0,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
    )
    lines = [json.loads(text) for text in (tmp_path / "sample_weights.jsonl").read_text().splitlines()]
    by_step = {}
    for line in lines:
        by_step.setdefault(line["step"], []).append(line)
    assert sorted(by_step) == [1, 2, 3, 4]
    largest = [line["largest_weight"] for line in trainer.state.log_history if "largest_weight" in line]
    for number, step in enumerate(by_step.values()):
        given = torch.tensor([line["weight"] for line in step], dtype=torch.float64)
        ratios = torch.tensor([line["log_ratio"] for line in step], dtype=torch.float64)
        assert given.sum().item() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(given, torch.softmax(ratios / 2.0, 0), atol=1e-5)
        assert largest[number] == pytest.approx(given.max().item())
    # Every row once in each epoch, whatever the split.
    first_epoch = [line["row"] for line in by_step[1] + by_step[2]]
    assert sorted(first_epoch) == list(range(11))


def test_gate_logs_one_fixed_weight_a_row(tiny, tokenizer, harmful_rows, tmp_path):
    trainer = every_method.train("finetune gate", tmp_path, tiny, tokenizer, many_rows(8), harmful_rows, max_steps=3)
    lines = read_weight_log(tmp_path)
    assert [line["row"] for line in lines] == list(range(8))
    assert [line["weight"] for line in lines] == trainer.weights.tolist()
    assert all(line["weight"] == pytest.approx(1 - line["probability"]) for line in lines)


def test_extreme_ratios_stay_finite(tiny, tokenizer, harmful_rows, tmp_path):
    """With a tiny temperature one row takes all; whichever micro-batch it comes in, nothing over- or underflows."""
    results = [
        weights(
            every_method.train(
                "finetune antibody sum",
                tmp_path / str(size),
                tiny,
                tokenizer,
                many_rows(8),
                harmful_rows,
                max_steps=2,
                tau=1e-4,
                optim="sgd",
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
            ).model
        )
        for size in (8, 1)
    ]
    assert all(torch.isfinite(tensor).all() for tensor in results[1])
    assert largest_difference(*results) < 1e-4
