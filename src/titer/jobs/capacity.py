"""What a training needs of a machine: memory of a card, time and money, from what its gradients cost (`titer.jobs.footprint`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from titer.errors import check_known
from titer.jobs.footprint import Footprint
from titer.methods import Held, Method

if TYPE_CHECKING:
    import torch

GIB = 2**30
CPU = "cpu"


class Card(NamedTuple):
    """An accelerator, or the machine at hand.

    Attributes:
        memory: Bytes that a process can have.
        peak: Operations a second of dense bfloat16 products, by its maker; of a CPU measured.
        bandwidth: Bytes a second between its memory and its cores; 0 where nobody says.
        price: US dollars an hour.
        utilisation: The part of the peak that a training is taken to reach.
    """

    memory: float
    peak: float
    bandwidth: float
    price: float
    utilisation: float = 0.4


PRICES = "third parties' lists of March 2026 of one provider's cheapest tier; they move by a half within months"

CARDS: dict[str, Card] = {
    "a100-40": Card(39.6 * GIB, 312e12, 1.555e12, 1.19),
    "a100-80": Card(79.3 * GIB, 312e12, 2.039e12, 1.39),
    "b200-180": Card(178.4 * GIB, 2250e12, 8e12, 5.98),
    "h100-80": Card(79.2 * GIB, 989e12, 3.35e12, 2.69),
    "h200-141": Card(139.8 * GIB, 989e12, 4.8e12, 3.59),
    "l4-24": Card(22.0 * GIB, 121e12, 0.3e12, 0.44),
    "l40s-48": Card(44.4 * GIB, 362e12, 0.864e12, 0.79),
    "rtx4090-24": Card(23.5 * GIB, 165e12, 1.008e12, 0.34),
}
"""Cards by name and nominal GB. Peak and bandwidth: NVIDIA's data sheets, SXM where there is a choice, without sparsity; the memory is
what the driver leaves to processes. The part of the peak is an assumption (0.4); on a CPU it is measured (docs/benchmarks.md: 0.5)."""

CONTEXT = 1 * GIB
"""What libraries hold of a card before the first tensor; an assumption."""

SPARE = 0.08
"""The part of what is needed that an allocator of an accelerator leaves unused between blocks; an assumption."""


def card(name: str) -> Card:
    """Return a card by its name, or what is known of the machine at hand, whose speed is measured now.

    Raises:
        TiterError: For a name that is not there.
    """
    check_known([name], [CPU, *CARDS], "GPU")
    if name != CPU:
        return CARDS[name]
    import psutil
    import torch

    from titer.train.config import bf16_is_fast

    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    return Card(float(psutil.virtual_memory().total), _peak(dtype), 0.0, 0.0, 0.5)


def _peak(dtype: torch.dtype) -> float:
    """Return the most operations a second that a product of matrices reached here."""
    import torch

    left, right = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        left @ right
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


LAUNCH = 5e-6
"""Seconds that the host of an accelerator takes to hand it an operation; an assumption."""


class Memory(NamedTuple):
    """The most that a card holds at a time, in bytes.

    Attributes:
        weights: The weights, or one rank's part of them and what it gathers.
        optimizer: AdamW's moments.
        method: What the method holds beside a pass.
        passes: A pass with its activations and gradients.
    """

    weights: float
    optimizer: float
    method: float
    passes: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def memory(found: Footprint, held: Held, cards: int = 1) -> Memory:
    """Return the most that each card holds at a time.

    Args:
        found: What a gradient costs.
        held: What the method holds.
        cards: Ranks that weights, gradients, moments and copies are sharded over (FSDP2).
    """
    trained = found.trained / cards
    weights, fresh = float(found.weights), float(found.fresh)
    if cards > 1:
        # Gathered layers, and the whole gradients of those that are trained, twice as wide, before they are scattered.
        weights = found.weights / cards + found.gathered * (1 + 2 * found.trained / found.weights)
        fresh = found.added + trained
    most = max(held.copies * trained + fresh, held.onto * trained + found.added if held.onto else 0.0)
    beside = held.states * found.states + held.logits * found.logits
    return Memory(weights, 2 * trained, most + beside - fresh, fresh)


def fits(need: Memory, on: Card, gpu: bool) -> bool:
    """Say whether a card has the memory."""
    return need.total * (1 + SPARE * gpu) + CONTEXT * gpu <= on.memory


def gradients_of(method: Method, args: Any) -> float:
    """Return the gradients of an optimizer step, in passes over a batch of the training rows' size.

    What rows are weighed by in every step is half a pass.
    """
    each = method.gradients(args)._asdict()
    each["replay"] *= getattr(args, "replay", 1.0)
    return 1 + sum(each.values()) + 0.5 * method.weighs_rows


def seconds(found: Footprint, on: Card) -> float:
    """Return how long a gradient takes: by its arithmetic, or by the bytes that it moves or by its launches, where these take longer."""
    by_operations = found.flops / (on.peak * on.utilisation)
    if not on.bandwidth:
        return by_operations
    # Weights are read forward and backward, and what a pass keeps is written and read.
    by_bytes = 2 * (found.weights + found.kept) / on.bandwidth
    return max(by_operations, by_bytes, LAUNCH * found.kernels)
