"""The attention modules of a model, what they put out, and how it is perturbed while a model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

from titer.errors import TiterError

TOKENS = 8
"""Length of the row that a model is tried on."""


def attention_modules(model: Any) -> dict[str, Module]:
    """Return the attention modules of a bare model by name, in the order in which they run.

    Candidates are the outermost modules inside of a block (an item of a `ModuleList`) whose class is called attention; a
    forward pass of one row says which of them run (cross-attention without an encoder does not), in which order, and
    whether each puts out hidden states. In a model that has attention in some blocks only, they are those.

    Args:
        model: A causal language model of transformers, without the wrapper of an adapter.

    Raises:
        TiterError: When there is none, one runs more than once in a pass, or one puts out something else.
    """
    candidates = {module: name for name, module in _candidates(model)}
    runs: Counter[Module] = Counter()
    outputs: dict[Module, Any] = {}

    def look(module: Module, inputs: Any, output: Any) -> None:
        runs[module] += 1
        outputs[module] = output

    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as hooks, torch.no_grad():
        for module in candidates:
            hooks.callback(module.register_forward_hook(look).remove)
        model.eval()
        try:
            model(input_ids=torch.arange(TOKENS, device=next(model.parameters()).device)[None])
        finally:
            for module, training in modes:
                module.training = training
    kind, width = type(model).__name__, getattr(model.config.get_text_config(), "hidden_size", None)
    if not runs:
        raise TiterError(
            f"No attention module was found in {kind}, whose outputs were to be perturbed.",
            "Use a model with attention: what is looked for are modules inside of its blocks whose class is called so.",
        )
    for module, times in runs.items():
        name, states = candidates[module], _hidden(outputs[module])
        if times > 1:
            raise TiterError(
                f"`{name}` of {kind} runs {times} times in a pass, so its outputs cannot be told apart.",
                "Use a model whose blocks each have attention of their own.",
            )
        if states is None or states.ndim < 2 or states.shape[-1] != width or states.shape[-2] != TOKENS:
            raise TiterError(f"`{name}` of {kind} puts out no hidden states of width {width}.", "Use another model.")
    return {candidates[module]: module for module in runs}


def _candidates(model: Module) -> Iterator[tuple[str, Module]]:
    """Yield the outermost modules inside of blocks whose class is called attention."""
    blocks, inside = [], ""
    for name, module in model.named_modules():  # a module comes before those inside of it
        if isinstance(module, ModuleList):
            blocks += [f"{name}.{place}." for place in range(len(module))]
        if inside and name.startswith(inside):
            continue
        if "attention" in type(module).__name__.lower() and any(name.startswith(block) for block in blocks):
            inside = f"{name}."
            yield name, module


def _hidden(output: Any) -> Tensor | None:
    """Return the hidden states that a module put out: its output, or the first of several."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else None


def hidden(output: Any) -> Tensor:
    """Return the hidden states that an attention module put out."""
    states = _hidden(output)
    if states is None:
        raise TiterError("An attention module that put out hidden states when it was tried puts out none now.")
    return states


@contextmanager
def watched(modules: Mapping[str, Module]) -> Iterator[dict[str, Tensor]]:
    """Yield what each module puts out in a forward pass inside of the block, by name; gradients can be asked of it."""
    seen: dict[str, Tensor] = {}

    def watching(name: str) -> Callable[[Module, Any, Any], None]:
        def look(module: Module, inputs: Any, output: Any) -> None:
            # Where nothing below is trained it is a leaf that has to be told; elsewhere this changes nothing.
            seen[name] = hidden(output).requires_grad_()

        return look

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(watching(name)).remove)
        yield seen


def add_to_output(module: Module, move: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Let a module put out `move(states)` in the place of its hidden states; returns what takes that back."""

    def moved(module: Module, inputs: Any, output: Any) -> Any:
        states = move(hidden(output))
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return module.register_forward_hook(moved).remove
