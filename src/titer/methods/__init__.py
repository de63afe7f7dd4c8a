"""What a method is, and the one table of those that come with titer.

A method declares itself once, in its own file: a `Method` (of a stage that trains: align, finetune) or a `Repair`, with
everything that the rest of titer asks about it. The table
below holds where each declaration stands, and loads it when it is asked for. One that is not titer's is named by its import
path, `package.module:NAME` or `file.py:NAME`, wherever a method's name may stand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, overload

from titer import plugins
from titer.errors import TiterError, check_known
from titer.ranges import Range, check_range, numbers, range_of
from titer.text import first_sentence

if TYPE_CHECKING:
    from titer.data import Record
    from titer.methods.repair.lowrank import Layer, LowRank
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
    """Gradients that an optimizer step takes besides that of the training loss that every method takes.

    Attributes:
        answers: Of the loss of harmful answers.
        refusals: Of the loss of refusals in their place.
        training: Of the training loss again: by other weights, or by what lies inside of the model.
        replay: Of the loss of rows that the model was aligned on, as many for each training row as the setting `replay` says;
            of a method without it, as many as training rows.
        general: Of the loss of helpful answers.
    """

    answers: float = 0.0
    refusals: float = 0.0
    training: float = 0.0
    replay: float = 0.0
    general: float = 0.0


def _none(args: Any) -> Gradients:
    return Gradients()


def _no_rows(args: Any, rows: Sequence[Record], streams: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    return ()


def _any_batch(args: Any, rows: int) -> None:
    """Accept every batch."""


@dataclass(frozen=True)
class Source:
    """Where a method comes from.

    Attributes:
        paper: arXiv id, and where it was published: `2402.01109, NeurIPS 2024`; empty of what was published nowhere else.
        code: The authors' repository, `owner/name`; empty where there is none to be read.
        licence: Of that repository: `Apache-2.0`; `none` for one that says nothing, which may be read and not copied.
        broken_by: What is known to break it, with its source; empty where nobody has said so.
    """

    paper: str = ""
    code: str = ""
    licence: str = ""
    broken_by: str = ""


@dataclass(frozen=True, eq=False)
class Method:
    """One method.

    Attributes:
        config: Its settings. What its own numbers may be stands in its attribute `RANGES` (`titer.ranges.Range`).
        trainer: Its trainer.
        summary: What it does, in a sentence; if empty, the first one of the trainer's docstring.
        streams: The datasets it wants besides the training data, by argument name: `harmful_dataset` and
            `helpful_dataset` are there.
        gradients: The gradients it takes besides that of the training loss, by its settings, in the mean over steps. This and
            the next two are what estimates of time go by.
        weighs_rows: Whether every step scores a refusal of each row, to weigh it by softmax(log ratio / τ) of its settings
            `ratio` and `tau`, which a report then shows.
        scores_first: Called with settings, training rows and streams; returns the rows that it scores before it trains.
        check: Called with settings and the number of training rows; raises where they would make it another method.
        variants: Settings by label in which every term of it matters on a model of a few neurons: what the tests that
            every method passes are run with.
        memory: What it holds besides what plain training holds: `2 gradients`; empty for nothing.
        source: Where it comes from; by default from titer.
        lora_only: Whether it is one of LoRA adapters alone, and refuses to train a model's own weights.
    """

    not_here: ClassVar[Mapping[str, str]] = NOT_HERE

    config: type[PackedSFTConfig]
    trainer: type[PackedSFTTrainer]
    summary: str = ""
    streams: tuple[str, ...] = ()
    gradients: Callable[[Any], Gradients] = _none
    weighs_rows: bool = False
    scores_first: Callable[[Any, Sequence[Record], Mapping[str, Sequence[Record]]], Sequence[Record]] = _no_rows
    check: Callable[[Any, int], None] = _any_batch
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    memory: str = ""
    source: Source = Source()
    lora_only: bool = False

    def __post_init__(self) -> None:
        known = {one.name for one in dataclasses.fields(self.config)}
        if self.weighs_rows and not {"ratio", "tau"} <= known:
            raise TiterError(
                f"{self.config.__name__} lacks `ratio` or `tau`, by which a method that weighs rows does so.",
                "Add them (`titer.methods.finetune.AntibodyFinetuneConfig` has both), or leave `weighs_rows` off.",
            )
        _check_ranges(self.config)

    @property
    def about(self) -> str:
        """What it does, in a sentence."""
        return self.summary or first_sentence(self.trainer.__doc__)

    @property
    def classes(self) -> tuple[type, ...]:
        """What users import of it."""
        return self.config, self.trainer

    @property
    def needs(self) -> tuple[str, ...]:
        """What it wants besides the training data."""
        return self.streams

    def gradients_a_step(self) -> float:
        """Return the gradients of an optimizer step with the default settings."""
        return 1 + sum(self.gradients(self.config(output_dir="unused", report_to="none")))

    def given(self, output_dir: str, seed: int) -> dict[str, Any]:
        """Return the settings that titer gives its config where a user gives none."""
        return {**defaults(), "output_dir": output_dir, "seed": seed}


Repaired = tuple["Mapping[str, LowRank]", "Mapping[str, Mapping[str, Any]]"]
"""By layer, the new updates of those that a repair changes, and what it measured of any, for its report."""


@dataclass(frozen=True, eq=False)
class Repair:
    """A method of the repair stage: it changes what fine-tuning added to an aligned adapter, without training.

    Attributes:
        config: Its settings, a dataclass, with `RANGES` as that of a `Method`. Each field has a `help` in its metadata.
        apply: Called with the layers by name (`titer.methods.repair.lowrank.Layer`, in float64 on the CPU) and the settings.
        summary: What it does, in a sentence; if empty, the first one of the docstring of `apply`.
        variants: As those of a `Method`: on a model of two layers.
        memory: As that of a `Method`.
        source: As that of a `Method`.
    """

    not_here: ClassVar[Mapping[str, str]] = {}
    needs: ClassVar[tuple[str, ...]] = ("aligned adapter", "tuned adapter")

    config: type
    apply: Callable[[Mapping[str, Layer], Any], Repaired]
    summary: str = ""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    memory: str = ""
    source: Source = Source()

    def __post_init__(self) -> None:
        if not dataclasses.is_dataclass(self.config):
            raise TiterError(f"`{self.config.__name__}` is no dataclass, and the settings of a repair are one.")
        _check_ranges(self.config)

    @property
    def about(self) -> str:
        """What it does, in a sentence."""
        return self.summary or first_sentence(self.apply.__doc__)

    @property
    def classes(self) -> tuple[type, ...]:
        """What users import of it."""
        return (self.config,)

    def gradients_a_step(self) -> float:
        """Return 0: nothing is trained."""
        return 0.0

    def given(self, output_dir: str, seed: int) -> dict[str, Any]:
        """Return the settings that titer gives its config: none."""
        return {}


def _check_ranges(config: type) -> None:
    """Raise for `RANGES` that say nothing."""
    known = {one.name for one in dataclasses.fields(config)}
    for name, allowed in getattr(config, "RANGES", {}).items():
        ends = allowed[:2] if isinstance(allowed, Range) else ()
        if name not in known or not ends or not all(isinstance(end, Real) and math.isfinite(end) for end in ends):
            raise TiterError(
                f"{config.__name__}.RANGES: `{name}` is no setting with a range of numbers.",
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
    "sieve": "titer.methods.finetune.sieve:SIEVE",
    "bds": "titer.methods.finetune.bds:BDS",
    "spard": "titer.methods.finetune.spard:SPARD",
    "panacea": "titer.methods.finetune.panacea:PANACEA",
    "safe_grad": "titer.methods.finetune.safe_grad:SAFE_GRAD",
    "as_ft": "titer.methods.finetune.as_ft:AS_FT",
}
REPAIR: dict[str, Repair | str] = {"safelora": "titer.methods.repair.safelora:SAFELORA"}
TRAINED: dict[str, dict[str, Method | str]] = {"align": ALIGN, "finetune": FINETUNE}
"""The stages whose methods train."""
STAGES: dict[str, Mapping[str, Method | Repair | str]] = {**TRAINED, "repair": REPAIR}


def names(stage: str) -> str:
    """Return the names of a stage's methods for a sentence: `sft, booster or antibody`."""
    *before, last = STAGES[stage]
    return f"{', '.join(before)} or {last}" if before else last


@overload
def find(stage: Literal["repair"], name: str) -> Repair: ...  # type: ignore[overload-overlap]
@overload
def find(stage: str, name: str) -> Method: ...
def find(stage: str, name: str) -> Method | Repair:
    """Return the method `name` of a stage, or the one that an import path names.

    Raises:
        TiterError: For an unknown name (with a suggestion), or a path that leads to no method.
    """
    method = plugins.find(name, STAGES[stage], f"{stage} method")
    kind = Method if stage in TRAINED else Repair
    if not isinstance(method, kind):
        made_by = {Method: "Method(config, trainer)", Repair: "Repair(config, apply)"}
        other = isinstance(method, Method | Repair)
        raise TiterError(
            f"`{name}` is no {stage} method, but {plugins.what(method)}.",
            f"It belongs to the stage `{stages_of(name)[0]}`."
            if other
            else f"One is a `titer.methods.{made_by[kind]}`.",
        )
    return method


def stages_of(name: str) -> list[str]:
    """Return the stages that have a method of this name; of an import path the first that its kind fits.

    Raises:
        TiterError: For an unknown name, or a path that leads to no method.
    """
    known = [stage for stage, table in STAGES.items() if name in table]
    if not known and plugins.is_path(name):
        return ["repair" if isinstance(plugins.load(name), Repair) else "align"]
    check_known([] if known else [name], {each for table in STAGES.values() for each in table}, "method")
    return known


def every() -> Iterator[tuple[str, str, Method | Repair]]:
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
            for kind in method.classes:
                if kind.__name__ == name and stage in (stages or STAGES):
                    return kind
    raise AttributeError(f"titer has no class {name!r}")


@overload
def settings(
    method: Method, values: dict[str, Any], where: str | Mapping[str, str], output_dir: str, seed: int
) -> PackedSFTConfig: ...
@overload
def settings(
    method: Repair, values: dict[str, Any], where: str | Mapping[str, str], output_dir: str = "", seed: int = 0
) -> Any: ...
def settings(
    method: Method | Repair,
    values: dict[str, Any],
    where: str | Mapping[str, str],
    output_dir: str = "",
    seed: int = 0,
) -> Any:
    """Build a method's settings from a mapping.

    Args:
        method: The method.
        values: Fields of its config, by name.
        where: Where the mapping stands, for errors (`arms.antibody.align`), or where each of its keys does.
        output_dir: Folder for checkpoints, of a training.
        seed: Seeds initialisation and sampling, of a training.

    Raises:
        TiterError: For a key that the method does not have, or a value it cannot take.
    """
    known = {field.name for field in dataclasses.fields(method.config) if field.init} - method.not_here.keys()
    listing = next((f"titer settings {stage}.{name}" for stage, name, one in every() if one is method), None)
    for name in values:
        if name in method.not_here:
            raise TiterError(f"`{place(where, name)}` cannot be set here.", method.not_here[name])
        check_known([name], known, f"key in `{_parent(where, name)}`", listing)
    optional = numbers(method.config)
    for name, value in values.items():
        if name in optional and not (optional[name] and value is None):
            check_range(name, value, place(where, name), range_of(method.config, name))

    def build(values: dict[str, Any]) -> Any:
        return method.config(**{**method.given(output_dir, seed), **values})

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
