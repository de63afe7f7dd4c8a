"""Methods by the names that experiment files and the command line call them, and the data each one wants."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

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

_NOT_HERE = {
    "output_dir": "Where things go is for the folder of the output to say.",
    "seed": "Name the seed beside the settings: `--seed`, or `seeds` of an experiment.",
    "resume_from_checkpoint": "A training that was interrupted goes on by itself.",
    "push_to_hub": "titer leaves an adapter in a folder; `hf upload` takes it to a hub.",
}
"""Settings of the library that titer decides on itself, and what to do instead."""

SAVE_EVERY = 20
"""Optimizer steps between checkpoints of a training."""


class Attacked(NamedTuple):
    """Gradients that a simulated attack takes on a batch of the harmful stream (`titer.align.base`).

    Attributes:
        answers: Of the harmful answers.
        refusals: Of refusals in their place, where the method's settings want those.
    """

    answers: int
    refusals: int = 0


class Method(NamedTuple):
    """One method. What it computes beside the training loss is for estimates of time.

    Attributes:
        config: Its settings.
        trainer: Its trainer.
        streams: The datasets it wants beside the training data, by argument name.
        attacked: The gradients of its simulated attacks.
        compares: Whether every step scores a refusal of each row.
        weighs_first: Whether it scores all rows before it trains.
    """

    config: type[PackedSFTConfig]
    trainer: type[PackedSFTTrainer]
    streams: tuple[str, ...] = ()
    attacked: Attacked | None = None
    compares: bool = False
    weighs_first: bool = False


ALIGN = {
    "sft": Method(PackedSFTConfig, PackedSFTTrainer),
    "booster": Method(BoosterConfig, BoosterTrainer, ("harmful_dataset",), Attacked(answers=2)),
    "antibody": Method(
        AntibodyAlignmentConfig, AntibodyAlignmentTrainer, ("harmful_dataset",), Attacked(answers=2, refusals=1)
    ),
}
FINETUNE = {
    "sft": Method(FinetuneConfig, PackedSFTTrainer),
    "antibody": Method(AntibodyFinetuneConfig, AntibodyFinetuneTrainer, compares=True),
    "gate": Method(GateConfig, GateTrainer, ("harmful_dataset", "helpful_dataset"), weighs_first=True),
}
STAGES = {"align": ALIGN, "finetune": FINETUNE}


def find(stage: str, name: str) -> Method:
    """Return the method `name` of `align` or `finetune`; an unknown name is an error with a suggestion."""
    check_known([name], STAGES[stage], f"{stage} method")
    return STAGES[stage][name]


def settings(method: Method, values: dict[str, Any], where: str, output_dir: str, seed: int) -> PackedSFTConfig:
    """Build a method's settings from a mapping.

    Args:
        method: The method.
        values: Fields of its config, by name.
        where: Where the mapping stands, for errors (`arms.antibody.align`).
        output_dir: Folder for checkpoints.
        seed: Seeds initialisation and sampling.

    Raises:
        TiterError: For a key that the method does not have, or a value it cannot take.
    """
    known = {field.name: field for field in dataclasses.fields(method.config) if field.init}
    check_known(values, known, f"key in `{where}`")
    for name, why in _NOT_HERE.items():
        if name in values:
            raise TiterError(f"`{where}.{name}` cannot be set here.", why)
    optional = numbers(method.config)
    for name, value in values.items():
        if name in optional and not (optional[name] and value is None):
            check_range(name, value, f"{where}.{name}")
    defaults = {"report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    defaults |= {"save_strategy": "steps", "save_steps": SAVE_EVERY, "save_total_limit": 1}
    try:
        return method.config(output_dir=output_dir, seed=seed, **{**defaults, **values})
    except TiterError:
        raise
    except (TypeError, ValueError) as error:
        raise TiterError(f"`{where}`: {error}") from error
