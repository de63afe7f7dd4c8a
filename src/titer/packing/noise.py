"""Whether a model in training mode draws random numbers that show in its losses or gradients."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor

from titer.packing.alone import TOLERANCE, Pairs, bare_model, cannot, rows_to_try
from titer.packing.batches import Layout, to_device
from titer.packing.losses import token_nll

REPEATS = 32
"""How often a forward pass that draws random numbers is repeated before its outcome counts as free of noise."""


def is_noisy(model: Any, layout: Layout, pairs: Pairs) -> bool:
    """Say whether two passes over the same batch in training mode may differ by random numbers, in loss or in gradient.

    A pass that leaves every generator of random numbers where it was has drawn none. One that moves them may still use
    them for nothing (a probability of zero), so it is repeated, each time with other numbers. Gradients are compared too,
    because dropout before a matrix of zeros, as in a LoRA adapter before its first step, shows in no loss.

    Args:
        model: The model, as it is trained.
        layout: How its rows are laid out.
        pairs: Rows to run; the longest and the shortest are.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    batch = to_device(layout.lay_out(rows_to_try(pairs)), device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def outcome() -> list[Tensor]:
        nll, _ = token_nll(model, batch)
        slopes = torch.autograd.grad(nll.sum(), trained, allow_unused=True) if trained else ()
        return [nll.detach(), *(slope for slope in slopes if slope is not None)]

    with torch.random.fork_rng([device] if device.type == "cuda" else []), _own_generators(), torch.enable_grad():
        model.train()
        try:
            before = _generators(device)
            first = outcome()
            if _same(before, _generators(device)):
                return False
            # Rounding may differ between passes where a device adds in no fixed order.
            limit = TOLERANCE[first[-1].dtype]
            return any(
                (again - once).norm() > limit * once.norm()
                for _ in range(REPEATS)
                for again, once in zip(outcome(), first, strict=True)
            )
        except Exception as error:
            raise cannot(bare_model(model), "train", error) from error
        finally:
            for module, training in modes:
                module.training = training


def _generators(device: torch.device) -> list[Any]:
    of_numpy: Any = numpy.random.get_state()
    states: list[Any] = [random.getstate(), of_numpy[1], torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _same(left: list[Any], right: list[Any]) -> bool:
    return left[0] == right[0] and all((a == b).all() for a, b in zip(left[1:], right[1:], strict=True))


@contextmanager
def _own_generators() -> Iterator[None]:
    python, others = random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(others)
