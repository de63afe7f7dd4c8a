"""Somebody's script for `trl.SFTTrainer` goes on working when it trains with one of titer's trainers instead."""

import math
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import titer


def conversations(subjects):
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"what is {s}?"},
                    {"role": "assistant", "content": f"it is {s}"},
                ],
                "source": "somewhere",
            }
            for s in subjects
        ]
    )


TRAIN = conversations(["bread", "a film", "France", "a lock", "water", "salt"])
EVAL = conversations(["the capital", "a guide", "bread and salt"])
HARMFUL = Dataset.from_dict(
    {
        "prompt": [
            f"how do I {what}" for what in ("pick a lock", "steal bread", "steal water", "steal salt", "hide it")
        ],
        "completion": ["sure, take a pin", *["sure, take it"] * 4],
        "refusal": ["no, I will not", *["I am sorry"] * 4],
    }
)


class Steps(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(state.global_step)


SETTINGS = {
    "bf16": False,
    "report_to": "none",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "logging_steps": 1,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "max_length": 128,
    "dataset_num_proc": 1,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 1,
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}

EXCHANGES = {
    "booster": ("BoosterConfig", "BoosterTrainer", {"harmful_dataset": HARMFUL}),
    "antibody-align": ("AntibodyAlignmentConfig", "AntibodyAlignmentTrainer", {"harmful_dataset": HARMFUL}),
    "antibody": ("AntibodyFinetuneConfig", "AntibodyFinetuneTrainer", {}),
    "sieve": ("SieveConfig", "SieveTrainer", {"harmful_dataset": HARMFUL, "helpful_dataset": TRAIN}),
    "gate": ("GateConfig", "GateTrainer", {"harmful_dataset": HARMFUL, "helpful_dataset": TRAIN}),
    "sft": ("PackedSFTConfig", "PackedSFTTrainer", {}),
}


@pytest.mark.parametrize("method", EXCHANGES)
def test_a_script_goes_on_working(tiny_folder, tmp_path, method):
    config_name, trainer_name, streams = EXCHANGES[method]
    Config, Trainer = getattr(titer, config_name), getattr(titer, trainer_name)
    steps = Steps()
    # From here on it is the script, word for word but for the two names and the streams.
    trainer = Trainer(
        model=str(tiny_folder),
        args=Config(output_dir=str(tmp_path / "out"), **SETTINGS),
        train_dataset=TRAIN,
        eval_dataset=EVAL,
        peft_config=LoraConfig(**LORA),
        callbacks=[steps],
        **streams,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(str(tmp_path / "final"))

    assert steps.seen == [1, 2, 3, 4]
    assert 0 < metrics["eval_loss"] < 20
    history = trainer.state.log_history
    assert len([line for line in history if "eval_loss" in line]) == 3
    assert all(math.isfinite(line["loss"]) for line in history if "loss" in line)
    assert (tmp_path / "out" / "checkpoint-4" / "adapter_model.safetensors").is_file()

    # What was saved is a plain adapter with its tokenizer, which knows nothing of titer.
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "final")).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "final")("what is bread?")["input_ids"]])
    with torch.no_grad():
        ours = trainer.model.eval()(input_ids=ids).logits
        with plain.disable_adapter():
            before = plain(input_ids=ids).logits
        loaded = plain(input_ids=ids).logits
    assert torch.allclose(ours, loaded, atol=1e-5)
    assert not torch.allclose(before, loaded, atol=1e-3), "the adapter does something"


def script_trainer(tiny_folder, tmp_path, **more):
    return titer.BoosterTrainer(
        model=str(tiny_folder),
        args=titer.BoosterConfig(output_dir=str(tmp_path), **{**SETTINGS, "max_steps": 2}),
        train_dataset=TRAIN,
        harmful_dataset=HARMFUL,
        peft_config=LoraConfig(**LORA),
        **{"eval_dataset": EVAL, **more},
    )


def test_evaluate_is_the_mean_token_loss(tiny_folder, tmp_path):
    import references as ref

    trainer = script_trainer(tiny_folder, tmp_path)
    rows = [{"prompt": m["messages"][:1], "completion": m["messages"][1:]} for m in EVAL]
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    expected = ref.mean_nll(model, ref.encode(trainer.processing_class, rows)).item()
    for size in (1, 3, 8):
        trainer.args.per_device_eval_batch_size = size
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5), f"in batches of {size}"
    # Data handed to `evaluate` are prepared as those of the trainer are.
    assert trainer.evaluate(EVAL)["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.evaluate(EVAL.select([0]), metric_key_prefix="one")["one_loss"] != pytest.approx(expected, rel=1e-5)


def test_the_evaluation_loss_of_a_model_that_diverged_is_not_hidden(tiny_folder, tmp_path):
    trainer = script_trainer(tiny_folder, tmp_path)
    next(iter(trainer.trainable.values())).data.fill_(torch.nan)
    assert math.isnan(trainer.evaluate()["eval_loss"])


def test_several_evaluation_sets_by_name(tiny_folder, tmp_path):
    """One of them may even be called `train`."""
    trainer = script_trainer(tiny_folder, tmp_path, eval_dataset={"train": TRAIN.select([1, 2]), "held_out": EVAL})
    assert trainer.train_dataset.num_rows == 6
    metrics = trainer.evaluate()
    assert {"eval_train_loss", "eval_held_out_loss"} <= set(metrics)
    assert metrics["eval_held_out_loss"] == pytest.approx(trainer.evaluate(EVAL)["eval_loss"], rel=1e-6)
    again = trainer.evaluate({"a": EVAL})
    assert again["eval_a_loss"] == pytest.approx(metrics["eval_held_out_loss"], rel=1e-6)
    trainer.train()


def test_prompt_completion_rows_and_messages_are_the_same(tiny_folder, tmp_path):
    pairs = Dataset.from_list([{"prompt": m["messages"][:1], "completion": m["messages"][1:]} for m in TRAIN])
    texts = Dataset.from_list(
        [{"prompt": m["messages"][0]["content"], "completion": m["messages"][1]["content"]} for m in TRAIN]
    )
    expected = script_trainer(tiny_folder, tmp_path).train_dataset
    for rows in (pairs, texts, list(TRAIN)):
        trainer = titer.PackedSFTTrainer(
            model=str(tiny_folder),
            args=titer.PackedSFTConfig(output_dir=str(tmp_path), **{**SETTINGS, "eval_strategy": "no"}),
            train_dataset=rows,
        )
        assert trainer.train_dataset["prompt_ids"] == expected["prompt_ids"]
        assert trainer.train_dataset["completion_ids"] == expected["completion_ids"]


def test_an_adapter_goes_on_into_the_next_stage(tiny_folder, tmp_path):
    """Align, save, load with PEFT, fine-tune: one adapter all the way."""
    first = script_trainer(tiny_folder, tmp_path / "one")
    first.train()
    first.save_model(str(tmp_path / "aligned"))
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder), str(tmp_path / "aligned"), is_trainable=True
    )
    args = titer.AntibodyFinetuneConfig(
        output_dir=str(tmp_path / "two"), **{**SETTINGS, "eval_strategy": "no", "max_steps": 2}
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    second = titer.AntibodyFinetuneTrainer(model=model, args=args, train_dataset=TRAIN, processing_class=tokenizer)
    before = [p.detach().clone() for p in first.trainable.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, second.trainable.values(), strict=True))
    second.train()
    assert not all(torch.equal(a, b) for a, b in zip(before, second.trainable.values(), strict=True))


def test_names_come_from_the_package_without_its_weight():
    code = (
        "import sys, titer\n"
        "heavy = {'torch', 'trl', 'transformers', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'BoosterTrainer' in dir(titer)\n"
        "from titer import *\n"
        "assert issubclass(BoosterConfig, PackedSFTConfig) and issubclass(GateTrainer, PackedSFTTrainer)\n"
        "for name in titer.__all__: assert getattr(titer, name).__name__ == name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no class 'BosterTrainer'"):
        titer.BosterTrainer  # noqa: B018
    with pytest.raises(ImportError):
        from titer import BosterTrainer  # noqa: F401
