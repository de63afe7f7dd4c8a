"""What a frozen model says of rows before it is trained on them: likelihoods of answers and refusals, hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from titer.packing.batches import Sample, to_device
from titer.packing.layouts import layout_for
from titer.packing.losses import branch_nll, hidden_states, log_likelihood_ratio, token_logits, token_nll
from titer.progress import Task

TOKENS_PER_ROW = 1024
"""How many prompt and completion tokens go into one forward pass."""

ROWS_PER_PASS = 16
"""How many answers' logits exist at a time."""


@dataclass(frozen=True)
class RowSignals:
    """Signals of `n` rows, on the CPU.

    Attributes:
        answer_nll: Summed loss of each row's own answer in nats, `(n,)`.
        answer_tokens: Its tokens, `(n,)`.
        refusal_nll: Summed loss of a refusal of the same prompt, `(n,)`.
        refusal_tokens: Its tokens, `(n,)`.
        hidden: Hidden states at the last token of the prompt, `(n, layers, hidden_size)`, of the layers asked for.
    """

    answer_nll: Tensor
    answer_tokens: Tensor
    refusal_nll: Tensor
    refusal_tokens: Tensor
    hidden: Tensor

    def log_ratio(self, ratio: str = "sum") -> Tensor:
        """Return log π(answer) − log π(refusal) of each row (arXiv 2603.00498), `(n,)` in nats."""
        return log_likelihood_ratio(self.answer_nll, self.answer_tokens, self.refusal_nll, self.refusal_tokens, ratio)

    @property
    def refusal_surprise(self) -> Tensor:
        """Mean loss of a refusal token given the prompt alone, `(n,)` in nats; low where the model would refuse."""
        return self.refusal_nll / self.refusal_tokens


@torch.no_grad()
def row_signals(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    refusals: Sequence[Sequence[int]],
    layers: Sequence[int] = (),
) -> RowSignals:
    """Score rows with a frozen model; each answer and a refusal branch off the same prompt.

    Args:
        model: A causal language model.
        pairs: Token ids of prompt and answer of each row.
        refusals: Token ids of generic refusals, assigned to rows by index.
        layers: Also return the hidden states that these layers put out (0 is the embedding).
    """
    device = next(model.parameters()).device
    own = [refusals[place % len(refusals)] for place in range(len(pairs))]
    both = [*pairs, *((prompt, refusal) for (prompt, _), refusal in zip(pairs, own))]
    layout = layout_for(model, both, ROWS_PER_PASS, TOKENS_PER_ROW)
    was_training = model.training
    model.eval()
    # Rows of similar length together, so that the last forward passes are not full of short rows.
    order = sorted(range(len(pairs)), key=lambda place: (tuple(pairs[place][0][:8]), len(pairs[place][0])))
    parts: list[tuple[Tensor, ...]] = []
    chunk: list[int] = []

    def run(places: list[int]) -> None:
        samples = [Sample(pairs[place][0], [pairs[place][1], own[place]]) for place in places]
        batch = to_device(layout.lay_out(samples), device)
        nll, output = token_nll(model, batch, output_hidden_states=bool(layers))
        sums, counts = branch_nll(nll, batch["branch"], 2 * len(places))
        starts = torch.searchsorted(batch["branch"], torch.arange(0, 2 * len(places), 2, device=device))
        ends = batch["predict_from"][starts]
        hidden = hidden_states(output, batch, layers, ends) if layers else sums.new_zeros(len(places), 0, 0)
        parts.append(tuple(x.cpu() for x in (sums[0::2], counts[0::2], sums[1::2], counts[1::2], hidden)))
        rows.advance(len(places))

    tokens = 0
    with Task("rows", len(pairs)) as rows:
        for place in order:
            needed = sum(map(len, pairs[place])) + len(own[place])
            if chunk and tokens + needed > TOKENS_PER_ROW:
                run(chunk)
                chunk, tokens = [], 0
            chunk.append(place)
            tokens += needed
        run(chunk)
    model.train(was_training)
    back = torch.argsort(torch.tensor(order))
    return RowSignals(*(torch.cat(column)[back] for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class AnswerFit:
    """How well a model predicts reference answers, one value a row.

    Attributes:
        nll: Mean loss of an answer's tokens, `(n,)` in nats.
        accuracy: Part of its tokens that are the model's first choice, `(n,)` in [0, 1].
    """

    nll: Tensor
    accuracy: Tensor


@torch.no_grad()
def answer_fit(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> AnswerFit:
    """Score a model's next-token predictions on answers that it is given, teacher-forced.

    Args:
        model: A causal language model.
        pairs: Token ids of prompt and answer of each row.
    """
    device = next(model.parameters()).device
    layout = layout_for(model, pairs, ROWS_PER_PASS)
    was_training = model.training
    model.eval()
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    with Task("reference answers", len(pairs)) as rows:
        for start in range(0, len(pairs), ROWS_PER_PASS):
            part = pairs[start : start + ROWS_PER_PASS]
            batch = to_device(layout.lay_out([Sample(prompt, [answer]) for prompt, answer in part]), device)
            scores = token_logits(model, batch).float()
            nll = torch.nn.functional.cross_entropy(scores, batch["targets"], reduction="none")
            right = (scores.argmax(-1) == batch["targets"]).to(nll)
            for values, found in ((nll, losses), (right, hits)):
                sums, counts = branch_nll(values, batch["branch"], len(part))
                found.append((sums / counts).cpu())
            rows.advance(len(part))
    model.train(was_training)
    return AnswerFit(torch.cat(losses), torch.cat(hits))
