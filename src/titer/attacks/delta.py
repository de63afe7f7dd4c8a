"""Removal of what a defence added to a public model: W_defended − W_base without its leading directions, nothing trained.

A defence that is released as a fine-tune of a public model is the difference of two matrices that anybody can take. Where it
is a low-rank one (an adapter, or as good as one), its leading singular directions are the defence (abliterix, issue 11, where
all of it is dropped). Whoever holds the adapter by itself needs none of this: they leave it out, which `energy: 1` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titer.errors import AttackFailed, TiterError
from titer.progress import counted


class Removal(NamedTuple):
    """What was taken out of a model.

    Attributes:
        matrices: How many matrices differed from the base's.
        directions: Singular directions that were dropped of all of them together.
        energy: Part of the squared singular values, of all of them together, that these held.
    """

    matrices: int
    directions: int
    energy: float


def leading(sizes: Tensor, energy: float, directions: int | None = None) -> int:
    """Return how many leading singular directions are dropped.

    Args:
        sizes: Singular values, falling, `(rank,)`.
        energy: The fewest are dropped that hold this part of Σ σ², in (0, 1].
        directions: How many to drop whatever they hold; `None` for as many as `energy` says.
    """
    if directions is not None:
        return min(directions, len(sizes))
    held = (sizes.double() ** 2).cumsum(0)
    if energy == 1 or not len(sizes):
        return len(sizes)
    return int((held < energy * held[-1]).sum()) + 1


@torch.no_grad()
def remove_difference(model: Any, base: Any, energy: float, directions: int | None = None) -> Removal:
    """Drop the leading directions of what a model's matrices differ by from those of its base, in place.

    What is no matrix (norms, biases, experts in one tensor) goes back to the base's as a whole.

    Args:
        model: The model under attack.
        base: The public model that it was made from.
        energy: As of `leading`.
        directions: As of `leading`.

    Raises:
        AttackFailed: For a base of another architecture, or one that the model does not differ from.
    """
    own, public = dict(model.named_parameters()), dict(base.named_parameters())
    strange = sorted(
        name
        for name in own.keys() | public.keys()
        if name not in own or name not in public or own[name].shape != public[name].shape
    )
    if strange:
        raise AttackFailed(f"The base has other weights than the model: {len(strange)}, such as `{strange[0]}`.")
    changed = [name for name, weight in own.items() if not torch.equal(weight, public[name].to(weight))]
    if not changed:
        raise AttackFailed("The model is its base: there is nothing to remove.")
    taken: list[tuple[int, float, float]] = []
    for name in counted("matrix", changed):
        weight, before = own[name], public[name].to(own[name])
        if weight.ndim != 2:
            weight.copy_(before)
            continue
        precise = torch.promote_types(weight.dtype, torch.float32)
        u, sizes, v = torch.linalg.svd(weight.to(precise) - before.to(precise), full_matrices=False)
        count = leading(sizes, energy, directions)
        if count == len(sizes):
            weight.copy_(before)  # bit for bit, which a difference that is added again would not be
        else:
            weight.sub_(((u[:, :count] * sizes[:count]) @ v[:count]).to(weight))
        taken.append(_taken(sizes, count))
    return _removal(taken)


@torch.no_grad()
def add_rest(base: Any, adapter: Any, energy: float, directions: int | None = None) -> Removal:
    """Add what is left of an adapter's products to its base, in place, their leading directions dropped.

    The products are those that merging would add, so nothing of them is lost in the rounding of merged weights.

    Args:
        base: The adapter's base model.
        adapter: A plain LoRA adapter (`titer.methods.repair.adapters.Adapter`).
        energy: As of `leading`.
        directions: As of `leading`.
    """
    taken: list[tuple[int, float, float]] = []
    for name in counted("matrix", list(adapter.factors)):
        product = adapter.matrix(name).compact()
        sizes = product.a.norm(dim=1)
        count = leading(sizes, energy, directions)
        rest = product.b[:, count:] @ product.a[count:]
        weight = base.get_submodule(name).weight
        weight.add_((rest.T if adapter.config.fan_in_fan_out else rest).to(weight))
        taken.append(_taken(sizes, count))
    return _removal(taken)


def _taken(sizes: Tensor, count: int) -> tuple[int, float, float]:
    squares = sizes.double() ** 2
    return count, float(squares[:count].sum()), float(squares.sum())


def _removal(taken: list[tuple[int, float, float]]) -> Removal:
    whole = sum(total for _, _, total in taken)
    return Removal(
        len(taken), sum(count for count, _, _ in taken), sum(held for _, held, _ in taken) / whole if whole else 1.0
    )


def undefended(
    name: str,
    load: Callable[[str], Any],
    make_copy: Callable[[], Any],
    base: str,
    energy: float,
    directions: int | None = None,
) -> tuple[Any, Removal]:
    """Return a model without the leading directions of its defence, and what was removed.

    Args:
        name: The model under attack; an adapter brings its base.
        load: Loads a model by its name, one that may be changed.
        make_copy: Returns a copy of the model under attack that may be changed.
        base: The public model to compare with; an adapter's own where it is empty.
        energy: As of `leading`.
        directions: As of `leading`.

    Raises:
        AttackFailed: For a whole model where no base is named, or one that is not what it was made from.
    """
    from titer.methods.repair.adapters import read_adapter
    from titer.models import split_adapter

    own, adapter = split_adapter(name)
    if base:
        changed = make_copy()
        return changed, remove_difference(changed, load(base), energy, directions)
    if adapter is None:
        raise AttackFailed(
            f"`{name}` is a whole model, and the public model that it was made from is not named.",
            "Name it as `base` of the attack.",
        )
    try:
        read = read_adapter(Path(adapter), own)
    except TiterError as error:
        raise AttackFailed(
            f"The adapter of `{name}` is no plain LoRA: {error.message}", "Name its base as `base` of the attack."
        ) from error
    bare = load(own)
    return bare, add_rest(bare, read, energy, directions)
