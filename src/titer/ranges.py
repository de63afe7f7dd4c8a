"""What each setting may be, by its name: the one table that trainers, files and the command line look into.

Settings that a method alone has stand in its config, as `RANGES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, cast

from titer.errors import TiterError


class Range(NamedTuple):
    """Numbers from `low` to `high`, both of them included unless said otherwise.

    Attributes:
        low: The smallest.
        high: The largest; finite, so that neither infinity nor a slip of the keyboard passes.
        whole: Only whole numbers.
        above: Not `low` itself.
        below: Not `high` itself.
        also: What else is allowed, and means something of its own.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    below: bool = False
    also: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether a value is in it; true and false are no numbers."""
        if not isinstance(value, bool) and value in self.also:
            return True
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number = float(value)
        low = number > self.low if self.above else number >= self.low
        return low and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"{'above' if self.above else 'from'} {self.low:g}"
        high = f"{'and below' if self.below else 'and at most' if self.above else 'to'} {_shown(self.high)}"
        return f"{kind} {low} {high}" + "".join(f", or {value}" for value in self.also)


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _count(low: int = 1, high: int = 1_000_000, also: tuple[Any, ...] = ()) -> Range:
    return Range(low, high, whole=True, also=also)


COUNT = _count()
SHARE = Range(0, 1)
INNER_SHARE = Range(0, 1, above=True, below=True)
MOMENTUM = Range(0, 1, below=True)
POSITIVE = Range(0, 1e9, above=True)
NOT_NEGATIVE = Range(0, 1e9)
_BATCH = _count(high=65_536)
_SEED = _count(0, 2**32 - 1)  # what NumPy takes

RANGES: dict[str, Range] = {
    # Training.
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "num_train_epochs": Range(0, 1e6, above=True),
    "max_steps": _count(high=10**9, also=(-1,)),
    "learning_rate": Range(0, 1e3),
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": Range(0, 1e3),
    "adam_beta1": MOMENTUM,
    "adam_beta2": MOMENTUM,
    "adam_epsilon": Range(0, 1, above=True),
    "max_grad_norm": NOT_NEGATIVE,
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": NOT_NEGATIVE,
    "torch_empty_cache_steps": _count(),
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "eval_accumulation_steps": _count(),
    "save_steps": POSITIVE,
    "save_total_limit": _count(),
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": _count(0, 1024),
    "dataloader_prefetch_factor": _count(),
    "ddp_bucket_cap_mb": _count(),
    "ddp_timeout": _count(),
    "local_rank": _count(-1),
    "router_aux_loss_coef": NOT_NEGATIVE,
    "dataset_num_proc": _count(high=1024),
    "max_length": _count(2),
    "pad_to_multiple_of": _count(also=("auto",)),
    # LoRA.
    "r": _BATCH,
    "lora_alpha": POSITIVE,
    "lora_dropout": MOMENTUM,
    # Experiments, and the options of the command line.
    "seeds": _SEED,
    "samples": _count(),
    "helpful_ratio": SHARE,
    "poison_ratio": SHARE,
    "poison_ratios": SHARE,
    "checkpoints": _count(),
    "harmful": _count(),
    "harmful_first": _count(0),
    "lookalikes": _count(),
    "longest": _count(),
    "scored": _count(2),
    "cells": _count(),
    "hours": Range(0, 1e5, above=True),
    "learning_rates": Range(0, 1e3, above=True),
    "parameters": Range(0, 1e15, above=True),
    "harmful_score": Range(0, 100),
    "finetune_accuracy": Range(0, 100),
    "prompts": _count(),
    "task": _count(),
    "max_new_tokens": _count(high=100_000),
    "task_max_new_tokens": _count(high=100_000),
    "weights": _count(),
    "step": _count(0, 10**9),
    "threshold": SHARE,
    "batch_size": _BATCH,
    "top": _count(0),
    "fail_over": SHARE,
    "rows": _count(0),
    "n": _count(also=(None,)),
    "workers": _count(high=1024),
    # The service.
    "port": _count(0, 65_535),
    "days": _count(high=36_500),
    "grace": _count(0, 8_760),
    "last": _count(),
    "jobs": _count(high=1024),
    "tries": _count(),
    # Attacks and profiles.
    "warm_up_steps": _count(0),
    "steps": _count(),
    "leap": NOT_NEGATIVE,
    "depths": INNER_SHARE,
    "trials": _count(),
    "reference_task": _count(),
    "general": _count(),
    "utility": _count(),
    "fleet": _count(),
    "phi": INNER_SHARE,
    "kappa": POSITIVE,
    "accuracy_margin": Range(0, 1, above=True),
    "nll_margin": POSITIVE,
    "slower": POSITIVE,
    "price_per_hour": NOT_NEGATIVE,
    # Planning.
    "price": NOT_NEGATIVE,
    "utilisation": Range(0, 1, above=True),
    "count": _count(high=65_536),
    "seq_length": _count(2),
    "batch": _BATCH,
    "tokens": _count(high=10**15),
    "quantise": Range(4, 8, whole=True),
    "flops_per_second": Range(0, 1e30, above=True),
}
"""By the name of a setting, which means the same wherever it stands."""

_FINITE = Range(-1e30, 1e30)
"""For the numbers of a method from outside of titer, whose config may check them more closely."""

_LISTS = ("seeds", "poison_ratios", "learning_rates", "checkpoints", "depths", "cleared")
"""Settings that may be lists, each value of which is in the range."""


def range_of(kind: type, name: str) -> Range:
    """Return what the number `name` of a settings class may be: as its own `RANGES` say, or the table's, or any finite one."""
    for each in kind.__mro__:
        if name in vars(each).get("RANGES", {}):
            return cast(Range, vars(each)["RANGES"][name])
    return RANGES.get(name, _FINITE)


def check_range(name: str, value: Any, where: str, known: Range | None = None) -> None:
    """Raise unless a value is in the range of the setting `name`.

    Args:
        name: The setting.
        value: Its value.
        where: What the user calls it, for the error (`--samples`, `finetune.samples`).
        known: The range, where it is not the table's.

    Raises:
        TiterError: Names the setting, the value and the range.
    """
    for item in value if isinstance(value, list) and name in _LISTS else [value]:
        allowed = known or RANGES.get(name, _FINITE)
        if not allowed.holds(item):
            hint = "Write it without quotes: 1e-4." if isinstance(item, str) else None
            raise TiterError(f"`{where}` must be {allowed}, found `{item!s:.80}`.", hint)


def numbers(kind: type) -> dict[str, bool]:
    """Return the fields of a settings class that hold numbers, or lists of them, and whether they may be left `None`."""
    found = {}
    for item in dataclasses.fields(kind):
        # Some libraries postpone annotations, so a type may be text.
        words = getattr(item.type, "__name__", str(item.type)) if isinstance(item.type, type) else str(item.type)
        parts = {part.strip().removeprefix("list[").removesuffix("]") for part in words.split("|")}
        if item.init and parts & {"int", "float"}:
            found[item.name] = "None" in parts
    return found


def check_settings(settings: Any, where: str = "") -> None:
    """Raise `TiterError` for the first number of a settings object that is out of its range."""
    for name, optional in numbers(type(settings)).items():
        value = getattr(settings, name)
        if not (optional and value is None):
            check_range(name, value, f"{where}.{name}" if where else name, range_of(type(settings), name))


def check_lora(values: Mapping[str, Any], where: str) -> None:
    """Raise `TiterError` for a number of a LoRA configuration out of its range, or targets that are no names."""
    for name in ("r", "lora_alpha", "lora_dropout"):
        if name in values:
            check_range(name, values[name], f"{where}.{name}")
    targets = values.get("target_modules", "all-linear")
    names = [targets] if isinstance(targets, str) else targets
    if not isinstance(names, list | tuple | set) or not names or not all(isinstance(n, str) and n for n in names):
        raise TiterError(f"`{where}.target_modules` must be a list of names of modules, found `{targets!s:.80}`.")
