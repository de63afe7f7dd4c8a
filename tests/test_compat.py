"""What titer relies on of names that the libraries keep to themselves: an upgrade that breaks one fails here first."""

import ast
import copy
import inspect
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from titer import compat

SOURCE = Path(compat.__file__).parent


@contextmanager
def needed_by(use):
    """Fail with the use that a private name has, whatever is wrong with the name."""
    try:
        yield
    except Exception as error:
        pytest.fail(f"{use} does not work with these libraries: {type(error).__name__}: {error}")


@pytest.fixture
def model(tiny):
    return tiny.eval()


@pytest.fixture
def adapted(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])

# --- attention and caches --------------------------------------------------------------------------------------------


def test_the_attention_of_a_model_is_read():
    from transformers import LlamaConfig

    with needed_by("Refusing packed rows under another attention (`titer.packing.losses`)"):
        config = LlamaConfig(attn_implementation="eager")
        assert compat.attention_of(config) == "eager"


def test_a_model_runs_on_a_registered_attention_under_masks_of_the_library(model):
    masks = []

    def attend(module, query, key, value, attention_mask, **settings):
        masks.append(attention_mask)
        return compat.library_attention(module, query, key, value, attention_mask, **settings)

    with needed_by("Switching a model to packed attention (`titer.packing.attention`)"), torch.no_grad():
        model.set_attn_implementation("sdpa")
        padded = {"input_ids": IDS, "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])}
        wanted = model(**padded).logits
        compat.register_attention("titer_test", attend)
        model.set_attn_implementation("titer_test")
        assert compat.attention_of(model.config) == "titer_test"
        found = model(**padded).logits
        assert len(masks) == model.config.num_hidden_layers
        assert masks[0].dtype == torch.bool
        assert masks[0].shape == (2, 1, 4, 4)
        assert torch.equal(found[1], wanted[1])
        assert torch.equal(found[0, 2:], wanted[0, 2:])


def test_attention_of_a_model_is_handed_what_packed_rows_add(model):
    """A mask of four dimensions is taken as it is, and further arguments of the model reach its attention."""
    seen = []

    def attend(module, query, key, value, attention_mask, spans=None, **settings):
        seen.append((attention_mask, spans, settings))
        return query.transpose(1, 2).contiguous(), None

    with needed_by("Packed attention (`titer.packing.losses`)"), torch.no_grad():
        compat.register_attention("titer_test", attend)
        model.set_attn_implementation("titer_test")
        mask = torch.ones(1, 1, 0, 4, dtype=torch.bool)
        logits = model(input_ids=IDS[:1], attention_mask=mask, spans="here", logits_to_keep=torch.tensor([1, 3])).logits
        assert logits.shape[:2] == (1, 2)
        assert {spans for _, spans, _ in seen} == {"here"}
        assert all(given is mask for given, _, _ in seen)
        assert all({"dropout", "scaling"} <= settings.keys() for _, _, settings in seen)


def test_a_cache_that_forgets_is_told_from_one_that_does_not(model):
    from transformers import MistralConfig, MistralForCausalLM

    with needed_by("Finding whether packed rows leave a whole cache (`titer.packing.layouts`)"), torch.no_grad():
        assert not compat.forgets(model(input_ids=IDS, use_cache=True).past_key_values)
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        windowed = MistralForCausalLM(MistralConfig(vocab_size=32, num_key_value_heads=2, sliding_window=2, **size))
        assert compat.forgets(windowed(input_ids=IDS, use_cache=True).past_key_values)


def test_a_detached_cache_sends_no_gradient_back(model):
    with needed_by("Scoring refusals on the training forward's cache (`titer.methods.finetune.antibody`)"):
        first = model(input_ids=IDS, use_cache=True)
        parts = [part for layer in first.past_key_values.layers for part in (layer.keys, layer.values)]
        assert all(part.requires_grad for part in parts)
        compat.detach_cache(first.past_key_values)
        after = [part for layer in first.past_key_values.layers for part in (layer.keys, layer.values)]
        assert not any(part.requires_grad for part in after)
        assert all(torch.equal(one, other) for one, other in zip(parts, after, strict=True))
        with torch.no_grad():
            again = model(input_ids=IDS[:, :1], past_key_values=first.past_key_values, use_cache=True)
            whole = model(input_ids=torch.cat((IDS, IDS[:, :1]), dim=1))
        assert torch.allclose(again.logits[:, -1], whole.logits[:, -1], atol=1e-5)
        first.logits.sum().backward()  # the first pass has its graph still


def test_rows_of_a_cache_are_selected_and_repeated(model):
    with needed_by("Decoding rows on one beginning, and letting finished rows go (`titer.infer.generation`)"):
        with torch.no_grad():
            cache = model(input_ids=IDS, use_cache=True).past_key_values
            before = cache.layers[0].keys.clone()
            compat.keep_rows(cache, torch.tensor([1, 0, 1]))
        assert torch.equal(cache.layers[0].keys, before[[1, 0, 1]])
        assert torch.equal(cache.layers[-1].values[0], cache.layers[-1].values[2])
        compat.keep_rows(cache, torch.tensor([2]))
        assert cache.layers[0].keys.shape[0] == 1


# --- modules ---------------------------------------------------------------------------------------------------------


def test_rows_join_a_cache_that_is_under_way(model):
    with needed_by("Chat answers that begin while others are decoded (`titer.service.chat`)"):
        caches = [model(input_ids=ids, use_cache=True).past_key_values for ids in (IDS, IDS[:1, :3])]
        assert all(compat.can_be_joined(cache) for cache in caches)
        joined = compat.join_caches(caches, 4)
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
        new, places = torch.tensor([[5], [6], [7]]), torch.tensor([[4], [4], [3]])
        found = model(input_ids=new, attention_mask=mask, position_ids=places, past_key_values=joined).logits[:, -1]
        for row, ids in enumerate(([*IDS[0], 5], [*IDS[1], 6], [*IDS[0, :3], 7])):
            assert torch.allclose(found[row], model(input_ids=torch.tensor([ids])).logits[0, -1], atol=1e-4)
        compat.keep_rows(joined, torch.tensor([2]))
        compat.cut_cache(joined, 1)
        ids = torch.tensor([[*IDS[0, :3], 7, 8]])
        after = model(input_ids=ids[:, -1:], past_key_values=joined).logits[0, -1]
        assert torch.allclose(after, model(input_ids=ids).logits[0, -1], atol=1e-4)


def test_a_cache_with_more_in_it_than_keys_and_values_is_not_joined():
    from transformers import DynamicCache, MistralConfig

    windowed = DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=4))
    assert not compat.can_be_joined(windowed)
    assert not compat.can_be_joined(None)


def test_outputs_of_all_modules_are_watched_until_the_handle_is_removed():
    seen = []
    layer = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    with needed_by("Finding the precision that a model computes in (`titer.packing.alone`)"):
        handle = compat.watch_outputs(lambda module, inputs, output: seen.append((type(module), output.dtype)))
        try:
            layer(torch.zeros(1, 2))
        finally:
            handle.remove()
        assert seen == [(kind, torch.float32) for kind in (torch.nn.Linear, torch.nn.ReLU, torch.nn.Sequential)]
        layer(torch.zeros(1, 2))
        assert len(seen) == 3


def test_every_kind_of_hook_is_counted():
    layer = torch.nn.Sequential(torch.nn.Linear(2, 3))
    with needed_by("Looking for hooks that a trainer leaves behind (`titer.testing.trainings`)"):
        assert compat.count_hooks(layer) == 0
        handles = [
            layer[0].register_forward_hook(lambda *_: None),
            layer[0].register_forward_pre_hook(lambda *_: None),
            layer.register_full_backward_hook(lambda *_: None),
            layer.register_full_backward_pre_hook(lambda *_: None),
        ]
        assert compat.count_hooks(layer) == len(handles)
        for handle in handles:
            handle.remove()
        assert compat.count_hooks(layer) == 0


def test_the_norm_of_llama_is_what_the_toy_puts_another_in_the_place_of():
    from transformers import LlamaConfig, LlamaForCausalLM

    from titer.testing import ExactNorm

    with needed_by("The exact toy (`titer.testing.toy`)"):
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        made = LlamaForCausalLM(LlamaConfig(vocab_size=32, **size))
        norms = [module for module in made.modules() if isinstance(module, compat.llama_norm())]
        assert len(norms) == 3
        x = torch.randn(2, 16)
        for norm in norms:
            assert {name for name, _ in norm.named_parameters()} == {"weight"}
            wanted = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
            norm.__class__ = ExactNorm
            assert torch.allclose(norm(x), wanted)


def test_a_copy_of_a_trained_model_gets_its_own_forward_back(model, tmp_path, tokenizer):
    from titer import PackedSFTConfig, PackedSFTTrainer
    from titer.testing import TRAINING, toy_rows

    with needed_by("Taking a fleet's model out of a trainer (`titer.attacks.fleet`)"):
        args = PackedSFTConfig(output_dir=str(tmp_path), **TRAINING)
        PackedSFTTrainer(model=model, args=args, train_dataset=toy_rows(4), processing_class=tokenizer)
        copied = copy.deepcopy(model)
        compat.unbind_forward(copied)
        assert copied.forward.__self__ is copied
        assert copied.forward.__func__ is type(copied).forward
        compat.unbind_forward(copied)  # where there is none, there is nothing to do


# --- weights and adapters --------------------------------------------------------------------------------------------


def test_a_plain_config_makes_the_same_model_and_names_no_file(tiny_folder):
    from transformers import AutoConfig

    with needed_by("Unpacking the embedded model (`titer.models.embedded`)"):
        config = AutoConfig.from_pretrained(tiny_folder)
        config.quantization_config = {"quant_method": "gguf"}
        plain = compat.plain_config(config)
        assert str(tiny_folder) not in str(plain)
        assert "gguf" not in str(plain)
        again = type(config)(**plain)
        assert again.hidden_size == config.hidden_size
        assert getattr(again, "quantization_config", None) is None


def test_peft_renames_weights_as_the_class_of_a_model_says(adapted, model, tmp_path, monkeypatch):
    from peft import PeftModel

    adapted.save_pretrained(tmp_path)
    base = adapted.unload()
    seen = []
    load = PeftModel.load_adapter

    def watch(self, *args, **settings):
        seen.append(settings["key_mapping"])
        return load(self, *args, **settings)

    monkeypatch.setattr(PeftModel, "load_adapter", watch)
    with needed_by("Loading an adapter twice with the same names (`titer.models.load`)"):
        assert compat.renamed_weights(base) is None
        monkeypatch.setattr(type(base), "_checkpoint_conversion_mapping", {"^old": "model"}, raising=False)
        assert compat.renamed_weights(base) == {"^old": "model"}
        PeftModel.from_pretrained(base, str(tmp_path))
        assert seen == [{"^old": "model"}]


def test_loading_an_adapter_says_which_weights_found_no_place(adapted, tmp_path):
    from safetensors.torch import load_file, save_file

    adapted.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    with needed_by("Refusing an adapter that does not fit (`titer.models.load`)"):
        save_file({name.replace("q_proj", "x_proj"): weights.pop(name), **weights}, file)
        found = adapted.load_adapter(str(tmp_path), "default", key_mapping=None)
        assert len(found.missing_keys) == 1
        assert len(found.unexpected_keys) == 1


def test_patterns_of_ranks_are_matched_as_peft_does(model):
    from peft import LoraConfig, get_peft_model

    patterns = {"layers.0.self_attn.q_proj": 3, r".*1.*k_proj": 5}
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "k_proj"], rank_pattern=dict(patterns))
    with needed_by("Reading the ranks of a LoRA adapter (`titer.methods.repair.adapters`)"):
        assert compat.pattern_key(patterns, "model.layers.0.self_attn.q_proj") == "layers.0.self_attn.q_proj"
        assert compat.pattern_key(patterns, "model.layers.0.self_attn.v_proj") == "model.layers.0.self_attn.v_proj"
        wrapped = get_peft_model(model, config)
        ranks = {name: module.r["default"] for name, module in compat.adapted_layers(wrapped.base_model.model)}
        assert len(ranks) == 4
        assert set(ranks.values()) == {2, 3, 5}
        assert ranks == {name: patterns.get(compat.pattern_key(patterns, name), config.r) for name in ranks}


def test_layers_with_an_adapter_are_found_and_read(adapted):
    x = torch.randn(3, 32)
    with needed_by("Stacking the adapters of a fleet (`titer.attacks.fleet`)"), torch.no_grad():
        found = dict(compat.adapted_layers(adapted.base_model.model))
        assert list(found) == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
        for module in found.values():
            base = module.get_base_layer()
            assert type(base) is torch.nn.Linear
            down, up, factor = compat.plain_lora(module)
            assert down.shape[0] == up.shape[1] == 2
            assert factor == 3.0
            assert torch.allclose(module(x), base(x) + (x @ down.T @ up.T) * factor, atol=1e-5)
        merged = next(iter(found.values()))
        merged.merge()
        assert compat.plain_lora(merged) is None


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_bias": True}])
def test_an_adapter_that_is_more_than_a_product_is_not_plain(more):
    from peft import LoraConfig, get_peft_model

    layer = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with needed_by("Refusing adapters that a fleet cannot stack (`titer.attacks.fleet`)"):
        wrapped = get_peft_model(layer, LoraConfig(r=2, target_modules=["0"], **more))
        ((_, module),) = compat.adapted_layers(wrapped.base_model.model)
        assert compat.plain_lora(module) is None


# --- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_lists_of_tensors_are_changed_in_place(factor):
    tensors = [torch.ones(2, 3), torch.full((4,), 2.0)]
    places = [tensor.data_ptr() for tensor in tensors]
    with needed_by("Arithmetic on gradients and weights (`titer.train.gradients`)"):
        compat.multiply_each_(tensors, factor)
        compat.add_each_(tensors, [torch.ones(2, 3), torch.ones(4)], 2.0)
        assert [tensor.unique().tolist() for tensor in tensors] == [[2.5], [3.0]]
        compat.copy_each_(tensors, [torch.zeros(2, 3), torch.ones(4)])
        assert [tensor.unique().tolist() for tensor in tensors] == [[0.0], [1.0]]
        assert [tensor.data_ptr() for tensor in tensors] == places


def test_what_a_processor_knows_is_found():
    with needed_by("Choosing bf16 where it is fast (`titer.train.trainer`)"):
        assert compat.cpu_knows_bf16() in (True, False)


# --- the trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", compat.TRAINER_METHODS)
def test_a_private_method_of_the_trainer_has_the_parameters_that_titer_hands_on(name):
    import trl

    with needed_by(f"Overriding or calling `{name}` (`titer.train.trainer`)"):
        parameters = list(inspect.signature(getattr(trl.SFTTrainer, name)).parameters)[1:]
        wanted = compat.TRAINER_METHODS[name]
        assert name == "_run_epoch" or tuple(parameters) == wanted  # which is handed whatever it has


def test_every_private_name_that_the_trainers_override_is_listed():
    import trl

    from titer import methods

    known = {*compat.TRAINER_METHODS, *compat.TRAINER_ATTRIBUTES}
    own = {
        kind
        for _, _, method in methods.every()
        if hasattr(method, "trainer")
        for kind in method.trainer.__mro__
        if kind.__module__.startswith("titer.")
    }
    assert own
    overridden = {
        name
        for kind in own
        for name in vars(kind)
        if name.startswith("_")
        and not name.startswith("__")
        and not name.startswith("_abc")
        and hasattr(trl.SFTTrainer, name)
    }
    assert overridden <= known, "list them in `titer.compat`"


def test_private_attributes_of_the_trainer_do_what_titer_sets_them_for(model, tmp_path, tokenizer):
    from titer import PackedSFTConfig, PackedSFTTrainer
    from titer.testing import TRAINING, toy_rows

    class Noting(PackedSFTTrainer):
        def after_step(self, model):
            self.record(noted=7.0)

    with needed_by("Columns, tags and logged metrics of titer's trainer (`titer.train.trainer`)"):
        args = PackedSFTConfig(output_dir=str(tmp_path), **TRAINING)
        trainer = Noting(model=model, args=args, train_dataset=toy_rows(8), processing_class=tokenizer)
        batch = next(iter(trainer.get_train_dataloader()))
        assert {"row", "masks"} <= batch.keys()  # `_signature_columns` let every column through
        assert trainer._metrics["train"] == {}
        trainer.train()
        assert any(line.get("noted") == 7.0 for line in trainer.state.log_history)
        assert "titer" in trainer._tag_names


def test_services_to_report_to_are_names():
    with needed_by("Refusing a `report_to` whose package is missing (`titer.train.trainer`)"):
        found = compat.reporting_services()
        assert isinstance(found, list)
        assert all(isinstance(name, str) for name in found)
        assert "none" not in found


def test_the_state_of_callbacks_is_in_a_checkpoint_under_its_name(model, tmp_path, tokenizer):
    import json

    from transformers import TrainerCallback

    from titer import PackedSFTConfig, PackedSFTTrainer
    from titer.testing import TRAINING, toy_rows

    class Kept(TrainerCallback, compat.exportable_state()):
        def state(self):
            return {"args": {}, "attributes": {"values": {"x": 1.0}}}

    with needed_by("What a method carries from step to step (`titer.train.trainer`)"):
        args = PackedSFTConfig(output_dir=str(tmp_path), **{**TRAINING, "save_strategy": "steps", "save_steps": 1})
        trainer = PackedSFTTrainer(
            model=model, args=args, train_dataset=toy_rows(4), processing_class=tokenizer, callbacks=[Kept()]
        )
        trainer.train()
        state = json.loads((tmp_path / "checkpoint-1" / compat.trainer_state_name()).read_text())
        assert state["stateful_callbacks"]["Kept"]["attributes"]["values"] == {"x": 1.0}


# --- the room itself -------------------------------------------------------------------------------------------------


def test_the_room_is_light():
    heavy = "{'torch', 'transformers', 'trl', 'peft', 'numpy'}"
    code = f"import sys, titer, titer.compat; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_function_says_what_it_stands_for():
    for name, value in vars(compat).items():
        if inspect.isfunction(value) and value.__module__ == compat.__name__:
            assert len(inspect.getdoc(value) or "") > 60, name


INTERNAL = (
    "torch._", "torch.utils._", "transformers.models.", "transformers.masking_utils", "transformers.integrations",
    "transformers.cache_utils", "transformers.pytorch_utils", "transformers.trainer", "transformers.trainer_callback",
    "trl.trainer", "trl.models", "peft.tuners", "peft.utils",
)  # fmt: skip
"""Modules that the libraries keep to themselves."""

OF_TUPLES = {"_replace", "_asdict", "_fields", "_field_defaults"}
"""What named tuples have in public."""


def touched(tree):
    """Yield the private names of others that a module touches: internals it imports, and attributes with an underscore.

    Its own `self._name` and `cls._name` are not looked at, nor what overrides call of `super()`: those of trainers are listed.
    """
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = []
        yield from (name for name in names if f"{name}.".startswith(INTERNAL))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            base = ast.unparse(node.value)
            public = (base, node.attr) == ("os", "_exit")  # Python's own, and documented
            if base not in ("self", "cls", "super()") and node.attr not in {*OF_TUPLES, *own} and not public:
                yield node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if name.startswith("_") and not name.startswith("__") and name not in OF_TUPLES:
                yield name


def test_private_names_of_the_libraries_are_touched_in_this_room_alone():
    found = {
        (path.relative_to(SOURCE).parts[0], name)
        for path in SOURCE.rglob("*.py")
        if path != Path(compat.__file__)
        for name in touched(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not found, "give them a name in `titer.compat`, and a test here"


def test_private_names_are_seen_however_they_are_touched():
    source = "import torch._inductor\nfrom peft.utils.other import x\ntorch._foreach_mul_(a)\ngetattr(b, '_c', None)\n"
    source += "self._own\nb._replace(c=1)\nfrom transformers import Trainer\nfrom peft import PeftModel\n"
    assert sorted(touched(ast.parse(source))) == ["_c", "_foreach_mul_", "peft.utils.other", "torch._inductor"]


def test_tensors_without_numbers():
    layer = torch.nn.BatchNorm1d(3, device="meta")
    with compat.numberless():
        for table in compat.tensor_tables(layer):
            for name, tensor in table.items():
                table[name] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        output = layer.eval()(torch.empty(2, 3))
    assert (output.shape, output.device.type) == ((2, 3), "cpu")
    assert {tensor.device.type for tensor in (*layer.parameters(), *layer.buffers())} == {"cpu"}
    assert compat.tensors_in({"one": [output], "two": (3, {"three": output})}) == [output, output]


def test_changes_in_place_are_counted():
    tensor = torch.zeros(2)
    before = compat.times_changed(tensor)
    tensor.add_(1)
    assert compat.times_changed(tensor) > before


def test_operations_are_watched():
    class Watch(compat.operations_watcher()):
        seen = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += (func.name(),)
            return func(*args, **(kwargs or {}))

    x = torch.ones(2, requires_grad=True)
    with Watch() as watch:
        (x * 3).sum().backward()
    assert "aten::mul.Tensor" in watch.seen[0]
    assert len(watch.seen) > 2  # the backward pass, too
