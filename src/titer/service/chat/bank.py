"""A base model in memory with adapters over it: any of them may own a row of a batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titer.compat import adapted_layers, plain_lora
from titer.errors import TiterError
from titer.infer.stacked import Seating, StackedLoRA, shared_copy
from titer.models import Template, add_adapter, load_model, refuse_nonfinite_logits

BASE = 0
"""Who owns the rows that the base answers by itself."""

Layers = dict[str, tuple[Tensor, Tensor, float]]
"""Of each layer that an adapter changes A, B and the factor on their product."""


@dataclass
class _Seat:
    """An adapter in memory.

    Attributes:
        owner: Its number in batches.
        layers: The layers it changes.
        rows: How many answers are being given with it.
    """

    owner: int
    layers: list[str]
    rows: int = 0


class Bank:
    """A base model, and the adapters over it that were used last.

    Args:
        name: The base model.
        template: Of it.
    """

    def __init__(self, name: str, template: Template) -> None:
        self.name, self.template = name, template
        self._base: Any = load_model(name).requires_grad_(False)
        refuse_nonfinite_logits(f"`{name}`", self._base, template.prompt_ids([{"role": "user", "content": "?"}]))
        self._model: Any = shared_copy(self._base)
        self._seating = Seating()
        self._seats: OrderedDict[str, _Seat] = OrderedDict()
        self._next = BASE + 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self._model.parameters()).device
        return found

    @property
    def adapters(self) -> list[str]:
        """The adapters in memory, the one that was not used for longest first."""
        return list(self._seats)

    def forward(self, owners: Sequence[int], **inputs: Any) -> Any:
        """Run a batch.

        Args:
            owners: Who owns each row, all rows of one together.
            inputs: As the model wants them.
        """
        self._seating.by_row(owners)
        return self._model(**inputs)

    def read(self, folder: Path) -> Layers:
        """Return the weights of an adapter; may be called in another thread while batches run.

        Raises:
            TiterError: For one that is not there, does not fit the base, or is more than LoRA.
        """
        adapted = add_adapter(shared_copy(self._base), folder)
        model = adapted.get_base_model()
        layers: Layers = {}
        for name, module in adapted_layers(model):
            found = plain_lora(module)
            if found is None:
                raise self._refusal(f"`{name}` is a {type(module).__name__} with more than A and B")
            layers[name] = found
        own = {id(weights) for weights in self._base.parameters()}
        for name, weights in adapted.named_parameters():
            if id(weights) not in own and ".lora_A." not in name and ".lora_B." not in name:
                raise self._refusal(f"it has `{name}`")
        if not layers:
            raise self._refusal("no layer of the base is adapted")
        return layers

    def _refusal(self, why: str) -> TiterError:
        return TiterError(
            f"This adapter is more than LoRA on linear layers ({why}), so it cannot share a batch with others.",
            "Load it by itself, with PEFT.",
        )

    def add(self, name: str, layers: Layers, most: int) -> bool:
        """Keep an adapter in memory; others that no answer is being given with make room, the longest unused first.

        Args:
            name: What it is called.
            layers: Its weights.
            most: How many there may be.

        Returns:
            Whether there was room.
        """
        unused = [other for other, seat in self._seats.items() if not seat.rows]
        while len(self._seats) >= most and unused:
            self.drop(unused.pop(0))
        if len(self._seats) >= most:
            return False
        owner, self._next = self._next, self._next + 1
        for layer, weights in layers.items():
            target = self._model.get_submodule(layer)
            if not isinstance(target, StackedLoRA):
                target = StackedLoRA(target, self._seating)
                self._model.set_submodule(layer, target)
            target.adapters[owner] = weights
        self._seats[name] = _Seat(owner, list(layers))
        return True

    def hold(self, name: str, rows: int) -> int | None:
        """Return the number of an adapter for so many rows that begin, or `None` when it is not in memory."""
        seat = self._seats.get(name)
        if seat is None:
            return None
        self._seats.move_to_end(name)
        seat.rows += rows
        return seat.owner

    def release(self, owner: int) -> None:
        """A row of an owner has ended."""
        for seat in self._seats.values():
            if seat.owner == owner:
                seat.rows -= 1

    def drop(self, name: str) -> bool:
        """Forget an adapter; returns whether that was possible, as no answer is being given with it."""
        seat = self._seats.get(name)
        if seat is None:
            return True
        if seat.rows:
            return False
        for layer in seat.layers:
            del self._model.get_submodule(layer).adapters[seat.owner]
        del self._seats[name]
        return True
