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
        # Owner → A (rank, in), B (out, rank) and the factor on their product. They belong to the owners' own models, so this
        # module does not register them.
        self.adapters: dict[int, tuple[Tensor, Tensor, float]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + s_k B_k A_k x, with k the owner that each token belongs to."""
        output: Tensor = self.base(x)
        if all(owner not in self.adapters for owner, _ in self.seating.sizes):
            return output
        deltas = []
        parts = x.split([size for _, size in self.seating.sizes], self.seating.dim)
        for (owner, _), part in zip(self.seating.sizes, parts, strict=True):
            if owner in self.adapters:
                down, up, scaling = self.adapters[owner]
                deltas.append(F.linear(F.linear(part.to(down), down), up) * scaling)
            else:
                deltas.append(part.new_zeros(*part.shape[:-1], output.shape[-1]))
        return (output + torch.cat(deltas, self.seating.dim)).to(output.dtype)
