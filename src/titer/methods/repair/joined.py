"""Two plain LoRA adapters as one: at each layer the sum of their products, by B and A beside each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from titer.methods.repair.adapters import Adapter, write_factors


def write_joined(tuned: Adapter, added: Adapter, folder: Path, tokenizer: Any) -> None:
    """Write the adapter that adds to its base what two of them do, exactly up to the rounding of one factor.

    B = [B_t, B_a s_a/s_t] and A = [A_t; A_a]: the tuned one's factors stay as they are, bit for bit. Ranks grow as in every repair
    (with zeros in layers that need less, unless the tuned adapter has ranks of its own for some).

    Args:
        tuned: The one whose config is kept.
        added: The other one.
        folder: Where it goes.
        tokenizer: What goes with it.
    """
    config, root = tuned.config, 0.5 if tuned.config.use_rslora else 1.0
    factors, scales = {name: dict(pair) for name, pair in tuned.factors.items()}, dict(tuned.scales)
    like = dict(tuned.factors)
    for name, theirs in added.factors.items():
        scale = scales.setdefault(name, config.lora_alpha / config.r**root)
        b = theirs["B"].double() * (added.scales[name] / scale)
        if name in factors:
            own = factors[name]
            pair = {
                "B": torch.cat((own["B"], b.to(own["B"].dtype)), 1),
                "A": torch.cat((own["A"], theirs["A"].to(own["A"].dtype))),
            }
        else:
            pair = {"B": b.to(theirs["B"].dtype), "A": theirs["A"]}
            # As if the tuned one had the layer, with an update of zero and the rank that its config says.
            like[name] = {
                "A": theirs["A"].new_zeros(config.r, theirs["A"].shape[1]),
                "B": b.new_zeros(len(b), config.r),
            }
            like[name]["B"] = like[name]["B"].to(theirs["B"].dtype)
        factors[name] = pair
    if like.keys() != tuned.factors.keys():
        # The names of all layers, since the tuned one's settings do not lead to the new ones.
        config = dataclasses.replace(
            config, target_modules=set(like), exclude_modules=None, layers_to_transform=None, layers_pattern=None
        )
    write_factors(Adapter(tuned.folder, config, like, scales), factors, folder, tokenizer)
