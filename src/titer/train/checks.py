"""What titer refuses to train, beside settings: arguments, weights, noise where none may be, what ran away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from titer.errors import RanAway, TiterError
from titer.models import refuse_nonfinite
from titer.packing.alone import bare_model
from titer.packing.batches import Layout
from titer.packing.noise import is_noisy
from titer.progress import Task
from titer.train.config import PackedSFTConfig


def refuse_arguments(trainer: str, given: Mapping[str, Any]) -> None:
    """Raise for arguments, by name, with which a trainer of this name would not train as titer does."""
    if not isinstance(given["args"], PackedSFTConfig):
        raise TiterError(
            f"`args` must be a titer config, not {type(given['args']).__name__}.",
            f"Use the config of `{trainer}`, which takes the same settings as `trl.SFTConfig`.",
        )
    for name in ("data_collator", "formatting_func", "compute_loss_func"):
        if given.get(name) is not None:
            raise TiterError(f"`{name}` would bypass titer's packing.", "Pass conversations as rows instead.")
    if given.get("compute_metrics") is not None:
        raise TiterError(
            "`compute_metrics` wants padded rows of logits, which titer does not compute.",
            "Leave it off: `evaluate()` reports the loss, and `titer evaluate` scores answers.",
        )
    if given["train_dataset"] is None:
        raise TiterError("`train_dataset` is missing.")


def refuse_untrainable(weights: Mapping[str, Parameter]) -> None:
    """Raise where there are no weights to train, or too coarse ones."""
    if not weights:
        raise TiterError("The model has no trainable weights.", "Load the adapter as trainable, or pass `peft_config`.")
    if any(weight.dtype == torch.float16 for weight in weights.values()):
        raise TiterError(
            "Trainable weights are in float16, where small steps and differences of gradients over- or underflow.",
            "Load the model in float32 or bfloat16, or train an adapter in float32.",
        )


def refuse_noise(model: Any, layout: Layout, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], why: str) -> None:
    """Raise when two passes over one batch of `pairs` differ by random numbers: dropout, dropped layers, jitter, …"""
    with Task("looking for noise"):
        noisy = is_noisy(model, layout, pairs)
    if not noisy:
        return
    bare = bare_model(model)
    suspects = [
        name for name, module in model.named_modules() if getattr(module, "p", 0) and "Drop" in type(module).__name__
    ]
    suspects += [
        name
        for name, value in bare.config.get_text_config().to_dict().items()
        if isinstance(value, float) and value > 0 and any(word in name for word in ("drop", "jitter", "noise"))
    ]
    where = f" (`{suspects[0]}` may be why)" if suspects else ""
    raise TiterError(
        f"Dropout or other noise is on{where}: two passes of {type(bare).__name__} over the same rows differ, {why}",
        "Set lora_dropout=0 and, in the model's config, every dropout, layerdrop and jitter to 0.",
    )


def refuse_runaway_weights(weights: Mapping[str, Parameter]) -> None:
    """Raise for trained weights that are not finite."""
    try:
        refuse_nonfinite("The model to be saved", weights.items())
    except TiterError as error:
        raise RanAway(error.message, error.hint) from None


def ran_away(args: Any, step: int, what: str, value: float) -> RanAway:
    """Return the error, with the likely cause, for a loss that is no finite number.

    Args:
        args: The training's settings.
        step: Optimizer steps that were taken before.
        what: Which loss it is.
        value: What it came to.
    """
    names = [name for name in ("alpha", "rho") if hasattr(args, name)]
    # Before the first update, the learning rate has changed nothing.
    names = ["learning_rate", *names] if step else names
    causes = [f"{name}={getattr(args, name):g}" for name in names] or ["the weights that it began with"]
    causes += ["bf16"] * bool(args.bf16)
    remedies = [f"Make {' or '.join(names)} smaller" if names else "Begin with other weights"]
    remedies += ["set bf16=false"] * bool(args.bf16)
    return RanAway(
        f"The training ran away: at step {step + 1} its {what} is {value}. The likely cause is {' or '.join(causes)}.",
        f"{', or '.join(remedies)}.",
    )
