"""A loss on rows that teach nothing is right, comes when it should, and leaves the training bit for bit as it was."""

import json

import pytest
import torch
from peft import PeftModel
from references import encode, mean_nll, sample_nll
from transformers import AutoModelForCausalLM, AutoTokenizer

from titer import methods
from titer.data.records import Record
from titer.jobs import trainings
from titer.testing import toy_rows

ROWS = toy_rows(15)
TRAINED, HELD_OUT = ROWS[:10], ROWS[10:]
LORA = {"r": 4, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def run(tiny_folder, tmp_path):
    """Trains in a folder of a name, with some rows to validate on; returns the adapter's folder and the log."""

    def train(name, validation=(), method="sft", **more):
        folder = tmp_path / name
        values = {
            "num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2,
            "learning_rate": 0.01, "save_strategy": "epoch", "bf16": False, **more,
        }  # fmt: skip
        args = methods.settings(methods.find("finetune", method), values, "test", str(folder / "checkpoints"), 3)
        rows = [[Record.from_row(row) for row in some] for some in (TRAINED, validation)]
        found = methods.find("finetune", method)
        trainings.train(found, args, str(tiny_folder), None, LORA, rows[0], {}, folder, validation=rows[1])
        return folder / "adapter", [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]

    return train


@pytest.mark.parametrize("method", ["sft", "antibody"])
def test_it_changes_no_trained_bit(run, method):
    plain, before = run("plain", method=method)
    beside, log = run("beside", HELD_OUT, method)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (plain / name).read_bytes() == (beside / name).read_bytes()
    # Three steps an epoch: every second one is logged, and the last one of each epoch too.
    assert [line["step"] for line in before] == [2, 4, 6]
    assert [line["step"] for line in log] == [2, 3, 4, 6]
    assert [line["step"] for line in log if "full_valid_loss" in line] == [3, 6]
    assert all(0 <= line["valid_mean_token_accuracy"] <= 1 and line["valid_loss"] > 0 for line in log)


def test_it_is_the_mean_loss_of_a_token_of_the_rows(run, tiny_folder, monkeypatch):
    monkeypatch.setattr("titer.train.validation.TOKENS_PER_PASS", 60)
    adapter, log = run("short", HELD_OUT, per_device_train_batch_size=16)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), str(adapter)).eval()
    pairs = encode(AutoTokenizer.from_pretrained(adapter), HELD_OUT)
    with torch.no_grad():
        expected = mean_nll(model, pairs).item()
        hits = [_hits(model, *pair) for pair in pairs]
    last = log[-1]
    assert last["full_valid_loss"] == pytest.approx(expected, rel=1e-5)
    assert last["full_valid_mean_token_accuracy"] == pytest.approx(torch.cat(hits).double().mean().item(), abs=1e-9)
    # The batch has all rows here.
    assert last["valid_loss"] == pytest.approx(expected, rel=1e-5)
    assert len(sample_nll(model, *pairs[0])) != len(sample_nll(model, *pairs[1])), "a mean over rows would be another"


def _hits(model, prompt, completion):
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].argmax(-1) == torch.tensor(completion)


def test_batches_go_through_all_rows_before_one_comes_again(run, monkeypatch):
    from titer.train import validation

    seen = []
    inner = validation.measure
    monkeypatch.setattr(validation, "measure", lambda trainer, samples: seen.append(samples) or inner(trainer, samples))
    run("one", HELD_OUT, logging_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_steps=6)
    batches, whole = [each for each in seen if len(each) == 1], [each for each in seen if len(each) == len(HELD_OUT)]
    assert len(batches) == 6
    assert len(whole) == 1  # `max_steps` ends it within an epoch
    rows = [tuple(each[0].branches[0]) for each in batches[:5]]
    assert len(set(rows)) == 5
