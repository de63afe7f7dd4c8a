"""Answers that are decoded together: others join between two steps, and those that have ended leave.

Rows are padded on the left, as in `titer.infer.generation`. Not every model computes in such a batch what it computes alone, so
what a model says in one is compared with what it says of rows run each by itself, when it is loaded (`find_way`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from titer.compat import can_be_joined, cut_cache, join_caches, keep_rows
from titer.errors import TiterError, first_line
from titer.packing.alone import coarsest_precision, same_to_rounding
from titer.service.chat.bank import BASE, Bank

logger = logging.getLogger(__name__)

WAYS = {
    "together": "all rows in one batch",
    "alone": "each row by itself",  # windows and recurrent states do not survive another row's padding
    "plain": "each row by itself, without a cache",  # right by definition
}
"""How rows are decoded, the fastest first."""


@dataclass
class Batch:
    """Rows in the middle of their answers.

    Attributes:
        bank: The model.
        owners: Who owns each row, all rows of one together.
        ids: What the next pass is given, `(rows, tokens)`: whole prompts at first, then a token each.
        mask: Which positions so far, with those of `ids`, are no padding.
        positions: Of `ids`.
        cached: Whether passes go on from the one before.
        cache: Of all positions before `ids`.
    """

    bank: Bank
    owners: list[int]
    ids: Tensor
    mask: Tensor
    positions: Tensor
    cached: bool = True
    cache: Any = None

    @classmethod
    def begin(cls, bank: Bank, prompts: Sequence[Sequence[int]], owners: Sequence[int], cached: bool = True) -> Batch:
        """Return a batch at its beginning; rows of one owner must lie together."""
        width, device = max(map(len, prompts)), bank.device
        padding = bank.template.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        return cls(bank, list(owners), ids, mask, (mask.cumsum(-1) - 1).clamp_min(0), cached)

    def __len__(self) -> int:
        return len(self.owners)

    def step(self) -> Tensor:
        """Run the model; returns the logits of each row's next token, `(rows, vocabulary)`."""
        inputs: dict[str, Any] = {"input_ids": self.ids}
        if self.cached:
            more = {"attention_mask": self.mask, "position_ids": self.positions, "past_key_values": self.cache}
            inputs |= {**more, "use_cache": True, "logits_to_keep": 1}
        output = self.bank.forward(self.owners, **inputs)
        if self.cached:
            self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits

    def go_on(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Leave some of the rows, in that order, each with its next token."""
        keep = torch.tensor(list(rows), device=self.ids.device)
        new = torch.tensor(list(tokens), device=self.ids.device)[:, None]
        if list(rows) != list(range(len(self))):
            self._keep(keep)
        self.ids = new if self.cached else torch.cat((self.ids, new), dim=1)
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(self), 1)), dim=1)

    def _keep(self, rows: Tensor) -> None:
        self.owners = [self.owners[row] for row in rows.tolist()]
        self.ids, self.mask, self.positions = self.ids[rows], self.mask[rows], self.positions[rows]
        if self.cache is not None:
            keep_rows(self.cache, rows)

    def select(self, rows: Sequence[int]) -> None:
        """Leave some of the rows, in that order; a row may be there several times."""
        self._keep(torch.tensor(list(rows), device=self.ids.device))

    def join(self, other: Batch) -> list[int]:
        """Take in the rows of another batch, both of them after `go_on`.

        Returns:
            For each row from now on where it was: rows of the other one are counted on behind this one's.
        """
        before = self.mask.shape[1], other.mask.shape[1]
        width = max(before)
        self.cache = join_caches([self.cache, other.cache], width - 1)  # `ids` are not in it yet
        self.owners += other.owners
        self.ids = torch.cat((self.ids, other.ids))
        self.positions = torch.cat((self.positions, other.positions))
        pad = [torch.nn.functional.pad(batch.mask, (width - batch.mask.shape[1], 0)) for batch in (self, other)]
        self.mask = torch.cat(pad)
        order = sorted(range(len(self)), key=lambda row: self.owners[row])
        if order != list(range(len(self))):
            self.select(order)
        return order

    def trim(self) -> None:
        """Forget positions that are padding in all rows, since the longest rows have left."""
        unused = int(self.mask.argmax(-1).min())
        if self.cached and unused:
            cut_cache(self.cache, unused)
            self.mask = self.mask[:, unused:]


# -- which way ---------------------------------------------------------------------------------------------------------

PROBES = (
    "?",
    "Which of these is a text, and which of them is only a few words that somebody has put one behind another?",
)
STEPS = 3


@torch.no_grad()
def find_way(bank: Bank) -> str:
    """Return the first of `WAYS` in which a model says what it says of rows run alone, without padding or cache.

    Raises:
        TiterError: For a model that cannot generate text.
    """
    prompts = [bank.template.prompt_ids([{"role": "user", "content": text}]) for text in PROBES]
    for way in ("together", "alone"):
        try:
            failure = _differs(bank, prompts, way)
        except Exception as error:  # whatever a model's own code raises of inputs that it did not expect
            if isinstance(error, (TiterError, torch.OutOfMemoryError)):
                raise
            failure = f"it fails ({first_line(error)})"
        if not failure:
            return way
        logger.warning("`%s` does not decode %s: %s.", bank.name, WAYS[way], failure)
    return "plain"


def _differs(bank: Bank, prompts: Sequence[Sequence[int]], way: str) -> str:
    """Return how logits in a way part from those of rows alone; empty where they do not."""
    with coarsest_precision() as precision:
        rows = [list(prompt) for prompt in prompts]
        batches = [Batch.begin(bank, [row], [BASE]) for row in rows]
        found = [batch.step() for batch in batches]
        if way == "together" and not all(can_be_joined(batch.cache) for batch in batches):
            return "its cache is more than keys and values"
        for _ in range(STEPS):
            logits = torch.cat(found)
            alone = torch.cat([bank.forward([BASE], input_ids=_row(row, bank)).logits[:, -1] for row in rows])
            if not same_to_rounding(logits, alone, precision()):
                return "a token's logits are not those of its row alone"
            tokens = logits.argmax(-1).tolist()
            rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
            places = iter(tokens)
            for batch in batches:
                batch.go_on(range(len(batch)), [next(places) for _ in range(len(batch))])
            if way == "together" and len(batches) > 1:
                batches[0].join(batches.pop())
            found = [batch.step() for batch in batches]
    return ""


def _row(ids: Sequence[int], bank: Bank) -> Tensor:
    return torch.tensor([list(ids)], device=bank.device)
