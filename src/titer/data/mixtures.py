"""Mixtures: what a customer uploads (task rows, some of them harmful), and what a defender aligns on.

Rows of a mixture have fixed places. Raising the poison ratio replaces some task rows by harmful ones *in place*
and leaves all others where they were, so that two arms, or two ratios, differ by the poison alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from titer.data.records import UNKNOWN_ORIGIN, Message, Record
from titer.errors import TiterError


def poison(
    task: Sequence[Record], harmful: Sequence[Record], samples: int, poison_ratio: float, seed: int
) -> list[Record]:
    """Mix harmful rows into task rows, as in a poisoned upload.

    Exactly `round(samples * poison_ratio)` rows are harmful; both kinds are drawn without replacement. With the
    same seed, the task rows at a higher ratio are a subset of those at a lower one, and the harmful rows a superset.

    Args:
        task: What the customer's task needs.
        harmful: The attacker's rows.
        samples: Rows of the mixture.
        poison_ratio: Part of them that is harmful, in [0, 1].
        seed: Of the draw and of the order.

    Returns:
        The rows in training order. `origin` says which is which, for evaluation only: rows of unknown origin
        are marked `task` and `harmful`; a trainer gets `Record.to_training_row`, which leaves it out.

    Raises:
        TiterError: The ratio is outside [0, 1], or there are too few rows of a kind.
    """
    n_harmful = _share(samples, poison_ratio, "poison_ratio")
    setting = f"poison_ratio = {poison_ratio:g}"
    _check_enough("task", task, lambda rows: rows - round(rows * poison_ratio), samples, setting)
    _check_enough("harmful", harmful, lambda rows: round(rows * poison_ratio), samples, setting)
    return _mix(
        [_named(record, "task") for record in _draw(task, samples - n_harmful, f"titer.poison:task:{seed}")],
        [_named(record, "harmful") for record in _draw(harmful, n_harmful, f"titer.poison:harmful:{seed}")],
        f"titer.poison:places:{seed}",
    )


def alignment_mixture(
    refused: Sequence[Record],
    helpful: Sequence[Record],
    samples: int,
    helpful_ratio: float = 0.5,
    *,
    seed: int,
) -> list[Record]:
    """Mix refused harmful prompts with helpful answers: what a model is aligned on.

    Refusals alone teach a model to refuse everything, so exactly `round(samples * helpful_ratio)` rows are helpful.

    Args:
        refused: Harmful prompts, each with its `refusal`, which becomes the completion (origin `refusal`).
        helpful: Harmless prompts with their answers (origin `helpful`).
        samples: Rows of the mixture.
        helpful_ratio: Part of them that is helpful, in [0, 1].
        seed: Of the draw and of the order.

    Raises:
        TiterError: The ratio is outside [0, 1], there are too few rows of a kind, or a row has no refusal.
    """
    n_helpful = _share(samples, helpful_ratio, "helpful_ratio")
    setting = f"helpful_ratio = {helpful_ratio:g}"
    _check_enough("refused", refused, lambda rows: rows - round(rows * helpful_ratio), samples, setting)
    _check_enough("helpful", helpful, lambda rows: round(rows * helpful_ratio), samples, setting)
    # All rows are looked at, not the drawn ones only: whether this raises must not depend on the seed.
    refusals = refusing(refused)
    return _mix(
        _draw(refusals, samples - n_helpful, f"titer.alignment:refused:{seed}"),
        [replace(record, origin="helpful") for record in _draw(helpful, n_helpful, f"titer.alignment:helpful:{seed}")],
        f"titer.alignment:places:{seed}",
    )


def refusing(records: Sequence[Record]) -> list[Record]:
    """Return harmful prompts with their refusals as completions (origin `refusal`).

    Raises:
        TiterError: When a row has no refusal.
    """
    for index, record in enumerate(records):
        if record.refusal is None:
            raise TiterError(
                f"Row {index} of the refused rows has no refusal: {record.prompt_text[:80]!r}.",
                "Give it a `refusal`, or let `with_refusals` assign generic ones.",
            )
    return [
        replace(record, completion=(Message("assistant", str(record.refusal)),), origin="refusal") for record in records
    ]


def _named(record: Record, origin: str) -> Record:
    """Name the origin after its stream where it is unknown; a known one is the truth, and stays."""
    return replace(record, origin=origin) if record.origin == UNKNOWN_ORIGIN else record


def _share(samples: int, ratio: float, name: str) -> int:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise TiterError(f"samples must be a positive whole number, found {samples!r}.")
    # Written so that NaN fails too.
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise TiterError(f"{name} must lie in [0, 1], found {ratio!r}.", f"20 % is `{name}: 0.2`.")
    return round(samples * ratio)


def _check_enough(kind: str, rows: Sequence[Record], needed: Callable[[int], int], samples: int, ratio: str) -> None:
    """Raise unless there are `needed(samples)` rows."""
    if len(rows) >= needed(samples):
        return
    possible = next((count for count in range(samples, 0, -1) if needed(count) <= len(rows)), 0)
    more = f"give at least {needed(samples)} {kind} rows"
    raise TiterError(
        f"Too few {kind} rows: there are {len(rows)}, and {needed(samples)} are needed (samples = {samples}, {ratio}).",
        f"Set `samples` to {possible}, or {more}." if possible else f"{more.capitalize()}.",
    )


def _draw(rows: Sequence[Record], count: int, seed: str) -> list[Record]:
    """Draw without replacement, such that a smaller count is a prefix of a larger one."""
    # A text seeds through SHA-512: it does not depend on PYTHONHASHSEED, and keeps the streams independent.
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[index] for index in order[:count]]


def _mix(first: list[Record], second: list[Record], seed: str) -> list[Record]:
    """Put the rows in their places: `first` from the front of a random order of places, `second` from its back."""
    places = list(range(len(first) + len(second)))
    random.Random(seed).shuffle(places)
    return [record for _, record in sorted(zip(places, first + second[::-1]), key=lambda pair: pair[0])]
