"""Cells of a field as jobs, and as files: planning one, doing it, keeping what it left."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.files import read_json
from titer.results.artefacts import write_atomically
from titer.results.cells import CellFile, Stage, answered, figures_of, write_cell
from titer.workflows.common import OnScreen, Show
from titer.workflows.field_file import Field, Spot, experiment_of, protocol_digest, protocol_of

if TYPE_CHECKING:
    from titer.jobs.job import Job
    from titer.jobs.plan import Plan
    from titer.workflows.experiment import ExperimentPlan

FAILED = "failed.json"
"""In the run folder: cells that failed, as `FIELD/CELL`, and why; they are left alone until they are asked for again."""
COSTS = "costs.json"
"""In the run folder: what the jobs that were done here cost, by key: seconds of processors, most memory in megabytes."""


@dataclass
class Report:
    """What a run of cells came to.

    Attributes:
        done: Names of the cells that were done, with their seconds.
        failed: Why others failed.
        left: How many are left.
    """

    done: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0


def run_cells(
    found: Field,
    wanted: Sequence[Spot],
    cells: Path,
    run_folder: Path,
    data_dir: Path | None = None,
    hours: float | None = None,
    most: int | None = None,
    show: Show | None = None,
) -> Report:
    """Do cells one after the other, and keep each as a file as soon as it is done.

    Args:
        found: The field.
        wanted: Its cells, in order.
        cells: Folder of their files.
        run_folder: Where jobs go.
        data_dir: Folder with local copies of named datasets.
        hours: After which no other cell is begun.
        most: How many are done at most.
        show: Who is told.

    Raises:
        TiterError: For data that cannot be loaded; a cell that fails is noted, and the others go on.
    """
    start, report = time.monotonic(), Report()
    watched = Watched(run_folder, show or OnScreen())
    for spot in wanted:
        late = hours is not None and time.monotonic() - start > 3600 * hours
        if late or (most is not None and len(report.done) + len(report.failed) >= most):
            break
        began = time.monotonic()
        watched.inner.remark(f"{spot.name}: cell {len(report.done) + len(report.failed) + 1} of {len(wanted)}")
        why = _do(found, spot, cells, run_folder, data_dir, watched)
        if why:
            report.failed[spot.name] = why
        else:
            report.done[spot.name] = time.monotonic() - began
        _note(run_folder, f"{found.name}/{spot.name}", why)
    report.left = len(wanted) - len(report.done)
    return report


def failures(run_folder: Path, name: str) -> dict[str, str]:
    """Return why cells of the field `name` failed in a run folder, which it may share with others."""
    noted = _failed(run_folder).items()
    return {cell.removeprefix(f"{name}/"): why for cell, why in noted if cell.startswith(f"{name}/")}


def _failed(run_folder: Path) -> dict[str, str]:
    return read_json(run_folder / FAILED) if (run_folder / FAILED).is_file() else {}


def _note(run_folder: Path, name: str, why: str) -> None:
    """Keep why a cell failed, or forget that it ever did."""
    before = _failed(run_folder)
    failed = {other: reason for other, reason in before.items() if other != name}
    if why:
        failed[name] = why
    if failed != before:
        write_atomically(run_folder / FAILED, json.dumps(failed, indent=1).encode())


def _do(found: Field, spot: Spot, cells: Path, run_folder: Path, data_dir: Path | None, show: Watched) -> str:
    """Do a cell and keep its file; return why it failed, or nothing."""
    from titer.jobs.plan import execute
    from titer.workflows.experiment_pools import load_pools

    load_pools(experiment_of(found, spot), spot.seed, data_dir)  # without its data every other cell would fail too
    try:
        plan, needed, judged = plan_cell(found, spot, run_folder, data_dir)
    except TiterError as error:
        return error.message  # this arm's mistake
    if not execute(needed, show):
        return next(f"{job.name}: {job.reason}" for job in needed.jobs.values() if job.status == "failed")
    write_cell(cells / f"{spot.name}.json", _as_file(found, spot, plan, needed, judged, show.costs))
    return ""


def plan_cell(
    found: Field, spot: Spot, run_folder: Path, data_dir: Path | None
) -> tuple[ExperimentPlan, Plan, list[tuple[Job, Job]]]:
    """Return the plan of a cell's experiment, the jobs of it that the cell needs, and its answers with their verdicts.

    What the aligned model says is no part of a cell: the arms `aligned` and `from_base` of the bundled fields are.
    """
    from titer import judges, plugins
    from titer.jobs.plan import Plan
    from titer.jobs.provenance import judge_key
    from titer.jobs.verdicts import JUDGE
    from titer.workflows.experiment import make_plan

    planned = make_plan(experiment_of(found, spot), run_folder, data_dir)
    if spot.whole:
        _train_whole(found, planned)
    own = [judges.get(name) for name in found.judges]
    judged = [
        (
            asked,
            planned.add(
                JUDGE,
                asked.name.replace("answer", "judge"),
                {"judges": [judge_key(judge) for judge in own]},
                needs=[asked],
                places={"judges": [plugins.absolute(name) for name in found.judges]},
            ),
        )
        for asked, _ in planned.answers
        if asked.settings["phase"] == "finetuned"
    ]
    fits = [job for job, about in planned.fits if about["phase"] == "finetuned"]
    keep = {job.key for job in _with_needs([*(verdicts for _, verdicts in judged), *fits])}
    needed = Plan(run_folder, {key: job for key, job in planned.jobs.items() if key in keep}, planned.held)
    return planned, needed, judged


def _train_whole(found: Field, planned: ExperimentPlan) -> None:
    """Put the attacker who trains all weights in the place of the fine-tuning of a plan, and of the answers after it."""
    from titer.jobs.provenance import model_digest
    from titer.jobs.whole import WHOLE

    ((asked, judged),) = [pair for pair in planned.answers if pair[0].settings["phase"] == "finetuned"]
    (tuned,) = asked.needs
    sets = {f"set/{name}": asked.records(name) for name in asked.settings["limits"]}
    fits = [(job, about) for job, about in planned.fits if about["phase"] == "finetuned"]
    fitted = {"fit": fits[0][0].records("rows")} if fits else {}
    whole = planned.add(
        WHOLE,
        asked.name.replace("answer", "train all weights of"),
        {
            **{name: value for name, value in asked.settings.items() if name != "adapter"},
            "model": model_digest(found.model),
            "training": found.whole.training,
        },
        {"records": tuned.records("records"), **sets, **fitted},
        tuned.needs,
        {"model": found.model},
    )
    planned.answers = [(whole, judged)]
    planned.fits = [(whole, about) for _, about in fits]


def _with_needs(jobs: Iterable[Job]) -> Iterable[Job]:
    for job in jobs:
        yield job
        yield from _with_needs(job.needs)


def _as_file(
    found: Field,
    spot: Spot,
    plan: ExperimentPlan,
    needed: Plan,
    judged: Sequence[tuple[Job, Job]],
    costs: Mapping[str, Sequence[Any]],
) -> CellFile:
    """Return what the jobs of a cell left, as its file."""
    from titer.jobs.provenance import training_environment
    from titer.results import artefacts
    from titer.results.scoring import summarise
    from titer.workflows.collecting import fits

    inferences = [row for asked, _ in judged for row in artefacts.read_inferences(asked.folder / "inferences.jsonl")]
    scores = [row for _, verdicts in judged for row in artefacts.read_scores(verdicts.folder / "scores.jsonl")]
    results = [*summarise(inferences, scores), *(one for one in fits(plan) if one.phase == "finetuned")]
    stages = [
        Stage(
            job.name,
            job.kind,
            str(job.settings["method"][0]) if "method" in job.settings else "",
            job.key,
            job.spec["version"],
            round(job.left()["seconds"], 2),
            *costs.get(job.key, (None, None)),
        )
        for job in needed.jobs.values()
    ]
    return CellFile(
        field=found.name,
        form=spot.form,
        arm=spot.arm,
        poison_ratio=spot.poison_ratio,
        seed=spot.seed,
        digest=protocol_digest(found, spot),
        protocol=protocol_of(found, spot),
        figures=figures_of(results),
        sets=answered(inferences, scores),
        stages=stages,
        origin={**training_environment(), "date": f"{datetime.date.today()}"},
        learning_rate=spot.learning_rate,
        validation=spot.validation,
        serving=plan.serving.get(spot.arm, {}).get("about", ""),
        whole=spot.whole,
    )


class Watched:
    """Tells another listener how jobs go, and keeps what each cost.

    Args:
        run_folder: Where that is kept.
        inner: Who is told.
    """

    def __init__(self, run_folder: Path, inner: Show) -> None:
        self.path, self.inner = run_folder / COSTS, inner
        self.costs: dict[str, Any] = read_json(self.path) if self.path.is_file() else {}
        self.measures, self.began = False, 0.0

    def begins(self, job: Job) -> None:
        """Begin to measure."""
        self.measures, self.began = forget_peak(), time.process_time()
        self.inner.begins(job)

    def waits(self, job: Job, holder: str) -> None:
        """Tell it."""
        self.inner.waits(job, holder)

    def settled(self, job: Job) -> None:
        """Keep what a job cost that was done here."""
        if job.status == "done":
            used = round(time.process_time() - self.began, 2)
            self.costs[job.key] = used, peak_mb() if self.measures else None
            write_atomically(self.path, json.dumps(self.costs).encode())
        self.inner.settled(job)


def forget_peak() -> bool:
    """Forget the most memory that this process has had; says whether this system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mb() -> int | None:
    """Return the most resident memory of this process since `forget_peak`, in megabytes; `None` where that is not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else int(found.split()[1]) // 1024
