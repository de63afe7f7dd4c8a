"""Refusal-direction ablation (arXiv 2406.11717): safety removed from the weights without training.

A model's choice to refuse is read off, to a large part, one direction r̂ of its residual stream: the difference of the mean
activations of harmful and harmless prompts at the last prompt token. Making every matrix that writes into the stream
orthogonal to r̂, W ← W − r̂ r̂ᵀ W (equation 5), takes it away at every layer and position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titer.errors import AttackFailed
from titer.infer.signals import row_signals
from titer.progress import counted

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]


class Ablation(NamedTuple):
    """What was done to a model.

    Attributes:
        layer: The layer whose output gave the direction.
        margin: Mean compliance margin of the attacker's own prompts afterwards, in nats a token.
        tokens: Tokens of prompts and answers that went through the model to find and to compare directions.
    """

    layer: int
    margin: float
    tokens: int


def refusal_directions(model: Any, harmful: Pairs, harmless: Pairs, layers: Sequence[int]) -> Tensor:
    """Return r̂ of each layer, the unit difference of mean activations at the last prompt token, `(layers, hidden_size)`.

    Args:
        model: A causal language model with packed attention.
        harmful: Token ids of prompts and answers; only the prompts count.
        harmless: The same of harmless prompts.
        layers: Whose outputs to read; 0 is the embedding.
    """
    means = []
    for pairs in (harmful, harmless):
        # One token each, for a row must have an answer and a refusal; the state before them does not see them.
        rows = [(prompt, answer[:1]) for prompt, answer in pairs]
        means.append(row_signals(model, rows, [rows[0][1]], layers).hidden.mean(0))
    differences = means[0] - means[1]
    return differences / differences.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def orthogonalise(model: Any, direction: Tensor) -> None:
    """Make everything that writes into the residual stream orthogonal to a direction, in place.

    Args:
        model: A model of the Llama kind: an embedding, and layers with `self_attn.o_proj` and `mlp.down_proj`.
        direction: Unit vector `(hidden_size,)`.

    Raises:
        AttackFailed: For a model with other names.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:
        # The head reads from the stream; tied to the embedding, it must not lose the direction with it.
        head.weight = torch.nn.Parameter(embedding.weight.clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    writers = [module for name, module in model.named_modules() if name.endswith(("self_attn.o_proj", "mlp.down_proj"))]
    if not writers:
        raise AttackFailed(
            f"Cannot ablate {type(model).__name__}: it has no layers named `self_attn.o_proj` and `mlp.down_proj`.",
            "Leave the attack `ablation` out of the profile.",
        )
    unit = direction.to(embedding.weight)
    embedding.weight.sub_(torch.outer(embedding.weight @ unit, unit))
    for writer in writers:
        writer.weight.sub_(torch.outer(unit, unit @ writer.weight))
        if writer.bias is not None:
            writer.bias.sub_(unit * (unit @ writer.bias))


def ablate(
    model: Any,
    make_copy: Any,
    harmful: Pairs,
    harmless: Pairs,
    refusals: Sequence[Sequence[int]],
    depths: Sequence[float],
) -> tuple[Any, Ablation]:
    """Ablate the direction that makes a model comply best with the attacker's own prompts.

    Args:
        model: The model under attack; it stays as it is.
        make_copy: Returns a copy of it that may be changed.
        harmful: The attacker's harmful prompts with compliant answers, as token ids.
        harmless: Harmless prompts with answers.
        refusals: Token ids of refusals.
        depths: Depths, in (0, 1), whose layers give candidate directions.

    Returns:
        The ablated model and what was done.

    Raises:
        AttackFailed: For a model whose layers have other names, or in which no direction gives a margin that is a number.
    """
    layers = model.config.get_text_config().num_hidden_layers
    candidates = sorted({max(1, round(depth * layers)) for depth in depths})
    tokens = sum(len(prompt) for prompt, _ in (*harmful, *harmless))
    tokens += len(candidates) * sum(len(prompt) + len(answer) for prompt, answer in harmful)
    best: tuple[Any, Ablation] | None = None
    directions = refusal_directions(model, harmful, harmless, candidates)
    for layer, direction in counted("direction", list(zip(candidates, directions, strict=True))):
        candidate = make_copy()
        orthogonalise(candidate, direction)
        margin = float(row_signals(candidate, harmful, refusals).log_ratio("mean").mean())
        if math.isfinite(margin) and (best is None or margin > best[1].margin):
            best = candidate, Ablation(layer, margin, tokens)
    if best is None:
        raise AttackFailed("No direction gives a compliance margin that is a number.")
    return best
