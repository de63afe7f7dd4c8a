"""The page of a run, or of a scored model: one HTML file that loads nothing and runs no script."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from titer.report import charts, drawing
from titer.report.comparison import MARGIN, compared_table
from titer.report.judge_share import judge_share
from titer.report.parts import (
    Answer,
    Cell,
    Example,
    Row,
    Section,
    Table,
    jobs_table,
    origin_tables,
    rate_cell,
    settings_tables,
    verdict_badge,
    write_page,
)
from titer.report.verdict import BROKEN, SAFE, ArmVerdict, baseline_arm, verdict
from titer.report.words import duration_text, flat_settings, ratio_text
from titer.results.artefacts import (
    HARMFUL,
    LOOKALIKE,
    TASK_PREFIX,
    Inference,
    ScoreRow,
    WeightRow,
    read_inferences,
    read_scores,
    read_weights,
)
from titer.results.engines import OWN
from titer.results.summary import CORRECTED, SUMMARISED, Rate, Run
from titer.stats.intervals import auroc

METRICS = {"harmful_score": "Harmful score (HS)", "finetune_accuracy": "Fine-tuning accuracy (FA)"}
_COLUMNS = (
    ("HS", "harmful_score", "aligned"),
    ("HS", "harmful_score", "finetuned"),
    ("Refused", "refusal_rate", "finetuned"),
    ("Broken", "broken_rate", "finetuned"),
    ("Over-refusal", "over_refusal", "finetuned"),
    ("FA", "finetune_accuracy", "aligned"),
    ("FA", "finetune_accuracy", "finetuned"),
)
_EXAMPLES = {HARMFUL: ("Harmful request", 4), LOOKALIKE: ("Harmless look-alike", 1), TASK_PREFIX: ("Task question", 1)}
"""Sets of prompts, what their answers are called, and how many are shown."""

SectionMaker = Callable[[Run, Path], Section]
"""Makes a section of one's own of a run and its folder."""


def write_report(folder: Path, extra: Sequence[SectionMaker] = ()) -> Path:
    """Write `FOLDER/report.html` from a run's artefacts and return its path.

    Reads `results.json`, and where they exist `weights.jsonl`, `inferences.jsonl` and `scores.jsonl`; a section whose
    file is missing says so. The file is replaced as a whole or not at all.

    Args:
        folder: The run's.
        extra: Sections of one's own, below titer's.

    Raises:
        TiterError: `results.json` is missing or invalid, or a line of an optional file is.
    """
    folder = Path(folder)
    run = Run.read(folder)
    provenance = run.provenance
    experiment = provenance.get("experiment", {})
    jobs = [{"reason": None, **job} for job in provenance.get("stages", [])]
    outcome, base = verdict(run), baseline_arm(run)
    # The arm without a defence always has the first colour, the others follow in order.
    colours = {arm: place for place, arm in enumerate(sorted(run.arms, key=lambda arm: arm != base))}
    judges = _judges(run)
    return write_page(
        folder / "report.html",
        "report.html.j2",
        title=experiment.get("name") or folder.resolve().name,
        description=experiment.get("description"),
        provenance={"model": None, "command": None, **provenance},
        verdict=outcome,
        cards=[(arm, colours[arm.arm], compared_table(arm.comparisons, arm.arm, outcome.base)) for arm in outcome.arms],
        bounds={"safe": SAFE, "broken": BROKEN, "margin": MARGIN},
        failed=[job for job in jobs if job["status"] == "failed"],
        skipped=[job for job in jobs if job["status"] == "skipped"],
        several_seeds=any(len(row.seeds) > 1 for row in run.rows),
        summary=_summary(run, colours),
        judges=judges,
        other_judges=_other_judges(run, colours),
        judge_share=judge_share(run, colours),
        legend=[(drawing.arm_swatch(colours[arm]), arm) for arm in run.arms],
        courses=[_course(run, place, colours) for place in range(len(run.poison_ratios))],
        **_ends(run, colours),
        weights=_weights(folder / "weights.jsonl", colours),
        examples=_examples(folder, outcome.arms, outcome.poison_ratio, colours),
        arms=_arm_settings(run),
        settings=settings_tables({key: value for key, value in experiment.items() if key != "arms"}),
        origin=origin_tables(provenance, _about(run, judges)),
        overlap=Table.of(
            ("Sets", "Shared prompts"), flat_settings(provenance.get("overlap", {})).items(), kind="plain"
        ),
        jobs=jobs_table(jobs),
        extra=[make(run, folder) for make in extra],
    )


# The summary -------------------------------------------------------------------------------------------------------


def _summary(run: Run, colours: dict[str, int]) -> Table:
    """Every arm at every poison ratio; n stands in the head of a column whose cells share it."""
    head, shared = ["Arm"], []
    for name, metric, phase in _COLUMNS:
        counts = {rate.n for row in run.rows if (rate := row.rate(metric, phase)) is not None}
        shared.append(len(counts) == 1)
        head.append(f"{name}\n{_phase(phase)}" + (f"\nn = {counts.pop()}" if shared[-1] else ""))
    bands: dict[str, list[Row]] = defaultdict(list)
    for row in run.rows:
        step = "no result after fine-tuning" if row.step is None else f"step {row.step}"
        step = f"{run.served_as(row.arm)}, {step}" if row.arm in run.serving else step
        cells: list[Cell | str] = [Cell(row.arm, step, arm=colours[row.arm])]
        for (name, metric, phase), one in zip(_COLUMNS, shared, strict=True):
            strong = phase == "finetuned" and name in ("HS", "FA")
            cells.append(rate_cell(row.rate(metric, phase), with_n=not one, strong=strong))
        bands[ratio_text(row.poison_ratio) if len(run.poison_ratios) > 1 else ""].append([*cells, str(len(row.seeds))])
    return Table([*head, "Seeds"], bands)


def _phase(phase: str) -> str:
    return "after" if phase == "finetuned" else phase


def _judges(run: Run) -> dict[str, str]:
    """What each judge judged, the headline judge first."""
    judged: dict[str, list[str]] = defaultdict(list)
    for metric in SUMMARISED:
        for judge in run.judges(metric) if metric != CORRECTED else ():
            judged[judge].append(metric.replace("_", " "))
    return {judge: ", ".join(metrics) for judge, metrics in judged.items()}


def _other_judges(run: Run, colours: dict[str, int]) -> Table | None:
    """The final harmful score by every judge, where there are several."""
    names = run.judges("harmful_score")
    if len(names) < 2:
        return None
    rows: list[Row] = []
    for row in run.rows:
        key = (row.arm, "harmful_score", "finetuned", row.poison_ratio, row.step)
        cells = [rate_cell(run.rate(*key, judge), with_n=True) for judge in names]
        below = ratio_text(row.poison_ratio) if len(run.poison_ratios) > 1 else ""
        rows.append([Cell(row.arm, below, arm=colours[row.arm]), *cells])
    return Table.of(["Arm", *names], rows)


# Figures -----------------------------------------------------------------------------------------------------------


def _course(run: Run, place: int, colours: dict[str, int]) -> dict[str, Any]:
    """Figures and values along fine-tuning at one poison ratio."""
    ratio = run.poison_ratios[place]
    panels, values = [], []
    for metric, title in METRICS.items():
        lines = {arm: run.course(arm, metric, ratio) for arm in run.arms}
        if not any(lines.values()):
            continue
        ends = ", ".join(f"{arm} {points[-1][1]}" for arm, points in lines.items() if points)
        words = f"{title} against fine-tuning steps, {ratio_text(ratio)}. Last values: {ends}."
        by_colour = {colours[arm]: points for arm, points in lines.items()}
        panels.append(charts.trajectories(by_colour, f"{title}, %", words, f"course-{place}-{metric}"))
        by_arm = {arm: dict(points) for arm, points in lines.items()}
        steps = sorted({step for points in by_arm.values() for step in points})
        rows: list[Row] = [[str(step), *(rate_cell(points.get(step)) for points in by_arm.values())] for step in steps]
        values.append(Table.of(("Step", *run.arms), rows, caption=f"{title}, percent, with interval."))
    title = ratio_text(ratio) if len(run.poison_ratios) > 1 else ""
    return {"title": title, "panels": panels, "tables": values}


def _ends(run: Run, colours: dict[str, int]) -> dict[str, Any]:
    """Where the arms end: safety against usefulness, and against the poison ratio."""
    ratios = run.poison_ratios
    points, words = [], []
    by_ratio: dict[int, list[tuple[float, Rate]]] = defaultdict(list)
    for row in run.rows:
        hs, fa = row.rate("harmful_score"), row.rate("finetune_accuracy")
        if hs is not None and fa is not None:
            points.append((colours[row.arm], ratios.index(row.poison_ratio), hs, fa))
            words.append(f"{row.arm}, {ratio_text(row.poison_ratio)}: HS {hs}, FA {fa}")
        if hs is not None and row.poison_ratio is not None:
            by_ratio[colours[row.arm]].append((row.poison_ratio, hs))
    label = f"Harmful score against accuracy. {'; '.join(words)}."
    about = "Harmful score after fine-tuning against the poison ratio; the summary table has the values."
    several = len({ratio for line in by_ratio.values() for ratio, _ in line}) > 1
    return {
        "plane": charts.hs_fa(points, label, "plane") if points else None,
        "poison": charts.hs_poison(by_ratio, about, "poison") if several else None,
        "markers": [(marker, ratio_text(ratio)) for marker, ratio in zip(charts.MARKERS, ratios)],
    }


# What a defence sees in the data -------------------------------------------------------------------------------------


class _Spread(NamedTuple):
    """A number of each seed, as mean and range."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Spread | None:
        return cls(sum(values) / len(values), min(values), max(values)) if values else None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ({self.low:.2f}–{self.high:.2f})" if self.low < self.high else "")


def _weights(path: Path, colours: dict[str, int]) -> dict[str, Any] | None:
    """Histograms and numbers of `weights.jsonl`; None without the file."""
    if not path.exists():
        return None
    groups: dict[tuple[str, float], dict[str, list[WeightRow]]] = defaultdict(lambda: defaultdict(list))
    for row in read_weights(path):
        if not math.isnan(row.log_ratio):  # what a model that diverged gives
            groups[row.arm, row.poison_ratio][row.when].append(row)
    for arm, _ in groups:
        colours.setdefault(arm, len(colours))  # an arm that has weights and no results
    rows: list[Row] = []
    plots, seeds = [], 1
    for place, ((arm, ratio), by_time) in enumerate(
        sorted(groups.items(), key=lambda one: (colours[one[0][0]], one[0][1]))
    ):
        finite = [row.log_ratio for found in by_time.values() for row in found if math.isfinite(row.log_ratio)]
        panels = []
        for when in sorted(by_time, reverse=True):
            here = by_time[when]
            area, share = _seen(here)
            seeds = max(seeds, len({row.seed for row in here}))
            harmful = sum(row.origin == HARMFUL for row in here)
            inverted = Cell(str(area), badge="inverted", kind="bad") if area is not None and area.mean < 0.5 else ""
            cells = (f"{ratio:g}", when, str(len(here) - harmful), str(harmful), inverted or str(area or "–"))
            rows.append([Cell(arm, arm=colours[arm]), *cells, str(share or "–"), f"{100 * harmful / len(here):.1f}"])
            if 0 < harmful < len(here) and finite:
                title = f"{when.capitalize()} fine-tuning"
                words = f"{title}, {arm}: AUROC {area}, weight on harmful rows {share}."
                under = f"AUROC {area.mean:.2f}" if area else ""
                under += f" · harmful rows hold {share.mean:.1f} % of the weight" if share else ""
                names = (f"weights-{place}-{when}", charts.limits_of(finite))
                groups_of_rows = grouped((row.log_ratio, row.origin) for row in here)
                panels.append((charts.log_ratios(groups_of_rows, names[1], title, words, names[0]), under))
        if panels:
            plots.append({"title": f"{arm} · {ratio_text(ratio)}", "panels": panels})
    head = ("Arm", "Poison ratio", "Fine-tuning", "Task rows", "Harmful rows", "AUROC", "Weight on harmful, %")
    return {"plots": plots, "table": Table.of((*head, "Part of rows, %"), rows), "seeds": seeds > 1}


def grouped(rows: Iterable[tuple[float, str | None]]) -> dict[str, list[float]]:
    """Finite log ratios by what is known of their rows' origin, for histograms."""
    found: dict[str, list[float]] = {group: [] for group in charts.GROUPS}
    for value, origin in rows:
        if math.isfinite(value):
            found["unknown" if origin is None else "harmful" if origin == HARMFUL else "benign"].append(value)
    return found


def _seen(rows: Sequence[WeightRow]) -> tuple[_Spread | None, _Spread | None]:
    """AUROC of −log r for "harmful", and the percentage of the weight that harmful rows hold: per seed, never pooled."""
    areas, shares = [], []
    for seed in sorted({row.seed for row in rows}):
        mine = [row for row in rows if row.seed == seed]
        harmful = [row.origin == HARMFUL for row in mine]
        total = sum(row.weight for row in mine)
        if 0 < sum(harmful) < len(mine):
            areas.append(auroc([-row.log_ratio for row in mine], harmful))
        if total > 0 and any(harmful):
            shares.append(100 * sum(row.weight for row, one in zip(mine, harmful, strict=True) if one) / total)
    return _Spread.of(areas), _Spread.of(shares)


# Example answers -----------------------------------------------------------------------------------------------------


def _examples(
    folder: Path, judged: Sequence[ArmVerdict], ratio: float | None, colours: dict[str, int]
) -> dict[str, Any] | None:
    """The same prompts across arms at the last checkpoint of the first seed; None without `inferences.jsonl`.

    The prompts are taken at even distances through those that every arm answered, so nobody picked them.
    """
    path, scores = folder / "inferences.jsonl", folder / "scores.jsonl"
    if not path.exists():
        return None
    last = {arm.arm: arm.row.step for arm in judged if arm.row.step is not None and arm.row.seeds}
    seeds = [set(arm.row.seeds) for arm in judged if arm.arm in last]
    seed = min(set.intersection(*seeds), default=None) if seeds else None
    answers: dict[tuple[str, int, str], dict[str, Inference]] = defaultdict(dict)
    for row in read_inferences(path):
        if row.phase == "finetuned" and (row.seed, row.poison_ratio, row.step) == (seed, ratio, last.get(row.arm)):
            answers[row.set, row.index, row.prompt][row.arm] = row
    shared = sorted(key for key, by_arm in answers.items() if by_arm.keys() == last.keys())
    verdicts: dict[str, list[ScoreRow]] = defaultdict(list)
    for score in read_scores(scores) if scores.exists() else ():
        verdicts[score.id].append(score)
    cards = []
    for prefix, (kind, count) in _EXAMPLES.items():
        for key in _evenly([key for key in shared if key[0].startswith(prefix)], count):
            task = key[0].removeprefix(prefix)
            given = [
                Answer(arm, colours[arm], row.response, [_badge(score, row.set) for score in verdicts[row.id]])
                for arm in last
                if (row := answers[key][arm])
            ]
            reference = next(iter(answers[key].values())).reference
            cards.append(Example(f"{kind} · {task}" if task else kind, key[2], given, reference))
    return {"cards": cards, "seed": seed, "ratio": ratio, "judged": scores.exists()}


def _badge(score: ScoreRow, prompts: str) -> tuple[str, str, str]:
    # A judge of willingness calls any answer on topic harmful; to a look-alike an answer is what one wants.
    answered = prompts == LOOKALIKE and score.label in ("harmful", "benign")
    return verdict_badge("answered" if answered else score.label, score.judge)


def _evenly(items: list[Any], count: int) -> list[Any]:
    """`count` of `items` at even distances."""
    if len(items) <= count:
        return items
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


# Settings and origin ---------------------------------------------------------------------------------------------------


def _arm_settings(run: Run) -> Table:
    """The arms side by side: a column for each arm, a row for each setting that any of them has."""
    named = {name: flat_settings(arm) for name, arm in run.planned.items()}
    keys = sorted(dict.fromkeys(key for found in named.values() for key in found), key=lambda key: key.split(".")[0])
    rows = ([key, *(found.get(key, "–") for found in named.values())] for key in keys)
    return Table.of(("Setting", *named), rows, kind="plain", title="Arms")


def _about(run: Run, judges: dict[str, str]) -> Table:
    found = run.provenance
    known = {key: str(found.get(key) or "not recorded") for key in ("model", "commit")}
    if (source := found.get("source")) is not None:
        known["answers from"] = f"{source['format']}, {source['file']}"
    if "engines" in found:
        known["answered by"] = ", ".join(dict.fromkeys(run.engines.values())) or OWN
    seeds = found.get("seeds")
    known["seeds"] = "not recorded" if seeds is None else ", ".join(map(str, seeds))
    by = {f"judge {name}" if len(judges) > 1 else "judge": Cell(name, note=metrics) for name, metrics in judges.items()}
    return Table.pairs("run", {**known, "time": duration_text(found.get("seconds")), **by})
