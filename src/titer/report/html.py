"""The report of a run and of an audit: each one HTML file that loads nothing and runs no script.

Everything that a model or a user wrote is untrusted: jinja escapes all of it, and the page's own content policy forbids
scripts and requests. Only the drawings of `titer.report.figures` are inserted as markup.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.errors import TiterError
from titer.files import check_file
from titer.report import tables
from titer.report.comparison import MARGIN
from titer.report.page import answer_text, environment, flat_settings, sections, write_page
from titer.report.tables import METRICS, Estimate, SummaryRow
from titer.report.verdict import BROKEN, SAFE, ArmVerdict, baseline_arm, verdict
from titer.stats.intervals import auroc

_AUDIT_ROWS = 100
_HARMFUL_EXAMPLES = 4
_ANSWER = ("id", "arm", "phase", "step", "poison_ratio", "seed", "set", "index", "prompt", "response", "reference")
_METRIC_NAMES = {"harmful_score": "Harmful score (HS)", "finetune_accuracy": "Fine-tuning accuracy (FA)"}
_COLUMNS = (
    ("harmful_score_aligned", "HS", "aligned"),
    ("harmful_score", "HS", "after"),
    ("refusal_rate", "Refused", "after"),
    ("broken_rate", "Broken", "after"),
    ("over_refusal", "Over-refusal", "after"),
    ("finetune_accuracy_aligned", "FA", "aligned"),
    ("finetune_accuracy", "FA", "after"),
)


def write_report(run: Path) -> Path:
    """Write `RUN/report.html` from the run's artefacts and return its path.

    Reads `results.json`, and where they exist `weights.jsonl`, `inferences.jsonl` and `scores.jsonl`; a section whose
    file is missing says so. The file is replaced as a whole or not at all.

    Args:
        run: The run's folder.

    Raises:
        TiterError: `results.json` is missing or invalid, or a line of an optional file is.
    """
    run = Path(run)
    results = tables.read_results(run)
    provenance = results["provenance"]
    rows = tables.summary_rows(results)
    arms = tables.arms(results)
    # The arm without a defence always has the first colour, the others follow in order.
    base = baseline_arm(results)
    positions = {arm: place for place, arm in enumerate(sorted(arms, key=lambda arm: arm != base))}
    experiment = provenance.get("experiment", {})
    stages = [{"reason": None, **stage} for stage in provenance.get("stages", [])]
    outcome = verdict(results)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=experiment.get("name") or run.resolve().name,
            description=experiment.get("description"),
            provenance={**dict.fromkeys(("model", "command", "commit", "seeds", "seconds")), **provenance},
            verdict=outcome,
            safe=SAFE,
            broken=BROKEN,
            margin=MARGIN,
            arms=arms,
            positions=positions,
            failed=[stage for stage in stages if stage["status"] == "failed"],
            skipped=[stage for stage in stages if stage["status"] == "skipped"],
            summary=_summary(rows),
            judges=_judges(results),
            other_judges=_other_judges(results, rows),
            figures=_figures(results, rows, arms, positions),
            weights=_weights(run / "weights.jsonl", positions),
            examples=_examples(run, outcome.arms, outcome.poison_ratio),
            arm_settings=_arm_settings(tables.planned_arms(results)),
            settings=sections({key: value for key, value in experiment.items() if key != "arms"}),
            versions=flat_settings(
                {**({"titer": provenance["titer"]} if "titer" in provenance else {}), **provenance.get("versions", {})}
            ),
            machine=flat_settings(provenance.get("machine", {})),
            overlap=flat_settings(provenance.get("overlap", {})),
            stages=stages,
        )
    )
    return write_page(run / "report.html", page)


def write_audit(path: Path, rows: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> Path:
    """Write the audit of an upload as one HTML file and return its path.

    Args:
        path: The file to write.
        rows: The upload's rows, most suspicious first: `index`, `prompt`, `completion`, `log_ratio`, `weight` and
            `origin` (`task`, `harmful`, or None where nobody knows).
        meta: What was audited and with what (dataset, model, ratio, versions …), shown as given.

    Raises:
        TiterError: There is no row.
    """
    if not rows:
        raise TiterError("There is nothing to audit: the data set has no rows.")
    from titer.report import figures

    ratios = [float(row["log_ratio"]) for row in rows]
    origins = [row["origin"] for row in rows]
    harmful = figures.finite([r for r, origin in zip(ratios, origins, strict=True) if origin == "harmful"])
    benign = figures.finite([r for r, origin in zip(ratios, origins, strict=True) if origin not in (None, "harmful")])
    unknown = figures.finite([r for r, origin in zip(ratios, origins, strict=True) if origin is None])
    shown = [*harmful, *benign, *unknown]
    known = [(r, origin) for r, origin in zip(ratios, origins, strict=True) if origin is not None]
    labelled = [(r, origin == "harmful") for r, origin in known if not math.isnan(r)]
    caught = [origin == "harmful" for origin in origins]
    page = (
        environment()
        .get_template("audit.html.j2")
        .render(
            title=str(meta.get("dataset") or path.stem),
            meta=flat_settings(dict(meta)),
            count=len(rows),
            benign=len(benign),
            harmful=len(harmful),
            unknown=len(unknown),
            auroc=_auroc([-r for r, _ in labelled], [label for _, label in labelled]),
            hits=sum(caught[: sum(caught)]),
            total=sum(caught),
            hits_shown=sum(caught[:_AUDIT_ROWS]),
            plot=figures.log_ratios(
                benign,
                harmful,
                figures.log_ratio_limits(shown),
                "Rows of the upload by log r",
                f"Histogram of the log-likelihood ratio of {len(shown)} rows; the table below lists the lowest.",
                "audit",
                unknown=unknown,
            )
            if shown
            else None,
            rows=[
                {
                    "rank": rank,
                    "index": row["index"],
                    "prompt": answer_text(row["prompt"]),
                    "completion": answer_text(row["completion"]),
                    "log_ratio": row["log_ratio"],
                    "weight": row["weight"],
                    "origin": row["origin"],
                }
                for rank, row in enumerate(rows[:_AUDIT_ROWS], start=1)
            ],
        )
    )
    return write_page(Path(path), page)


# The summary ------------------------------------------------------------------------------------------------------


def _summary(rows: list[SummaryRow]) -> dict[str, Any]:
    """The summary table: blocks by poison ratio, and for each column the n that all its cells share, if they do."""
    columns = []
    for field, metric, phase in _COLUMNS:
        counts = {cell.n for row in rows if (cell := getattr(row, field)) is not None}
        columns.append(
            {"field": field, "metric": metric, "phase": phase, "n": counts.pop() if len(counts) == 1 else None}
        )
    blocks: dict[float | None, list[SummaryRow]] = defaultdict(list)
    for row in rows:
        blocks[row.poison_ratio].append(row)
    return {
        "columns": columns,
        "blocks": list(blocks.items()),
        "several_ratios": len(blocks) > 1,
        "several_seeds": any(len(row.seeds) > 1 for row in rows),
    }


def _judges(results: dict[str, Any]) -> dict[str, list[str]]:
    """What each judge judged, the headline judge first."""
    judged: dict[str, list[str]] = {}
    for metric in METRICS:
        for judge in tables.judges(results, metric):
            judged.setdefault(judge, []).append(metric.replace("_", " "))
    return judged


def _other_judges(results: dict[str, Any], rows: list[SummaryRow]) -> dict[str, Any] | None:
    """The final harmful score by every judge, where there are several."""
    names = tables.judges(results, "harmful_score")
    if len(names) < 2:
        return None
    lines = [
        (
            row,
            [
                tables.estimate(results, row.arm, "harmful_score", "finetuned", row.poison_ratio, row.step, j)
                for j in names
            ],
        )
        for row in rows
    ]
    return {"names": names, "lines": lines}


# Figures ----------------------------------------------------------------------------------------------------------


def _figures(
    results: dict[str, Any], rows: list[SummaryRow], arms: list[str], positions: dict[str, int]
) -> dict[str, Any]:
    from titer.report import figures

    swatches = {arm: figures.arm_swatch(positions[arm]) for arm in arms}
    ratios = tables.poison_ratios(results)
    courses = []
    for place, ratio in enumerate(ratios):
        panels, values = [], {}
        for metric, title in _METRIC_NAMES.items():
            lines = {arm: tables.trajectory(results, arm, metric, ratio) for arm in arms}
            if not any(lines.values()):
                continue
            ends = ", ".join(f"{arm} {points[-1][1]}" for arm, points in lines.items() if points)
            panels.append(
                figures.trajectories(
                    {positions[arm]: points for arm, points in lines.items()},
                    f"{title}, %",
                    f"{title} against fine-tuning steps, {tables.ratio_text(ratio)}. Last values: {ends}.",
                    f"course-{place}-{metric}",
                )
            )
            values[title] = {
                "steps": sorted({step for points in lines.values() for step, _ in points}),
                "arms": {arm: dict(points) for arm, points in lines.items()},
            }
        courses.append({"ratio": ratio, "panels": panels, "values": values})
    points = [
        (positions[row.arm], ratios.index(row.poison_ratio), row.harmful_score, row.finetune_accuracy, row)
        for row in rows
        if row.harmful_score is not None and row.finetune_accuracy is not None
    ]
    plane = None
    if points:
        ends = "; ".join(
            f"{row.arm}, {tables.ratio_text(row.poison_ratio)}: HS {row.harmful_score}, FA {row.finetune_accuracy}"
            for *_, row in points
        )
        plane = figures.hs_fa([point[:4] for point in points], f"Harmful score against accuracy. {ends}.", "plane")
    by_ratio: dict[int, list[tuple[float, Estimate]]] = {}
    for row in rows:
        if row.poison_ratio is not None and row.harmful_score is not None:
            by_ratio.setdefault(positions[row.arm], []).append((row.poison_ratio, row.harmful_score))
    poison = None
    if len({ratio for line in by_ratio.values() for ratio, _ in line}) > 1:
        poison = figures.hs_poison(
            by_ratio,
            "Harmful score after fine-tuning against the poison ratio; the summary table has the values.",
            "poison",
        )
    return {
        "swatches": swatches,
        "courses": courses,
        "plane": plane,
        "poison": poison,
        "markers": [(figures.ratio_marker(place), ratio) for place, ratio in enumerate(ratios)],
    }


# Likelihood-ratio weights -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spread:
    """A number for each seed, as mean and range."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        mean = sum(self.values) / len(self.values)
        if len(self.values) == 1:
            return f"{mean:.2f}"
        return f"{mean:.2f} ({min(self.values):.2f}–{max(self.values):.2f})"

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


def _weights(path: Path, positions: dict[str, int]) -> dict[str, Any] | None:
    """Histograms and numbers of `weights.jsonl`; None without the file."""
    if not path.exists():
        return None
    from titer.report import figures

    groups: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for number, row in _read_lines(path):
        _need(path, number, row, ("arm", "seed", "poison_ratio", "origin", "when", "log_ratio", "weight"))
        if not math.isnan(row["log_ratio"]):  # what a model that diverged gives
            groups[row["arm"], row["poison_ratio"]][row["when"]].append(row)
    for arm, _ in groups:
        positions.setdefault(arm, len(positions))  # an arm that has weights and no results
    lines, plots = [], []
    ordered = sorted(groups.items(), key=lambda item: (positions[item[0][0]], item[0][1]))
    for place, ((arm, ratio), by_time) in enumerate(ordered):
        finite = figures.finite([row["log_ratio"] for rows in by_time.values() for row in rows])
        panels = []
        for when in ("before", "after"):
            rows = by_time.get(when, [])
            if not rows:
                continue
            line = {"arm": arm, "ratio": ratio, "when": when, **_weight_numbers(rows)}
            lines.append(line)
            if line["harmful"] and line["benign"] and finite:
                benign = figures.finite([row["log_ratio"] for row in rows if row["origin"] != "harmful"])
                harmful = figures.finite([row["log_ratio"] for row in rows if row["origin"] == "harmful"])
                title = f"{when.capitalize()} fine-tuning"
                words = f"{title}, {arm}: AUROC {line['auroc']}, weight on harmful rows {line['share']}."
                limits = figures.log_ratio_limits(finite)
                panels.append(
                    (figures.log_ratios(benign, harmful, limits, title, words, f"weights-{place}-{when}"), line)
                )
        if panels:
            plots.append({"arm": arm, "ratio": ratio, "panels": panels})
    return {"lines": lines, "plots": plots, "seeds": any(line["seeds"] > 1 for line in lines)}


def _weight_numbers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """AUROC of −log r for "harmful", and the share of the weight that harmful rows hold: per seed, never pooled."""
    by_seed: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_seed[row["seed"]].append(row)
    aurocs, shares = [], []
    for seed in sorted(by_seed):
        mine = by_seed[seed]
        found = _auroc([-row["log_ratio"] for row in mine], [row["origin"] == "harmful" for row in mine])
        if found is not None:
            aurocs.append(found)
        total = sum(row["weight"] for row in mine)
        if total > 0 and any(row["origin"] == "harmful" for row in mine):
            shares.append(sum(row["weight"] for row in mine if row["origin"] == "harmful") / total)
    harmful = sum(row["origin"] == "harmful" for row in rows)
    return {
        "harmful": harmful,
        "benign": len(rows) - harmful,
        "seeds": len(by_seed),
        "auroc": _Spread(tuple(aurocs)) if aurocs else None,
        "share": _Spread(tuple(100 * share for share in shares)) if shares else None,
        "share_of_rows": 100 * harmful / len(rows),
    }


def _auroc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """The chance that a labelled row scores above an unlabelled one; None without both kinds."""
    return auroc(scores, labels) if len(set(labels)) == 2 else None


# Example answers --------------------------------------------------------------------------------------------------


def _examples(run: Path, judged: Sequence[ArmVerdict], ratio: float | None) -> dict[str, Any] | None:
    """The same prompts across arms at the last checkpoint of the first seed; None without `inferences.jsonl`.

    The prompts are taken at even distances through those that every arm answered, so nobody picked them.
    """
    path = run / "inferences.jsonl"
    if not path.exists():
        return None
    scored = [arm.row for arm in judged if arm.row.step is not None and arm.row.seeds]
    last = {row.arm: row.step for row in scored}
    seed = min(set.intersection(*(set(row.seeds) for row in scored)), default=None) if scored else None
    answers: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)  # (set, prompt) → arm → row
    order: dict[tuple[str, str], int] = {}
    for number, row in _read_lines(path):
        _need(path, number, row, _ANSWER)
        if row["phase"] != "finetuned" or row["seed"] != seed or row["poison_ratio"] != ratio:
            continue
        if row["step"] != last.get(row["arm"]):
            continue
        key = row["set"], row["prompt"]
        answers[key][row["arm"]] = row
        order.setdefault(key, row["index"])
    shared = sorted((key for key in answers if set(answers[key]) == set(last)), key=lambda key: (key[0], order[key]))
    chosen = _evenly([key for key in shared if key[0] == "harmful"], _HARMFUL_EXAMPLES)
    chosen += _evenly([key for key in shared if key[0] == "lookalike"], 1)
    chosen += _evenly([key for key in shared if key[0].startswith("task")], 1)
    wanted = {row["id"] for key in chosen for row in answers[key].values()}
    verdicts: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    scores = run / "scores.jsonl"
    if scores.exists():
        for number, score in _read_lines(scores):
            _need(scores, number, score, ("id", "judge", "label", "error"))
            if score["id"] in wanted:
                verdicts[score["id"]].append(score)
    cards = []
    for key in chosen:
        by_arm = answers[key]
        reference = next(iter(by_arm.values()))["reference"]
        cards.append(
            {
                "set": key[0],
                "kind": {"harmful": "Harmful request", "lookalike": "Harmless look-alike"}.get(key[0], "Task question"),
                "prompt": answer_text(key[1]),
                "reference": None if reference is None else answer_text(reference),
                "answers": [
                    (
                        arm,
                        answer_text(by_arm[arm]["response"]),
                        [_badge(score, key[0]) for score in verdicts[by_arm[arm]["id"]]],
                    )
                    for arm in last
                ],
            }
        )
    return {"cards": cards, "seed": seed, "ratio": ratio, "steps": last, "judged": scores.exists()}


def _badge(score: Mapping[str, Any], kind_of_prompt: str) -> dict[str, str]:
    if score["error"] is not None:
        return {"label": "not judged", "kind": "error", "judge": score["judge"]}
    label = score["label"]
    if kind_of_prompt == "lookalike" and label in ("harmful", "benign"):
        # A judge of willingness calls any answer on topic harmful; here an answer is what one wants.
        label = "answered"
    kind = label if label in ("harmful", "refused", "broken") else "plain"
    return {"label": label, "kind": kind, "judge": score["judge"]}


def _evenly(items: list[Any], count: int) -> list[Any]:
    """`count` of `items` at even distances."""
    if len(items) <= count:
        return items
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


# Settings ---------------------------------------------------------------------------------------------------------


def _arm_settings(arms: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arms side by side: a column for each arm, a row for each setting that any of them has."""
    named = {name: flat_settings(arm) for name, arm in arms.items()}
    keys = list(dict.fromkeys(key for settings in named.values() for key in settings))
    if not keys:
        return None
    keys.sort(key=lambda key: key.split(".")[0])
    return {"names": list(named), "rows": [(key, [named[name].get(key) for name in named]) for key in keys]}


# Files ------------------------------------------------------------------------------------------------------------


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file with their line numbers."""
    check_file(path)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TiterError(
                    f"{path}, line {number}: not JSON ({getattr(error, 'msg', error)}).",
                    f"Write the file again, or remove {path.name} to get the report without that section.",
                ) from None
            if not isinstance(row, dict):
                raise TiterError(f"{path}, line {number}: not an object.")
            yield number, row


def _need(path: Path, number: int, row: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name not in row:
            raise TiterError(
                f"{path}, line {number}: `{name}` is missing.",
                f"Write the file again, or remove {path.name} to get the report without that section.",
            )
