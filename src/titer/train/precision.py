"""What is trained stays in float32 where the library would round it: the adapter of a quantised base.

TRL casts such an adapter to bfloat16 when a trainer is made, after QLoRA (arXiv 2305.14314). A perturbation of its weights, or a small
learning rate, would be lost in that; an adapter that goes on would lose what it had learned below a part in 256.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter


def trained_before(model: Any) -> dict[Parameter, Tensor]:
    """Return what the trained weights of a model hold, before a trainer is made of it; nothing of a model's name."""
    if not isinstance(model, Module):
        return {}
    return {weight: weight.data for weight in model.parameters() if weight.requires_grad}


def restore_precision(model: Any, before: dict[Parameter, Tensor]) -> None:
    """Give the adapter of a quantised base back what it held before, and make a new one's weights float32.

    Args:
        model: The model of the trainer that was made.
        before: What `trained_before` returned.
    """
    if not (getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)):
        return
    for weight in model.parameters():
        if weight.requires_grad:
            held = before.get(weight)
            weight.data = weight.data.to(torch.float32) if held is None else held
