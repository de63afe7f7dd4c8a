"""The base model that jobs of one process share: its modules are copied, its weights are in memory once.

A job gets modules and `Parameter`s of its own, whose tensors are those of the base. What freezes, wraps or replaces them is not seen
by others; what writes into them would be. So what is written into is copied before (`merged_model`, `own_trained`), an adapter that
writes into its base takes the base along (`own_model`), as does whoever wants a quantised one, and a hash of their bits tells whether
anybody else wrote (`check_base`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from titer.compat import adapted_layers
from titer.errors import TiterError
from titer.files import read_json
from titer.models import PLAIN_STARTS, add_adapter, load_model, split_bits


class _Base(NamedTuple):
    name: str
    model: Any
    bits: dict[str, int]


_held: list[_Base] = []
"""The base that jobs share, if one is loaded."""


def fresh_model(name: str, adapter: Path | None, trainable: bool, lora: Mapping[str, Any] | None = None) -> Any:
    """Return a base model for a job, with `adapter` on it when one is given.

    Its modules may be changed freely, and its adapter; weights of its base may be replaced, but not written into.

    Args:
        name: The base model.
        adapter: Folder of an adapter.
        trainable: Whether the adapter's weights should require gradients.
        lora: Settings of a LoRA that will be put on it.

    Raises:
        TiterError: When an earlier job wrote into the weights of the base.
    """
    file = None if adapter is None else adapter / "adapter_config.json"
    adapters = [{"peft_type": "LORA", **(lora or {})}]
    if file is not None and file.is_file():
        adapters.append(read_json(file))
    shared = _is_plain(_checked(name).model) and all(map(_leaves_base_alone, adapters))
    model = _lent(name) if shared else own_model(name)
    return model if adapter is None else add_adapter(model, adapter, trainable)


def merged_model(name: str, adapter: Path | None) -> Any:
    """Return a base model, with an adapter merged into its weights when one is given, for asking.

    Of a base in few bits nothing is merged: it would be rounded to other weights than those that the adapter was trained on.
    """
    model = fresh_model(name, adapter, trainable=False)
    if adapter is None or split_bits(name)[1] is not None:
        return model
    for _, layer in adapted_layers(model):
        _own(layer.get_base_layer().parameters())
    return model.merge_and_unload()


def own_model(name: str) -> Any:
    """Return a base model whose weights may be written into: nobody else has it, and who comes next loads it anew."""
    model = _checked(name).model
    forget()
    return model


def own_trained(model: Module) -> None:
    """Give a model weights of its own where they are the base's and require gradients, before it is trained."""
    _own(weight for weight in model.parameters() if weight.requires_grad)


def check_base() -> None:
    """Make sure that the base's weights are, bit for bit, what was loaded.

    Raises:
        TiterError: When they are not; they are forgotten then.
    """
    for base in list(_held):
        now = _bits(base.model)
        changed = [name for name, found in base.bits.items() if now[name] != found]
        if changed:
            forget()
            raise TiterError(
                f"{len(changed)} weights of the base model `{base.name}` were written into, `{changed[0]}` first, which jobs of "
                "one process share.",
                "Whoever trains or edits weights of the base lets them require gradients before the training, or replaces them.",
            )


def forget() -> None:
    """Let go of the base; the next job loads it anew."""
    _held.clear()


def _checked(name: str) -> _Base:
    """Return a base as it was loaded, loading it where another one is held."""
    check_base()
    if not _held or _held[0].name != name:
        forget()
        model = load_model(name)
        _held.append(_Base(name, model, _bits(model)))
    return _held[0]


def _lent(name: str) -> Any:
    """Return a copy of a base's modules on its weights."""
    model = _checked(name).model
    own = {id(weight): Parameter(weight.detach(), weight.requires_grad) for weight in model.parameters()}
    return copy.deepcopy(model, own)


def _is_plain(model: Module) -> bool:
    """Say whether all weights are tensors and no more: quantised ones have states, which their layers change as they run."""
    return all(type(weight) is Parameter for weight in model.parameters())


def _own(weights: Iterable[Parameter]) -> None:
    """Copy those of the weights that are the base's."""
    lent = {weight.data_ptr() for base in _held for weight in base.model.parameters()}
    for weight in weights:
        if weight.data_ptr() in lent:
            weight.data = weight.data.clone()


def _leaves_base_alone(lora: Mapping[str, Any]) -> bool:
    """Say whether an adapter of such settings, put on, loaded or trained, writes into no weights of its base.

    Other kinds than LoRA may; so may a LoRA that trains biases, or begins with parts of the base's weights.
    """
    plain_start = lora.get("init_lora_weights", True) in PLAIN_STARTS
    return lora.get("peft_type") == "LORA" and lora.get("bias", "none") == "none" and plain_start


# -- bits -----------------------------------------------------------------------------------------------------------------

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(model: Module) -> dict[str, int]:
    """Return a hash of the bits of each weight of a model, by name: another one where anything is written into it."""
    return {name: _hash(weight.detach()) for name, weight in model.named_parameters()}


def _hash(weight: Tensor) -> int:
    """Return Σ odd number × bits over a tensor, modulo 2³² within a block, block after block; each is read once."""
    factors = _factors(weight.device)
    whole = torch.zeros((), dtype=torch.int64, device=weight.device)
    for block in weight.contiguous().view(-1).view(_INTEGERS[weight.element_size()]).split(len(factors)):
        whole = 31 * whole + (block * factors[: len(block)]).sum()
    return int(whole)


@functools.cache
def _factors(device: torch.device) -> Tensor:
    """Return odd numbers for a block: of what a CPU's cache holds, or of as much as needs few launches."""
    size = 2**16 if device.type == "cpu" else 2**22
    numbers = torch.randint(2**30, (size,), generator=torch.Generator().manual_seed(0))
    return (2 * numbers + 1).to(device, torch.int32)
