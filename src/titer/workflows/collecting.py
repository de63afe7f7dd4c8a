"""What the jobs of an experiment left, as one run: answers, verdicts, weights, results and a report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.data import Record
from titer.jobs.provenance import training_environment
from titer.results import artefacts
from titer.results.engines import engines_of
from titer.results.routes import with_routes
from titer.results.scoring import error_rates_of, fitted, summarise
from titer.stats.intervals import log_odds
from titer.workflows.experiment_file import trainer_args

if TYPE_CHECKING:
    from titer.workflows.experiment import ExperimentPlan


def collect(plan: ExperimentPlan, command: str, started: float) -> Path:
    """Write `inferences.jsonl`, `scores.jsonl`, `weights.jsonl`, `results.json` and `report.html` of what is done."""
    from titer.report import write_report

    run = plan.run_folder
    inferences: list[artefacts.Inference] = []
    scores: list[artefacts.ScoreRow] = []
    for answered, judged in plan.answers:
        if answered.done and judged.done:
            rows = artefacts.read_inferences(answered.folder / "inferences.jsonl")
            verdicts = artefacts.read_scores(judged.folder / "scores.jsonl")
            for arm in plan.names(answered):
                of_arm = {row.id: replace(row, arm=arm) for row in rows}
                inferences += of_arm.values()
                scores += [replace(verdict, id=of_arm[verdict.id].id) for verdict in verdicts]
    artefacts.write_inferences(run / "inferences.jsonl", inferences)
    artefacts.write_scores(run / "scores.jsonl", scores)
    artefacts.write_atomically(run / "weights.jsonl", "".join(_weight_lines(plan)).encode())
    own = plan.experiment.evaluate.error_rates
    about = provenance(plan, command, time.perf_counter() - started, inferences)
    if known := error_rates_of(scores, own):
        about["error_rates"] = known
    artefacts.write_results(run / "results.json", [*summarise(inferences, scores, own), *fits(plan)], about)
    return write_report(run)


def fits(plan: ExperimentPlan) -> list[artefacts.Result]:
    """Return the accuracies of tasks whose answers are not parsed, of the jobs that are done."""
    found = []
    for job, about in plan.fits:
        if job.done:
            parts = json.loads((job.folder / "fit.json").read_text())
            group = (about["arm"], about["phase"], about["step"], float(about["poison_ratio"]), about["seed"])
            found.append(fitted(group, parts, about["task"]))
    return found


def _weight_lines(plan: ExperimentPlan) -> Iterator[str]:
    from titer.jobs.answers import batch_weights
    from titer.methods.finetune.base import WEIGHT_LOG, read_weight_log

    for job, about, rows in plan.weights:
        if not job.done:
            continue
        ratios = json.loads((job.folder / "log_ratios.json").read_text())
        (step,) = plan.experiment.arms[about["arm"]].of("finetune")
        args = trainer_args(plan.experiment, step, "unused", 0)
        weights = batch_weights(ratios, args.optimizer_batch_size, args.tau)
        yield from _lines(about, rows, ratios, weights)
    for job, about, rows in plan.weighed:
        log = job.folder / WEIGHT_LOG
        if not (job.done and log.is_file()):
            continue
        first = {line["row"]: line for line in read_weight_log(job.folder) if "probability" in line}
        if first:
            told = [first[place] for place in range(len(rows))]
            odds = [-log_odds(line["probability"]) for line in told]
            yield from _lines(about, rows, odds, [line["weight"] for line in told])


def _lines(
    about: dict[str, Any], rows: Sequence[Record], ratios: Sequence[float], weights: Sequence[float]
) -> Iterator[str]:
    for index, (record, ratio, weight) in enumerate(zip(rows, ratios, weights, strict=True)):
        line = {"index": index, "origin": record.origin, "prompt": record.prompt_text}
        yield json.dumps({**about, **line, "log_ratio": ratio, "weight": weight}, ensure_ascii=False) + "\n"


def provenance(
    plan: ExperimentPlan, command: str, seconds: float, inferences: Sequence[artefacts.Inference] = ()
) -> dict[str, Any]:
    """Return what is needed to get the same figures again: versions, commit, command, settings, seeds, overlap, weights."""
    return {
        **training_environment(),
        "command": command,
        "seconds": round(seconds, 1),
        "model": plan.experiment.model,
        "weights": artefacts.weights_of(inferences),
        "engines": engines_of(inferences),
        "seeds": plan.experiment.seeds,
        "overlap": plan.overlap,
        "serving": with_routes(plan.serving, inferences),
        "stages": [job.summary() for job in plan.jobs.values()],
        "experiment": plan.experiment.as_dict(),
    }
