"""A field's file: every defence under one protocol, over forms of task, shares of harmful rows and seeds.

A cell of the field is one upload by one arm, and stands for an experiment of its own: the same jobs, whoever asks for them.
A paper's table is a field too: its own settings, its figures as they were published, and a section `small` that asks the same
of the embedded model.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from titer import settings
from titer.data.pools import DataSettings
from titer.errors import TiterError, check_known, did_you_mean
from titer.files import folder_name
from titer.jobs.provenance import digest
from titer.workflows.experiment_file import (
    AlignSettings,
    Arm,
    EvaluateSettings,
    Experiment,
    FinetuneSettings,
    check_experiment,
    read_arms,
)
from titer.workflows.field_theirs import Theirs, check_theirs

SMALL = "_small"
"""Behind the name of a field whose section `small` is asked for."""


@dataclass(frozen=True)
class Form:
    """A form of task that customers fine-tune on; in a paper's table a column: a task, a number of rows, a model.

    Attributes:
        task: The dataset.
        longest: Most characters of a row; longer ones are left out.
        fit: Whether its accuracy is that of the true answers' tokens (`EvaluateSettings.fit`).
        samples: Rows of an upload, where it is not the field's number.
        scored: Rows of the task that are scored, where it is not the field's number.
        model: Where it is not the field's.
        parameters: Of that model, in the place of `budget.parameters`.
        training: Settings of the fine-tuning, on top of `finetune.training`.
    """

    task: str
    longest: int | None = None
    fit: bool = False
    samples: int | None = None
    scored: int | None = None
    model: str | None = None
    parameters: float | None = None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Builtin:
    """What the field is run on without data from elsewhere.

    Attributes:
        attack: In the place of `data.attack`.
        forms: In the place of `forms`.
    """

    attack: str | None = None
    forms: dict[str, Form] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """How the learning rate of fine-tuning is chosen, with as many trials for each arm.

    Attributes:
        form: On which form.
        poison_ratio: With which share of harmful rows.
        seed: With which seed.
        learning_rates: The trials; none leaves every arm at the shared rate.
    """

    form: str = ""
    poison_ratio: float = 0.2
    seed: int = 0
    learning_rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Whole:
    """The attacker who has the weights, trains all of them plainly, and asks no provider.

    Attributes:
        arms: Whose alignments are attacked: arms whose fine-tuning is plain and that nothing repairs.
        training: Settings of the trainer, in the place of `finetune.training`.
    """

    arms: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ordering:
    """What was published of two arms: that one has the lower harmful score.

    Attributes:
        lower: The arm with the lower one.
        higher: The other.
        source: Who says so.
    """

    lower: str
    higher: str
    source: str


@dataclass(frozen=True)
class Budget:
    """What computes a model that is too large for this machine, for `--dry-run`.

    Attributes:
        parameters: Of the model, without its embedding.
        flops_per_second: Of the accelerator, as trainings reach it.
        price_per_hour: Of the accelerator, in dollars.
    """

    parameters: float
    flops_per_second: float
    price_per_hour: float


@dataclass(frozen=True)
class Field:
    """Everything that the cells of a field depend on.

    Attributes:
        name: Names the folders.
        arms: Defences to compare, by name; each an `Arm`, or what `Arm.read` makes one of.
        forms: Forms of task, by name, the first first.
        model: A local folder, a hub id or the embedded default.
        description: What the field asks, one line.
        seeds: One whole repetition for each.
        judges: Who judges; the first is the headline judge.
        lora: Settings of the adapter.
        published: Orderings to hold against what is found.
        theirs: A table as its paper published it, to stand beside what is found.
        left_out: Methods that are not there, and why; of a paper's table also what else is not.
        small: The same with the embedded model: `arms` and `forms` of its own, and in other sections the keys that differ.
    """

    name: str
    arms: dict[str, Any]
    forms: dict[str, Form]
    model: str = "smollm2-135m-instruct"
    description: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    judges: list[str] = field(default_factory=lambda: ["offline"])
    lora: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    align: AlignSettings = field(default_factory=AlignSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    builtin: Builtin = field(default_factory=Builtin)
    tuning: Tuning = field(default_factory=Tuning)
    whole: Whole = field(default_factory=Whole)
    published: list[Ordering] = field(default_factory=list)
    theirs: Theirs | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    budget: Budget | None = None
    small: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", read_arms(self.arms))


@dataclass(frozen=True)
class Spot:
    """Which cell: an upload by an arm.

    Attributes:
        form: Name of the form of task.
        arm: Name of the arm.
        poison_ratio: Share of harmful rows.
        seed: Of pools, uploads and trainings.
        learning_rate: Of fine-tuning; `None` is the arm's own, or the shared one.
        validation: Whether it is a trial, scored on the prompts that settings are chosen on.
        whole: Whether the attacker trains all weights, and not an adapter in the provider's hands.
    """

    form: str
    arm: str
    poison_ratio: float
    seed: int
    learning_rate: float | None = None
    validation: bool = False
    whole: bool = False

    @property
    def name(self) -> str:
        """Of its file, and on the command line: `label.sieve.p0.2.s0`."""
        rate = "" if self.learning_rate is None else f".lr{self.learning_rate:g}"
        kind = ".trial" if self.validation else ".whole" if self.whole else ""
        return f"{self.form}.{self.arm}.p{self.poison_ratio:g}.s{self.seed}{rate}{kind}"


def bundled() -> dict[str, Path]:
    """Return the fields that come with titer, by name; tables of papers are called `paper/NAME`."""
    papers = settings.bundled("experiments/paper")
    return {**settings.bundled("experiments/fields"), **{f"paper/{name}": path for name, path in papers.items()}}


def place_of(path: str | Path, name: str) -> Path:
    """Return below which folder a field's cells and pages are: `paper/NAME` of a bundled table, else `NAME`."""
    return Path(path).parent / name if str(path) in bundled() else Path(name)


def read_field(path: str | Path, overrides: Sequence[str] = (), builtin: bool = False, small: bool = False) -> Field:
    """Read a field's file.

    Args:
        path: A YAML file, or the name of a bundled field.
        overrides: `key=value` pairs such as `finetune.training.max_steps=40`; values are YAML.
        builtin: Take what its section `builtin` holds in the place of data from elsewhere.
        small: Take what its section `small` holds in the place of the same keys.

    Raises:
        TiterError: For a missing or broken file, an unknown key (with a suggestion) or a wrong value.
    """
    if small:
        read_field(path)  # the small section's own check does not know the forms of the table as it was published
    check, change = (_check, _made_small) if small else (_check_whole, None)
    found: Field = settings.read(Field, path, bundled(), "field", check, overrides, change)
    if builtin:
        if not found.builtin.forms:
            raise TiterError(f"{path} has no section `builtin`.", "Give its data with `--data-dir`.")
        found = replace(
            found,
            name=f"{found.name}_builtin",
            data=replace(found.data, attack=found.builtin.attack),
            forms=found.builtin.forms,
        )
    return found


def _made_small(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file with its section `small` laid over them, under a name of its own."""
    small = values.pop("small", None)
    if not isinstance(small, Mapping):
        raise TiterError("It has no section `small`.", "Leave out `--small`.")
    made = {**values, **small, "name": f"{values.get('name')}{SMALL}"}
    for key, value in small.items():
        # What is compared, and over what, is whole in either; of a section only the keys differ that are said.
        if key not in ("arms", "forms") and isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            made[key] = {**values[key], **value}
    return made


def _check_whole(found: Field) -> None:
    _check(found)
    if found.theirs is not None:
        check_theirs(found.theirs, found.forms, found.arms, found.finetune.poison_ratios)


def _check(found: Field) -> None:
    """Refuse what could only fail later, after hours of cells."""
    from titer import judges

    folder_name(found.name, "name")
    for where, names in (("arms", found.arms), ("forms", found.forms), ("judges", found.judges)):
        if not names:
            raise TiterError(f"`{where}` is empty.")
    for name in (*found.arms, *found.forms):
        folder_name(name, "name of an arm or a form")
        if "." in name:
            raise TiterError(f"`{name}` has a dot, which parts the names of cells.", "Take an underscore.")
    for judge in found.judges:
        judges.get(judge)
    if found.finetune.checkpoints:
        raise TiterError(
            "`finetune.checkpoints` has no effect in a field: cells are scored at the end.", "Leave it out."
        )
    for order in found.published:
        check_known([order.lower, order.higher], found.arms, "arm in `published`")
    check_known(found.whole.arms, found.arms, "arm in `whole.arms`")
    for name in found.whole.arms:
        if [step.method for step in found.arms[name].steps if step.stage != "align"] != ["sft"]:
            raise TiterError(
                f"`whole.arms` holds `{name}`, which is more than an alignment.",
                "Who has the weights asks no provider: name arms with plain fine-tuning.",
            )
    if found.tuning.learning_rates:
        check_known([found.tuning.form], found.forms, "form in `tuning`")
    for form in found.forms:
        check_experiment(replace(experiment_of(found, Spot(form, next(iter(found.arms)), 0.0, 0)), arms=found.arms))


def experiment_of(found: Field, spot: Spot) -> Experiment:
    """Return the experiment that a cell stands for: one arm, one seed, one upload."""
    form = found.forms[spot.form]
    arm: Arm = found.arms[spot.arm]
    if spot.learning_rate is not None:
        arm = Arm(tuple(_at(step, spot.learning_rate) for step in arm.steps))
    finetune, evaluate = found.finetune, found.evaluate
    return Experiment(
        name=found.name,
        arms={spot.arm: arm},
        model=form.model or found.model,
        seeds=[spot.seed],
        lora=found.lora,
        data=replace(found.data, task=form.task, longest=form.longest),
        align=found.align,
        finetune=replace(
            finetune,
            poison_ratios=[spot.poison_ratio],
            samples=finetune.samples if form.samples is None else form.samples,
            training={**finetune.training, **form.training},
        ),
        evaluate=replace(
            evaluate,
            fit=form.fit,
            validation=spot.validation,
            task=evaluate.task if form.scored is None else form.scored,
            judge=found.judges[0],
        ),
    )


def _at(step: Any, rate: float) -> Any:
    return replace(step, settings={**step.settings, "learning_rate": rate}) if step.stage == "finetune" else step


def protocol_of(found: Field, spot: Spot) -> dict[str, Any]:
    """Return what a cell's figures depend on as plain data, without what is at its default."""
    experiment = experiment_of(found, spot)
    said: dict[str, Any] = _said(dataclasses.asdict(experiment), dataclasses.asdict(Experiment("", {})))
    said["arms"] = experiment.as_dict()["arms"]
    return {**said, "judges": list(found.judges), **({"whole": dict(found.whole.training)} if spot.whole else {})}


def _said(value: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, each in value.items():
        known = default.get(key)
        if isinstance(each, Mapping) and isinstance(known, Mapping) and each:
            each = _said(each, known)
            known = {}
        if each != known:
            kept[key] = each
    return kept


def protocol_digest(found: Field, spot: Spot) -> str:
    """Return a hash of `protocol_of`."""
    return digest(protocol_of(found, spot))


def spots(found: Field) -> list[Spot]:
    """Return the cells of the table at the shared learning rate: by seed, share of harmful rows, form, arm."""
    return [
        Spot(form, arm, ratio, seed)
        for seed, ratio, form, arm in itertools.product(
            found.seeds, found.finetune.poison_ratios, found.forms, found.arms
        )
    ]


def whole_spots(found: Field) -> list[Spot]:
    """Return the cells of the attacker who trains all weights."""
    return [replace(spot, whole=True) for spot in spots(found) if spot.arm in found.whole.arms]


def trials(found: Field) -> list[Spot]:
    """Return the cells that a learning rate is chosen by: as many for each arm that trains at one."""
    tuning = found.tuning
    return [
        Spot(tuning.form, arm, tuning.poison_ratio, tuning.seed, rate, validation=True)
        for arm, rate in itertools.product(found.arms, tuning.learning_rates)
        if not any("learning_rate" in step.settings for step in found.arms[arm].of("finetune"))
    ]


def chosen(wanted: Sequence[Spot], patterns: Sequence[str]) -> list[Spot]:
    """Return the cells whose names fit one of some patterns (`label.*`, `*.sieve.*`); all without any.

    Raises:
        TiterError: For a pattern that no cell fits.
    """
    for pattern in patterns:
        if not any(fnmatchcase(spot.name, pattern) for spot in wanted):
            parts = {part for spot in wanted for part in (spot.form, spot.arm)}
            hint = did_you_mean(pattern.strip("*."), sorted(parts))
            raise TiterError(f"No cell is called `{pattern}`.", f"{hint} They are called `{wanted[0].name}`.")
    return [spot for spot in wanted if not patterns or any(fnmatchcase(spot.name, pattern) for pattern in patterns)]
