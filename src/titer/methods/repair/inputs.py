"""How large the inputs of adapted layers are on rows of the defender's, for repairs that weigh numbers by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from titer.compat import adapted_layers
from titer.data.records import Record
from titer.errors import TiterError
from titer.methods.repair.lowrank import Inputs, Layer
from titer.models import Template
from titer.progress import Task
from titer.train.rows import Encoder

STREAM = "harmful_dataset"


def encoded(records: Sequence[Record], tokenizer: Any, config: Any) -> list[list[int]]:
    """Return the token ids of rows, each prompt with its answer.

    Raises:
        TiterError: For no rows, and for one that the model cannot run; names it.
    """
    if not records:
        raise TiterError(f"`{STREAM}` has no rows.", "Give harmful prompts with answers; `builtin:harmful` has some.")
    rows = [{**record.to_training_row(), "where": record.where} for record in records]
    pairs = Encoder(Template(tokenizer), None, config).pairs(rows, STREAM)
    return [[*prompt, *completion] for prompt, completion in pairs]


@torch.no_grad()
def with_inputs(layers: Mapping[str, Layer], model: Any, rows: Sequence[Sequence[int]]) -> dict[str, Layer]:
    """Return layers with their `inputs`, over all tokens of rows that run through a model one by one.

    Args:
        layers: What two adapters change.
        model: The base with the tuned adapter on it.
        rows: Token ids.

    Raises:
        TiterError: When the model has no adapter at one of the layers, or an input is no number.
    """
    found = dict(adapted_layers(model.base_model.model))
    missing = [name for name in layers if name not in found]
    if missing:
        raise TiterError(f"The tuned model has no adapted layer `{missing[0]}`.", "Repair adapters of one base model.")
    device = next(model.parameters()).device
    # Not every accelerator knows float64.
    precision = torch.float32 if device.type == "mps" else torch.float64
    squares: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        layer = layers[name]
        whole = layer.alignment + layer.update if layer.tuned is None else layer.tuned
        into = [factor.a.to(device, precision) for factor in (layer.update, whole)]
        squares[name] = [torch.zeros(into[0].shape[1]), *(torch.zeros(a.shape[0]) for a in into)]
        squares[name] = [total.to(device, precision) for total in squares[name]]

        def add(module: Any, args: tuple[Any, ...]) -> None:
            x = args[0].to(precision).flatten(0, -2)  # (tokens, in)
            for total, inputs in zip(squares[name], (x, *(x @ a.T for a in into)), strict=True):
                total += inputs.square().sum(0)

        return add

    tokens = sum(map(len, rows))
    training = model.training
    model.eval()
    with ExitStack() as hooks, Task("harmful rows", len(rows)) as done:
        for name in layers:
            hooks.callback(found[name].register_forward_pre_hook(watch(name)).remove)
        for ids in rows:
            model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
            done.advance()
    model.train(training)
    means = {name: [(total.cpu().double() / tokens).sqrt() for total in totals] for name, totals in squares.items()}
    for name, sizes in means.items():
        if not all(size.isfinite().all() for size in sizes):
            raise TiterError(f"The inputs of `{name}` are no finite numbers under the tuned model.")
    return {name: dataclasses.replace(layer, inputs=Inputs(*means[name])) for name, layer in layers.items()}
