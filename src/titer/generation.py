"""Batched greedy decoding: left-padded, sorted by length, rows leave the batch as they finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from titer.batches import common_prefix_length
from titer.models import Template

BATCH_SIZE = 64


@torch.no_grad()
def generate(
    model: Any,
    template: Template,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
    owners: Sequence[int] | None = None,
    place: Callable[[Sequence[int]], None] | None = None,
) -> list[str]:
    """Return the greedy continuation of each prompt, in the order given, without its end-of-turn token.

    Args:
        model: A causal language model.
        template: Knows the tokenizer and which tokens end a turn.
        prompts: Token ids of rendered prompts.
        max_new_tokens: Most tokens to generate for each.
        batch_size: Most prompts to decode at once.
        progress: Called with the number of prompts finished since the last call.
        owners: For a model that holds several (`titer.attacks.Fleet`), which of them answers each prompt.
        place: Called before each forward pass with the owner of each row, all rows of an owner together.
    """
    owners = [0] * len(prompts) if owners is None else owners
    was_training = model.training
    model.eval()
    answers: list[str] = [""] * len(prompts)
    # Prompts of similar length together: less padding.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(order), batch_size):
        rows = sorted(order[start : start + batch_size], key=lambda row: owners[row])
        decoded = _decode_batch(
            model, template, [prompts[row] for row in rows], max_new_tokens, [owners[row] for row in rows], place
        )
        for row, tokens in zip(rows, decoded, strict=True):
            answers[row] = str(template.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        if progress is not None:
            progress(len(rows))
    model.train(was_training)
    return answers


def _decode_batch(
    model: Any,
    template: Template,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    owners: Sequence[int],
    place: Callable[[Sequence[int]], None] | None,
) -> list[list[int]]:
    """Decode one batch; returns new token ids without the one that ended the turn."""

    def forward(whose: Sequence[int], **inputs: Any) -> Any:
        if place is not None:
            place(whose)
        return model(use_cache=True, logits_to_keep=1, **inputs)

    device = next(model.parameters()).device
    shared = common_prefix_length(prompts)
    rests = [prompt[shared:] for prompt in prompts]
    width = max(map(len, rests))
    padding = template.tokenizer.pad_token_id
    input_ids = torch.tensor([[padding] * (width - len(rest)) + list(rest) for rest in rests], device=device)
    own = torch.tensor([[0] * (width - len(rest)) + [1] * len(rest) for rest in rests], device=device)
    position_ids = shared + (own.cumsum(-1) - 1).clamp_min(0)
    mask = torch.cat((own.new_ones(len(prompts), shared), own), dim=1)
    cache = None
    if shared:
        # All prompts begin with the same system prompt: its keys and values are computed once for each owner.
        heads = sorted(set(owners))
        prefix = torch.tensor([prompts[0][:shared]] * len(heads), device=device)
        cache = forward(heads, input_ids=prefix).past_key_values
        cache.batch_select_indices(torch.tensor([heads.index(owner) for owner in owners], device=device))
    stop = torch.tensor(sorted(template.end_of_turn), device=device)
    decoded: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        output = forward(
            [owners[row] for row in alive],
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
        )
        cache = output.past_key_values
        tokens = output.logits[:, -1].argmax(-1)
        going = ~torch.isin(tokens, stop)
        if not going.all():
            keep = going.nonzero().flatten()
            if keep.numel() == 0:
                break
            cache.batch_select_indices(keep)
            tokens, mask, position_ids = tokens[keep], mask[keep], position_ids[keep]
            alive = [alive[row] for row in keep.tolist()]
        for row, token in zip(alive, tokens.tolist(), strict=True):
            decoded[row].append(token)
        input_ids = tokens[:, None]
        mask = torch.cat((mask, mask.new_ones(len(alive), 1)), dim=1)
        position_ids = position_ids[:, -1:] + 1
    return decoded
