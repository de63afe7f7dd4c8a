"""Runs an experiment from its YAML file to its report."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.workflows.common import (
    Settings,
    Show,
    Table,
    as_overrides,
    as_path,
    command,
    launcher_for,
    listener,
    refuse_unused_data_dir,
    spell,
    workflow,
)

if TYPE_CHECKING:
    from titer.jobs.job import Job
    from titer.results import Result
    from titer.results.summary import Run
    from titer.workflows.experiment import ExperimentPlan


@dataclass(frozen=True)
class ExperimentResult(Table):
    """What an experiment found; as a table its results, a metric of an arm, phase, step, poison ratio and seed a row.

    Attributes:
        name: Of the experiment.
        folder: Its run folder.
        report: Its page.
        results: The figures, in percent with 95 % intervals.
        jobs: Its jobs, with how they came out.
    """

    name: str
    folder: Path
    report: Path
    results: tuple[Result, ...] = field(repr=False)
    jobs: tuple[Job, ...] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether every job is done."""
        return all(job.status in ("done", "cached") for job in self.jobs)

    @property
    def failed(self) -> list[Job]:
        """Jobs that failed; what needs them was skipped, and the results lack both. `error.txt` in their folders says why."""
        return [job for job in self.jobs if job.status == "failed"]

    @property
    def document(self) -> dict[str, Any]:
        """What results.json holds."""
        return dict(json.loads((self.folder / "results.json").read_text(encoding="utf-8")))

    @property
    def run(self) -> Run:
        """The results with what is known of their origin, summarised over seeds."""
        from titer.results.summary import Run

        return Run.read(self.folder)

    def rows(self) -> list[dict[str, Any]]:
        """Return the results."""
        return [dataclasses.asdict(result) for result in self.results]

    def __str__(self) -> str:
        failed = f", {len(self.failed)} of {len(self.jobs)} jobs failed" if self.failed else ""
        return f"{self.name}: {len(self.results)} results{failed}; {self.report}"


def plan(
    experiment: str | Path = "quickstart",
    *,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    settings: Settings | None = None,
    engine: str | None = None,
    show: Show | bool = False,
) -> ExperimentPlan:
    """Return what `experiment` would run; nothing is trained.

    Raises:
        TiterError: As `experiment` does before it trains.
    """
    listener(show).remark("Loading libraries …")
    from titer.workflows import experiment as experiments

    overrides = as_overrides(settings)
    if engine is not None:
        if any(one.startswith("engine=") for one in overrides):
            raise TiterError(f"`engine` is given by `{spell('settings')}` and by `{spell('engine')}`.", "Give it once.")
        overrides.append(f"engine={json.dumps(engine)}")
    chosen = experiments.read_experiment(experiment, overrides)
    data = chosen.data
    refuse_unused_data_dir([data.harmful, data.attack or data.harmful, *data.helpful, data.lookalikes, data.task])
    folder = Path("runs") / chosen.name if output is None else as_path("output", output)
    return experiments.make_plan(chosen, folder, None if data_dir is None else as_path("data_dir", data_dir))


@workflow
def experiment(
    experiment: str | Path = "quickstart",
    *,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    settings: Settings | None = None,
    engine: str | None = None,
    force: bool = False,
    workers: int = 1,
    launcher: str = "local",
    partition: str | None = None,
    resources: Settings | None = None,
    address: str | None = None,
    show: Show | bool = False,
) -> ExperimentResult:
    """Run an experiment: align, fine-tune, score and report every arm. Resumes where it stopped.

    Args:
        experiment: A YAML file, or the name of a bundled experiment.
        output: Run folder; runs/NAME by default.
        data_dir: Folder with local copies of named datasets (sst2_train.jsonl, …).
        settings: Changes of the file, `finetune.training.max_steps` (`titer settings experiment`).
        engine: Who decodes answers: openai:URL of a vLLM or SGLang server that loads adapters; by default what the file says.
        force: Run jobs again that are done.
        workers: Jobs that run at the same time, each in a process with the model of its own: 2 on two cores.
        launcher: Who runs jobs: local (this machine), slurm (through submitit) or ray; the figures are the same.
        partition: Of Slurm.
        resources: What jobs ask Slurm or Ray for, by submitit's or Ray's names: `mem_gb=32`, `align.num_gpus=1` (of a kind).
        address: Of a Ray cluster, `auto` for the one of this node; without it one is started here.
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Returns:
        What was found. Where jobs failed, the others were run, and its `failed` holds those.

    Raises:
        TiterError: For a wrong file, arguments that cannot be meant or have no effect, data or a model that cannot be
            loaded, and what a first step of each training on a toy shows.
    """
    started = time.perf_counter()
    tell, runner = listener(show), launcher_for(launcher, workers, partition, resources, address)
    planned = plan(experiment, output=output, data_dir=data_dir, settings=settings, engine=engine, show=tell)
    from titer.jobs.plan import execute
    from titer.results import read_results
    from titer.workflows.experiment import collect

    chosen, folder = planned.experiment, planned.run_folder
    tell.remark(f"{chosen.name}: {chosen.description}")
    tell.remark(f"Prompts shared between pools: {sum(planned.overlap.values())}. Run folder: {folder}")
    for arm, served in planned.serving.items():
        kind = "served guard" if served.get("routed") else "serving control"
        tell.remark(f"{arm} is a {kind}: asked with {served['about']}, and as `{served['alone']}` without.")
    if planned.engine is not None:
        tell.remark(f"Answers are asked of {planned.engine}; the time that they take is in no estimate.")
    if launcher == "local":
        tell.expect([*planned.to_do(force).values()])
    else:
        tell.remark(f"What runs where, and how long it will take: titer status {folder}")
    execute(planned, tell, force, launcher=runner)
    report = collect(planned, command("experiment"), started)
    results, _ = read_results(folder / "results.json")
    return ExperimentResult(chosen.name, folder, report, tuple(results), tuple(planned.jobs.values()))
