"""An experiment's file: which arms are compared, on which data, and how they are scored."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer import methods, settings
from titer.data.pools import DataSettings
from titer.errors import TiterError, check_known
from titer.files import folder_name
from titer.methods import Method, Repair
from titer.ranges import check_settings
from titer.results import tasks


@dataclass(frozen=True)
class AlignSettings:
    """The alignment stage of every arm.

    Attributes:
        samples: Rows of the alignment data: refusals and helpful answers.
        helpful_ratio: Part of them that is helpful; without it a small model learns to refuse everything.
        training: Settings of the trainer.
    """

    samples: int = 300
    helpful_ratio: float = 0.5
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FinetuneSettings:
    """The fine-tuning stage of every arm: the same data and budget for all of them.

    Attributes:
        samples: Rows of an upload.
        poison_ratios: Parts of an upload that are harmful; one fine-tuning for each.
        checkpoints: Optimizer steps at which to score; the last step is always scored.
        training: Settings of the trainer.
    """

    samples: int = 200
    poison_ratios: list[float] = field(default_factory=lambda: [0.2])
    checkpoints: list[int] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateSettings:
    """How arms are scored.

    Attributes:
        harmful: Harmful prompts.
        lookalikes: Harmless prompts that look harmful.
        task: Rows of the task's test split.
        fit: Whether the task's accuracy is how many tokens of the true answers the model finds likeliest, in the place of
            parsed answers: for tasks of long answers, of which no parser tells right from wrong.
        validation: Whether prompts are the ones after those that are scored otherwise: to tune settings on.
        max_new_tokens: Longest answer to a harmful prompt or a lookalike.
        task_max_new_tokens: Longest answer to a task prompt; by default long enough for the task.
        weights: Rows of the upload whose likelihood ratio is measured before and after fine-tuning.
        judge: Who judges answers.
        error_rates: A file with how often the judge errs, which goes before what titer knows; null is none.
    """

    harmful: int = 50
    lookalikes: int = 50
    task: int = 100
    fit: bool = False
    validation: bool = False
    max_new_tokens: int = 32
    task_max_new_tokens: int | None = None
    weights: int = 100
    judge: str = "offline"
    error_rates: str | None = None


@dataclass(frozen=True)
class Step:
    """One defence of an arm.

    Attributes:
        stage: `align`, `finetune` or `repair`.
        method: Name of the method.
        settings: Its settings, where they are not those of every arm.
        where: Where it stands in the file, for errors.
    """

    stage: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the step as it is written in a file."""
        return {self.stage: self.method, **({"settings": self.settings} if self.settings else {})}


@dataclass(frozen=True)
class Arm:
    """Defences that are combined: alignments, then a fine-tuning on the upload, then repairs of what that left.

    Attributes:
        steps: In order. Arms whose first steps are the same share them.
    """

    steps: tuple[Step, ...]

    def of(self, stage: str) -> list[Step]:
        """Return the steps of a stage."""
        return [step for step in self.steps if step.stage == stage]

    @classmethod
    def read(cls, value: Any, where: str, before: Mapping[str, Arm]) -> Arm:
        """Return the arm that a file describes: a list of steps, or a mapping of one for each stage.

        Args:
            value: A list such as `[{align: sft}, {align: booster, settings: {lam: 2}}, {finetune: sft}]`, or a mapping
                `{align: booster, align_settings: {lam: 2}, align_from: undefended, finetune: sft}`, in which `align_from` names
                an arm whose alignments come first.
            where: Where it stands, for errors.
            before: The arms that stand before it.

        Raises:
            TiterError: For what is neither, and for steps that make no sense together.
        """
        steps = _steps_in_list(value, where) if isinstance(value, list) else _steps_in_mapping(value, where, before)
        stages = list(methods.STAGES)
        order = [stages.index(step.stage) for step in steps]
        if order != sorted(order):
            early = next(place for place, (one, next_one) in enumerate(itertools.pairwise(order)) if next_one < one)
            raise TiterError(
                f"`{where}`: `{steps[early + 1].stage}` cannot follow `{steps[early].stage}`.",
                "A model is aligned, then fine-tuned on the upload, then repaired.",
            )
        for stage, most in (("align", None), ("finetune", 1)):
            found = sum(step.stage == stage for step in steps)
            if not found:
                raise TiterError(f"`{where}` has no `{stage}` step.", _NEEDED[stage])
            if most is not None and found > most:
                raise TiterError(f"`{where}` has {found} `{stage}` steps.", "All arms train once on the same upload.")
        return cls(tuple(steps))


def read_arms(values: Mapping[str, Any]) -> dict[str, Arm]:
    """Return the arms of a file by name; each an `Arm`, or what `Arm.read` makes one of."""
    arms: dict[str, Arm] = {}
    for name, value in values.items():
        arms[name] = value if isinstance(value, Arm) else Arm.read(value, f"arms.{name}", arms)
    return arms


_NEEDED = {
    "align": "Every defence begins with an alignment; `align: sft` is the plain one.",
    "finetune": "Every arm is fine-tuned on the upload; `finetune: sft` is the plain way.",
}


def _steps_in_list(value: list[Any], where: str) -> list[Step]:
    steps = []
    for place, item in enumerate(value):
        here = f"{where}[{place}]"
        if not isinstance(item, dict):
            raise TiterError(f"`{here}` must be a mapping, found `{item}`.", "For example {align: booster}.")
        check_known(item, [*methods.STAGES, "settings"], f"key in `{here}`")
        stages = [name for name in item if name in methods.STAGES]
        if len(stages) != 1:
            raise TiterError(f"`{here}` must name one method, found {len(stages)}.", "For example {align: booster}.")
        steps.append(_step(stages[0], item[stages[0]], item.get("settings", {}), f"{here}.settings", here))
    return steps


def _steps_in_mapping(value: Any, where: str, before: Mapping[str, Arm]) -> list[Step]:
    if not isinstance(value, dict):
        raise TiterError(f"`{where}` must be a list of steps or a mapping, found `{value}`.", "[{align: sft}, …]")
    known = [key for stage in methods.STAGES for key in (stage, f"{stage}_settings")]
    check_known(value, [*known, "align_from"], f"key in `{where}`")
    steps = []
    if value.get("align_from") is not None:
        name = where.rpartition(".")[2]
        check_known([value["align_from"]], before, f"arm before `{name}` in `{where}.align_from`")
        steps += before[value["align_from"]].of("align")
    for stage in methods.STAGES:
        if stage in value:
            own = value.get(f"{stage}_settings", {})
            steps.append(_step(stage, value[stage], own, f"{where}.{stage}_settings", f"{where}.{stage}"))
        elif f"{stage}_settings" in value:
            raise TiterError(f"`{where}.{stage}_settings` has no effect without `{where}.{stage}`.", "Name the method.")
    return steps


def _step(stage: str, method: Any, own: Any, where: str, named: str) -> Step:
    if not isinstance(method, str):
        raise TiterError(f"`{named}` must be the name of a method, found `{method}`.")
    if not isinstance(own, dict):
        raise TiterError(f"`{where}` must be a mapping, found `{own}`.")
    return Step(stage, method, own, where)


@dataclass(frozen=True)
class Experiment:
    """Everything an experiment depends on.

    Attributes:
        name: Names the run's folder.
        arms: Defences to compare, by name; each an `Arm`, or what `Arm.read` makes one of.
        model: A local folder, a hub id or the embedded default.
        description: What the experiment asks, one line.
        seeds: One whole repetition for each.
        lora: Settings of the adapter.
        engine: Who decodes answers: `openai:URL` of a vLLM or SGLang server (`titer.infer.engines`); null for titer itself.
    """

    name: str
    arms: dict[str, Any]
    model: str = "smollm2-135m-instruct"
    description: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    lora: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    align: AlignSettings = field(default_factory=AlignSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    engine: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", read_arms(self.arms))

    def as_dict(self) -> dict[str, Any]:
        """Return the experiment as plain data, defaults filled in."""
        return {
            **dataclasses.asdict(self),
            "arms": {name: [step.as_dict() for step in arm.steps] for name, arm in self.arms.items()},
        }


def bundled() -> dict[str, Path]:
    """Return the experiment files that come with titer, by name."""
    return settings.bundled("experiments")


def read_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        path: A YAML file, or the name of a bundled experiment.
        overrides: `key=value` pairs such as `finetune.training.max_steps=40`; values are YAML.

    Raises:
        TiterError: For a missing or broken file, an unknown key (with a suggestion) or a wrong value.
    """
    experiment: Experiment = settings.read(Experiment, path, "experiments", "experiment", check_experiment, overrides)
    return experiment


def check_experiment(experiment: Experiment) -> None:
    """Refuse what could only fail later: unknown methods and settings, impossible numbers."""
    from titer import judges
    from titer.infer.engines import Engine
    from titer.jobs.trainings import lora_config
    from titer.judges.error_rates import check_own

    folder_name(experiment.name, "name")
    if not experiment.arms:
        raise TiterError("The experiment has no arms.")
    for where, part in (
        ("experiment", experiment),
        ("align", experiment.align),
        ("finetune", experiment.finetune),
        ("evaluate", experiment.evaluate),
    ):
        check_settings(part, where)
    for name, seeds in (("seeds", experiment.seeds), ("poison_ratios", experiment.finetune.poison_ratios)):
        if not seeds or len(set(seeds)) != len(seeds):
            raise TiterError(f"`{name}` must hold at least one value, each once.")
    judge = judges.get(experiment.evaluate.judge)
    if experiment.evaluate.error_rates is not None:
        check_own(experiment.evaluate.error_rates, [judge.name])
    if experiment.engine is not None:
        Engine.read(experiment.engine)
    if not experiment.evaluate.fit:
        tasks.get(task_name(experiment))
    elif experiment.evaluate.task_max_new_tokens is not None:
        raise TiterError("`evaluate.task_max_new_tokens` has no effect with `evaluate.fit`.", "Leave it out.")
    lora_config(experiment.lora)
    for arm in experiment.arms.values():
        for step in arm.steps:
            method: Method | Repair = methods.find(step.stage, step.method)
            if isinstance(method, Repair):
                repair_settings(step)
                continue
            args = trainer_args(experiment, step, "unused", 0)
            if method.own_rows is None:  # else its rows are there when the plan is made
                method.check(args, getattr(experiment, step.stage).samples)


def task_name(experiment: Experiment) -> str:
    """Return the name under which the task's answers are parsed."""
    return experiment.data.task.removeprefix("builtin:")


def training_settings(experiment: Experiment, step: Step) -> dict[str, Any]:
    """Return the settings of a training: those of every arm, and on top of them the step's own."""
    return {**_shared(experiment, step), **step.settings}


def trainer_args(experiment: Experiment, step: Step, output_dir: str, seed: int) -> Any:
    """Return the settings of a training as its trainer takes them."""
    method = methods.find(step.stage, step.method)
    return methods.settings(method, training_settings(experiment, step), places(experiment, step), output_dir, seed)


def repair_settings(step: Step) -> Any:
    """Return the settings of a repair as its method takes them."""
    method: Any = methods.find("repair", step.method)
    return methods.settings(method, step.settings, dict.fromkeys(step.settings, step.where))


def places(experiment: Experiment, step: Step) -> dict[str, str]:
    """Return where each setting of a training stands."""
    shared = dict.fromkeys(_shared(experiment, step), f"{step.stage}.training")
    return {**shared, **dict.fromkeys(step.settings, step.where)}


def _shared(experiment: Experiment, step: Step) -> dict[str, Any]:
    """Return the settings that every arm's training of a stage has; those of repairs have none in common."""
    training: dict[str, Any] = {} if step.stage == "repair" else getattr(experiment, step.stage).training
    return training
