"""Jobs of one process share the base's weights, and none sees what another one did to them."""

import pytest
import torch
from test_loading import ADAPTER, rewrite, saved_adapter
from transformers import Qwen2Config, Qwen2ForCausalLM

from titer import methods
from titer.data.records import Record
from titer.errors import TiterError
from titer.jobs import answers, base_model, trainings
from titer.jobs.job import Job
from titer.jobs.whole import WHOLE
from titer.models import load_model
from titer.train.trainer import PackedSFTTrainer

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
ROWS = [Record.from_row({"prompt": f"is salt white? {n}", "completion": f"yes {n}"}, "") for n in range(6)]


def training(base, folder, method=None, **lora):
    """Train an adapter; return the bytes of its weights."""
    method = method or methods.find("finetune", "sft")
    values = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    args = methods.settings(method, values, "", str(folder / "c"), 0)
    trainings.train(method, args, str(base), None, {**LORA, **lora}, ROWS, {}, folder)
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A model whose attention has biases."""
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **ends,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """The weights of a training that was the first in its process."""
    base_model.forget()
    return training(base, tmp_path_factory.mktemp("alone"))


class Unfreezes(PackedSFTTrainer):
    """Trains layer norms of the base too."""

    def __init__(self, **how):
        super().__init__(**how)
        for name, weight in self.model.named_parameters():
            if "norm" in name:
                weight.requires_grad_(True)


def trained_whole(base, folder, adapter):
    job = Job({"settings": {
        "training": {"max_steps": 3, "learning_rate": 1e-2}, "seed": 0, "limits": {"harmful": 4}, "arm": "a", "phase": "finetuned", "step": 1,
        "poison_ratio": 0.0,
    }, "inputs": {"records": "rows", "set/harmful": "rows"}, "places": {"model": str(base)}, "kind": "whole"}, folder, "k",
        held={"rows": ROWS})  # fmt: skip
    aligned = Job({"kind": "align"}, folder, "a")
    aligned.folder.mkdir(parents=True)
    (aligned.folder / "adapter").symlink_to(adapter)
    job.needs = [aligned]
    WHOLE.run(job)
    return job


def changed_by(method):
    return lambda base, folder, adapter: training(base, folder, method)


def begun_with(**lora):
    return lambda base, folder, adapter: training(base, folder, **lora)


def asked(base, folder, adapter):
    return answers.answer(str(base), adapter, [(ROWS[0], 4)])


def loaded_with_biases(base, folder, adapter):
    saved_adapter(load_model(str(base)), base, folder, bias="all")
    rewrite(folder / ADAPTER, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    base_model.fresh_model(str(base), folder, trainable=True)


BEFORE = {
    "all weights trained": trained_whole,
    "layer norms trained": changed_by(methods.Method(methods.find("finetune", "sft").config, Unfreezes)),
    "another training": begun_with(r=3),
    "a start that takes from the base": begun_with(init_lora_weights="olora"),
    "an adapter merged": asked,
    "an adapter with biases loaded": loaded_with_biases,
    "biases trained": begun_with(bias="all"),
}


@pytest.mark.parametrize("before", BEFORE)
def test_a_training_is_bit_for_bit_what_it_would_be_first(before, alone, base, tmp_path):
    base_model.forget()
    training(base, tmp_path / "first")  # so that there is a base to be shared
    adapter = saved_adapter(load_model(str(base)), base, tmp_path / "adapter")
    BEFORE[before](base, tmp_path / "before", adapter)
    assert training(base, tmp_path / "then") == alone


def storages(model):
    return {weight.untyped_storage().data_ptr() for weight in model.parameters()}


def test_the_weights_of_a_base_are_in_memory_once(base, tmp_path):
    base_model.forget()
    adapter = saved_adapter(load_model(str(base)), base, tmp_path / "adapter")
    bare, adapted = (base_model.fresh_model(str(base), one, trainable=True) for one in (None, adapter))
    assert storages(bare) < storages(adapted)
    merged = base_model.merged_model(str(base), adapter)
    apart = {name for name, weight in merged.named_parameters() if weight.data_ptr() not in storages(bare)}
    assert apart == {f"model.layers.{n}.self_attn.{one}_proj.{what}"
                     for n in range(2) for one in "qkv" for what in ("weight", "bias")}  # fmt: skip
    assert base_model.own_model(str(base)).get_input_embeddings().weight.data_ptr() in storages(bare)
    assert not storages(base_model.fresh_model(str(base), None, trainable=True)) & storages(bare)


class WritesIntoIts(PackedSFTTrainer):
    """Changes a frozen weight in a way that no version of a tensor tells."""

    def training_step(self, model, *more):
        model.get_input_embeddings().weight.data[5].neg_()
        return super().training_step(model, *more)


def test_a_training_that_writes_into_the_base_fails_and_the_next_one_has_it_as_it_was(base, alone, tmp_path):
    writes = methods.Method(methods.find("finetune", "sft").config, WritesIntoIts)
    with pytest.raises(TiterError, match="embed_tokens"):
        training(base, tmp_path / "writes", writes)
    assert not (tmp_path / "writes" / "adapter").exists()
    assert training(base, tmp_path / "then") == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.float64])
def test_a_bit_and_an_exchange_change_the_hash(dtype):
    weight = (torch.arange(70_001) % 100).to(dtype)
    before = base_model._hash(weight)
    assert before == base_model._hash(weight.clone())
    weight[[3, 70_000]] = weight[[70_000, 3]]
    exchanged = base_model._hash(weight)
    weight[[3, 70_000]] = weight[[70_000, 3]]
    weight.view(torch.uint8)[-1] ^= 1
    assert len({before, exchanged, base_model._hash(weight)}) == 3
