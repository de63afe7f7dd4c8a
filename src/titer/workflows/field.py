"""A field of defences, cell by cell: what is done, what is missing, and doing it.

A cell is planned as the experiment that it stands for (`titer.workflows.field_file`), in one run folder for all of them, so that
cells share their alignments and trainings. What it leaves goes into a small file (`titer.results.cells`), which is all that the
pages need: where such files are, the work goes on from them, on any machine.
"""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.files import read_json
from titer.jobs.speed import machine
from titer.progress import duration
from titer.results.artefacts import write_atomically
from titer.results.cells import CellFile, Stage, answered, figures_of, read_cells, write_cell
from titer.workflows.common import OnScreen, Show
from titer.workflows.field_file import Field, Spot, experiment_of, protocol_digest, protocol_of, spots, trials

if TYPE_CHECKING:
    from titer.jobs.job import Job
    from titer.jobs.plan import Plan
    from titer.workflows.experiment import ExperimentPlan

FAILED = "failed.json"
"""In the run folder: cells that failed, and why; they are left alone until they are asked for again."""
COSTS = "costs.json"
"""In the run folder: what the jobs that were done here cost, by key: seconds of processors, most memory in megabytes."""


@dataclass
class Standing:
    """How far a field is.

    Attributes:
        asked: The field.
        cells: Files that are there and fit the protocol, by the names of their cells.
        stale: Names of files whose protocol is another.
        missing: Cells that are yet to be done.
        failed: Why cells failed on this machine, by name.
    """

    asked: Field
    cells: dict[str, CellFile]
    stale: list[str]
    missing: list[Spot]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def every(self) -> list[Spot]:
        """All cells that there are to name: of the table, of trials, at the rates that were chosen."""
        return [*spots(self.asked), *trials(self.asked), *_tuned(self.asked, self.cells)]

    def groups(self, wanted: Sequence[Spot]) -> dict[tuple[str, float, int], tuple[int, list[Spot]]]:
        """Return how many cells are done, and which of some are missing, by form, share of harmful rows and seed."""
        groups: dict[tuple[str, float, int], tuple[int, list[Spot]]] = {}
        for spot in [*spots(self.asked), *wanted]:
            key = (spot.form, spot.poison_ratio, spot.seed)
            done = sum((one.form, one.poison_ratio, one.seed) == key for one in self.cells.values())
            groups[key] = done, [one for one in wanted if (one.form, one.poison_ratio, one.seed) == key]
        return groups

    def as_dict(self, wanted: Sequence[Spot]) -> dict[str, Any]:
        """For programs: what is done, and how long what is missing takes."""
        seconds = self.expected(wanted)
        missing = [{"cell": spot.name, "seconds": about} for spot, about in zip(wanted, seconds, strict=True)]
        return {
            "field": self.asked.name,
            "done": sorted(self.cells),
            "stale": self.stale,
            "missing": missing,
            "failed": self.failed,
        }

    def expected(self, wanted: Sequence[Spot]) -> list[float | None]:
        """Return how long cells will take in seconds, by the cells that are done; `None` where none tells."""
        known = Seconds(self.cells.values())
        return [known.of(self.asked, spot) for spot in wanted]


class Seconds:
    """How long stages took, by what they are: on this machine where anything was done on it, else elsewhere.

    Attributes:
        here: Whether it is of this machine.
    """

    def __init__(self, cells: Iterable[CellFile]) -> None:
        every = [(cell, stage) for cell in cells for stage in cell.stages if stage.seconds]
        own = [pair for pair in every if pair[0].origin.get("machine") == machine()]
        self.here = bool(own)
        self._found: dict[tuple[str, ...], dict[str, float]] = {}
        self._aligned: set[tuple[str, int]] = set()
        for cell, stage in own or every:
            for key in ((stage.kind, stage.method, cell.form), (stage.kind, stage.method), (stage.kind,)):
                # A job that several cells share counts once.
                self._found.setdefault(key, {})[stage.key] = stage.seconds
            if stage.kind == "align":
                self._aligned.add((_chain(cell.protocol["arms"][cell.arm]), cell.seed))

    def _median(self, *keys: tuple[str, ...]) -> float | None:
        return next((statistics.median(self._found[key].values()) for key in keys if key in self._found), None)

    def of(self, found: Field, spot: Spot) -> float | None:
        """Return how long a cell will take, alignments that are done elsewhere left out; `None` where nothing tells."""
        steps = [step.as_dict() for step in found.arms[spot.arm].steps]
        parts = []
        for step in found.arms[spot.arm].steps:
            if step.stage == "align" and (_chain(steps), spot.seed) in self._aligned:
                continue
            key = (step.stage, step.method)
            parts.append(self._median((*key, spot.form), key, (step.stage,)))
        parts.append(self._median(("answer", "", spot.form), ("answer",)))
        if found.forms[spot.form].fit:
            parts.append(self._median(("fit",)) or 0.0)
        return None if None in parts else sum(part for part in parts if part is not None)


def _chain(steps: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps([step for step in steps if "align" in step], sort_keys=True)


def standing(found: Field, cells: Path, run_folder: Path) -> Standing:
    """Return how far a field is, by the files in the folder of its cells; nothing is loaded but these.

    Raises:
        TiterError: Naming file and key, for the file of a cell that is none.
    """
    there = read_cells(cells)
    known = {spot.name: spot for spot in (*spots(found), *trials(found))}
    fits = {
        name: cell
        for name, cell in there.items()
        if name in known and cell.digest == protocol_digest(found, known[name])
    }
    tuned = [spot for spot in _tuned(found, fits) if spot.name not in known]
    known |= {spot.name: spot for spot in tuned}
    for spot in tuned:
        if spot.name in there and there[spot.name].digest == protocol_digest(found, spot):
            fits[spot.name] = there[spot.name]
    failed = read_json(run_folder / FAILED) if (run_folder / FAILED).is_file() else {}
    open_failures = {name: str(why) for name, why in failed.items() if name in known and name not in fits}
    missing = [spot for name, spot in known.items() if name not in fits]
    return Standing(found, fits, sorted(there.keys() - fits.keys()), missing, open_failures)


def best_rates(found: Field, cells: Mapping[str, CellFile]) -> dict[str, float]:
    """Return the learning rate of each arm all of whose trials are done: where accuracy less harmful score is greatest.

    Of equal ones it is the rate nearest to the shared one, and of these the smaller.
    """
    shared = float(found.finetune.training.get("learning_rate", 0.0)) or 1.0
    by_arm: dict[str, list[tuple[float, CellFile | None]]] = {}
    for spot in trials(found):
        assert spot.learning_rate is not None
        by_arm.setdefault(spot.arm, []).append((spot.learning_rate, cells.get(spot.name)))
    rates = {}
    for arm, tried in by_arm.items():
        scored = [(gain(cell), -abs(rate / shared - 1), -rate) for rate, cell in tried if cell is not None]
        if len(scored) == len(tried):
            rates[arm] = -max(scored)[2]
    return rates


def gain(cell: CellFile) -> float:
    """Return what a trial is judged by: accuracy less harmful score, in percent."""
    accuracy, harmful = cell.figure("finetune_accuracy"), cell.figure("harmful_score")
    return (accuracy.value if accuracy else 0.0) - (harmful.value if harmful else 100.0)


def _tuned(found: Field, cells: Mapping[str, CellFile]) -> list[Spot]:
    """Return the cells at the rates that were chosen, where these are not the shared one."""
    rates = best_rates(found, cells)
    shared = found.finetune.training.get("learning_rate")
    return [
        Spot(spot.form, spot.arm, spot.poison_ratio, spot.seed, rates[spot.arm])
        for spot in spots(found)
        if spot.arm in rates and rates[spot.arm] != shared
    ]


# -- doing it ---------------------------------------------------------------------------------------------------------


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
        TiterError: For a plan that cannot be made; a cell that fails is noted, and the others go on.
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
        _note(run_folder, spot.name, why)
    report.left = len(wanted) - len(report.done)
    return report


def _note(run_folder: Path, name: str, why: str) -> None:
    """Keep why a cell failed, or forget that it ever did."""
    path = run_folder / FAILED
    failed = read_json(path) if path.is_file() else {}
    if why:
        failed[name] = why
    elif name not in failed:
        return
    else:
        del failed[name]
    write_atomically(path, json.dumps(failed, indent=1).encode())


def _do(found: Field, spot: Spot, cells: Path, run_folder: Path, data_dir: Path | None, show: Watched) -> str:
    """Do a cell and keep its file; return why it failed, or nothing."""
    from titer.jobs.plan import execute

    plan, needed, judged = plan_cell(found, spot, run_folder, data_dir)
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
    from titer.jobs.provenance import environment
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
        origin={**environment(), "date": f"{datetime.date.today()}"},
        learning_rate=spot.learning_rate,
        validation=spot.validation,
        serving=plan.serving.get(spot.arm, {}).get("about", ""),
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


def in_order(state: Standing, trials: bool = False, retry: bool = False) -> list[Spot]:
    """Return the missing cells, cheapest first within a seed, a share of harmful rows and a form.

    Args:
        state: How far the field is.
        trials: Trials of learning rates too, which come last with what they choose.
        retry: Cells that failed on this machine too.
    """
    missing = [spot for spot in state.missing if trials or not spot.validation]
    missing = [spot for spot in missing if retry or spot.name not in state.failed]
    expected = dict(zip((spot.name for spot in missing), state.expected(missing), strict=True))
    ratios, forms, seeds = state.asked.finetune.poison_ratios, list(state.asked.forms), state.asked.seeds

    def rank(spot: Spot) -> tuple[Any, ...]:
        late = spot.validation or spot.learning_rate is not None
        places = [*seeds, spot.seed].index(spot.seed), [*ratios, spot.poison_ratio].index(spot.poison_ratio)
        return late, *places, forms.index(spot.form), expected[spot.name] or 0.0

    return sorted(missing, key=rank)


def total(state: Standing, wanted: Sequence[Spot]) -> str:
    """Return how long cells will take, in words."""
    known = [about for about in state.expected(wanted) if about is not None]
    if not known:
        return "not known yet" if wanted else ""
    words = f"about {duration(sum(known) * len(wanted) / len(known))}"
    return words if Seconds(state.cells.values()).here else f"{words} on the machine of those that are done"


def refuse_other_field(folder: Path, name: str) -> None:
    """Raise where a folder of cells is another field's."""
    for file in sorted(folder.glob("*.json"))[:1]:
        other = read_json(file).get("field")
        if other != name:
            raise TiterError(f"{file} is of the field `{other}`, and not of `{name}`.", "Name another `--output`.")
