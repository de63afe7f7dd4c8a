"""What a frozen model says of rows before it is trained on them: likelihoods of answers and refusals, hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from titer.models import Template
from titer.packing.batches import Sample, to_device
from titer.packing.layouts import layout_for
from titer.packing.losses import branch_nll, hidden_states, log_likelihood_ratio, token_logits, token_nll
from titer.packing.states import StateReader
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
        refusal_nll: Summed loss of a refusal of the same prompt, `(n,)`; `(0,)` where none was asked for.
        refusal_tokens: Its tokens, likewise.
        hidden: Hidden states at the last token of the prompt, `(n, layers, hidden_size)`, of the layers asked for.
        answer_hidden: Their mean over the answer's tokens but the last, or over the one that there is; like `hidden`.
    """

    answer_nll: Tensor
    answer_tokens: Tensor
    refusal_nll: Tensor
    refusal_tokens: Tensor
    hidden: Tensor
    answer_hidden: Tensor

    def log_ratio(self, ratio: str = "sum", unasked: Tensor | None = None) -> Tensor:
        """Return how much likelier than a refusal each answer is (`log_likelihood_ratio`), `(n,)` in nats.

        Args:
            ratio: One of `titer.packing.losses.RATIOS`.
            unasked: What `unasked_refusals` returns of the refusals.
        """
        own = None if unasked is None else unasked[torch.arange(len(self.answer_nll)) % len(unasked)]
        parts = (self.answer_nll, self.answer_tokens, self.refusal_nll, self.refusal_tokens)
        return log_likelihood_ratio(*parts, ratio, own)

    @property
    def refusal_surprise(self) -> Tensor:
        """Mean loss of a refusal token given the prompt alone, `(n,)` in nats; low where the model would refuse."""
        return self.refusal_nll / self.refusal_tokens


@torch.no_grad()
def row_signals(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    refusals: Sequence[Sequence[int]] = (),
    layers: Sequence[int] = (),
) -> RowSignals:
    """Score rows with a frozen model in one pass; each answer and a refusal, if any, branch off the same prompt.

    Args:
        model: A causal language model.
        pairs: Token ids of prompt and answer of each row.
        refusals: Token ids of generic refusals, assigned to rows by index.
        layers: Also return the hidden states that these layers put out (0 is the embedding).
    """
    device = next(model.parameters()).device
    own = [refusals[place % len(refusals)] for place in range(len(pairs))] if refusals else [()] * len(pairs)
    each = 2 if refusals else 1
    both = [*pairs, *((prompt, refusal) for (prompt, _), refusal in zip(pairs, own) if refusal)]
    layout = layout_for(model, both, ROWS_PER_PASS, TOKENS_PER_ROW)
    was_training = model.training
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    samples = [Sample(prompt, [answer, refusal][:each]) for (prompt, answer), refusal in zip(pairs, own)]

    def run(places: list[int]) -> None:
        batch = to_device(layout.lay_out([samples[place] for place in places]), device)
        nll, output = token_nll(model, batch, output_hidden_states=bool(layers))
        sums, counts = branch_nll(nll, batch["branch"], each * len(places))
        starts = torch.searchsorted(batch["branch"], torch.arange(0, each * len(places), each, device=device))
        hidden = answered = sums.new_zeros(len(places), 0, 0)
        if layers:
            hidden = hidden_states(output.hidden_states, batch, layers, batch["predict_from"][starts])
            answered = _over_answers(
                hidden_states(output.hidden_states, batch, layers, batch["predict_from"]), starts, counts[::each]
            )
        refused = (sums[1::2], counts[1::2]) if refusals else (sums[:0], counts[:0])
        parts.append(tuple(x.cpu() for x in (sums[::each], counts[::each], *refused, hidden, answered)))
        rows.advance(len(places))

    order: list[int] = []
    with Task("rows", len(pairs)) as rows:
        for places in _passes(samples):
            run(places)
            order += places
    model.train(was_training)
    back = torch.argsort(torch.tensor(order))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return RowSignals(*(column[back] if len(column) == len(back) else column for column in columns))


@torch.no_grad()
def row_states(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return what layers put out in rows: `hidden` and `answer_hidden` of `row_signals`, and nothing else, for less.

    Answers to one prompt branch off it, and no pass goes further than the last layer (`StateReader`).

    Args:
        model: A causal language model.
        pairs: Token ids of prompt and answer of each row.
        layers: Which layers; 0 is the embedding.
    """
    device = next(model.parameters()).device
    layout = layout_for(model, pairs, ROWS_PER_PASS, TOKENS_PER_ROW)
    answers = _by_prompt(pairs)
    samples = [Sample(pairs[places[0]][0], [pairs[place][1] for place in places]) for places in answers]
    was_training = model.training
    model.eval()
    read = StateReader(model, layers)
    parts: list[tuple[Tensor, Tensor]] = []
    order: list[int] = []
    with Task("rows", len(pairs)) as rows:
        for chunk in _passes(samples):
            batch = to_device(layout.lay_out([samples[place] for place in chunk]), device)
            here = [row for place in chunk for row in answers[place]]
            states = read(batch)
            counts = torch.bincount(batch["branch"], minlength=len(here))
            starts = counts.cumsum(0) - counts
            parts.append((states[starts].cpu(), _over_answers(states, starts, counts).cpu()))
            order += here
            rows.advance(len(here))
    model.train(was_training)
    back = torch.argsort(torch.tensor(order))
    hidden, answered = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    return hidden, answered


def _by_prompt(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[int]]:
    """Return which rows have a prompt in common, no more of them together than fit into a pass."""
    groups: list[list[int]] = []
    last: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for place, (prompt, answer) in enumerate(pairs):
        group, tokens = last.get(tuple(prompt), ([], len(prompt)))
        if group and tokens + len(answer) > TOKENS_PER_ROW:
            group, tokens = [], len(prompt)
        if not group:
            groups.append(group)
        group.append(place)
        last[tuple(prompt)] = group, tokens + len(answer)
    return groups


def _passes(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Yield which samples go into one pass, those of like length together, so that the last passes are not full of short ones."""
    order = sorted(
        range(len(samples)), key=lambda place: (tuple(samples[place].prompt[:8]), len(samples[place].prompt))
    )
    chunk: list[int] = []
    tokens = 0
    for place in order:
        needed = len(samples[place].prompt) + sum(map(len, samples[place].branches))
        if chunk and tokens + needed > TOKENS_PER_ROW:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(place)
        tokens += needed
    if chunk:
        yield chunk


def _over_answers(states: Tensor, starts: Tensor, counts: Tensor) -> Tensor:
    """Return each row's mean state over its answer's tokens but the last, where the next one is predicted.

    Args:
        states: `(N, layers, hidden_size)` where a token is predicted; a row's first is the last token of its prompt.
        starts: Where each row's begin, `(rows,)`.
        counts: How many are its answer's, `(rows,)`.
    """
    means = []
    for start, count in zip(starts.tolist(), counts.long().tolist()):
        means.append(states[start + min(1, count - 1) : start + count].mean(0))
    return torch.stack(means)


@torch.no_grad()
def prompt_states(model: Any, prompts: Sequence[Sequence[int]], skipped: int = 0) -> Tensor:
    """Return the mean of what the last layer puts out over a prompt's tokens, `(n, hidden_size)` in float32 on the CPU.

    Args:
        model: A causal language model.
        prompts: Token ids of each prompt, at least one more than `skipped`.
        skipped: How many tokens of a prompt's beginning the mean leaves out.
    """
    device = next(model.parameters()).device
    pairs = [(prompt, prompt[-1:]) for prompt in prompts]  # what follows a prompt does not matter to it
    layout = layout_for(model, pairs, ROWS_PER_PASS)
    was_training = model.training
    model.eval()
    means: list[Tensor] = []
    with Task("prompts", len(prompts)) as done:
        for start in range(0, len(prompts), ROWS_PER_PASS):
            part = pairs[start : start + ROWS_PER_PASS]
            samples = [Sample(prompt, [answer]) for prompt, answer in part]
            batch = to_device(layout.lay_out(samples, share_prefix=False), device)
            _, output = token_nll(model, batch, output_hidden_states=True)
            # One token is predicted in each row, from the last of its prompt; the others stand before it.
            for end, (prompt, _) in zip(batch["predict_from"].tolist(), part, strict=True):
                places = torch.arange(end - len(prompt) + 1 + skipped, end + 1, device=device)
                means.append(hidden_states(output.hidden_states, batch, [-1], places)[:, 0].mean(0).cpu())
            done.advance(len(part))
    model.train(was_training)
    return torch.stack(means)


UNASKED = "?"
"""A request that asks for nothing."""


def unasked_refusals(model: Any, template: Template, refusals: Sequence[Sequence[int]], ratio: str) -> Tensor | None:
    """Return the summed loss of each refusal where nothing was asked, `(len(refusals),)` in nats, if a ratio wants it.

    Args:
        model: A causal language model.
        template: Its chat template.
        refusals: Token ids of generic refusals.
        ratio: One of `titer.packing.losses.RATIOS`.
    """
    if ratio != "calibrated":
        return None
    prompt = template.prompt_ids([{"role": "user", "content": UNASKED}])
    return row_signals(model, [(prompt, refusal) for refusal in refusals]).answer_nll


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
