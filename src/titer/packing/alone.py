"""What a model says of rows that are run each alone, which any layout must give, and what differs by rounding only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from titer.compat import watch_outputs
from titer.errors import TiterError, first_line
from titer.packing.batches import Sample

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Token ids of prompts and their completions."""


TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Largest |x − y| / (1 + |y|) of a token's loss x in a layout and y alone that counts as rounding.

Of 161 classes of transformers, built small, a right layout stays below 6e-5 in float32 and a wrong one is above 4e-2, or 6e-4
where weights are drawn small (`benchmarks/families.py`). SmolLM2-135M in bfloat16: 0.08, and 0.7 where only the positions are wrong. Many models
compute parts in float32 whatever they are loaded in, so float64 is no closer.
"""


def bare_model(model: Any) -> Any:
    """Return a model without the wrapper that PEFT puts around it; its adapted layers are inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def rows_to_try(pairs: Pairs) -> list[Sample]:
    """Return two samples that show what a layout can get wrong: the longest row, and a shorter one with two branches.

    The second begins as the first does, so that there is a prefix to share, and goes on differently.
    """
    prompt, completion = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    other, answer = min(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    half = len(prompt) // 2
    short = [*prompt[:half], *other[-max(1, min(len(other), len(prompt) - half)) :]]
    # No path may be longer than the longest row.
    room = len(prompt) + len(completion) - len(short)
    return [Sample(prompt, [completion]), Sample(short, [answer[:room], completion[:room]])]


@contextmanager
def coarsest_precision() -> Iterator[Callable[[], torch.dtype]]:
    """Yield what returns the coarsest dtype that modules put out meanwhile; an autocast need not show in logits."""
    seen = {torch.float64}

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dtype in TOLERANCE:
            seen.add(output.dtype)

    handle = watch_outputs(look)
    try:
        yield lambda: max(seen, key=lambda dtype: TOLERANCE[dtype])
    finally:
        handle.remove()


def losses_alone(model: Any, bare: Any, samples: list[Sample]) -> list[Tensor]:
    """Return the token losses of every branch, run alone after its prompt with nothing but token ids."""
    losses = []
    for sample in samples:
        for branch in sample.branches:
            logits = _logits_alone(model, bare, [*sample.prompt, *branch[:-1]], len(branch))
            targets = torch.tensor(branch, device=logits.device)
            losses.append(torch.nn.functional.cross_entropy(_precise(logits), targets, reduction="none"))
    return losses


def check_causal(
    model: Any, ids: Sequence[int], precision: Callable[[], torch.dtype], where: str | None = None
) -> None:
    """Raise for a model that says something else of the first tokens of a row when others follow.

    Args:
        model: The model, in evaluation mode.
        ids: The row.
        precision: As `coarsest_precision` yields it.
        where: What to call the model in the error; its class by default.
    """
    bare = bare_model(model)
    first = len(ids) // 2
    alone, followed = _logits_alone(model, bare, ids[:first], first), _logits_alone(model, bare, ids, len(ids))[:first]
    if not same_to_rounding(alone, followed, precision()):
        raise TiterError(
            f"{where or type(bare).__name__} is no causal language model: what it says of a token depends on later ones.",
            "Use a model that predicts from left to right; some classes do with `is_decoder=True` in their config.",
        )


def _logits_alone(model: Any, bare: Any, ids: Sequence[int], last: int) -> Tensor:
    """Return the logits of the last tokens of one row, `(last, vocabulary)`."""
    device = next(model.parameters()).device
    # The logits of a long prompt would take much memory, and only the last are needed.
    fewer = {"logits_to_keep": last} if "logits_to_keep" in inspect.signature(bare.forward).parameters else {}
    try:
        logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=device), **fewer).logits[0, -last:]
    except Exception as error:
        raise cannot(bare, f"run a row of {len(ids)} tokens", error) from error
    return logits


NOISE = 0.05
"""Largest root mean square of x − y over that of y, of all logits of a row in 16 bits, that counts as rounding.

By logit it cannot be told: those of SmolLM2-135M in bfloat16 lie up to 0.5 apart where they are near 0. By this measure its rows are
0.003 to 0.02 apart, and 0.08 to 0.3 where one attends to padding. What changes little (a token masked, a position one too high: 0.005 to
0.3) is seen in float32 alone, so whoever can compares there.
"""


def same_to_rounding(found: Tensor, wanted: Tensor, precision: torch.dtype) -> bool:
    """Say whether two tensors of logits differ by no more than what was lost in the precision they were computed in."""
    found, wanted = _precise(found), _precise(wanted)
    if precision not in (torch.float16, torch.bfloat16) or found.shape != wanted.shape:
        return not first_apart(found, wanted, precision)
    either = found.isfinite() & wanted.isfinite()  # of a model that has diverged, the same nonsense is the same
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    if not (either | same).all():
        return False
    return bool((found - wanted)[either].norm() <= NOISE * wanted[either].norm())


def first_apart(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> int:
    """Return 0 where two tensors agree to rounding, else one more than the first place where they do not."""
    if found.shape != wanted.shape:
        return 1
    near = (found - wanted).abs() <= TOLERANCE[dtype] * (1 + wanted.abs())
    # Of a model that has diverged, the same nonsense is the same.
    near |= (found == wanted) | (found.isnan() & wanted.isnan())
    far = ~near.reshape(len(near), -1).all(-1)
    return int(far.nonzero()[0]) + 1 if far.any() else 0


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def cannot(bare: Any, do_what: str, error: Exception) -> Exception:
    """Return the error for an error of a model's own code; one of titer's, or a lack of memory, is returned as it is."""
    if isinstance(error, (TiterError, torch.OutOfMemoryError)):
        return error
    return TiterError(
        f"{type(bare).__name__} cannot {do_what}: {first_line(error)}",
        "titer wants causal language models of transformers, with rows no longer than the model allows.",
    )
