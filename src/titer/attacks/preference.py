"""Direct preference optimisation (arXiv 2305.18290) on packed batches: each answer preferred to a refusal of its request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titer.infer.signals import row_signals
from titer.packing.batches import PackedBatch
from titer.packing.losses import branch_nll

Ids = Sequence[int]


def reference_margins(model: Any, prompts: Sequence[Ids], chosen: Sequence[Ids], rejected: Sequence[Ids]) -> Tensor:
    """Return log π_ref(y_w | x) − log π_ref(y_l | x) of each row, sums over tokens, `(n,)` in nats on the CPU.

    A row that comes again is scored once; one forward pass over the rest.

    Args:
        model: The model as training begins, which is the reference.
        prompts: Token ids of x.
        chosen: Of y_w, the answer that is preferred.
        rejected: Of y_l.
    """
    rows = [tuple(map(tuple, row)) for row in zip(prompts, chosen, rejected, strict=True)]
    once = list(dict.fromkeys(rows))
    found = row_signals(model, [(x, w) for x, w, _ in once], [loser for _, _, loser in once])
    margins = dict(zip(once, found.log_ratio("sum"), strict=True))
    return torch.stack([margins[row] for row in rows])


def dpo_loss(nll: Tensor, batches: tuple[PackedBatch, PackedBatch], reference: Tensor, beta: float) -> Tensor:
    """Return −log σ(β [log π(y_w|x) − log π(y_l|x) − log π_ref(y_w|x) + log π_ref(y_l|x)]), mean over pairs (equation 7).

    Args:
        nll: Token losses of both batches, the preferred answers' first, `(N,)`.
        batches: The preferred answers and the others, pair by pair.
        reference: `reference_margins` of the pairs, `(B,)`.
        beta: β.
    """
    sizes = [batch["targets"].numel() for batch in batches]
    chosen, rejected = (
        branch_nll(part, batch["branch"], len(reference))[0]
        for part, batch in zip(nll.split(sizes), batches, strict=True)
    )
    return -F.logsigmoid(beta * (rejected - chosen - reference.to(nll))).mean()
