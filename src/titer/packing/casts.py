"""Frozen weights under autocast: cast once, and not anew in every pass.

Autocast keeps the casts of weights that are trained and makes those of frozen weights again at every call, which in decoding is
most of the work: a pass of one token a row reads all weights in float32 and writes them in 16 bits to read them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from titer.compat import times_changed


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Within it, frozen linear layers keep their weights as autocast casts them; what they give is the same to the bit.

    Memory: one copy of these weights in 16 bits, once they were needed. Outside of autocast, and for weights that are
    trained, nothing is kept; of weights that change, the cast is made anew, unless they change through `.data`.

    Args:
        model: With weights in float32; others are left as they are.
    """
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear and layer.weight.dtype == torch.float32 and "forward" not in vars(layer)
    ]
    for layer in layers:
        vars(layer)["forward"] = _forward(layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _forward(layer: nn.Linear, plainly: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    kept: tuple[Tensor, tuple[object, ...]] | None = None

    def forward(input: Tensor) -> Tensor:
        nonlocal kept
        weight, kind = layer.weight, input.device.type
        if not torch.is_autocast_enabled(kind) or weight.requires_grad:
            kept = None
            return plainly(input)
        dtype = torch.get_autocast_dtype(kind)
        now = (dtype, weight.data_ptr(), times_changed(weight))
        if kept is None or kept[1] != now:
            kept = weight.detach().to(dtype), now
        return nn.functional.linear(input, kept[0], layer.bias)

    return forward
