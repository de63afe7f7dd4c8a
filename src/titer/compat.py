"""Every private or unstable name of torch, transformers, TRL and PEFT that titer touches, each behind a name of its own.

What a docstring here says was seen in torch 2.13, transformers 5.23, TRL 1.16 and PEFT 0.21, unless it says otherwise.
`tests/test_compat.py` tries each for what titer relies on, so that a library's upgrade fails there first, and names what
needs it. The libraries are imported inside, since this room is imported by those that start without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# -- attention and caches (transformers) ------------------------------------------------------------------------------


def attention_of(config: Any) -> str:
    """Return the name of the attention that a model is set to.

    `_attn_implementation` of its text config: there is `set_attn_implementation`, and no public way to read what it set.
    """
    return str(config.get_text_config()._attn_implementation)


def register_attention(name: str, attend: Callable[..., Any]) -> None:
    """Let `set_attn_implementation(name)` switch models to a function, under the masks that `sdpa` attention gets.

    The registries are public. `masking_utils.sdpa_mask` is an internal that the library's guide imports; without a mask
    function under the same name, models would hand on no mask at all.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)


def library_attention(
    module: Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Return what the library's own `sdpa` attention does: the output `(batch, tokens, heads, head_dim)`, and no weights.

    `integrations.sdpa_attention.sdpa_attention_forward`, by which rows that are not packed are computed as the library computes
    them. The public registry has it under `sdpa`, an entry that anybody may replace.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, mask, **settings)  # type: ignore[no-any-return, unused-ignore]


def forgets(cache: Any) -> bool:
    """Say whether a cache drops keys and values outside a window, so that an early token cannot be gone on from.

    `is_sliding` of the cache's `layers`: the classes are documented, what tells them apart is not.
    """
    return any(layer.is_sliding for layer in cache.layers)


def detach_cache(cache: Any) -> None:
    """Cut a cache from the graph that made it: what is run on it sends no gradient into the first pass.

    `keys` and `values` of its `layers`, which have no public setter.
    """
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()


def keep_rows(cache: Any, rows: Tensor) -> None:
    """Leave the given rows of the batch in a cache, in that order; a row may be there several times.

    `batch_select_indices`, which the library has for a search of its own that it moved out of the package; the documented
    `reorder_cache` keeps their number.
    """
    cache.batch_select_indices(rows)


def join_caches(caches: Sequence[Any], length: int) -> Any:
    """Return one cache with the rows of all, each padded on the left to `length` positions; the first is changed.

    `keys` and `values` of its `layers`: the library makes rows leave a batch, and lets none join one that is under way.
    """
    import torch

    def padded(states: Tensor) -> Tensor:
        missing = length - states.shape[-2]
        return torch.cat((states.new_zeros(*states.shape[:-2], missing, states.shape[-1]), states), -2)

    joined = caches[0]
    for place, layer in enumerate(joined.layers):
        layer.keys = torch.cat([padded(cache.layers[place].keys) for cache in caches])
        layer.values = torch.cat([padded(cache.layers[place].values) for cache in caches])
    return joined


def cut_cache(cache: Any, columns: int) -> None:
    """Forget the first positions of a cache, which no row of it attends to.

    `keys` and `values` of its `layers`; the documented `crop` forgets the last.
    """
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., columns:, :], layer.values[..., columns:, :]


def can_be_joined(cache: Any) -> bool:
    """Say whether a cache is keys and values of all positions and nothing else, as `join_caches` wants it.

    `layers` of class `DynamicLayer` itself: what its subclasses, and caches of recurrent models, keep beside them is not documented.
    """
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", [])
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


# -- modules ----------------------------------------------------------------------------------------------------------


def watch_outputs(look: Callable[[Any, Any, Any], None]) -> Any:
    """Call `look(module, inputs, output)` after each forward pass of any module; returns a handle with `remove`.

    `torch.nn.modules.module.register_module_forward_hook`, which torch offers for debugging only. A hook on each module of one
    model would miss those that the model makes or swaps while it runs.
    """
    import torch

    return torch.nn.modules.module.register_module_forward_hook(look)


def count_hooks(model: Module) -> int:
    """Return how many forward and backward hooks are on a model's modules.

    torch keeps them in four private dictionaries of each module, and offers handles to remove one's own, but no way to list.
    """
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)


def llama_norm() -> Any:
    """Return the class of Llama's normalisation, a module with `weight` and `variance_epsilon`.

    `models.llama.modeling_llama.LlamaRMSNorm`, an internal of the model: it rounds to float32 whatever it is loaded in, so a toy
    that is to be exact needs another in its place.
    """
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return LlamaRMSNorm


def unbind_forward(model: Module) -> None:
    """Give a copy of a trainer's model the `forward` of its class back.

    TRL's trainer puts a method into the instance that is bound to the very model it was made for (`trl.trainer.utils`), and
    copies would run that one.
    """
    vars(model).pop("forward", None)


# -- weights and adapters (transformers, PEFT) ------------------------------------------------------------------------


def plain_config(config: Any) -> dict[str, Any]:
    """Return the settings of a model's config, without where it was loaded from and how its weights were quantised there.

    `to_dict` writes both, the first under `_name_or_path`, and there is no argument to leave them out.
    """
    return {name: value for name, value in config.to_dict().items() if name not in _OF_THE_FILE}


_OF_THE_FILE = ("quantization_config", "_name_or_path")


def renamed_weights(model: Any) -> dict[str, str] | None:
    """Return the patterns by which a model's class renames weights of older files; `None` where it has none.

    `_checkpoint_conversion_mapping`. `PeftModel.from_pretrained` reads it to find the places of an adapter's weights, and
    `load_adapter` does not, so that loading once more needs it handed over. transformers 5 sets it on no class of its own
    any more; code that a model's repository ships still may.
    """
    found: dict[str, str] | None = getattr(model, "_checkpoint_conversion_mapping", None)
    return found


def pattern_key(patterns: Iterable[str], layer: str) -> str:
    """Return the key of `rank_pattern` or `alpha_pattern` that is meant for a layer, the layer's name where none is.

    `peft.utils.other.get_pattern_key`: PEFT documents that keys may be regular expressions, not how it matches them.
    """
    from peft.utils.other import get_pattern_key

    return str(get_pattern_key(list(patterns), layer))


def adapted_layers(model: Module) -> Iterator[tuple[str, Any]]:
    """Yield the name and the module of each layer that PEFT has put an adapter into; `get_base_layer` gives the layer itself.

    `tuners.tuners_utils.BaseTunerLayer` is what such layers have in common; the package's root does not export it.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def keep_gradients(model: Module) -> None:
    """Keep the layers of a base in 4 bits from a layout for answering that has no gradients: on CPUs with bfloat16 units.

    `support_avx512bf16_for_cpu` of bitsandbytes' `nn.Linear4bit` (0.50): a layer in evaluation mode, of inputs without gradients, lays
    its weights out anew, and from then on gives no gradient to what comes before it, without an error; and it rounds to bfloat16.
    There is no setting for it. `tests/test_quantised.py` sees it, where bitsandbytes is installed.
    """
    packs = "support_avx512bf16_for_cpu"
    for module in model.modules():
        if hasattr(module, packs):
            setattr(module, packs, False)


def plain_lora(module: Any) -> tuple[Tensor, Tensor, float] | None:
    """Return A, B and the factor on their product of an adapted linear layer; `None` where there is more to it than that.

    `tuners.lora.Linear` with its `lora_A`, `lora_B` and `scaling` by adapter, and no `lora_variant` or `lora_bias`. The
    documentation has settings of the adapter, and nothing of what a layer holds after they were applied.
    """
    from peft.tuners.lora import Linear

    active = module.active_adapters
    if type(module) is not Linear or len(active) != 1 or module.merged:
        return None
    (name,) = active
    if module.lora_variant or module.lora_bias[name]:
        return None
    down: Any = module.lora_A[name]
    up: Any = module.lora_B[name]
    return down.weight, up.weight, float(module.scaling[name])


# -- arithmetic on lists of tensors (torch) ---------------------------------------------------------------------------


def multiply_each_(tensors: Sequence[Tensor], factor: float | Tensor) -> None:
    """Multiply tensors by one factor in place.

    `torch._foreach_mul_`, as optimizers do: one launch for all, where a loop takes one for each of hundreds of tensors.
    """
    import torch

    torch._foreach_mul_(list(tensors), factor)


def add_each_(tensors: Sequence[Tensor], others: Sequence[Tensor], factor: float = 1.0) -> None:
    """Add `factor` times `others` to `tensors` in place (`torch._foreach_add_`, as `multiply_each_`)."""
    import torch

    torch._foreach_add_(list(tensors), list(others), alpha=factor)


def copy_each_(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Copy `others` into `tensors` (`torch._foreach_copy_`, as `multiply_each_`)."""
    import torch

    torch._foreach_copy_(list(tensors), list(others))


def cpu_knows_bf16() -> bool:
    """Say whether the processor multiplies bfloat16 matrices itself: AVX-512 BF16, or AMX.

    `torch.cpu._is_avx512_bf16_supported` and `_is_amx_tile_supported`; `torch.cuda` has `is_bf16_supported`, `torch.cpu` nothing
    public. Other processors emulate it and take several times as long.
    """
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


# -- tensors without numbers (torch) ----------------------------------------------------------------------------------


def numberless() -> Any:
    """Return a context in which tensors have shapes, types and devices, and no numbers.

    `torch._subclasses.fake_tensor.FakeTensorMode`, on which `torch.compile` and `torch.export` rest; it has no public name.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def operations_watcher() -> Any:
    """Return the base class of contexts that see every operation, forward and backward, in `__torch_dispatch__`.

    `torch.utils._python_dispatch.TorchDispatchMode`, which PyTorch's own tutorials import under this name.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a value, in lists and dictionaries of whatever depth: `torch.utils._pytree.tree_iter`."""
    import torch
    from torch.utils._pytree import tree_iter

    return [each for each in tree_iter(value) if isinstance(each, torch.Tensor)]


def times_changed(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place: `Tensor._version`, by which autograd finds out. Not through `.data`."""
    return int(tensor._version)


def tensor_tables(module: Module) -> list[dict[str, Tensor | None]]:
    """Return the dictionaries of a module's own parameters and buffers, to be written to.

    `_parameters` and `_buffers`: setting an attribute refuses to put a tensor in the place of a parameter.
    """
    return [module._parameters, module._buffers]  # type: ignore[list-item, unused-ignore]


# -- the trainer (transformers, TRL) ----------------------------------------------------------------------------------

TRAINER_METHODS: dict[str, tuple[str, ...]] = {
    "_prepare_dataset": ("dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"),
    "_set_signature_columns_if_needed": (),
    "_prepare_inputs": ("inputs",),
    "_save_optimizer_and_scheduler": ("output_dir",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_get_output_dir": ("trial",),
    "_save_checkpoint": ("model", "trial"),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_run_epoch": (),
    "save_model": ("output_dir", "_internal_call"),
}
"""Private methods of `trl.SFTTrainer` that titer's trainer overrides or calls, with the parameters that it names.

Its callbacks are the public way in, and come neither before a dataset is tokenised nor between writing and naming a checkpoint:
`_prepare_dataset` and `_set_signature_columns_if_needed` put titer's packing in the place of TRL's, `_prepare_inputs` brings
further batches to the device, the next five make a checkpoint whole before it has its name and add what a method carries,
and `_run_epoch` takes no step beyond the last. `save_model` is public but for a parameter.
"""

TRAINER_ATTRIBUTES = {
    "_tag_names": "what a model card names, a list on the class",
    "_signature_columns": "which columns of a dataset reach the collator; all where it names all",
    "_metrics": "metrics of a step by `train` or `eval`, each a list that is averaged into the next log",
}
"""Private attributes of `trl.SFTTrainer` that titer's trainer sets or fills, and what each is. None has a public setter."""


def reporting_services() -> list[str]:
    """Return the services that `report_to` may name, those whose packages are installed.

    `integrations.integration_utils.get_available_reporting_integrations`: a name that is none of them is refused by the library
    only when a trainer is made.
    """
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    return list(get_available_reporting_integrations())


def trainer_state_name() -> str:
    """Return how the file of a trainer's state is called in a checkpoint: `trainer.TRAINER_STATE_NAME`, which is not exported."""
    from transformers.trainer import TRAINER_STATE_NAME

    return str(TRAINER_STATE_NAME)


def exportable_state() -> Any:
    """Return the base class of callbacks whose `state()` goes into checkpoints.

    `trainer_callback.ExportableState`: callbacks that have a state must extend it, and the package's root does not export it.
    """
    from transformers.trainer_callback import ExportableState

    return ExportableState
