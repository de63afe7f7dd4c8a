"""One YAML file becomes a plan of jobs, and what these leave becomes results and a report.

    align … ──► fine-tune (one for each poison ratio) ──► repair … ──► answer (each checkpoint) ──► judge ──► results, report

How jobs run, resume and fail: `titer.jobs.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer import judges, methods, plugins
from titer.data import Record, alignment_mixture, poison
from titer.errors import TiterError
from titer.files import check_output
from titer.infer.engines import Engine
from titer.infer.serving import Serving, served
from titer.jobs.job import Job
from titer.jobs.plan import Plan
from titer.jobs.provenance import judge_key, model_digest
from titer.jobs.work import (
    Cost,
    Work,
    answering,
    by_limit,
    fitting,
    judging,
    measuring,
    optimizer_steps,
    routing,
    training,
    weighing,
)
from titer.judges.base import Judge
from titer.methods import Method
from titer.plugins import source_digest
from titer.results import artefacts, tasks
from titer.workflows.collecting import collect
from titer.workflows.experiment_file import (
    Experiment,
    Step,
    bundled,
    places,
    read_experiment,
    task_name,
    trainer_args,
    training_settings,
)
from titer.workflows.experiment_pools import Pools, load_pools

__all__ = ["Experiment", "bundled", "collect", "load_pools", "make_plan", "read_experiment"]


@dataclass
class ExperimentPlan(Plan):
    """The jobs of an experiment, in an order in which they can run.

    Attributes:
        experiment: What is planned.
        judge: Who judges answers.
        answers: The judged answers that make the results.
        fits: Jobs that measure how well the task's answers are known, with arm, phase, step, poison ratio and seed.
        weights: Jobs that measure likelihood ratios, with (arm, seed, poison ratio, when, rows).
        weighed: Fine-tunings that may have weighed their rows before they began, likewise.
        overlap: Shared prompts between pools, by pair; all zero.
        engine: Which engine answers, with its version; `None` for titer's own decoding.
        serving: By arm that is a serving control or a served guard (`routed`), what it is served with (`about`), and under which
            name the adapter `alone` stands among the results: as whoever holds it has it.
        aligned: By alignment and seed, the arms that go on from it: its model is asked once.
    """

    experiment: Experiment = field(kw_only=True)
    judge: Judge = field(init=False)
    engine: str | None = None
    answers: list[tuple[Job, Job]] = field(default_factory=list)
    fits: list[tuple[Job, dict[str, Any]]] = field(default_factory=list)
    weights: list[tuple[Job, dict[str, Any], list[Record]]] = field(default_factory=list)
    weighed: list[tuple[Job, dict[str, Any], list[Record]]] = field(default_factory=list)
    overlap: dict[str, int] = field(default_factory=dict)
    serving: dict[str, dict[str, Any]] = field(default_factory=dict)
    aligned: dict[tuple[str, int], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judge = judges.get(self.experiment.evaluate.judge)

    def names(self, answered: Job) -> list[str]:
        """Return the arms that the answers of a job stand for.

        Before fine-tuning, these are all that go on from the same alignment, and of those that are served with something the
        adapter alone, since nothing is served yet.
        """
        if answered.settings["phase"] != "aligned":
            return [answered.settings["arm"]]
        arms = self.aligned[answered.needs[0].key, answered.settings["seed"]]
        return [*arms, *(self.serving[arm]["alone"] for arm in arms if arm in self.serving)]


def make_plan(experiment: Experiment, run_folder: Path, data_dir: Path | None = None) -> ExperimentPlan:
    """Plan an experiment: load and check its data, and name every job by what it depends on.

    Raises:
        TiterError: For a folder that cannot be written, for data that cannot be found, are too few, or overlap, for an
            adapter that does not fit the model, and for an engine that cannot be asked what it is.
    """
    files = ["inferences.jsonl", "scores.jsonl", "weights.jsonl", "results.json", "report.html"]
    check_output(run_folder, files, ["jobs", "inputs", "leases"])
    plan = ExperimentPlan(run_folder, experiment=experiment)
    if experiment.engine is not None:
        plan.engine = Engine.read(experiment.engine).server().facts.engine
    for seed in experiment.seeds:
        pools = load_pools(experiment, seed, data_dir)
        plan.overlap = pools.overlap
        for arm in experiment.arms:
            _ArmPlanner(plan, arm, seed, pools).add()
    return plan


def _leaves_a_router(step: Step) -> bool:
    method = methods.find(step.stage, step.method)
    return isinstance(method, Method) and method.routed is not None


class _ArmPlanner:
    """Plans the jobs of one arm and seed."""

    def __init__(self, plan: ExperimentPlan, name: str, seed: int, pools: Pools) -> None:
        self.plan, self.name, self.seed, self.pools = plan, name, seed, pools
        self.experiment = plan.experiment
        self.model = self.experiment.model
        self.arm = self.experiment.arms[name]
        self.suffix = f" seed {seed}" if len(self.experiment.seeds) > 1 else ""
        self.streams = {"harmful_dataset": pools.defence, "helpful_dataset": pools.helpful}

    def add(self) -> None:
        """Add them."""
        sizes, pools = self.experiment.align, self.pools
        rows = alignment_mixture(pools.defence, pools.helpful, sizes.samples, sizes.helpful_ratio, seed=self.seed)
        aligned = None
        for step in self.arm.of("align"):
            aligned = self._train(step, rows, aligned, f"align {self.name}")
        assert aligned is not None
        self._answer("aligned", 0, 0.0, aligned, "adapter")
        for ratio in self.experiment.finetune.poison_ratios:
            self._finetune(ratio, aligned)

    def _finetune(self, ratio: float, aligned: Job) -> None:
        (step,) = self.arm.of("finetune")
        upload = poison(self.pools.task_train, self.pools.attack, self.experiment.finetune.samples, ratio, self.seed)
        tuned = self._train(step, upload, aligned, f"fine-tune {self.name} p={ratio:g}")
        serving, routed = self._serving(step), self._routed()
        if serving is not None or routed:
            self._note_serving(serving, routed)
        last = optimizer_steps(trainer_args(self.experiment, step, "unused", self.seed), len(upload))
        for scored in self.experiment.finetune.checkpoints:
            if scored > last:
                raise TiterError(
                    f"`finetune.checkpoints` holds step {scored}, and fine-tuning of `{self.name}` ends at {last}.",
                    "Leave it out: the last step is always scored.",
                )
        for scored in sorted({*self.experiment.finetune.checkpoints, last}):
            left, adapter = tuned, "adapter" if scored == last else f"step-{scored}"
            for repair in self.arm.of("repair"):
                name = f"repair {self.name} p={ratio:g} step {scored}"
                left, adapter = self._repair(repair, aligned, left, adapter, name), "adapter"
            if serving is None and not routed:
                self._answer("finetuned", scored, ratio, left, adapter)
                continue
            system = "" if serving is None else serving.system
            self._answer("finetuned", scored, ratio, left, adapter, system=system, routed=routed)
            self._answer("finetuned", scored, ratio, left, adapter, self.plan.serving[self.name]["alone"])
        measured = self.experiment.evaluate.weights
        about = {"arm": self.name, "seed": self.seed, "poison_ratio": ratio}
        if methods.find("finetune", step.method).weighs_rows and measured:
            for when, job in (("before", aligned), ("after", tuned)):
                self._weigh(step, {**about, "when": when}, upload[:measured], job)
        self.plan.weighed.append((tuned, {**about, "when": "before"}, upload[:measured]))

    def _serving(self, step: Step) -> Serving | None:
        """Return what the fine-tuned model of the arm is served with; `None` where it acts by its weights alone."""
        from titer.jobs.trainings import serving_of

        args = trainer_args(self.experiment, step, "unused", self.seed)
        return serving_of(methods.find(step.stage, step.method), args, self.model)

    def _routed(self) -> bool:
        """Whether the arm's last repair leaves a router.

        Raises:
            TiterError: Where another one does: what comes after it would change what the router was fitted to.
        """
        repairs = self.arm.of("repair")
        routed = [_leaves_a_router(step) for step in repairs]
        if any(routed) and self.plan.engine is not None:
            raise TiterError(
                f"`arms.{self.name}` ends in a router, which reads the model's hidden states, and an engine tells none.",
                "Run this arm without the engine, in a run of its own.",
            )
        if any(routed[:-1]):
            step = repairs[routed.index(True)]
            raise TiterError(
                f"`arms.{self.name}`: after `{step.method}`, whose router is fitted to its adapter, comes another repair.",
                f"Let `{step.method}` be the last.",
            )
        return any(routed)

    def _note_serving(self, serving: Serving | None, routed: bool) -> None:
        """Take note in the plan of what the arm is served with."""
        from titer.jobs.routers import about

        alone = f"{self.name} (adapter alone)"
        if alone in self.experiment.arms:
            raise TiterError(
                f"`arms.{alone}` is the name under which the adapter of `{self.name}` is scored.", "Rename the arm."
            )
        told = about(serving) if routed or serving is None else serving.about
        self.plan.serving[self.name] = {"about": told, "alone": alone, **({"routed": True} if routed else {})}

    def _train(
        self,
        step: Step,
        records: Sequence[Record],
        start: Job | None,
        name: str,
        adapter: str = "adapter",
        aligned: Job | None = None,
    ) -> Job:
        from titer.jobs import trainings as jobs
        from titer.jobs.rehearsal import rehearse

        experiment, values = self.experiment, training_settings(self.experiment, step)
        method = methods.find(step.stage, step.method)
        where = places(experiment, step)
        rehearse(method, values, where, self.model, experiment.lora, records, self.streams)
        args = trainer_args(experiment, step, "unused", self.seed)
        return self.plan.add(
            {"align": jobs.ALIGN, "finetune": jobs.FINETUNE, "repair": jobs.REPAIR}[step.stage],
            name + self.suffix,
            {
                "stage": step.stage,
                "model": model_digest(self.model),
                "seed": self.seed,
                "method": [step.method, source_digest(method.trainer, method.config)],
                "training": values,
                "lora": experiment.lora if start is None else None,
                "checkpoints": experiment.finetune.checkpoints if step.stage == "finetune" else [],
                **({"adapter": adapter} if step.stage == "repair" else {}),
            },
            {"records": records, **{stream: self.streams[stream] for stream in method.streams}},
            [job for job in (start, aligned) if job is not None],
            {"model": self.model, "method": plugins.absolute(step.method)},
            training(f"{step.stage} {step.method}", method, args, self.model, records, self.streams),
        )

    def _repair(self, step: Step, aligned: Job, tuned: Job, adapter: str, name: str) -> Job:
        from titer.jobs.rehearsal import rehearse_repair
        from titer.jobs.repairs import REPAIR, own_rows

        method = methods.find("repair", step.method)
        if isinstance(method, Method):
            rows = own_rows(method, trainer_args(self.experiment, step, "unused", self.seed), self.streams)
            return self._train(step, rows, tuned, name, adapter, aligned if method.routed is not None else None)
        rehearse_repair(method, self.model, self.streams)
        measured = [row for stream in method.streams for row in self.streams[stream]]
        return self.plan.add(
            REPAIR,
            name + self.suffix,
            {
                "method": [step.method, source_digest(method.apply, method.config)],
                "settings": step.settings,
                "adapter": adapter,
            },
            {stream: self.streams[stream] for stream in method.streams},
            needs=[aligned, tuned],
            places={"model": self.model, "method": plugins.absolute(step.method)},
            work=measuring(f"repair {step.method}", self.model, measured) if measured else None,
        )

    def _answer(
        self,
        phase: str,
        step: int,
        ratio: float,
        trained: Job,
        adapter: str,
        arm: str = "",
        system: str = "",
        routed: bool = False,
    ) -> None:
        """Add the answers of the adapter that a job leaves, and their verdicts.

        They stand under the name `arm` (by default the arm's own), and are asked for with the system prompt `system`; with
        `routed`, the router that the job leaves too chooses the weights by the prompt.
        """
        from titer.jobs.answers import ANSWER
        from titer.jobs.verdicts import JUDGE

        experiment, pools, judge = self.experiment, self.pools, self.plan.judge
        sizes, task = experiment.evaluate, task_name(experiment)
        sets = {
            artefacts.HARMFUL: (pools.harmful_evaluation, sizes.max_new_tokens),
            artefacts.LOOKALIKE: (pools.lookalike_evaluation, sizes.max_new_tokens),
        }
        if not sizes.fit:
            limit = sizes.task_max_new_tokens
            longest = tasks.get(task).max_new_tokens if limit is None else limit
            sets[artefacts.TASK_PREFIX + task] = (pools.task_test, longest)
        prompts = [(served(record, system), limit) for records, limit in sets.values() for record in records]
        name = f"answer {arm or self.name} {phase}" + (f" p={ratio:g} step {step}" if phase == "finetuned" else "")
        name += self.suffix
        arms = self.plan.aligned.setdefault((trained.key, self.seed), []) if phase == "aligned" else []
        if not arms:
            answered = self.plan.add(
                ANSWER,
                name,
                {
                    "arm": arm or self.name,
                    "phase": phase,
                    "step": step,
                    "poison_ratio": ratio,
                    "seed": self.seed,
                    "adapter": adapter,
                    "limits": {name: limit for name, (_, limit) in sets.items()},
                    **({"serving": system} if system else {}),
                    # Which router that is, the job says that leaves it.
                    **({"routed": True} if routed else {}),
                    **({"engine": self.plan.engine} if self.plan.engine is not None else {}),
                },
                {name: records for name, (records, _) in sets.items()},
                [trained],
                {"model": self.model, **({"engine": experiment.engine} if self.plan.engine is not None else {})},
                self._answering(prompts, routed),
            )
            judged = self.plan.add(
                JUDGE,
                name.replace("answer", "judge"),
                {"judges": [judge_key(judge)]},
                needs=[answered],
                places={"judges": [plugins.absolute(sizes.judge)]},
                work=judging(self.model, [judge], len(pools.harmful_evaluation) + len(pools.lookalike_evaluation)),
            )
            self.plan.answers.append((answered, judged))
        arms.append(self.name)
        if sizes.fit:
            if routed:
                raise TiterError(
                    f"`arms.{self.name}` leaves a router, and `evaluate.fit` scores true answers with one adapter.",
                    "Take a task whose answers are parsed, or leave the arm out.",
                )
            about = {"arm": arm or self.name, "phase": phase, "step": step, "poison_ratio": ratio, "seed": self.seed}
            self._fit(about, adapter, trained, system, name.replace("answer", "fit"))

    def _fit(self, about: dict[str, Any], adapter: str, trained: Job, system: str, name: str) -> None:
        from titer.jobs.answers import FIT

        rows = self.pools.task_test
        fitted = self.plan.add(
            FIT,
            name,
            {"adapter": adapter, **({"serving": system} if system else {})},
            {"rows": rows},
            [trained],
            {"model": self.model},
            Work("fit", self.model, fitting(self.model, [served(record, system) for record in rows])),
        )
        self.plan.fits.append((fitted, {**about, "task": task_name(self.experiment)}))

    def _answering(self, prompts: Sequence[tuple[Record, int]], routed: bool) -> Work | None:
        """Return the work of answering prompts; how long another engine takes, nothing here can tell."""
        if self.plan.engine is not None:
            return None
        more = routing(self.model, [record for record, _ in prompts]) if routed else Cost()
        return Work("answer", self.model, answering(self.model, by_limit(prompts)) + more)

    def _weigh(self, step: Step, about: dict[str, Any], rows: list[Record], trained: Job) -> None:
        from titer.jobs.answers import WEIGH

        args = trainer_args(self.experiment, step, "unused", 0)
        weighed = self.plan.add(
            WEIGH,
            f"weigh {self.name} p={about['poison_ratio']:g} {about['when']}{self.suffix}",
            {"ratio": args.ratio},
            {"rows": rows},
            [trained],
            {"model": self.model},
            weighing("weigh", self.model, rows),
        )
        self.plan.weights.append((weighed, about, rows))
