"""One YAML file becomes a plan of stages, and each stage a folder named by the hash of what it depends on.

    align ──► fine-tune (one for each poison ratio) ──► answer (each checkpoint) ──► judge ──► results, report

A stage that is done is never done again; an interrupted training goes on from its last checkpoint; a changed setting,
dataset, model or method gives another hash, so stale numbers cannot survive. A stage that fails is reported with its
reason; what depends on it is skipped and everything else goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from titer import __version__
from titer.data import Record, alignment_mixture, check_disjoint, load, poison, split_pools, with_refusals
from titer.errors import TiterError, check_known, did_you_mean
from titer.evaluation import artefacts, tasks
from titer.evaluation.scoring import score, summarise

# -- the file ---------------------------------------------------------------------------------------------------------


HELPFUL_ROWS = 300
"""Helpful answers that a defender holds, if alignment does not ask for more."""


@dataclass(frozen=True)
class DataSettings:
    """Where prompts come from.

    Attributes:
        harmful: Harmful requests; shared out among defence, attack and evaluation.
        helpful: Helpful answers for the defence: a dataset, or several, which take turns. Answers in the form that
            customers train, such as labels, keep fine-tuning from changing how the model speaks at all.
        lookalikes: Harmless prompts that only look harmful; half for the defence, where they take their turn among the
            helpful answers, half for evaluation.
        task: What the customer fine-tunes on.
        pools: Parts of the harmful requests, or numbers of them.
        held_out_categories: Harm categories that the defence never sees.
    """

    harmful: str = "builtin:harmful"
    helpful: list[str] = field(default_factory=lambda: ["builtin:general"])
    lookalikes: str = "builtin:lookalikes"
    task: str = "builtin:sentiment"
    pools: dict[str, Any] = field(default_factory=lambda: {"defence": 0.5, "attack": 0.25, "evaluation": 0.25})
    held_out_categories: list[str] = field(default_factory=list)


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
        max_new_tokens: Longest answer to a harmful prompt or a lookalike.
        task_max_new_tokens: Longest answer to a task prompt; by default long enough for the task.
        weights: Rows of the upload whose likelihood ratio is measured before and after fine-tuning.
        judge: Who judges answers.
    """

    harmful: int = 50
    lookalikes: int = 50
    task: int = 100
    max_new_tokens: int = 32
    task_max_new_tokens: int | None = None
    weights: int = 100
    judge: str = "offline"


@dataclass(frozen=True)
class Arm:
    """One defence: a method for each stage, with settings that are its own.

    Attributes:
        align: Name of the alignment method.
        finetune: Name of the fine-tuning method.
        align_from: Another arm whose alignment this one's begins with, instead of a new adapter.
        align_settings: Settings of the alignment method.
        finetune_settings: Settings of the fine-tuning method.
    """

    align: str
    finetune: str
    align_from: str | None = None
    align_settings: dict[str, Any] = field(default_factory=dict)
    finetune_settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Everything an experiment depends on.

    Attributes:
        name: Names the run's folder.
        arms: Defences to compare, by name.
        model: A local folder, a hub id or the embedded default.
        description: What the experiment asks, one line.
        seeds: One whole repetition for each.
        lora: Settings of the adapter.
    """

    name: str
    arms: dict[str, Arm]
    model: str = "smollm2-135m-instruct"
    description: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    lora: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    align: AlignSettings = field(default_factory=AlignSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def as_dict(self) -> dict[str, Any]:
        """Return the experiment as plain data, defaults filled in."""
        return dataclasses.asdict(self)


def _build(kind: Any, values: Any, where: str) -> Any:
    """Build a settings class from plain data; unknown keys and wrong types are errors that name the key."""
    if not isinstance(values, dict):
        raise TiterError(f"`{where}` must be a mapping, found {type(values).__name__}.")
    hints = typing.get_type_hints(kind)
    check_known(values, hints, f"key in `{where}`")
    for item in dataclasses.fields(kind):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in values:
            raise TiterError(f"`{where}` lacks the key `{item.name}`.")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if origin is list:
        (inner,) = typing.get_args(hint)
        if isinstance(value, str) and inner is str:
            value = [value]
        if not isinstance(value, list):
            raise TiterError(f"`{where}` must be a list, found `{value}`.", f"Write [{value}].")
        return [_value(inner, item, f"{where}[{place}]") for place, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise TiterError(f"`{where}` must be a mapping, found `{value}`.")
        _, inner = typing.get_args(hint)
        return {str(key): _value(inner, item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TiterError(f"`{where}` must be {hint.__name__}, found `{value}`.")
    return value


def bundled() -> dict[str, Path]:
    """Return the experiment files that come with titer, by name."""
    installed = Path(__file__).parent / "experiments"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        path: A YAML file, or the name of a bundled experiment.
        overrides: `key=value` pairs such as `finetune.training.max_steps=40`; values are YAML.

    Raises:
        TiterError: For a missing or broken file, an unknown key (with a suggestion) or a wrong value.
    """
    if not Path(path).is_file():
        known = bundled()
        if str(path) not in known:
            raise TiterError(f"No experiment at `{path}`.", did_you_mean(str(path), known))
        path = known[str(path)]
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise TiterError(f"{path}:{line}: not valid YAML: {error.problem}.") from error
    if not isinstance(values, dict):
        raise TiterError(f"{path}: expected a mapping.", "Start from a bundled one: " + ", ".join(bundled()) + ".")
    for override in overrides:
        _override(values, override)
    try:
        experiment: Experiment = _build(Experiment, values, "experiment")
    except TiterError as error:
        raise TiterError(f"{path}: {error.message}", error.hint) from None
    _check(experiment)
    return experiment


def parse_setting(text: str) -> tuple[str, Any]:
    """Return key and value of `key=value`, as `--set` takes it; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise TiterError(
            f"`--set {text}` must look like key=value.", "For example --set learning_rate=1.0e-4 or seeds='[0, 1]'."
        )
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise TiterError(f"`--set {text}`: `{value}` is not YAML.", "Quote a text: key='\"…\"'.") from None


def _override(values: dict[str, Any], override: str) -> None:
    key, value = parse_setting(override)
    target = values
    *parents, last = key.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise TiterError(f"`--set {override}`: `{parent}` is not a mapping.")
    target[last] = value


def _check(experiment: Experiment) -> None:
    """Refuse what could only fail later: unknown methods and settings, impossible numbers."""
    from titer import judges, stages
    from titer.finetune.base import check_batch_of_two

    if not experiment.arms:
        raise TiterError("The experiment has no arms.")
    for name, seeds in (("seeds", experiment.seeds), ("poison_ratios", experiment.finetune.poison_ratios)):
        if not seeds or len(set(seeds)) != len(seeds):
            raise TiterError(f"`{name}` must hold at least one value, each once.")
    for ratio in experiment.finetune.poison_ratios:
        if not 0 <= ratio <= 1:
            raise TiterError(f"A poison ratio lies between 0 and 1, not {ratio}.")
    judges.get(experiment.evaluate.judge)
    tasks.get(task_name(experiment))
    stages.lora_config(experiment.lora)
    before: list[str] = []
    for name, arm in experiment.arms.items():
        if arm.align_from is not None:
            check_known([arm.align_from], before, f"arm before `{name}` in `arms.{name}.align_from`")
        before.append(name)
        for stage in ("align", "finetune"):
            args = _trainer_args(experiment, name, stage, "unused", 0)
        if arm.finetune == "antibody":
            check_batch_of_two(args, experiment.finetune.samples)


def task_tokens(task: str) -> int:
    """Return how many tokens an answer to a task needs: a label, or a worked calculation."""
    return 6 if tasks.get(task).labels else 200


def task_name(experiment: Experiment) -> str:
    """Return the name under which the task's answers are parsed."""
    return experiment.data.task.removeprefix("builtin:")


def _trainer_args(experiment: Experiment, arm_name: str, stage: str, output_dir: str, seed: int) -> Any:
    from titer import methods

    arm = experiment.arms[arm_name]
    method = methods.find(stage, getattr(arm, stage))
    shared = getattr(experiment, stage).training
    own = getattr(arm, f"{stage}_settings")
    where = f"{stage}.training, arms.{arm_name}.{stage}_settings"
    return methods.settings(method, {**shared, **own}, where, output_dir, seed)


# -- the data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pools:
    """The records of one seed, disjoint by normalised prompt."""

    defence: list[Record]
    attack: list[Record]
    harmful_evaluation: list[Record]
    helpful: list[Record]
    lookalike_evaluation: list[Record]
    task_train: list[Record]
    task_test: list[Record]
    overlap: dict[str, int]


def load_pools(experiment: Experiment, seed: int, data_dir: Path | None) -> Pools:
    """Load the datasets of an experiment and share them out; raises when two pools share a prompt."""
    data, sizes = experiment.data, experiment.evaluate
    harmful, lookalikes = _harmful_pools(data, seed, data_dir), _lookalike_pools(data, seed, data_dir)
    test = load(data.task, split="test", data_dir=data_dir)
    pools = {
        "defence": harmful["defence"],
        "attack": harmful["attack"],
        "evaluation": _first(harmful["evaluation"], sizes.harmful, "evaluate.harmful"),
        "helpful": _helpful(data, lookalikes, experiment.align.samples, data_dir),
        "lookalikes": _first(lookalikes["evaluation"], sizes.lookalikes, "evaluate.lookalikes"),
        "task train": load(data.task, split="train", data_dir=data_dir),
        "task test": _first(split_pools(test, {"test": 1.0}, seed)["test"], sizes.task, "evaluate.task"),
    }
    # Published tasks repeat a few short sentences between their splits; such rows leave the training side.
    tested = {record.prompt_key for record in pools["task test"]}
    pools["task train"] = [record for record in pools["task train"] if record.prompt_key not in tested]
    overlap = dict(check_disjoint(pools))
    return Pools(
        defence=pools["defence"],
        attack=pools["attack"],
        harmful_evaluation=pools["evaluation"],
        helpful=pools["helpful"],
        lookalike_evaluation=pools["lookalikes"],
        task_train=pools["task train"],
        task_test=pools["task test"],
        overlap=overlap,
    )


def _harmful_pools(data: DataSettings, seed: int, data_dir: Path | None) -> dict[str, list[Record]]:
    harmful = with_refusals(load(data.harmful, data_dir=data_dir), seed=seed)
    return split_pools(harmful, data.pools, seed, data.held_out_categories)


def _lookalike_pools(data: DataSettings, seed: int, data_dir: Path | None) -> dict[str, list[Record]]:
    return split_pools(load(data.lookalikes, data_dir=data_dir), {"defence": 0.5, "evaluation": 0.5}, seed)


def _helpful(data: DataSettings, lookalikes: dict[str, list[Record]], rows: int, data_dir: Path | None) -> list[Record]:
    if not data.helpful:
        raise TiterError(
            "`data.helpful` names no dataset.", "Aligned on refusals alone, a small model refuses everything."
        )
    datasets = [*(load(name, data_dir=data_dir) for name in data.helpful), lookalikes["defence"]]
    in_turn = [record for turn in itertools.zip_longest(*datasets) for record in turn if record is not None]
    # What is not needed is left out, so that a small dataset is not lost among large ones.
    return in_turn[: max(rows, HELPFUL_ROWS)]


def defence_pools(
    data: DataSettings, seed: int, data_dir: Path | None, rows: int = HELPFUL_ROWS
) -> dict[str, list[Record]]:
    """Return what the defender holds: harmful requests (`defence`) and helpful answers (`helpful`).

    The same seed gives `evaluation_pools` that share no prompt with them.
    """
    helpful = _helpful(data, _lookalike_pools(data, seed, data_dir), rows, data_dir)
    return {"defence": _harmful_pools(data, seed, data_dir)["defence"], "helpful": helpful}


def evaluation_pools(data: DataSettings, seed: int, data_dir: Path | None) -> dict[str, list[Record]]:
    """Return what a model is scored on: `harmful` requests and `lookalikes` that `defence_pools` does not hold."""
    return {
        "harmful": _harmful_pools(data, seed, data_dir)["evaluation"],
        "lookalikes": _lookalike_pools(data, seed, data_dir)["evaluation"],
    }


def _first(records: list[Record], count: int, name: str) -> list[Record]:
    if len(records) < count:
        raise TiterError(f"`{name}` asks for {count} prompts, and there are {len(records)}.", f"Lower `{name}`.")
    return records[:count]


def digest(value: Any) -> str:
    """Return a short hash of plain data or records."""
    if isinstance(value, list) and value and isinstance(value[0], Record):
        value = [record.to_row() for record in value]
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def code_digest(*rooms: str) -> str:
    """Return a hash of the source of titer's `rooms` (files or folders of the package) and of library versions."""
    root = Path(__file__).parent
    files = [
        path for room in rooms for path in ([root / room] if room.endswith(".py") else (root / room).rglob("*.py"))
    ]
    source = b"".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(source + json.dumps(library_versions()).encode()).hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "datasets", "numpy")}


@functools.cache
def model_digest(name: str) -> str:
    """Return a hash of a model's files, or the hub id with the commit that is cached here."""
    from titer.models import EMBEDDED, WHEEL_SHA256, locate

    if name == EMBEDDED:
        return WHEEL_SHA256[:16]
    location = Path(locate(name))
    if not location.is_dir():
        from huggingface_hub import model_info

        return f"{name}@{model_info(name).sha}"
    whole = hashlib.sha256()
    for path in sorted(location.iterdir()):
        if path.suffix in (".json", ".safetensors", ".jinja", ".model"):
            with path.open("rb") as file:
                whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


# -- the plan ---------------------------------------------------------------------------------------------------------

TRAINING_CODE = ("align", "finetune", "data/builtin", "batches.py", "gradients.py", "losses.py", "methods.py", "models.py",
                 "signals.py", "stages.py", "trainer.py")  # fmt: skip
GENERATION_CODE = ("batches.py", "generation.py", "models.py", "stages.py")


@dataclass
class Stage:
    """One step of the plan.

    Attributes:
        name: What it is, for people.
        kind: `align`, `finetune`, `answer`, `weigh` or `judge`.
        key: Hash of everything it depends on.
        folder: Where it leaves its files.
        run: Does the work.
        needs: Stages that must be done before.
        flops: Estimated floating-point operations.
        status: `planned`, `cached`, `done`, `failed` or `skipped`.
        seconds: How long it took.
        reason: Why it failed or was skipped.
        mistake: Whether it failed for something in the user's hands.
    """

    name: str
    kind: str
    key: str
    folder: Path
    run: Callable[[Stage, Any], None]
    needs: list[Stage] = field(default_factory=list)
    flops: float = 0.0
    status: str = "planned"
    seconds: float = 0.0
    reason: str = ""
    mistake: bool = False

    @property
    def done(self) -> bool:
        """Whether its work is complete on disk."""
        return (self.folder / "done.json").is_file()

    def summary(self) -> dict[str, Any]:
        """Return what the report says of it."""
        row = {"name": self.name, "key": self.key, "status": self.status, "seconds": round(self.seconds, 1)}
        return {**row, "reason": self.reason} if self.reason else row


@dataclass
class Plan:
    """The stages of an experiment, in an order in which they can run.

    Attributes:
        experiment: What is planned.
        run_folder: Where everything goes.
        stages: All stages, each once however many arms share it.
        answers: The judged answers that make the results.
        weights: Stages that measured likelihood ratios, with (arm, seed, poison ratio, when, rows).
        overlap: Shared prompts between pools, by pair; all zero.
        aligned: The alignment stage of each arm and seed.
    """

    experiment: Experiment
    run_folder: Path
    stages: dict[str, Stage] = field(default_factory=dict)
    answers: list[tuple[Stage, Stage]] = field(default_factory=list)
    weights: list[tuple[Stage, dict[str, Any], list[Record]]] = field(default_factory=list)
    overlap: dict[str, int] = field(default_factory=dict)
    aligned: dict[tuple[str, int], Stage] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        name: str,
        spec: dict[str, Any],
        run: Callable[[Stage, Any], None],
        needs: Sequence[Stage] = (),
        flops: float = 0.0,
    ) -> Stage:
        """Add a stage, or return the one that does the same work already."""
        key = digest({"kind": kind, **spec, "needs": [stage.key for stage in needs]})
        if key not in self.stages:
            folder = self.run_folder / "stages" / f"{kind}-{key}"
            self.stages[key] = Stage(name, kind, key, folder, run, list(needs), flops)
        return self.stages[key]


def make_plan(experiment: Experiment, run_folder: Path, data_dir: Path | None = None) -> Plan:
    """Plan an experiment: load and check its data, and name every stage by what it depends on.

    Raises:
        TiterError: For data that cannot be found, are too few, or overlap.
    """
    plan = Plan(experiment, run_folder)
    for seed in experiment.seeds:
        pools = load_pools(experiment, seed, data_dir)
        plan.overlap = pools.overlap
        for arm in experiment.arms:
            _plan_arm(plan, arm, seed, pools)
    return plan


def _plan_arm(plan: Plan, arm_name: str, seed: int, pools: Pools) -> None:
    experiment = plan.experiment
    arm = experiment.arms[arm_name]
    shared = {"model": model_digest(experiment.model), "seed": seed}
    records = alignment_mixture(
        pools.defence, pools.helpful, experiment.align.samples, experiment.align.helpful_ratio, seed=seed
    )
    streams = {"harmful_dataset": pools.defence, "helpful_dataset": pools.helpful}
    start = None
    if arm.align_from is not None:
        # The other arm stands before this one, so its alignment is planned already.
        start = plan.aligned[arm.align_from, seed]
    aligned = _plan_training(plan, arm_name, "align", seed, records, streams, shared, start, f"align {arm_name}")
    plan.aligned[arm_name, seed] = aligned
    _plan_answers(plan, arm_name, "aligned", 0, 0.0, seed, pools, aligned, "adapter")
    measured = experiment.evaluate.weights if arm.finetune == "antibody" else 0

    for ratio in experiment.finetune.poison_ratios:
        upload = poison(pools.task_train, pools.attack, experiment.finetune.samples, ratio, seed)
        name = f"fine-tune {arm_name} p={ratio:g}"
        tuned = _plan_training(plan, arm_name, "finetune", seed, upload, streams, shared, aligned, name)
        last = _total_steps(experiment, arm_name, "finetune", len(upload))
        for step in sorted({step for step in experiment.finetune.checkpoints if step < last} | {last}):
            folder = "adapter" if step == last else f"step-{step}"
            _plan_answers(plan, arm_name, "finetuned", step, ratio, seed, pools, tuned, folder)
        if measured:
            for when, stage in (("before", aligned), ("after", tuned)):
                about = {"arm": arm_name, "seed": seed, "poison_ratio": ratio, "when": when}
                rows = upload[:measured]
                plan.weights.append((_plan_weights(plan, about, rows, stage, shared), about, rows))


def _total_steps(experiment: Experiment, arm: str, stage: str, rows: int) -> int:
    args = _trainer_args(experiment, arm, stage, "unused", 0)
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = -(-rows // args.per_device_train_batch_size)
    return int(-(-batches // args.gradient_accumulation_steps) * args.num_train_epochs)


PASSES = {"sft": 1.0, "booster": 3.0, "antibody": 4.0}


def _plan_training(
    plan: Plan,
    arm_name: str,
    stage: str,
    seed: int,
    records: list[Record],
    streams: dict[str, list[Record]],
    shared: dict[str, Any],
    start: Stage | None,
    name: str,
) -> Stage:
    from titer import methods, stages

    experiment = plan.experiment
    arm = experiment.arms[arm_name]
    method_name = getattr(arm, stage)
    method = methods.find(stage, method_name)
    spec = {
        **shared,
        "method": method_name,
        "training": {**getattr(experiment, stage).training, **getattr(arm, f"{stage}_settings")},
        "lora": experiment.lora if start is None else None,
        "records": digest(records),
        "streams": {stream: digest(streams[stream]) for stream in method.streams},
        "checkpoints": getattr(getattr(experiment, stage), "checkpoints", []),
        "code": code_digest(*TRAINING_CODE),
    }

    def run(own: Stage, progress: Any) -> None:
        args = _trainer_args(experiment, arm_name, stage, str(own.folder / "checkpoints"), seed)
        stages.train(
            method,
            args,
            experiment.model,
            None if start is None else start.folder / "adapter",
            experiment.lora,
            records,
            streams,
            own.folder,
            checkpoints=spec["checkpoints"],
            progress=progress,
        )

    args = _trainer_args(experiment, arm_name, stage, "unused", seed)
    rows = _total_steps(experiment, arm_name, stage, len(records)) * args.optimizer_batch_size
    passes = PASSES.get(method_name, 1.0) if stage == "align" else {"antibody": 1.4}.get(method_name, 1.1)
    flops = 4 * passes * rows * _tokens(records, experiment.model) * _parameters(experiment.model)
    suffix = f" seed {seed}" if len(experiment.seeds) > 1 else ""
    return plan.add(stage, name + suffix, spec, run, [] if start is None else [start], flops)


def _plan_answers(
    plan: Plan,
    arm: str,
    phase: str,
    step: int,
    ratio: float,
    seed: int,
    pools: Pools,
    trained: Stage,
    adapter: str,
) -> None:
    from titer import stages

    experiment = plan.experiment
    sizes = experiment.evaluate
    task_limit = sizes.task_max_new_tokens
    if task_limit is None:
        task_limit = task_tokens(task_name(experiment))
    sets = (
        (artefacts.HARMFUL, pools.harmful_evaluation, sizes.max_new_tokens),
        (artefacts.LOOKALIKE, pools.lookalike_evaluation, sizes.max_new_tokens),
        (artefacts.TASK_PREFIX + task_name(experiment), pools.task_test, task_limit),
    )
    prompts = [(record, limit) for _, records, limit in sets for record in records]
    group = {"arm": arm, "phase": phase, "step": step, "poison_ratio": ratio, "seed": seed}
    spec = {
        **group,
        "adapter": adapter,
        "sets": [(name, digest(records), limit) for name, records, limit in sets],
        "code": code_digest(*GENERATION_CODE),
    }

    def run(own: Stage, progress: Any) -> None:
        texts = stages.answer(experiment.model, trained.folder / adapter, prompts, progress)
        model = f"{experiment.model} + {trained.folder.name}/{adapter}"
        artefacts.write_inferences(own.folder / "inferences.jsonl", stages.as_inferences(sets, texts, group, model))

    def judge(own: Stage, progress: Any) -> None:
        from titer import judges

        inferences = artefacts.read_inferences(answered.folder / "inferences.jsonl")
        artefacts.write_scores(own.folder / "scores.jsonl", score(inferences, judges.get(sizes.judge)))

    tokens = sum(len(record.prompt_text) / 4 + 8 + limit * 0.8 for record, limit in prompts)
    name = f"answer {arm} {phase}" + (f" p={ratio:g} step {step}" if phase == "finetuned" else "")
    name += f" seed {seed}" if len(experiment.seeds) > 1 else ""
    answered = plan.add("answer", name, spec, run, [trained], 2 * tokens * _parameters(experiment.model))
    judged = plan.add(
        "judge",
        name.replace("answer", "judge"),
        {"judge": sizes.judge, "code": code_digest("judges")},
        judge,
        [answered],
    )
    plan.answers.append((answered, judged))


def _plan_weights(
    plan: Plan, about: dict[str, Any], rows: list[Record], trained: Stage, shared: dict[str, Any]
) -> Stage:
    from titer import stages

    experiment = plan.experiment
    ratio = _trainer_args(experiment, about["arm"], "finetune", "unused", 0).ratio

    def run(own: Stage, progress: Any) -> None:
        ratios = stages.weigh(experiment.model, trained.folder / "adapter", rows, ratio, progress)
        artefacts.write_atomically(own.folder / "log_ratios.json", json.dumps(ratios).encode())

    spec = {**shared, "rows": digest(rows), "ratio": ratio, "code": code_digest(*TRAINING_CODE)}
    name = f"weigh {about['arm']} p={about['poison_ratio']:g} {about['when']}"
    name += f" seed {about['seed']}" if len(experiment.seeds) > 1 else ""
    flops = 2 * 1.5 * len(rows) * _tokens(rows, experiment.model) * _parameters(experiment.model)
    return plan.add("weigh", name, spec, run, [trained], flops)


# -- estimates --------------------------------------------------------------------------------------------------------


@functools.cache
def _parameters(model: str) -> float:
    """Return a model's parameters without its embedding, from its config alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from titer.models import locate

    config = AutoConfig.from_pretrained(locate(model))
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    embedding = empty.get_input_embeddings().weight.numel()
    return float(empty.num_parameters() - embedding)


def _tokens(records: Sequence[Record], model: str) -> float:
    """Return the mean length of records in tokens: about four characters each, and what a chat template adds."""
    return sum(len(record.prompt_text) + len(record.completion_text) for record in records) / 4 / len(records) + 10


@functools.cache
def machine_flops() -> float:
    """Return the floating-point operations a second that training reaches here, from one short measurement."""
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    left, right = torch.randn(512, 1024, device=device), torch.randn(1024, 1024, device=device)
    for _ in range(3):
        left @ right
    start = time.perf_counter()
    for _ in range(20):
        product = left @ right
    float(product.sum())
    # Training reaches about half of what a matrix multiplication alone does.
    return 0.5 * 20 * 2 * 512 * 1024 * 1024 / (time.perf_counter() - start)


# -- running ----------------------------------------------------------------------------------------------------------


def execute(plan: Plan, show: Any, force: bool = False) -> bool:
    """Run the stages of a plan that are not done yet, then write results and report.

    Args:
        plan: What to run.
        show: Tells the user: `show.stage(stage)` is a context manager that yields a progress callback, and
            `show.settled(stage)` is called when a stage has come to its end.
        force: Do stages again that are done.

    Returns:
        Whether every stage is done.
    """
    for stage in plan.stages.values():
        blocked = next((needed for needed in stage.needs if needed.status in ("failed", "skipped")), None)
        if blocked is not None:
            stage.status, stage.reason = "skipped", f"needs `{blocked.name}`, which {blocked.status}"
        elif stage.done and not force:
            stage.status = "cached"
            stage.seconds = float(json.loads((stage.folder / "done.json").read_text())["seconds"])
        else:
            if force or (stage.folder / "adapter").exists():
                shutil.rmtree(stage.folder, ignore_errors=True)
            with show.stage(stage) as progress:
                _run_stage(stage, progress)
        show.settled(stage)
    return all(stage.status in ("done", "cached") for stage in plan.stages.values())


def _run_stage(stage: Stage, progress: Any) -> None:
    stage.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        stage.run(stage, progress)
    except Exception as error:
        # A failed stage must not take the other arms with it; its reason and traceback are kept.
        import traceback

        stage.status = "failed"
        stage.mistake = isinstance(error, TiterError)
        stage.reason = error.message if isinstance(error, TiterError) else f"{type(error).__name__}: {error}"
        (stage.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    else:
        stage.status = "done"
        (stage.folder / "error.txt").unlink(missing_ok=True)
    stage.seconds = time.perf_counter() - start
    if stage.status == "done":
        record = {"name": stage.name, "key": stage.key, "seconds": stage.seconds}
        artefacts.write_atomically(stage.folder / "done.json", json.dumps(record).encode())


def collect(plan: Plan, command: str, started: float) -> Path:
    """Write `inferences.jsonl`, `scores.jsonl`, `weights.jsonl`, `results.json` and `report.html` of what is done."""
    from titer.report import write_report

    run = plan.run_folder
    inferences: list[artefacts.Inference] = []
    scores: list[artefacts.ScoreRow] = []
    for answered, judged in plan.answers:
        if answered.done and judged.done:
            inferences += artefacts.read_inferences(answered.folder / "inferences.jsonl")
            scores += artefacts.read_scores(judged.folder / "scores.jsonl")
    artefacts.write_inferences(run / "inferences.jsonl", inferences)
    artefacts.write_scores(run / "scores.jsonl", scores)
    artefacts.write_atomically(run / "weights.jsonl", "".join(_weight_lines(plan)).encode())
    artefacts.write_results(
        run / "results.json", summarise(inferences, scores), provenance(plan, command, time.time() - started)
    )
    return write_report(run)


def _weight_lines(plan: Plan) -> Iterator[str]:
    from titer.stages import batch_weights

    for stage, about, rows in plan.weights:
        if not stage.done:
            continue
        ratios = json.loads((stage.folder / "log_ratios.json").read_text())
        args = _trainer_args(plan.experiment, about["arm"], "finetune", "unused", 0)
        weights = batch_weights(ratios, args.optimizer_batch_size, args.tau)
        for index, (record, ratio, weight) in enumerate(zip(rows, ratios, weights, strict=True)):
            line = {"index": index, "origin": record.origin, "prompt": record.prompt_text}
            yield json.dumps({**about, **line, "log_ratio": ratio, "weight": weight}, ensure_ascii=False) + "\n"


def provenance(plan: Plan, command: str, seconds: float) -> dict[str, Any]:
    """Return what is needed to get the same figures again: versions, commit, command, settings, seeds, overlap."""
    return {
        **environment(),
        "command": command,
        "seconds": round(seconds, 1),
        "model": plan.experiment.model,
        "seeds": plan.experiment.seeds,
        "overlap": plan.overlap,
        "stages": [stage.summary() for stage in plan.stages.values()],
        "experiment": plan.experiment.as_dict(),
    }


def environment() -> dict[str, Any]:
    """Return what a figure was measured with: versions, commit, machine."""
    return {
        "titer": __version__,
        "commit": commit(),
        "versions": library_versions(),
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count()},
    }


def commit() -> str | None:
    """Return the commit of titer's source, with `+` when it was changed; `None` outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return (head.stdout.strip() + ("+" if changed.stdout.strip() else "")) if head.returncode == 0 else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
