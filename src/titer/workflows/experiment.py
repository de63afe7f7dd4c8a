"""One YAML file becomes a plan of stages, and each stage a folder named by the hash of what it depends on.

    align ──► fine-tune (one for each poison ratio) ──► answer (each checkpoint) ──► judge ──► results, report

How stages run, resume and fail: `titer.jobs.plan`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer import methods, settings
from titer.data import Record, alignment_mixture, check_disjoint, load, poison, split_pools
from titer.data.pools import DataSettings, first, harmful_pools, helpful_rows, lookalike_pools
from titer.errors import TiterError, check_known
from titer.files import check_output, folder_name
from titer.jobs.estimates import Work, answering, by_limit, judging, optimizer_steps, training, weighing
from titer.jobs.plan import (
    GENERATION_CODE,
    TRAINING_CODE,
    Plan,
    Stage,
    code_digest,
    digest,
    environment,
    judge_key,
    model_digest,
    weights_digest,
)
from titer.judges.base import Judge
from titer.plugins import source_digest
from titer.ranges import check_settings
from titer.results import artefacts, tasks
from titer.results.scoring import check_verdicts, judge_into, summarise

# -- the file ---------------------------------------------------------------------------------------------------------


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
    experiment: Experiment = settings.read(Experiment, path, "experiments", "experiment", _check, overrides)
    return experiment


def _check(experiment: Experiment) -> None:
    """Refuse what could only fail later: unknown methods and settings, impossible numbers."""
    from titer import judges
    from titer.jobs import stages

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
    judges.get(experiment.evaluate.judge)
    tasks.get(task_name(experiment))
    stages.lora_config(experiment.lora)
    before: list[str] = []
    for name, arm in experiment.arms.items():
        if arm.align_from is not None:
            check_known([arm.align_from], before, f"arm before `{name}` in `arms.{name}.align_from`")
        before.append(name)
        for stage in methods.TRAINED:
            args = _trainer_args(experiment, name, stage, "unused", 0)
            methods.find(stage, getattr(arm, stage)).check(args, getattr(experiment, stage).samples)


def task_name(experiment: Experiment) -> str:
    """Return the name under which the task's answers are parsed."""
    return experiment.data.task.removeprefix("builtin:")


def _trainer_args(experiment: Experiment, arm_name: str, stage: str, output_dir: str, seed: int) -> Any:
    arm = experiment.arms[arm_name]
    method = methods.find(stage, getattr(arm, stage))
    shared = getattr(experiment, stage).training
    own = getattr(arm, f"{stage}_settings")
    return methods.settings(method, {**shared, **own}, _places(experiment, arm_name, stage), output_dir, seed)


def _places(experiment: Experiment, arm_name: str, stage: str) -> dict[str, str]:
    """Return where each setting of a training stands."""
    own = getattr(experiment.arms[arm_name], f"{stage}_settings")
    return {
        **dict.fromkeys(getattr(experiment, stage).training, f"{stage}.training"),
        **dict.fromkeys(own, f"arms.{arm_name}.{stage}_settings"),
    }


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
    harmful, lookalikes = harmful_pools(data, seed, data_dir), lookalike_pools(data, seed, data_dir)
    test = load(data.task, split="test", data_dir=data_dir)
    pools = {
        "defence": harmful["defence"],
        "attack": harmful["attack"],
        "evaluation": first(harmful["evaluation"], sizes.harmful, "evaluate.harmful"),
        "helpful": helpful_rows(data, lookalikes, experiment.align.samples, data_dir),
        "lookalikes": first(lookalikes["evaluation"], sizes.lookalikes, "evaluate.lookalikes"),
        "task train": load(data.task, split="train", data_dir=data_dir),
        "task test": first(split_pools(test, {"test": 1.0}, seed)["test"], sizes.task, "evaluate.task"),
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


# -- the plan ---------------------------------------------------------------------------------------------------------


@dataclass
class ExperimentPlan(Plan):
    """The stages of an experiment, in an order in which they can run.

    Attributes:
        experiment: What is planned.
        judge: Who judges answers.
        answers: The judged answers that make the results.
        weights: Stages that measured likelihood ratios, with (arm, seed, poison ratio, when, rows).
        overlap: Shared prompts between pools, by pair; all zero.
        aligned: The alignment stage of each arm and seed.
    """

    experiment: Experiment = field(kw_only=True)
    judge: Judge = field(init=False)
    answers: list[tuple[Stage, Stage]] = field(default_factory=list)
    weights: list[tuple[Stage, dict[str, Any], list[Record]]] = field(default_factory=list)
    overlap: dict[str, int] = field(default_factory=dict)
    aligned: dict[tuple[str, int], Stage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from titer import judges

        self.judge = judges.get(self.experiment.evaluate.judge)


def make_plan(experiment: Experiment, run_folder: Path, data_dir: Path | None = None) -> ExperimentPlan:
    """Plan an experiment: load and check its data, and name every stage by what it depends on.

    Raises:
        TiterError: For a folder that cannot be written, for data that cannot be found, are too few, or overlap, and for an
            adapter that does not fit the model.
    """

    files = ["inferences.jsonl", "scores.jsonl", "weights.jsonl", "results.json", "report.html"]
    check_output(run_folder, files, ["stages"])
    plan = ExperimentPlan(run_folder, experiment=experiment)
    for seed in experiment.seeds:
        pools = load_pools(experiment, seed, data_dir)
        plan.overlap = pools.overlap
        for arm in experiment.arms:
            _plan_arm(plan, arm, seed, pools)
    return plan


def _plan_arm(plan: ExperimentPlan, arm_name: str, seed: int, pools: Pools) -> None:
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
    measured = experiment.evaluate.weights if methods.find("finetune", arm.finetune).weighs_rows else 0

    for ratio in experiment.finetune.poison_ratios:
        upload = poison(pools.task_train, pools.attack, experiment.finetune.samples, ratio, seed)
        name = f"fine-tune {arm_name} p={ratio:g}"
        tuned = _plan_training(plan, arm_name, "finetune", seed, upload, streams, shared, aligned, name)
        last = optimizer_steps(_trainer_args(experiment, arm_name, "finetune", "unused", seed), len(upload))
        for step in experiment.finetune.checkpoints:
            if step > last:
                raise TiterError(
                    f"`finetune.checkpoints` holds step {step}, and fine-tuning of `{arm_name}` ends at {last}.",
                    "Leave it out: the last step is always scored.",
                )
        for step in sorted({*experiment.finetune.checkpoints, last}):
            folder = "adapter" if step == last else f"step-{step}"
            _plan_answers(plan, arm_name, "finetuned", step, ratio, seed, pools, tuned, folder)
        if measured:
            for when, stage in (("before", aligned), ("after", tuned)):
                about = {"arm": arm_name, "seed": seed, "poison_ratio": ratio, "when": when}
                rows = upload[:measured]
                plan.weights.append((_plan_weights(plan, about, rows, stage, shared), about, rows))


def _plan_training(
    plan: ExperimentPlan,
    arm_name: str,
    stage: str,
    seed: int,
    records: list[Record],
    streams: dict[str, list[Record]],
    shared: dict[str, Any],
    start: Stage | None,
    name: str,
) -> Stage:
    from titer.jobs import stages
    from titer.jobs.rehearsal import rehearse

    experiment = plan.experiment
    arm = experiment.arms[arm_name]
    method_name = getattr(arm, stage)
    method = methods.find(stage, method_name)
    spec = {
        **shared,
        "method": [method_name, source_digest(method.trainer, method.config)],
        "training": {**getattr(experiment, stage).training, **getattr(arm, f"{stage}_settings")},
        "lora": experiment.lora if start is None else None,
        "records": digest(records),
        "streams": {stream: digest(streams[stream]) for stream in method.streams},
        "checkpoints": getattr(getattr(experiment, stage), "checkpoints", []),
        "code": code_digest(*TRAINING_CODE),
    }

    rehearse(
        method,
        spec["training"],
        _places(experiment, arm_name, stage),
        experiment.model,
        experiment.lora,
        records,
        streams,
    )

    def run(own: Stage) -> None:
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
        )

    args = _trainer_args(experiment, arm_name, stage, "unused", seed)
    work = training(f"{stage} {method_name}", method, args, experiment.model, records, streams)
    suffix = f" seed {seed}" if len(experiment.seeds) > 1 else ""
    return plan.add(stage, name + suffix, spec, run, [] if start is None else [start], work)


def _plan_answers(
    plan: ExperimentPlan,
    arm: str,
    phase: str,
    step: int,
    ratio: float,
    seed: int,
    pools: Pools,
    trained: Stage,
    adapter: str,
) -> None:
    from titer.jobs import stages

    experiment = plan.experiment
    sizes = experiment.evaluate
    task_limit = sizes.task_max_new_tokens
    if task_limit is None:
        task_limit = tasks.get(task_name(experiment)).max_new_tokens
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

    def run(own: Stage) -> None:
        texts = stages.answer(experiment.model, trained.folder / adapter, prompts)
        model = f"{experiment.model} + {trained.folder.name}/{adapter}"
        weights = weights_digest(experiment.model, trained.folder / adapter)
        rows = stages.as_inferences(sets, texts, group, model, weights)
        artefacts.write_inferences(own.folder / "inferences.jsonl", rows)

    def judge(own: Stage) -> None:
        inferences = artefacts.read_inferences(answered.folder / "inferences.jsonl")
        check_verdicts(judge_into(own.folder / "scores.jsonl", inferences, [plan.judge]))

    asked = answering(experiment.model, by_limit(prompts))
    name = f"answer {arm} {phase}" + (f" p={ratio:g} step {step}" if phase == "finetuned" else "")
    name += f" seed {seed}" if len(experiment.seeds) > 1 else ""
    answered = plan.add("answer", name, spec, run, [trained], Work("answer", experiment.model, asked))
    judged = plan.add(
        "judge",
        name.replace("answer", "judge"),
        {"judge": judge_key(plan.judge), "code": code_digest("judges")},
        judge,
        [answered],
        judging(experiment.model, [plan.judge], len(pools.harmful_evaluation) + len(pools.lookalike_evaluation)),
    )
    plan.answers.append((answered, judged))


def _plan_weights(
    plan: ExperimentPlan, about: dict[str, Any], rows: list[Record], trained: Stage, shared: dict[str, Any]
) -> Stage:
    from titer.jobs import stages

    experiment = plan.experiment
    ratio = _trainer_args(experiment, about["arm"], "finetune", "unused", 0).ratio

    def run(own: Stage) -> None:
        ratios = stages.weigh(experiment.model, trained.folder / "adapter", rows, ratio)
        artefacts.write_atomically(own.folder / "log_ratios.json", json.dumps(ratios).encode())

    spec = {**shared, "rows": digest(rows), "ratio": ratio, "code": code_digest(*TRAINING_CODE)}
    name = f"weigh {about['arm']} p={about['poison_ratio']:g} {about['when']}"
    name += f" seed {about['seed']}" if len(experiment.seeds) > 1 else ""
    return plan.add("weigh", name, spec, run, [trained], weighing("weigh", experiment.model, rows))


# -- results ----------------------------------------------------------------------------------------------------------


def collect(plan: ExperimentPlan, command: str, started: float) -> Path:
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
        run / "results.json",
        summarise(inferences, scores),
        provenance(plan, command, time.perf_counter() - started, inferences),
    )
    return write_report(run)


def _weight_lines(plan: ExperimentPlan) -> Iterator[str]:
    from titer.jobs.stages import batch_weights

    for stage, about, rows in plan.weights:
        if not stage.done:
            continue
        ratios = json.loads((stage.folder / "log_ratios.json").read_text())
        args = _trainer_args(plan.experiment, about["arm"], "finetune", "unused", 0)
        weights = batch_weights(ratios, args.optimizer_batch_size, args.tau)
        for index, (record, ratio, weight) in enumerate(zip(rows, ratios, weights, strict=True)):
            line = {"index": index, "origin": record.origin, "prompt": record.prompt_text}
            yield json.dumps({**about, **line, "log_ratio": ratio, "weight": weight}, ensure_ascii=False) + "\n"


def provenance(
    plan: ExperimentPlan, command: str, seconds: float, inferences: Sequence[artefacts.Inference] = ()
) -> dict[str, Any]:
    """Return what is needed to get the same figures again: versions, commit, command, settings, seeds, overlap, weights."""
    return {
        **environment(),
        "command": command,
        "seconds": round(seconds, 1),
        "model": plan.experiment.model,
        "weights": artefacts.weights_of(inferences),
        "seeds": plan.experiment.seeds,
        "overlap": plan.overlap,
        "stages": [stage.summary() for stage in plan.stages.values()],
        "experiment": plan.experiment.as_dict(),
    }
