"""Bases in 4 bits: named, recorded beside adapters, refused where their weights would change; and right, where bitsandbytes is installed."""

import copy
import importlib.metadata
import importlib.util
import json

import pytest
import torch
from test_base_model import ROWS, training
from test_loading import saved_adapter
from transformers import LlamaConfig, LlamaForCausalLM

import titer
from titer import methods
from titer.errors import TiterError
from titer.infer.generation import generate
from titer.jobs import answers, base_model, engines
from titer.jobs.job import Job
from titer.jobs.provenance import model_digest
from titer.jobs.whole import WHOLE
from titer.methods.repair.adapters import read_adapter, write_factors
from titer.models import Template, load_config, load_model, load_tokenizer, locate, split_adapter
from titer.models.quantised import FILE, how_to_load
from titer.service import policy

NEEDS = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture
def adapter(tiny, tiny_folder, tmp_path):
    """An adapter that says that its base was held in 4 bits."""
    folder = saved_adapter(tiny, tiny_folder, tmp_path / "adapter")
    (folder / FILE).write_text('{"bits": 4}\n')
    return folder


def test_a_name_with_bits_is_the_same_model_for_what_loads_no_weights(tiny_folder):
    name = f"{tiny_folder}:4bit"
    assert locate(name) == locate(str(tiny_folder))
    assert load_config(name).to_dict() == load_config(str(tiny_folder)).to_dict()
    assert split_adapter(name) == (name, None)
    with pytest.raises(TiterError, match="8 bits") as error:
        load_model(f"{tiny_folder}:8bit")
    assert ":4bit" in error.value.hint


def test_an_adapter_says_in_how_many_bits_its_base_is_held(adapter, tiny_folder, tmp_path):
    assert split_adapter(str(adapter)) == (f"{tiny_folder}:4bit", adapter)
    with pytest.raises(TiterError, match="says itself"):
        split_adapter(f"{adapter}:4bit")
    held = read_adapter(adapter, f"{tiny_folder}:4bit")
    write_factors(held, held.factors, tmp_path / "repaired")
    assert split_adapter(str(tmp_path / "repaired"))[0] == f"{tiny_folder}:4bit"
    with pytest.raises(TiterError):
        read_adapter(adapter, str(tiny_folder))
    (adapter / FILE).write_text('{"bits": 3}')
    with pytest.raises(TiterError, match=FILE):
        split_adapter(str(adapter))


def test_without_bitsandbytes_the_error_says_what_to_install(tiny_folder, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for loads in (load_model, model_digest):
        with pytest.raises(TiterError, match="bitsandbytes") as error:
            loads(f"{tiny_folder}:4bit")
        assert "titer[quantised]" in error.value.hint


def test_weights_that_were_saved_in_few_bits_are_not_quantised_again(tiny_folder):
    config = load_config(str(tiny_folder))
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(TiterError, match="saved in few bits"):
        how_to_load("m", config)


def test_what_changes_or_releases_the_base_is_refused(adapter, tiny_folder, tmp_path):
    name = f"{tiny_folder}:4bit"
    method = methods.find("repair", "sldr")
    args = methods.settings(method, {"max_steps": 1}, "", str(tmp_path / "c"), 0)
    job = Job({"settings": {}, "places": {"model": name}}, tmp_path, "k")
    for refused in (
        lambda: WHOLE.run(job),
        lambda: base_model_training(method, args, name, adapter, tmp_path / "out"),
        lambda: engines._check_base(None, name, "names"),
        lambda: policy.from_dict({"models": {"m": name}}),
    ):
        with pytest.raises(TiterError, match="holds its weights in 4 bits"):
            refused()


def base_model_training(method, args, name, adapter, folder):
    from titer.jobs import trainings

    streams = dict.fromkeys(method.streams, ROWS)
    trainings.train(method, args, name, adapter, {}, ROWS, streams, folder)


def test_a_plan_counts_what_the_name_says(tiny_folder):
    def lines(model, **more):
        return titer.plan(model, method="sft", gpu="h100-80", **more).lines

    assert lines(f"{tiny_folder}:4bit") == lines(str(tiny_folder), quantise=4) != lines(str(tiny_folder))
    with pytest.raises(TiterError, match="trains all of them"):
        lines(f"{tiny_folder}:4bit", adapter="full")
    with pytest.raises(TiterError, match="says it"):
        lines(f"{tiny_folder}:4bit", quantise=4)


# -- with bitsandbytes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A model whose layers are as wide as a block of weights with one scale, or wider."""
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, **ends
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def unpacked(model):
    """Return the model in float32 whose weights are those that 4 bits stand for."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    found = copy.deepcopy(model)
    for name, layer in list(found.named_modules()):
        if isinstance(layer, Linear4bit):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
            found.set_submodule(name, plain)
    return found


@NEEDS
def test_logits_and_gradients_are_those_of_the_weights_that_the_bits_stand_for(base):
    from peft import LoraConfig, get_peft_model

    quantised = load_model(f"{base}:4bit")
    ids, seen = torch.arange(3, 15)[None], []
    for model in (quantised, unpacked(quantised)):
        torch.manual_seed(0)
        adapted = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        )
        with torch.no_grad():
            adapted.eval()(ids)  # after which layers have been seen to give no gradients
        out = adapted.train()(ids, labels=ids)
        out.loss.backward()
        seen.append([out.logits, *(weight.grad for weight in adapted.parameters() if weight.requires_grad)])
    assert len(seen[0]) == 1 + 2 * 2 * 2
    assert all(gradient.any() for gradient in seen[0])
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


@NEEDS
def test_a_training_is_repeated_to_the_bit_and_its_adapter_asked_on_the_same_base(base, tmp_path):
    name = f"{base}:4bit"
    first, again = (training(name, tmp_path / place) for place in ("first", "again"))
    assert first == again != training(base, tmp_path / "plain")
    found, adapter = split_adapter(str(tmp_path / "first"))
    assert (found, json.loads((adapter / FILE).read_text())) == (name, {"bits": 4})
    assert not (tmp_path / "plain" / "adapter" / FILE).exists()
    template = Template(load_tokenizer(name))
    with_adapter = load_model(str(tmp_path / "first"))
    prompts = [template.prompt_ids(row.to_training_row()["prompt"]) for row in ROWS]
    assert answers.answer(name, adapter, [(row, 6) for row in ROWS]) == generate(with_adapter, template, prompts, 6)
    assert model_digest(name) != model_digest(str(base))


@NEEDS
def test_a_base_in_4_bits_belongs_to_one_job(base):
    one, other = (base_model.fresh_model(f"{base}:4bit", None, trainable=True) for _ in range(2))
    assert one is not other
    assert not {w.data_ptr() for w in one.parameters()} & {w.data_ptr() for w in other.parameters()}
