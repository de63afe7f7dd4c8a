"""What must hold for every method, whatever it computes: identities, batch splits, bit-exact weights, exact resuming."""

import copy
import dataclasses
import json
from unittest import mock

import every_method
import pytest
import torch
from every_method import EVERY, REPAIRS
from training import config, trained

import titer.train.trainer
from titer import (
    AntibodyAlignmentConfig,
    AntibodyAlignmentTrainer,
    BoosterConfig,
    BoosterTrainer,
    GateConfig,
    GateTrainer,
    PackedSFTConfig,
    PackedSFTTrainer,
    SieveConfig,
    SieveTrainer,
)
from titer.methods.finetune.base import read_weight_log
from titer.packing import layouts
from titer.testing import (
    METHOD_CHECKS,
    REPAIR_CHECKS,
    StopAfter,
    resumed_is_uninterrupted,
    same,
    toy_lora,
    toy_rows,
    weights,
)


@pytest.fixture(scope="module", autouse=True)
def _one_probe():
    with mock.patch.object(layouts, "_probe", every_method.remembered(layouts._probe)):
        yield


@pytest.fixture(params=[False, True], ids=["full", "lora"])
def with_lora(request):
    return request.param


def largest_difference(left, right):
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


# --- identities ------------------------------------------------------------------------------------------------------


def fit(cls, config_class, tmp_path, tiny, tokenizer, with_lora, streams, **settings):
    """Four optimizer steps of two micro-batches over rows that do not fill the last one."""
    torch.manual_seed(1)
    model = copy.deepcopy(tiny)
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
        train_dataset=toy_rows(7),
        processing_class=tokenizer,
        **({"peft_config": toy_lora()} if with_lora else {}),
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
        def _by_risk(self):
            return torch.zeros(len(self.train_dataset), dtype=torch.float64)

    double = tiny.double()
    sft = fit(PackedSFTTrainer, PackedSFTConfig, tmp_path, double, tokenizer, with_lora, {}, optim="sgd")
    streams = {"harmful_dataset": harmful_rows, "helpful_dataset": toy_rows(4), "refusals": ["no"]}
    gate = fit(OpenGate, GateConfig, tmp_path, double, tokenizer, with_lora, streams, optim="sgd")
    assert largest_difference(sft, gate) < 1e-12


def test_a_closed_gate_teaches_nothing(tiny, tokenizer, harmful_rows, tmp_path):
    class ClosedGate(GateTrainer):
        def _by_risk(self):
            return torch.ones(len(self.train_dataset), dtype=torch.float64)

    streams = {"harmful_dataset": harmful_rows, "helpful_dataset": toy_rows(4), "refusals": ["no"]}
    args = config(GateConfig, tmp_path, max_steps=2, weight_decay=0.0)
    trainer, _ = trained(ClosedGate, args, copy.deepcopy(tiny), tokenizer, toy_rows(8), **streams)
    assert same(weights(trainer.model), weights(tiny))


def test_a_sieve_without_replay_divergence_and_ratio_is_the_gate_bit_for_bit(tiny, tokenizer, harmful_rows, tmp_path):
    streams = {"harmful_dataset": harmful_rows, "helpful_dataset": toy_rows(6), "refusals": ["no"]}
    gate = fit(GateTrainer, GateConfig, tmp_path, tiny, tokenizer, True, streams, signal="states")
    off = {"replay": 0.0, "kl_weight": 0.0, "threshold": None}
    sieve = fit(SieveTrainer, SieveConfig, tmp_path, tiny, tokenizer, True, streams, signal="states", **off)
    assert same(gate, sieve)


# --- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("check", METHOD_CHECKS)
def test_contract(tmp_path, method, check):
    METHOD_CHECKS[check](every_method.trial(method, tmp_path))


@pytest.mark.parametrize("method", REPAIRS)
@pytest.mark.parametrize("check", REPAIR_CHECKS)
def test_contract_of_repairs(tmp_path, method, check):
    REPAIR_CHECKS[check](every_method.trial(method, tmp_path))


# --- weights come back bit for bit -----------------------------------------------------------------------------------


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
    trainer = every_method.make(method, tmp_path, tiny.to(dtype), tokenizer, toy_rows(8), harmful_rows, max_steps=1)
    before = weights(trainer.model)
    original, calls = titer.train.trainer.token_nll, []

    def failing(model, batch, **forward):
        calls.append(same(before, weights(trainer.model)))
        if len(calls) == failing_pass:
            raise MemoryError("in the middle of a step")
        return original(model, batch, **forward)

    monkeypatch.setattr(titer.train.trainer, "token_nll", failing)
    with pytest.raises(MemoryError, match="in the middle"):
        trainer.train()
    assert len(calls) == failing_pass
    assert not calls[-1], "the weights were not perturbed when it failed"
    assert same(before, weights(trainer.model))


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("align antibody", {"restore_callback_states_from_checkpoint": True}),
        ("align booster", {"refresh_every": 2}),
        ("align antibody", {"refresh_every": 4}),
    ],
)
def test_resumed_is_uninterrupted_with_other_settings(tmp_path, method, settings):
    trial = every_method.trial(method, tmp_path)
    resumed_is_uninterrupted(dataclasses.replace(trial, settings={**trial.settings, **settings}))


@pytest.mark.parametrize("method", ["finetune antibody sum", "finetune antibody mean"])
def test_weights_are_logged_as_if_nothing_had_happened(tmp_path, method):
    resumed_is_uninterrupted(every_method.trial(method, tmp_path))
    assert read_weight_log(tmp_path / "stopped") == read_weight_log(tmp_path / "whole") != []


def test_the_moving_average_of_antibody_is_carried_on(tmp_path):
    trainer = every_method.trial("align antibody", tmp_path).train(max_steps=2)
    assert trainer.step_state.values


def test_resuming_goes_on_with_dropout_masks(tiny, tokenizer, harmful_rows, tmp_path):
    def go(folder, resume=None, dropout=0.3, **more):
        return every_method.train(
            "finetune antibody sum",
            tmp_path / folder,
            tiny,
            tokenizer,
            toy_rows(7),
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


@pytest.mark.parametrize("method", ["finetune antibody sum", "finetune antibody mean"])
@pytest.mark.parametrize("batches", [(8, 1), (1, 8), (3, 2)], ids=lambda batch: f"{batch[0]}x{batch[1]}")
def test_logged_weights_sum_to_one_in_every_step(tiny, tokenizer, harmful_rows, tmp_path, method, batches):
    size, steps = batches
    trainer = every_method.train(
        method,
        tmp_path,
        tiny,
        tokenizer,
        toy_rows(11),
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
    trainer = every_method.train(
        "finetune gate risk", tmp_path, tiny, tokenizer, toy_rows(8), harmful_rows, max_steps=3
    )
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
                toy_rows(8),
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
