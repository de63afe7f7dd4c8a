"""Batched greedy decoding: left-padded, sorted by length, rows leave the batch as they finish.

The answers of a model's first batch are checked: the logits that two of its rows were decoded from must be those of the
same rows run alone. A model that computes others (a recurrent state that padding disturbs, a cache that cannot drop rows)
decodes prompts of one length at a time instead, as the library does it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from titer.batches import common_prefix_length
from titer.errors import TiterError
from titer.layouts import bare_model, first_line, same_to_rounding
from titer.models import Template

logger = logging.getLogger(__name__)

BATCH_SIZE = 64

Place = Callable[[Sequence[int]], None]
"""Called before each forward pass with the owner of each row, all rows of an owner together."""


@dataclass
class _Decoding:
    """How a model decodes, and the longest row with its answer that it was found right for."""

    batched: bool = True
    longest: int = 0


_decodings: WeakKeyDictionary[torch.nn.Module, _Decoding] = WeakKeyDictionary()


@torch.no_grad()
def generate(
    model: Any,
    template: Template,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
    owners: Sequence[int] | None = None,
    place: Place | None = None,
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
    decoding = _decodings.setdefault(model, _Decoding())
    answers: list[str] = [""] * len(prompts)

    def finish(rows: Sequence[int], decoded: Sequence[Sequence[int]]) -> None:
        for row, tokens in zip(rows, decoded, strict=True):
            answers[row] = str(template.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
        if progress is not None:
            progress(len(rows))

    # Prompts of similar length together: less padding.
    waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    while waiting and decoding.batched:
        rows = sorted(waiting[:batch_size], key=lambda row: owners[row])
        batch = _Batch(model, template, [prompts[row] for row in rows], [owners[row] for row in rows], place)
        longest = max(len(prompts[row]) for row in rows) + max_new_tokens
        failure = batch.decode(max_new_tokens, check=longest > decoding.longest)
        if failure:
            decoding.batched = False
            logger.warning(
                "%s decodes prompts of one length at a time, which takes longer: in a batch %s.",
                type(bare_model(model)).__name__,
                failure,
            )
            break
        decoding.longest = max(decoding.longest, longest)
        finish(rows, batch.decoded)
        waiting = waiting[batch_size:]
    for rows in _alike(waiting, prompts, owners, batch_size):
        if place is not None:
            place([owners[row] for row in rows])
        finish(rows, _decode_by_library(model, template, [prompts[row] for row in rows], max_new_tokens))
    model.train(was_training)
    return answers


def _alike(
    rows: Sequence[int], prompts: Sequence[Sequence[int]], owners: Sequence[int], batch_size: int
) -> list[list[int]]:
    """Cut rows into batches of prompts that have the same length, each owner's together."""
    lengths: dict[int, list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: owners[row]):
        lengths[len(prompts[row])].append(row)
    return [same[start : start + batch_size] for same in lengths.values() for start in range(0, len(same), batch_size)]


def _decode_by_library(
    model: Any, template: Template, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Decode prompts of one length with the library's own loop; returns new token ids up to the end of the turn."""
    stop = sorted(template.end_of_turn)
    input_ids = torch.tensor([list(prompt) for prompt in prompts], device=next(model.parameters()).device)
    try:
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=template.tokenizer.pad_token_id,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code raises
        raise TiterError(
            f"{type(bare_model(model)).__name__} cannot generate text: {first_line(error)}",
            "titer can align and fine-tune it, but not evaluate its answers.",
        ) from error
    decoded = []
    for tokens in output[:, input_ids.shape[1] :].tolist():
        end = next((number for number, token in enumerate(tokens) if token in stop), len(tokens))
        decoded.append(tokens[:end])
    return decoded


@dataclass
class _Batch:
    """A batch of prompts that are decoded together.

    Attributes:
        decoded: The new token ids of each prompt so far, without the one that ended the turn.
    """

    model: Any
    template: Template
    prompts: Sequence[Sequence[int]]
    owners: Sequence[int]
    place: Place | None
    decoded: list[list[int]] = field(default_factory=list)

    def _forward(self, owners: Sequence[int], **inputs: Any) -> Any:
        if self.place is not None:
            self.place(owners)
        return self.model(**inputs)

    def decode(self, max_new_tokens: int, check: bool) -> str:
        """Decode the batch into `decoded`.

        Args:
            max_new_tokens: Most tokens of an answer.
            check: Compare with rows run alone.

        Returns:
            Why the answers are not what the model says alone; empty when they are, or were not checked.
        """
        if not check:
            self._decode(max_new_tokens, [])
            return ""
        # The shortest row has the most padding; the longest goes farthest.
        by_length = sorted(range(len(self.prompts)), key=lambda row: len(self.prompts[row]))
        try:
            logits = self._decode(max_new_tokens, sorted({by_length[0], by_length[-1]}))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's own code raises
            return f"it fails ({first_line(error)})"
        return self._difference(logits)

    def _difference(self, logits: dict[int, list[Tensor]]) -> str:
        """Return how the logits that rows were decoded from part from those of the rows run alone."""
        for row, found in logits.items():
            if not found:
                continue
            ids = [*self.prompts[row], *self.decoded[row]]
            input_ids = torch.tensor([ids[: len(self.prompts[row]) + len(found) - 1]], device=found[0].device)
            alone = self._forward([self.owners[row]], input_ids=input_ids).logits[0, -len(found) :]
            if not same_to_rounding(torch.stack(found), alone):
                return "a token's logits are not those of its row alone"
        return ""

    def _decode(self, max_new_tokens: int, watched: Sequence[int]) -> dict[int, list[Tensor]]:
        """Decode greedily; returns for each watched row the logits `(vocabulary,)` that each of its tokens is from."""
        device = next(self.model.parameters()).device
        prompts, owners = self.prompts, self.owners
        shared = common_prefix_length(prompts)
        rests = [prompt[shared:] for prompt in prompts]
        width = max(map(len, rests))
        padding = self.template.tokenizer.pad_token_id
        input_ids = torch.tensor([[padding] * (width - len(rest)) + list(rest) for rest in rests], device=device)
        own = torch.tensor([[0] * (width - len(rest)) + [1] * len(rest) for rest in rests], device=device)
        position_ids = shared + (own.cumsum(-1) - 1).clamp_min(0)
        mask = torch.cat((own.new_ones(len(prompts), shared), own), dim=1)
        cache = None
        if shared:
            # All prompts begin with the same system prompt: its keys and values are computed once for each owner.
            heads = sorted(set(owners))
            prefix = torch.tensor([prompts[0][:shared]] * len(heads), device=device)
            cache = self._forward(heads, input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_select_indices(torch.tensor([heads.index(owner) for owner in owners], device=device))
        stop = torch.tensor(sorted(self.template.end_of_turn), device=device)
        self.decoded = [[] for _ in prompts]
        logits: dict[int, list[Tensor]] = {row: [] for row in watched}
        alive = list(range(len(prompts)))
        for _ in range(max_new_tokens):
            output = self._forward(
                [owners[row] for row in alive],
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            scores = output.logits[:, -1]
            for row in watched:
                if row in alive:
                    logits[row].append(scores[alive.index(row)].clone())
            tokens = scores.argmax(-1)
            going = ~torch.isin(tokens, stop)
            if not going.all():
                keep = going.nonzero().flatten()
                if keep.numel() == 0:
                    break
                cache.batch_select_indices(keep)
                tokens, mask, position_ids = tokens[keep], mask[keep], position_ids[keep]
                alive = [alive[row] for row in keep.tolist()]
            for row, token in zip(alive, tokens.tolist(), strict=True):
                self.decoded[row].append(token)
            input_ids = tokens[:, None]
            mask = torch.cat((mask, mask.new_ones(len(alive), 1)), dim=1)
            position_ids = position_ids[:, -1:] + 1
        return logits
