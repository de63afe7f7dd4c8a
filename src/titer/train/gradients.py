"""Arithmetic on gradients and weights in place: norms, products, perturb and restore.

Everything here works on weights by name and lists of tensors, plain or sharded (`DTensor`) or some of each, and knows
nothing of trainers. A norm or a product of sharded tensors is a collective that every rank must call.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from titer.compat import add_each_, copy_each_, multiply_each_
from titer.errors import TiterError

NORM_EPSILON = 1e-7
"""Added to a gradient's norm before dividing by it, as the released code of Booster does (arXiv 2409.01586)."""


def trainable_parameters(model: torch.nn.Module) -> dict[str, Parameter]:
    """Return the parameters of `model` that require a gradient, by name and in a fixed order.

    Ask again in each step: sharding puts new parameters in place of the old. Under FSDP2 these are the shards.
    """
    reshard(model)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def reshard(model: torch.nn.Module) -> None:
    """Let FSDP2 put its shards back in place of the whole weights that it gathered for a pass.

    It does so by itself after a backward pass. Between a forward pass and its backward pass, and after a forward pass
    without gradients, modules may still hold the gathered weights, which have no gradients and from which the next pass
    would not see what was changed in the shards.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a `DTensor`, and any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded over ranks, which all have to ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Return a whole tensor on the device of `example` and sharded as it is, if it is; what `whole` undoes."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(example.device)
    if isinstance(example, DTensor):
        return distribute_tensor(tensor, example.device_mesh, example.placements)
    return tensor


def gradients(parameters: Mapping[str, Parameter]) -> list[Tensor]:
    """Return the gradients that backward passes left in `parameters`.

    A gradient that is missing is an error and never a zero. Autograd leaves `None` in a tensor exactly when no loss
    was a function of it, and there are two reasons for that. Either the tensor is not the one that the forward pass
    reads: something (sharding, wrapping) put another in its place, and a zero would turn the method off without a
    word. Or the model has weights that its loss does not use, and these are no trained weights: they must be frozen.
    A weight that merely has no influence on a batch, such as the row of an embedding or an expert among others in one
    tensor, has a gradient of zeros from autograd itself.

    Args:
        parameters: The trainable parameters, by name, as the model holds them now.

    Raises:
        TiterError: When any of them has no gradient.
    """
    missing = [name for name, parameter in parameters.items() if parameter.grad is None]
    if missing and len(missing) == len(parameters):
        raise TiterError(
            f"None of the {len(missing)} trained weights (`{missing[0]}`, …) has a gradient: the forward pass used other "
            "tensors than these.",
            "Ask the model for its weights after it was wrapped or sharded (`trainer.trainable` does), and let nothing "
            "keep copies of them.",
        )
    if missing:
        raise TiterError(
            f"{len(missing)} of {len(parameters)} trained weights have no gradient, the first of them `{missing[0]}`: "
            "the loss does not depend on them.",
            "Freeze weights that take no part in the loss (`requires_grad_(False)`), such as those of an adapter that "
            "is not active.",
        )
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]


def take_gradients(parameters: Mapping[str, Parameter]) -> list[Tensor]:
    """Return the gradients of `parameters` and leave the parameters without any; nothing is copied."""
    taken = gradients(parameters)
    for parameter in parameters.values():
        parameter.grad = None
    return taken


def _added_up(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of scalars over tensors and ranks, with one collective for each way of sharding.

    Args:
        parts: Tensors, and what this rank's share of each adds.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    groups: dict[Any, list[Tensor]] = defaultdict(list)
    for tensor, part in parts:
        layout = (tensor.device_mesh, tuple(tensor.placements)) if isinstance(tensor, DTensor) else None
        groups[layout].append(part)
    sums = []
    for layout, local in groups.items():
        total = torch.stack(local).sum()
        if layout is not None:
            mesh, placements = layout
            # What is replicated (HSDP) is there once; what is sharded adds up.
            kinds = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
            total = DTensor.from_local(total, mesh, kinds, run_check=False).full_tensor()
        sums.append(total)
    return torch.stack(sums).sum()


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all `tensors` taken as one vector, a scalar tensor in at least float32."""
    norms = [torch.linalg.vector_norm(local(tensor), dtype=_precise(tensor)) for tensor in tensors]
    return _added_up(zip(tensors, (norm * norm for norm in norms), strict=True)).sqrt()


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors, each taken as one vector, a scalar tensor."""
    return _added_up((a, (local(a) * local(b)).sum(dtype=_precise(a))) for a, b in zip(left, right, strict=True))


def _precise(tensor: Tensor) -> torch.dtype:
    """Return what sums over a tensor are taken in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


@torch.no_grad()
def scale_(tensors: Sequence[Tensor], factor: float | Tensor) -> None:
    """Multiply `tensors` by `factor` in place."""
    multiply_each_([local(tensor) for tensor in tensors], factor)


@torch.no_grad()
def add_(tensors: Iterable[Tensor], others: Sequence[Tensor], factor: float = 1.0) -> None:
    """Add `factor` times `others` to `tensors` in place."""
    add_each_([local(tensor) for tensor in tensors], [local(other) for other in others], factor)


@dataclass(frozen=True)
class Perturbation:
    """What a perturbation really did to the weights, after rounding.

    Attributes:
        ratio: Its length over the intended radius; 1 when nothing was lost, 0 when everything was.
        cosine: Its cosine with the intended direction; 1 when nothing was lost, 0 when everything was.
        norm: Length of the gradient that gives the direction.

    Ratio and cosine are nan where nothing was intended: for a gradient of zero.
    """

    ratio: float
    cosine: float
    norm: float


@contextmanager
def restored(parameters: Mapping[str, Parameter]) -> Iterator[list[Tensor]]:
    """Inside the block the weights may be moved by anything; on exit, also when it raises, they are what they were, bit for bit.

    Args:
        parameters: The trainable parameters, by name.

    Yields:
        Copies of the weights.
    """
    weights = [parameter.detach() for parameter in parameters.values()]
    saved = [weight.clone() for weight in weights]
    try:
        yield saved
    finally:
        with torch.no_grad():
            copy_each_([local(weight) for weight in weights], [local(old) for old in saved])


@contextmanager
def perturbed(
    parameters: Mapping[str, Parameter], radius: float, compute_dtype: torch.dtype | None = None
) -> Iterator[Perturbation]:
    """Move `parameters` by `radius` along their normalised gradient, and put them back bit for bit on exit.

    Inside the block the weights are `w + radius · g / (‖g‖ + 1e-7)` with one norm over all parameters; a negative
    radius is a simulated step of gradient descent. On exit, also when the block raises, the weights are copied back
    from a saved copy: adding the perturbation back would drift in low precision. Finish every backward pass that
    needs the old weights before entering.

    Args:
        parameters: The trainable parameters, by name; their `.grad` is read on entry and left alone.
        radius: Length of the step in weight space.
        compute_dtype: What forward passes round the weights to, where that is coarser than their own precision.

    Yields:
        How much of the intended perturbation survived the precision that the forward pass sees the weights in.

    Raises:
        TiterError: When a parameter has no gradient.
    """
    directions = gradients(parameters)
    weights = [parameter.detach() for parameter in parameters.values()]
    norm = global_norm(directions).item()
    with restored(parameters) as saved:
        add_(weights, directions, radius / (norm + NORM_EPSILON))
        survived = _surviving(weights, saved, directions, radius, norm, compute_dtype)
        del directions  # so that a caller who lets go of the gradient frees it
        yield survived


@torch.no_grad()
def _surviving(
    weights: Sequence[Tensor],
    saved: Sequence[Tensor],
    directions: Sequence[Tensor],
    radius: float,
    norm: float,
    compute_dtype: torch.dtype | None,
) -> Perturbation:
    """Compare the move from `saved` to `weights` with the intended one, tensor by tensor to save memory."""
    squares, products = [], []
    for weight, old, direction in zip(weights, saved, directions, strict=True):
        after, before = local(weight), local(old)
        if compute_dtype is not None:
            after, before = after.to(compute_dtype), before.to(compute_dtype)
        precise = _precise(weight)
        moved = after.to(precise) - before.to(precise)
        squares.append((weight, (moved * moved).sum()))
        products.append((weight, (moved * local(direction)).sum()))
    length, product = math.sqrt(_added_up(squares).item()), _added_up(products).item()
    if not (radius and norm):
        return Perturbation(math.nan, math.nan, norm)
    if not length:
        return Perturbation(0.0, 0.0, norm)
    return Perturbation(length / abs(radius), math.copysign(product, product * radius) / (length * norm), norm)
