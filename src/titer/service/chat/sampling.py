"""Which token comes next: the likeliest, or one that is drawn with the request's own random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from titer.service.chat.pieces import Likelihood, Sampling


def penalised(scores: Tensor, sampling: Sampling, said: Mapping[int, int]) -> Tensor:
    """Return logits `(vocabulary,)` less the penalties of tokens that were said: `said` counts them."""
    if not said or not (sampling.frequency_penalty or sampling.presence_penalty):
        return scores
    tokens = torch.tensor(list(said), device=scores.device)
    counts = torch.tensor(list(said.values()), device=scores.device, dtype=scores.dtype)
    return scores.index_add(0, tokens, -(counts * sampling.frequency_penalty + sampling.presence_penalty))


def probabilities(scores: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return what tokens are drawn with, `(vocabulary,)` in float64; those outside of `top_p` have none.

    Args:
        scores: Logits, with penalties.
        temperature: Above 0.
        top_p: The fewest tokens, the likeliest first, that have this much together.
    """
    scores = scores.double()
    # The largest becomes 0 first, for a temperature that is next to nothing would make all of them infinite.
    found = ((scores - scores.max()) / temperature).softmax(-1)
    if top_p < 1:
        ordered, tokens = found.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        out = before >= top_p
        out[0] = False
        found[tokens[out]] = 0
    return found


def choose(scores: Tensor, sampling: Sampling, numbers: random.Random, said: Mapping[int, int]) -> int:
    """Return the next token.

    One random number is drawn for a token, and tokens lie side by side in the vocabulary's order, as wide as they are likely. What
    rounding changes in a batch of another size moves their borders by as little.

    Args:
        scores: Logits `(vocabulary,)`.
        sampling: How to choose.
        numbers: The answer's random numbers.
        said: How often each token was said.
    """
    scores = penalised(scores, sampling, said)
    if sampling.temperature == 0:
        return int(scores.argmax())
    borders = probabilities(scores, sampling.temperature, sampling.top_p).cpu().cumsum(-1)
    drawn = numbers.random() * float(borders[-1])
    # The first border beyond the number: a token without width is never drawn.
    return min(int(torch.searchsorted(borders, drawn, right=True)), len(borders) - 1)


def likelihood(scores: Tensor, token: int, top: int, decode: Callable[[list[int]], str]) -> Likelihood:
    """Return how likely a token was.

    Args:
        scores: Logits `(vocabulary,)`, without penalties.
        token: The one that was chosen.
        top: How many of the likeliest to name.
        decode: Makes text of token ids.
    """
    logs = scores.double().log_softmax(-1)
    values, tokens = logs.topk(min(top, len(logs)))
    likeliest = [(decode([int(one)]), float(value)) for one, value in zip(tokens, values, strict=True)]
    return Likelihood(decode([token]), float(logs[token]), likeliest)
