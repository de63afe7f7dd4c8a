"""What defences share that compare a harmful answer with the refusal of the same prompt, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import TiterError, check_known
from titer.methods.align.base import HarmfulStreamTrainer
from titer.methods.inside import Inside, differing
from titer.packing.losses import token_nll
from titer.train.gradients import reshard
from titer.train.trainer import PackedSFTConfig

FINAL = ("once", "twice")
"""How often the last layer counts in the layer-wise loss; `twice` in released code."""


@dataclass
class PairedConfig(PackedSFTConfig):
    """Settings of defences with losses at every layer.

    Args:
        final_loss: How often the last layer's loss counts among the layers': `once`, or `twice` as in released code.
    """

    final_loss: str = field(
        default="once",
        metadata={"help": "How often the last layer counts: once, or twice as released.", "choices": [*FINAL]},
    )

    def __post_init__(self) -> None:
        check_known([self.final_loss], FINAL, "final_loss")
        super().__post_init__()


class PairedTrainer(HarmfulStreamTrainer):
    """A defence with losses on harmful answers, where their tokens differ from those of the paired refusal.

    Where both have the same token at the same place (an end of turn, a common opening) there is nothing to unlearn, and the
    refusal would have to unlearn it too.

    Args:
        args: Settings.
        kwargs: What `HarmfulStreamTrainer` takes.

    Attributes:
        inside: The model's layers.
    """

    POOLS: ClassVar[tuple[tuple[str, ...], ...]] = (("harmful", "refusal"),)

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)
        self.inside = Inside(self.bare_model)
        pool = next(pool for pool in self._pools if "refusal" in pool)
        pairs = zip(pool["harmful"], pool["refusal"], strict=True)
        self.differs = [differing(harmful.branches[0], refusal.branches[0]) for harmful, refusal in pairs]
        for row, differs in enumerate(self.differs):
            if not any(differs):
                raise TiterError(
                    f"harmful_dataset[{row}]: the harmful answer begins as its refusal and is no longer, so there is nothing "
                    "in it to unlearn.",
                    "Give the row an answer that complies.",
                )

    def masks(self) -> tuple[list[Tensor], int]:
        """Return which tokens of each of this rank's harmful micro-batches differ, `(N,)` each, and how many on all ranks."""
        rows = self.drawn_rows("harmful", self.draw_number)
        drawn = self.drawn_places("harmful")
        micro = [[flag for place in places for flag in self.differs[rows[place]]] for places in drawn]
        # Every rank knows what all of them draw.
        return [torch.tensor(flags, device=self.args.device) for flags in micro], sum(
            sum(self.differs[row]) for row in rows
        )

    def answer_shares(self, model: Any) -> Iterator[Callable[[], Tensor]]:
        """Yield what computes each micro-batch's share of h, the mean loss of harmful answers where they differ."""
        masks, count = self.masks()
        for batch, mask in zip(self.stream_batches("harmful"), masks, strict=True):
            yield partial(self._answer_share, model, batch, mask, count)

    @staticmethod
    def _answer_share(model: Any, batch: Any, mask: Tensor, count: int) -> Tensor:
        nll, _ = token_nll(model, batch)
        return (nll * mask).sum() / count

    def layer_shares(self, model: Any, twice: bool) -> Iterator[Callable[[], Tensor]]:
        """Yield what computes each micro-batch's share of C, the mean over layers of that loss at each of them.

        Args:
            model: The model that is trained.
            twice: As released code does: the last layer counts twice, the first time with its states normed once more, and
                what is added up is divided by the number of layers and the embedding all the same.
        """
        masks, count = self.masks()
        for batch, mask in zip(self.stream_batches("harmful"), masks, strict=True):
            yield partial(self._layer_share, model, batch, mask, count, twice)

    def _layer_share(self, model: Any, batch: Any, mask: Tensor, count: int, twice: bool) -> Tensor:
        nll = self.inside.layer_nll(model, batch, renormed=twice)
        return (nll * mask).sum() / (count * (len(self.inside.layers) + 1))

    @torch.no_grad()
    def loss_of(self, shares: Iterator[Callable[[], Tensor]]) -> float:
        """Return a loss over all ranks, without a gradient."""
        loss = torch.zeros((), device=self.args.device)
        for share in shares:
            with self.compute_loss_context_manager():
                loss = loss + share()
        reshard(self.model)
        return self.total(loss).item()
