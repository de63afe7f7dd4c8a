"""Many LoRA adapters on one frozen base: each row, or each part of a packed row, meets the adapter of its owner on the way."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titer.packing.layouts import inherit_layout


def shared_copy(model: torch.nn.Module) -> Any:
    """Return a copy of a model's modules on the same weights: adapters on one do not show on the other.

    The weights are the very same tensors, in memory once; so they must stay frozen.
    """
    tensors = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    inherit_layout(copied, model)
    return copied


Adapter = tuple[Tensor, Tensor, float]
"""A `(rank, in)`, B `(out, rank)` and the factor on their product."""


class Seating:
    """Whose tokens lie where in the batch that the base is about to see; owners are known by a number.

    Attributes:
        dim: The dimension that owners divide: 1 for packed rows laid end to end, 0 for padded rows of a batch.
        sizes: How much of it belongs to whom, as (owner, size), in order.
    """

    def __init__(self) -> None:
        self.dim = 1
        self.sizes: list[tuple[int, int]] = []

    def side_by_side(self, lengths: Sequence[tuple[int, int]]) -> None:
        """Announce one row in which owners have so many tokens each."""
        self.dim, self.sizes = 1, list(lengths)

    def by_row(self, owners: Sequence[int]) -> None:
        """Announce a batch by the owner of each row, all rows of one together; what `generate` calls `place`."""
        self.dim, self.sizes = 0, [(owner, len(list(rows))) for owner, rows in itertools.groupby(owners)]


class StackedLoRA(torch.nn.Module):
    """A frozen linear layer with one LoRA adapter for each owner (arXiv 2106.09685).

    Args:
        base: The frozen layer.
        seating: Whose tokens lie where; shared by all layers of the model.
    """

    def __init__(self, base: torch.nn.Module, seating: Seating) -> None:
        super().__init__()
        self.base, self.seating = base, seating
        # By owner. They belong to the owners' own models, so this module does not register them.
        self.adapters: dict[int, Adapter] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + s_k B_k A_k x, with k the owner that each token belongs to."""
        output: Tensor = self.base(x)
        if all(owner not in self.adapters for owner, _ in self.seating.sizes):
            return output
        crew = [self.adapters.get(owner) for owner, _ in self.seating.sizes]
        precision = grouped_precision(x, crew)
        if precision is not None:
            tokens = x.numel() // (
                x.shape[-1] * x.shape[self.seating.dim]
            )  # of each place in the dimension that divides
            sizes = [tokens * size for _, size in self.seating.sizes]
            delta = grouped(x.reshape(-1, x.shape[-1]).to(precision), crew, sizes)
            return (output + delta.reshape(output.shape)).to(output.dtype)
        deltas = []
        parts = x.split([size for _, size in self.seating.sizes], self.seating.dim)
        for (owner, _), part in zip(self.seating.sizes, parts, strict=True):
            if owner in self.adapters:
                down, up, scaling = self.adapters[owner]
                deltas.append(F.linear(F.linear(part.to(down), down), up) * scaling)
            else:
                deltas.append(part.new_zeros(*part.shape[:-1], output.shape[-1]))
        return (output + torch.cat(deltas, self.seating.dim)).to(output.dtype)


def grouped_precision(x: Tensor, adapters: Sequence[Adapter | None]) -> torch.dtype | None:
    """Return the precision in which two grouped products take the place of two products for each owner, `None` for never.

    On an accelerator that launches a kernel for each product, those of the adapters cost more than they compute. Grouped
    products run in bf16 there, and every stride in bytes must be a multiple of 16. Elsewhere each owner has its own
    products, which is the reference.

    Args:
        x: The layer's input, features last.
        adapters: Of the owners in turn, `None` for one without.
    """
    first = next(adapter for adapter in adapters if adapter is not None)
    if x.device.type != "cuda" or len(adapters) < 2 or x.shape[-1] % 8 or len(first[1]) % 8:
        return None
    computes = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else first[0].dtype
    return torch.bfloat16 if computes is torch.bfloat16 else None


def grouped(x: Tensor, adapters: Sequence[Adapter | None], sizes: Sequence[int]) -> Tensor:
    """Return s_k B_k A_k x of all owners by two grouped products.

    Smaller ranks are filled up with zeros, exactly: a row of A that is zero gives nothing to the column of B that is zero,
    and neither is a parameter. An owner without an adapter has zeros alone.

    Args:
        x: `(tokens, in)`, owner after owner, in the precision to compute in.
        adapters: Of the owners in turn, `None` for one without.
        sizes: How many tokens each has.

    Returns:
        `(tokens, out)`, in the same precision.
    """
    present = [adapter for adapter in adapters if adapter is not None]
    rank = -8 * (-max(len(down) for down, _, _ in present) // 8)
    nothing = (x.new_zeros(rank, x.shape[-1]), x.new_zeros(len(present[0][1]), rank), 0.0)
    downs, ups, scalings = zip(*(nothing if adapter is None else adapter for adapter in adapters), strict=True)
    down = torch.stack([F.pad(a, (0, 0, 0, rank - len(a))) if len(a) < rank else a for a in downs])
    up = torch.stack([F.pad(b, (0, rank - b.shape[1])) if b.shape[1] < rank else b for b in ups])
    up = up * up.new_tensor(scalings)[:, None, None]
    ends = torch.tensor(sizes, device=x.device).cumsum(0).to(torch.int32)
    inner = F.grouped_mm(x, down.to(x.dtype).transpose(1, 2), offs=ends)
    return F.grouped_mm(inner, up.to(x.dtype).transpose(1, 2), offs=ends)
