"""Batched greedy decoding: left-padded, sorted by length, rows leave the batch as they finish.

Prompts that begin alike, as those of a chat model do, begin on one cache. Not every model computes in such a batch what it
computes alone, so the answers of its first batch are checked: the logits that two of its rows were decoded from must be
those of the same rows run alone, without padding or cache. Where they are not, the next of `WAYS` is tried. Rounding to 16 bits
would hide what is wrong, so under autocast the shortest and the longest row are checked without it first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from titer.compat import keep_rows
from titer.errors import first_line
from titer.models import Template
from titer.packing.alone import bare_model, cannot, coarsest_precision, same_to_rounding
from titer.packing.batches import common_prefix_length
from titer.packing.layouts import say_once
from titer.progress import Task

BATCH_SIZE = 64

WAYS = {
    "shared": "rows of all lengths, what they begin with computed once",
    "together": "rows of all lengths",  # a window would count the padding behind a shared beginning
    "library": "prompts of one length at a time, by the library's own loop",  # padding disturbs a recurrent state
    "plain": "prompts of one length at a time, without a cache",  # right by definition
}
"""How a batch can be decoded, the fastest first."""

Place = Callable[[Sequence[int]], None]
"""Called before each forward pass with the owner of each row, all rows of an owner together."""


@dataclass
class _Decoding:
    """How a model decodes, and the longest row with its answer that this was found right for."""

    way: str = "shared"
    longest: int = 0


_decodings: WeakKeyDictionary[torch.nn.Module, _Decoding] = WeakKeyDictionary()


@torch.no_grad()
def generate(
    model: Any,
    template: Template,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    counted: Task | None = None,
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
        counted: The task that answers are counted in; one of these prompts alone when not given.
        owners: For a model that holds several (`titer.attacks.Fleet`), which of them answers each prompt.
        place: Called before each forward pass with the owner of each row, all rows of an owner together.

    Raises:
        TiterError: For a model that cannot generate text.
    """
    owners = [0] * len(prompts) if owners is None else owners
    was_training = model.training
    model.eval()
    decoding = _decodings.setdefault(model, _Decoding())
    device = next(model.parameters()).device.type
    if prompts and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            _find_way(model, template, prompts, owners, place, decoding, max_new_tokens)
    answers: list[str] = [""] * len(prompts)
    # Prompts of similar length together: less padding.
    waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    with Task("answers", len(prompts)) if counted is None else nullcontext(counted) as finished:
        while waiting:
            rows = waiting[:batch_size]
            if decoding.way in ("library", "plain"):
                rows = [row for row in rows if len(prompts[row]) == len(prompts[rows[0]])]
            rows.sort(key=lambda row: owners[row])
            batch = _Batch(model, template, [prompts[row] for row in rows], [owners[row] for row in rows], place)
            longest = max(len(prompts[row]) for row in rows) + max_new_tokens
            failure = batch.decode(decoding.way, max_new_tokens, check=longest > decoding.longest)
            if failure:
                _change_way(model, decoding, failure)
                continue
            decoding.longest = max(decoding.longest, longest)
            for row, tokens in zip(rows, batch.decoded, strict=True):
                answers[row] = template.answer_text(tokens)
            finished.advance(len(rows))
            done = set(rows)
            waiting = [row for row in waiting if row not in done]
    model.train(was_training)
    return answers


def _find_way(
    model: Any,
    template: Template,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    place: Place | None,
    decoding: _Decoding,
    max_new_tokens: int,
) -> None:
    """Find how the shortest and the longest prompt are decoded rightly; what was found for longer rows stands."""
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    shortest = min(range(len(prompts)), key=lambda row: len(prompts[row]))
    length = len(prompts[longest]) + max_new_tokens
    while length > decoding.longest:
        by_length = decoding.way in ("library", "plain")
        rows = sorted({longest} if by_length else {shortest, longest}, key=lambda row: owners[row])
        batch = _Batch(model, template, [prompts[row] for row in rows], [owners[row] for row in rows], place)
        failure = batch.decode(decoding.way, max_new_tokens, check=True)
        if failure:
            _change_way(model, decoding, failure)
        else:
            decoding.longest = length


def _change_way(model: Any, decoding: _Decoding, failure: str) -> None:
    """Go on in the next way; one that takes much longer is announced."""
    ways = list(WAYS)
    decoding.way, decoding.longest = ways[ways.index(decoding.way) + 1], 0
    if decoding.way in ("library", "plain"):
        say_once(
            "%s decodes %s, which takes longer: else %s.",
            type(bare_model(model)).__name__,
            WAYS[decoding.way],
            failure,
        )


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

    def decode(self, way: str, max_new_tokens: int, check: bool) -> str:
        """Decode the batch into `decoded`.

        Args:
            way: One of `WAYS`.
            max_new_tokens: Most tokens of an answer.
            check: Compare with rows run alone.

        Returns:
            Why the answers are not what the model says alone; empty when they are, or were not checked.
        """
        # The shortest row has the most padding; the longest goes farthest.
        by_length = sorted(range(len(self.prompts)), key=lambda row: len(self.prompts[row]))
        watched = sorted({by_length[0], by_length[-1]}) if check else []
        decode = {"library": self._by_library, "plain": self._plainly}.get(way, self._in_padded_batch)
        try:
            logits = decode(way, max_new_tokens, watched)
        except Exception as error:
            reason = cannot(bare_model(self.model), "generate text", error)
            if isinstance(error, torch.OutOfMemoryError) or way == "plain" or not check:
                raise reason from error
            return f"it fails ({first_line(error)})"
        return "" if way == "plain" else self._difference(logits)

    def _difference(self, logits: dict[int, list[Tensor]]) -> str:
        """Return how the logits that rows were decoded from part from those of the rows run alone."""
        for row, found in logits.items():
            if not found:
                continue
            ids = [*self.prompts[row], *self.decoded[row]][: len(self.prompts[row]) + len(found) - 1]
            with coarsest_precision() as precision:
                output = self._forward([self.owners[row]], input_ids=torch.tensor([ids], device=found[0].device))
            if not same_to_rounding(torch.stack(found), output.logits[0, -len(found) :], precision()):
                return "a token's logits are not those of its row alone"
            # Some classes have rules of their own about what the library's loop says first or last.
            if self.template.up_to_end(int(scores.argmax()) for scores in found) != self.decoded[row]:
                return "an answer is not what its logits say"
        return ""

    def _forward(self, owners: Sequence[int], **inputs: Any) -> Any:
        if self.place is not None:
            self.place(owners)
        return self.model(**inputs)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _in_padded_batch(self, way: str, max_new_tokens: int, watched: Sequence[int]) -> dict[int, list[Tensor]]:
        """Decode greedily; returns for each watched row the logits `(vocabulary,)` that each of its tokens is from."""
        device, prompts, owners = self._device, self.prompts, self.owners
        shared = common_prefix_length(prompts) if way == "shared" else 0
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
            keep_rows(cache, torch.tensor([heads.index(owner) for owner in owners], device=device))
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
                keep_rows(cache, keep)
                tokens, mask, position_ids = tokens[keep], mask[keep], position_ids[keep]
                alive = [alive[row] for row in keep.tolist()]
            for row, token in zip(alive, tokens.tolist(), strict=True):
                self.decoded[row].append(token)
            input_ids = tokens[:, None]
            mask = torch.cat((mask, mask.new_ones(len(alive), 1)), dim=1)
            position_ids = position_ids[:, -1:] + 1
        return logits

    def _by_library(self, way: str, max_new_tokens: int, watched: Sequence[int]) -> dict[int, list[Tensor]]:
        """Decode prompts of one length with `model.generate`; returns as `_in_padded_batch`."""
        input_ids = torch.tensor([list(prompt) for prompt in self.prompts], device=self._device)
        if self.place is not None:
            self.place(self.owners)
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self.template.end_of_turn),
            pad_token_id=self.template.tokenizer.pad_token_id,
            output_logits=bool(watched),
            return_dict_in_generate=True,
        )
        new = output.sequences[:, input_ids.shape[1] :].tolist()
        self.decoded = [self.template.up_to_end(tokens) for tokens in new]
        return {
            row: [scores[row] for scores in output.logits[: min(len(self.decoded[row]) + 1, max_new_tokens)]]
            for row in watched
        }

    def _plainly(self, way: str, max_new_tokens: int, watched: Sequence[int]) -> dict[int, list[Tensor]]:
        """Decode prompts of one length by running each row anew for each token; there is nothing to watch."""
        rows = torch.tensor([list(prompt) for prompt in self.prompts], device=self._device)
        ended = [False] * len(rows)
        self.decoded = [[] for _ in rows]
        for _ in range(max_new_tokens):
            tokens = self._forward(self.owners, input_ids=rows).logits[:, -1].argmax(-1)
            for row, token in enumerate(tokens.tolist()):
                ended[row] = ended[row] or token in self.template.end_of_turn
                if not ended[row]:
                    self.decoded[row].append(token)
            if all(ended):
                break
            rows = torch.cat((rows, tokens[:, None]), dim=1)
        return {}
