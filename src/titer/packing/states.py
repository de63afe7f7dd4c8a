"""What layers of a model put out, without running what comes behind them where nobody asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from titer.packing.alone import bare_model
from titer.packing.batches import PackedBatch
from titer.packing.losses import hidden_states, token_nll


class _Enough(Exception):
    """All states that were asked for are there."""


def layer_stack(bare: Any) -> list[Any]:
    """Return the layers of a decoder, first to last; none where it has not exactly one stack of as many as its config says."""
    depth = bare.config.get_text_config().num_hidden_layers
    lists = [each for each in bare.get_decoder().children() if isinstance(each, torch.nn.ModuleList)]
    stacks = [list(each) for each in lists if len(each) == depth]
    return stacks[0] if len(stacks) == 1 else []


class StateReader:
    """Reads the hidden states of some layers where tokens are predicted.

    A pass ends at the layer behind the last one that is asked for: what a frozen model is asked for here stands in the middle of
    its depth, and a fifth of it and the output head come after. Whether that gives what a whole pass gives is seen on the first
    batch, which is run both ways; where it does not, passes are whole.

    Args:
        model: A causal language model, bare or with an adapter.
        layers: Which layers put the states out; 0 is the embedding.

    Attributes:
        stops: Whether passes end early; `None` before the first.
    """

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        self.model = model
        self.layers = list(layers)
        self.stops: bool | None = None

    @torch.no_grad()
    def __call__(self, batch: PackedBatch) -> Tensor:
        """Return the states `(N, layers, hidden_size)` in float32 of a batch's supervised tokens, where they are predicted."""
        stopped = None if self.stops is False else self._stopped(batch)
        if self.stops and stopped is not None:
            return stopped
        _, output = token_nll(self.model, batch, output_hidden_states=True)
        whole = hidden_states(output.hidden_states, batch, self.layers, batch["predict_from"])
        self.stops = stopped is not None and stopped.shape == whole.shape and torch.allclose(stopped, whole, 1e-4, 1e-4)
        return whole

    def _stopped(self, batch: PackedBatch) -> Tensor | None:
        """Return the states from a pass that ends early; nothing where the model is built so that none can."""
        stack, last = layer_stack(bare_model(self.model)), max(self.layers)
        if last >= len(stack):  # what the last layer puts out is read behind the norm that follows it
            return None
        entering: dict[int, Tensor] = {}
        places = set(self.layers)

        def enter(place: int, module: Any, args: Any, named: dict[str, Any]) -> None:
            states = args[0] if args else named.get("hidden_states")
            if isinstance(states, Tensor):
                entering[place] = states
            if place == last and len(entering) == len(places):
                raise _Enough

        with ExitStack() as hooks:
            for place in places:
                handle = stack[place].register_forward_pre_hook(partial(enter, place), with_kwargs=True)
                hooks.callback(handle.remove)
            try:
                token_nll(self.model, batch)
            except _Enough:
                return hidden_states(entering, batch, self.layers, batch["predict_from"])
        return None
