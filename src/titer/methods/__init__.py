"""What a method is, and the one table of those that come with titer.

A method declares itself once, in its own file: a `Method` with everything that the rest of titer asks about it. The table
below holds where each declaration stands, and loads it when it is asked for. One that is not titer's is named by its import
path, `package.module:NAME` or `file.py:NAME`, wherever a method's name may stand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from titer import plugins
from titer.errors import TiterError, check_known
from titer.ranges import Range, check_range, numbers, range_of

if TYPE_CHECKING:
    from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

T = TypeVar("T")

NOT_HERE = {
    "output_dir": "The output folder decides where files go.",
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


class Gradients(NamedTuple):
    """Gradients that an optimizer step takes beside the one of the training loss that every method takes.

    Attributes:
        answers: Of the loss of harmful answers.
        refusals: Of the loss of refusals in their place.
        training: Of the training loss again: by other weights, or by what lies inside of the model.
    """

    answers: float = 0.0
    refusals: float = 0.0
    training: float = 0.0


def _none(args: Any) -> Gradients:
    return Gradients()


def _any_batch(args: Any, rows: int) -> None:
    """Accept every batch."""


@dataclass(frozen=True, eq=False)
class Method:
    """One method.

    Attributes:
        config: Its settings. What its own numbers may be stands in its attribute `RANGES` (`titer.ranges.Range`).
        trainer: Its trainer.
        summary: What it does, in a sentence; if empty, the first one of the trainer's docstring.
        streams: The datasets it wants beside the training data, by argument name: `harmful_dataset` and
            `helpful_dataset` are there.
        gradients: The gradients it takes beside that of the training loss, by its settings, in the mean over steps. This and
            the next two are what estimates of time go by.
        weighs_rows: Whether every step scores a refusal of each row, to weigh it by softmax(log ratio / τ) of its settings
            `ratio` and `tau`, which a report then shows.
        weighs_first: Whether it scores all rows before it trains.
        check: Called with settings and the number of training rows; raises where they would make it another method.
        variants: Settings by label in which every term of it matters on a model of a few neurons: what the tests that
            every method passes are run with.
    """

    config: type[PackedSFTConfig]
    trainer: type[PackedSFTTrainer]
    summary: str = ""
    streams: tuple[str, ...] = ()
    gradients: Callable[[Any], Gradients] = _none
    weighs_rows: bool = False
    weighs_first: bool = False
    check: Callable[[Any, int], None] = _any_batch
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})

    def __post_init__(self) -> None:
        known = {one.name for one in dataclasses.fields(self.config)}
        if self.weighs_rows and not {"ratio", "tau"} <= known:
            raise TiterError(
                f"{self.config.__name__} lacks `ratio` or `tau`, by which a method that weighs rows does so.",
                "Add them (`titer.methods.finetune.AntibodyFinetuneConfig` has both), or leave `weighs_rows` off.",
            )
        for name, allowed in getattr(self.config, "RANGES", {}).items():
            ends = allowed[:2] if isinstance(allowed, Range) else ()
            if name not in known or not ends or not all(isinstance(end, Real) and math.isfinite(end) for end in ends):
                raise TiterError(
                    f"{self.config.__name__}.RANGES: `{name}` is no setting with a range of numbers.",
                    "Give a `titer.ranges.Range(low, high)` with two finite numbers for a field of the config.",
                )


ALIGN: dict[str, Method | str] = {
    "sft": "titer.methods.align.sft:SFT",
    "booster": "titer.methods.align.booster:BOOSTER",
    "antibody": "titer.methods.align.antibody:ANTIBODY",
}
FINETUNE: dict[str, Method | str] = {
    "sft": "titer.methods.finetune.sft:SFT",
    "antibody": "titer.methods.finetune.antibody:ANTIBODY",
    "gate": "titer.methods.finetune.gate:GATE",
}
STAGES = {"align": ALIGN, "finetune": FINETUNE}


def names(stage: str) -> str:
    """Return the names of a stage's methods for a sentence: `sft, booster or antibody`."""
    *before, last = STAGES[stage]
    return f"{', '.join(before)} or {last}"


def find(stage: str, name: str) -> Method:
    """Return the method `name` of `align` or `finetune`, or the one that an import path names.

    Raises:
        TiterError: For an unknown name (with a suggestion), or a path that leads to no method.
    """
    method = plugins.find(name, STAGES[stage], f"{stage} method")
    if not isinstance(method, Method):
        raise TiterError(
            f"`{name}` is no method, but {plugins.what(method)}.",
            "A method is a `titer.methods.Method(config, trainer)`.",
        )
    return method


def every() -> Iterator[tuple[str, str, Method]]:
    """Yield stage, name and declaration of every method in the table."""
    for stage, table in STAGES.items():
        for name in table:
            yield stage, name, find(stage, name)


def exported(name: str, *stages: str) -> type:
    """Return the config or the trainer of that class name, of a method of these stages, or of any.

    Raises:
        AttributeError: When there is none.
    """
    # To load them takes seconds, and modules are asked for much else.
    if name.endswith(("Config", "Trainer")):
        for stage, _, method in every():
            for kind in (method.config, method.trainer):
                if kind.__name__ == name and stage in (stages or STAGES):
                    return kind
    raise AttributeError(f"titer has no class {name!r}")


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
    known = {field.name for field in dataclasses.fields(method.config) if field.init} - NOT_HERE.keys()
    listing = next((f"titer settings {stage}.{name}" for stage, name, one in every() if one is method), None)
    for name in values:
        if name in NOT_HERE:
            raise TiterError(f"`{place(where, name)}` cannot be set here.", NOT_HERE[name])
        check_known([name], known, f"key in `{_parent(where, name)}`", listing)
    optional = numbers(method.config)
    for name, value in values.items():
        if name in optional and not (optional[name] and value is None):
            check_range(name, value, place(where, name), range_of(method.config, name))

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
