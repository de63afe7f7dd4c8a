"""What a plain LoRA adapter adds to a model, for methods that go by what the alignment changed."""

from __future__ import annotations

from typing import Any, NamedTuple

from titer.compat import adapted_layers, plain_lora
from titer.errors import TiterError
from titer.models import PLAIN_STARTS
from titer.train.trainer import PackedSFTTrainer


class Factors(NamedTuple):
    """What an adapter holds for one layer: it adds `scale` B A to the layer's weight.

    Attributes:
        a: A, `(r, in)`.
        b: B, `(out, r)`.
        scale: α/r.
    """

    a: Any
    b: Any
    scale: float


def plain_factors(trainer: PackedSFTTrainer, method: str) -> list[Factors]:
    """Return what the adapter that is trained holds for each layer that it changes, as it is now.

    Args:
        trainer: Of the method.
        method: Its name, for errors.

    Raises:
        TiterError: Where what was added to the base is not the products B A of one adapter.
    """
    layers = []
    for name, module in adapted_layers(trainer.model):
        found = plain_lora(module)
        if found is None:
            active = ", ".join(module.active_adapters)
            raise TiterError(
                f"{method} goes by plain LoRA adapters of linear layers, and what was added to `{name}` ({active}) is more than "
                "a product of two matrices.",
                "Align with one adapter of linear layers, without DoRA or biases.",
            )
        start = trainer.model.peft_config[module.active_adapters[0]].init_lora_weights
        if start not in PLAIN_STARTS:
            raise TiterError(
                f"The adapter began with `init_lora_weights={start}`, which changes the base's weights, so what it adds is "
                "not what the alignment added.",
                "Align with an adapter that leaves its base alone.",
            )
        layers.append(Factors(*found))
    if not layers:
        raise TiterError(
            f"{method} goes by what the alignment added to the base model, and of a model whose own weights are trained that "
            "is not known.",
            "Align and fine-tune a LoRA adapter: `titer align` and `titer finetune` do.",
        )
    known = {id(factor) for layer in layers for factor in (layer.a, layer.b)}
    others = [name for name, weight in trainer.trainable.items() if id(weight) not in known]
    if others:
        raise TiterError(
            f"{method} goes by the weights of an adapter, and `{others[0]}` is trained too.",
            "Align with an adapter without biases, embeddings or modules that are trained as a whole.",
        )
    if not any(bool(layer.b.any() and layer.a.any()) for layer in layers):
        raise TiterError(
            f"{method} goes by what the alignment added to the model, and the adapter adds nothing.",
            "Fine-tune an aligned model, with the adapter that its alignment left (`titer align`).",
        )
    return layers
