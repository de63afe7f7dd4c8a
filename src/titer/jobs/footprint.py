"""What a gradient of a model costs, in bytes and operations, found by running it on tensors that have shapes and no numbers.

The model is built from its config alone, its adapter put on, and titer's own loss of a packed batch goes forward and backward through
it under `FakeTensorMode`: the same code as in a training, so that what a family of models keeps for its backward pass, what autocast
casts and what checkpointing leaves out is seen and not modelled. `LiveBytes` counts what is alive.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter
from torch.utils.flop_counter import FlopCounterMode

from titer.compat import numberless, tensor_tables, tensors_in
from titer.errors import TiterError, first_line
from titer.jobs.live_bytes import LiveBytes
from titer.jobs.trainings import check_targets, lora_config
from titer.models import load_config, loading
from titer.packing.attention import use_packed_attention
from titer.packing.batches import PackedBatch, Sample, pack, pad
from titer.packing.losses import FusedHead, token_nll

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Recipe:
    """What decides on the cost of a gradient.

    Attributes:
        model: A folder, a hub id or the embedded model, of which the config is read.
        lora: Settings of the adapter; `None` where the model's own weights are trained.
        rows: Tokens of the prompt and of the answer of each row of a micro-batch.
        dtype: Of the base weights, a name of `DTYPES`. What is trained is float32.
        autocast: Whether it computes in bfloat16.
        bits: 4 or 8 for a base that is quantised, as bitsandbytes does; 16 for one that is not.
        checkpointing: Whether activations are computed anew in the backward pass.
    """

    model: str
    lora: dict[str, Any] | None = field(hash=False)
    rows: tuple[tuple[int, int], ...]
    dtype: str = "bfloat16"
    autocast: bool = True
    bits: int = 16
    checkpointing: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """What two recipes with the same cost have in common."""
        return (self.model, repr(self.lora), self.rows, self.dtype, self.autocast, self.bits, self.checkpointing)


class Footprint(NamedTuple):
    """What a gradient costs; sizes in bytes.

    Attributes:
        parameters: How many weights the base has.
        weights: The weights, those of the adapter among them.
        trained: Those that are trained.
        gathered: Of the weights, what one process holds whole at a time when they are sharded by layers: what lies outside of
            the layers, and two layers.
        early: The most that a pass holds beside the weights, its gradients among it, until it is half-way back.
        late: The same from there on, when activations go and gradients come.
        early_added: As `early`, where gradients are added to some that are there, those not counted.
        late_added: As `late`, likewise.
        kept: Activations at the end of the forward pass.
        states: Hidden states of all tokens in all layers.
        logits: Logits of all supervised tokens, in float32.
        flops: Multiplications and additions of the pass, forward and backward.
        kernels: Operations on tensors in it.
        packed: Whether the rows lie in one packed row.
    """

    parameters: int
    weights: int
    trained: int
    gathered: int
    early: int
    late: int
    early_added: int
    late_added: int
    kept: int
    states: int
    logits: int
    flops: int
    kernels: int
    packed: bool

    @property
    def fresh(self) -> int:
        """The most that a pass holds beside the weights, its gradients among it."""
        return max(self.early, self.late)

    @property
    def added(self) -> int:
        """The same where gradients are added to some that are there, those not counted."""
        return max(self.early_added, self.late_added)


_found: dict[tuple[Any, ...], Footprint] = {}


def footprint(recipe: Recipe) -> Footprint:
    """Return what a gradient costs; nothing is loaded, allocated or computed.

    Raises:
        TiterError: For a model without a config, modules that it does not have, and one whose operations depend on numbers.
    """
    if recipe.key not in _found:
        _found[recipe.key] = _measure(recipe)
    return _found[recipe.key]


SHALLOW, DEEPER = 4, 8
"""Layers of the two models that stand for one with many layers, all alike: what they cost lies on a line."""


def _measure(recipe: Recipe) -> Footprint:
    config = load_config(recipe.model)
    depth = config.get_text_config().num_hidden_layers
    if depth <= SHALLOW + DEEPER or not _alike(_empty(recipe, config), depth) or (recipe.lora or {}).keys() & UNEVEN:
        return _trace(recipe, config)
    low, high = (_trace(recipe, _cut(config, layers)) for layers in (SHALLOW, DEEPER))
    part = (depth - SHALLOW) / (DEEPER - SHALLOW)
    line = [round(a + (b - a) * part) for a, b in zip(low[:-1], high[:-1], strict=True)]
    return low._replace(**dict(zip(low._fields, line, strict=False)))  # whether it packs is no number


UNEVEN = {"layers_to_transform", "layers_pattern", "layer_replication", "rank_pattern", "alpha_pattern"}
"""Settings of an adapter that treat layers differently."""


def _alike(bare: Any, depth: int) -> bool:
    """Say whether the layers of a model have weights of the same names and shapes."""
    kinds = {tuple((name, weight.shape) for name, weight in layer.named_parameters()) for layer in _layers(bare, depth)}
    return len(kinds) == 1


def _layers(bare: Any, depth: int) -> Sequence[Module]:
    stacks = [each for each in bare.modules() if isinstance(each, ModuleList) and len(each) == depth]
    return list(stacks[0]) if stacks else []


def _cut(config: Any, layers: int) -> Any:
    """Return the config with fewer layers; lists that say something of each layer are cut too."""
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return cut


def _trace(recipe: Recipe, config: Any) -> Footprint:
    bare = _empty(recipe, config)
    parameters = sum(weight.numel() for weight in bare.parameters())
    if recipe.bits < 16:
        _quantise(bare, recipe.bits)
    model = _adapted(bare, recipe)
    fake = numberless()
    with fake:
        _put_on_cpu(model)
        try:
            packed = _packs(bare)
            _fuse(bare)
            batch = _batch(recipe, packed)
            model.train()
            layers = _layers(bare, config.get_text_config().num_hidden_layers) or [bare]
            found = _passes(model, batch, recipe, layers[len(layers) // 2])
        except TiterError:
            raise
        except Exception as error:  # whatever a model's own code raises of tensors without numbers
            raise TiterError(
                f"What {type(bare).__name__} costs cannot be found without its weights: {first_line(error)}",
                "Train a step of it, and look: `titer align --set max_steps=1`.",
            ) from error
    text = bare.config.get_text_config()
    tokens, supervised = batch["input_ids"].numel(), len(batch["targets"])
    width = 2 if recipe.autocast or recipe.dtype == "bfloat16" else 4
    return Footprint(
        parameters=parameters,
        weights=_size(model.parameters()),
        trained=_size(weight for weight in model.parameters() if weight.requires_grad),
        gathered=_gathered(bare, width),
        states=tokens * text.hidden_size * text.num_hidden_layers * width,
        logits=supervised * bare.get_input_embeddings().weight.shape[0] * 4,
        packed=packed,
        **found,
    )


def _size(tensors: Iterable[Tensor]) -> int:
    memories = {id(memory): memory for memory in (tensor.untyped_storage() for tensor in tensors)}
    return sum(memory.nbytes() for memory in memories.values())


# -- the model ------------------------------------------------------------------------------------------------------------


def _empty(recipe: Recipe, config: Any) -> Any:
    """Return the base without weights, frozen where an adapter is trained."""
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if recipe.lora is None else DTYPES[recipe.dtype]
    with loading(recipe.model), torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config, dtype=dtype)
    bare.requires_grad_(recipe.lora is None)
    return bare


def _adapted(bare: Any, recipe: Recipe) -> Any:
    if recipe.lora is None:
        model = bare
    else:
        config = lora_config(recipe.lora)
        check_targets(bare, config)
        with torch.device("meta"):
            model = get_peft_model(bare, config)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    if recipe.checkpointing:
        bare.gradient_checkpointing_enable({"use_reentrant": False})
        bare.enable_input_require_grads()
    return model


def _put_on_cpu(model: Any) -> None:
    """Give a model on the device `meta` fake tensors of the CPU, which autocast and attention know."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for table in tensor_tables(module):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                    trained = tensor.requires_grad
                    made[tensor] = Parameter(empty, trained) if isinstance(tensor, Parameter) else empty
                table[name] = made[tensor]


class _Unpacking(torch.autograd.Function):
    """A product with weights that are stored packed, and unpacked for as long as it takes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, like: Tensor, bias: Tensor | None) -> Tensor:
        ctx.shape, ctx.dtype = like.shape, inputs.dtype
        return F.linear(inputs, torch.empty(like.shape, dtype=inputs.dtype, device=inputs.device), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ torch.empty(ctx.shape, dtype=ctx.dtype, device=gradient.device), None, None


class _Quantised(Linear):
    """A linear layer whose weight is held in few bits; `weight` has its shape and, between products, no memory."""

    packed: Tensor
    scales: Tensor

    def forward(self, input: Tensor) -> Tensor:
        compute = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        output: Tensor = _Unpacking.apply(input.to(compute), self.weight, self.bias)
        return output


BLOCK = 64
"""Weights that share a scale, of a byte, in 4 bits (arXiv 2305.14314, Section 3); of 8 bits a row shares one, of four bytes."""


def _quantise(bare: Any, bits: int) -> None:
    """Hold the linear layers in few bits, but for the output head, as transformers asks of bitsandbytes."""
    head = bare.get_output_embeddings()
    for module in bare.modules():
        if type(module) is Linear and module is not head:
            rows, columns = module.weight.shape
            module.__class__ = _Quantised
            bytes_ = rows * columns // 2 if bits == 4 else rows * columns
            scales = rows * columns // BLOCK if bits == 4 else 4 * rows
            module.weight = Parameter(torch.empty(1, device="meta").expand(rows, columns), requires_grad=False)
            for name, size in (("packed", bytes_), ("scales", scales)):
                packed = torch.empty(size, dtype=torch.uint8, device="meta")
                module.register_parameter(name, Parameter(packed, requires_grad=False))


def _packs(bare: Any) -> bool:
    """Switch a model to packed attention, where it takes it; whether its losses are right then, only weights can tell."""
    try:
        use_packed_attention(bare)
        with torch.no_grad():
            token_nll(bare, pack([Sample([1, 2], [[3, 4]])] * 2, share_prefix=False))
    except Exception:  # as in the probe: whatever a model's own code raises of a layout that it does not know
        return False
    return True


def _fuse(bare: Any) -> None:
    """Let the head give losses, where a model puts out what the head does (`titer.packing.losses.fuse_head`, without numbers)."""
    head = bare.get_output_embeddings()
    if type(head) is not Linear:
        return
    seen: list[Any] = []
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        logits = bare(input_ids=torch.arange(8)[None]).logits
    handle.remove()
    if len(seen) == 1 and seen[0] is logits:
        head.__class__ = FusedHead


def _batch(recipe: Recipe, packed: bool) -> PackedBatch:
    samples = [Sample([1] * prompt, [[1] * answer]) for prompt, answer in recipe.rows]
    return pack(samples, share_prefix=False) if packed else pad(samples)


def _gathered(bare: Any, width: int) -> int:
    """Return the bytes of two layers and of what lies outside of the layers, in a dtype of `width` bytes."""
    depth = bare.config.get_text_config().num_hidden_layers
    layers = [sum(weight.numel() for weight in layer.parameters()) for layer in _layers(bare, depth)]
    everything = sum(weight.numel() for weight in bare.parameters())
    return width * (everything - sum(layers) + 2 * max(layers, default=0))


# -- the pass -------------------------------------------------------------------------------------------------------------


def _passes(model: Any, batch: PackedBatch, recipe: Recipe, halfway: Module) -> dict[str, int]:
    """Run passes, the second of which adds its gradients to those of the first."""
    live = LiveBytes()
    live.count([*model.parameters(), *model.buffers(), *tensors_in(batch)])
    before = live.now
    with live:
        early, kept, late = _gradient(model, batch, recipe, live, halfway)
        between, kernels = live.now, live.kernels
        early_added, _, late_added = _gradient(model, batch, recipe, live, halfway)
    with FlopCounterMode(display=False) as counter:
        _gradient(model, batch, recipe, live, halfway)
    return {
        "early": early - before,
        "late": late - before,
        "early_added": early_added - between,
        "late_added": late_added - between,
        "kept": kept - before,
        "flops": counter.get_total_flops(),
        "kernels": kernels,
    }


def _gradient(model: Any, batch: PackedBatch, recipe: Recipe, live: LiveBytes, halfway: Module) -> tuple[int, int, int]:
    """Go forward and backward; return the most alive until half-way back, what is alive at the turn, and the most afterwards."""
    early: list[int] = []

    def turn(gradient: Tensor) -> None:
        if not early:
            early.append(live.most)
            live.most = live.now

    def watch(module: Module, inputs: Any, output: Any) -> None:
        (output[0] if isinstance(output, tuple) else output).register_hook(turn)

    live.most = live.now
    handle = halfway.register_forward_hook(watch)
    with torch.autocast("cpu", torch.bfloat16) if recipe.autocast else nullcontext():
        loss = token_nll(model, batch)[0].sum()
    handle.remove()
    kept = live.now
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    return (early or [live.most])[0], kept, live.most
