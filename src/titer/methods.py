"""Methods by the names that experiment files and the command line call them, and the data each one wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from titer.align import AntibodyAlignmentConfig, AntibodyAlignmentTrainer, BoosterConfig, BoosterTrainer
from titer.errors import TiterError, check_known
from titer.finetune import (
    AntibodyFinetuneConfig,
    AntibodyFinetuneTrainer,
    FinetuneConfig,
    GateConfig,
    GateTrainer,
)
from titer.ranges import check_range, numbers
from titer.trainer import PackedSFTConfig, PackedSFTTrainer

T = TypeVar("T")

NOT_HERE = {
    "output_dir": "Where things go is for the folder of the output to say.",
    "seed": "Name the seed beside the settings: `--seed`, or `seeds` of an experiment.",
    "resume_from_checkpoint": "A training that was interrupted goes on by itself.",
    "push_to_hub": "titer leaves an adapter in a folder; `hf upload` takes it to a hub.",
}
"""Settings of the library that titer decides on itself, and what to do instead."""

SAVE_EVERY = 20
"""Optimizer steps between checkpoints of a training."""


def defaults() -> dict[str, Any]:
    """Return what experiments and the command line set otherwise than the configs of the methods."""
    quiet = {"report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    return quiet | {"save_strategy": "steps", "save_steps": SAVE_EVERY, "save_total_limit": 1}


class Method(NamedTuple):
    """One method.

    Attributes:
        config: Its settings.
        trainer: Its trainer.
        streams: The datasets it wants beside the training data, by argument name.
    """

    config: type[PackedSFTConfig]
    trainer: type[PackedSFTTrainer]
    streams: tuple[str, ...] = ()


ALIGN = {
    "sft": Method(PackedSFTConfig, PackedSFTTrainer),
    "booster": Method(BoosterConfig, BoosterTrainer, ("harmful_dataset",)),
    "antibody": Method(AntibodyAlignmentConfig, AntibodyAlignmentTrainer, ("harmful_dataset",)),
}
FINETUNE = {
    "sft": Method(FinetuneConfig, PackedSFTTrainer),
    "antibody": Method(AntibodyFinetuneConfig, AntibodyFinetuneTrainer),
    "gate": Method(GateConfig, GateTrainer, ("harmful_dataset", "helpful_dataset")),
}
STAGES = {"align": ALIGN, "finetune": FINETUNE}


def find(stage: str, name: str) -> Method:
    """Return the method `name` of `align` or `finetune`; an unknown name is an error with a suggestion."""
    check_known([name], STAGES[stage], f"{stage} method")
    return STAGES[stage][name]


def settings(
    method: Method, values: dict[str, Any], where: str | Mapping[str, str], output_dir: str, seed: int
) -> PackedSFTConfig:
    """Build a method's settings from a mapping.

    Args:
        method: The method.
        values: Fields of its config, by name.
        where: Where the mapping stands, for errors (`arms.antibody.align`), or where each of its keys does.
        output_dir: Folder for checkpoints.
        seed: Seeds initialisation and sampling.

    Raises:
        TiterError: For a key that the method does not have, or a value it cannot take.
    """
    known = {field.name for field in dataclasses.fields(method.config) if field.init}
    listing = next(
        (
            f"titer settings {stage}.{name}"
            for stage, all_ in STAGES.items()
            for name, one in all_.items()
            if one is method
        ),
        None,
    )
    for name in values:
        check_known(
            [name], known - NOT_HERE.keys() | ({name} & NOT_HERE.keys()), f"key in `{_parent(where, name)}`", listing
        )
        if name in NOT_HERE:
            raise TiterError(f"`{place(where, name)}` cannot be set here.", NOT_HERE[name])
    optional = numbers(method.config)
    for name, value in values.items():
        if name in optional and not (optional[name] and value is None):
            check_range(name, value, place(where, name))

    def build(values: dict[str, Any]) -> PackedSFTConfig:
        return method.config(output_dir=output_dir, seed=seed, **{**defaults(), **values})

    return blaming(build, values, {name: place(where, name) for name in values})


def place(where: str | Mapping[str, str], name: str) -> str:
    """Return what a user calls a setting: `align.training.optim`, `--set optim`."""
    parent = _parent(where, name)
    return f"{parent} {name}" if parent.startswith("--") else f"{parent}.{name}"


def _parent(where: str | Mapping[str, str], name: str) -> str:
    return where if isinstance(where, str) else where[name]


def blaming(attempt: Callable[[dict[str, Any]], T], values: dict[str, Any], called: Mapping[str, str]) -> T:
    """Return what an attempt with settings returns; when it fails for them, name those that it fails for.

    Args:
        attempt: Is called with the settings, or some of them. Libraries raise all kinds of exceptions for a setting that
            they cannot take; it is the setting's fault when the attempt succeeds without it.
        values: The settings.
        called: What a user calls each of them (`place`).

    Raises:
        TiterError: For settings that cannot be taken; names as few as make the attempt fail.
        Exception: What the attempt raises, where it raises without any settings too.
    """
    try:
        return attempt(values)
    except Exception as error:
        guilty, reason = dict(values), error
        for name in values:
            rest = {other: value for other, value in guilty.items() if other != name}
            try:
                attempt(rest)
            except Exception as other_error:
                guilty, reason = rest, other_error
        if not guilty:
            raise
    said = " ".join((reason.message if isinstance(reason, TiterError) else str(reason)).split())
    if not isinstance(reason, ValueError | ImportError | OSError):
        said = f"{type(reason).__name__}: {said}"
    named = [f"`{called[name]}`" for name in guilty]
    if len(guilty) == 1:
        blamed = f"{named[0]} cannot be `{guilty.popitem()[1]!s:.80}`"
    else:
        blamed = " with ".join(f"{name} = `{value!s:.80}`" for name, value in zip(named, guilty.values(), strict=True))
    hint = reason.hint if isinstance(reason, TiterError) else None
    raise TiterError(f"{blamed}: {said}", hint) from reason
