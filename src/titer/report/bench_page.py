"""Judges against people, for people: tables for terminal and Markdown, and a page of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.judges.bench import Bench, Disagreement, Figures, JudgeFigures
from titer.report import charts, drawing
from titer.report.parts import (
    Cell,
    Row,
    Table,
    as_markdown,
    markdown,
    origin_tables,
    terminal,
    verdict_badge,
    write_page,
)
from titer.report.words import interval_text, percent_text
from titer.stats.intervals import Estimate
from titer.stats.misclassification import Counted
from titer.text import one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 8
"""Disagreements of a judge that a page shows."""
BEGINNING = 200
"""Characters of an answer that it shows."""

ROWS: dict[str, str] = {
    "precision": "Called refused: are refusals",
    "recall": "Refusals: called refused",
    "partial": "Partial refusals: called refused",
    "found": "Complied, harmful prompts: called harmful",
    "alarms": "Refused, harmful prompts: called harmful",
    "kappa": "Agreement with people, Cohen's κ",
    "unsure": "Unsure",
    "errors": "Failed",
}
"""What is said of a judge, in order."""
COLUMNS = {"precision": "precision", "recall": "recall", "found": "complied\nfound", "alarms": "refused\nharmful"}
GROUPS: dict[str, tuple[str, Callable[[JudgeFigures], Sequence[Figures]]]] = {
    "kinds": ("By kind of prompt", lambda judge: judge.kinds),
    "models": ("By model", lambda judge: judge.models),
    "categories": ("By category of prompt", lambda judge: judge.categories),
}
NOTES = (
    "Shares in percent with 95 % Wilson intervals, which take answers for independent; κ over refused, complied and other, and "
    "the calibration error, with a bootstrap over prompts. A partial refusal is no refusal. Failed verdicts enter no share.",
    "How a judge does on these answers says little about answers of other models, lengths or languages.",
)


def share_cell(counted: Counted) -> Cell:
    """A share with its interval and counts; a dash where there was nothing to count."""
    found = counted.estimate()
    if found is None:
        return Cell()
    below = f"{interval_text(found.low, found.high, 100)}\n{counted.hits} of {counted.n}"
    return Cell(f"{100 * found.value:.1f}", below)


def kappa_cell(found: Estimate | None) -> Cell:
    """Kappa with its interval."""
    if found is None:
        return Cell(below="not defined")
    ends = f"{found.low:.2f} to {found.high:.2f}".replace("-", "−")
    return Cell(f"{found.value:.2f}".replace("-", "−"), "one prompt" if math.isnan(found.low) else ends)


def _figure(figures: Figures, name: str) -> Cell:
    value = getattr(figures, name)
    return share_cell(value) if isinstance(value, Counted) else kappa_cell(value)


def overall_table(bench: Bench) -> Table:
    """What each judge is worth on all answers, a judge a column."""
    rows: list[Row] = [[words, *(_figure(one.overall, name) for one in bench.judges)] for name, words in ROWS.items()]
    errors = [one.curve.error for one in bench.judges]
    calibrated = [
        Cell() if one is None else Cell(percent_text(one.value), interval_text(one.low, one.high, 100))
        for one in errors
    ]
    rows.append(["Calibration error of the score", *calibrated])
    return Table.of(("", *(one.judge for one in bench.judges)), rows)


def group_tables(bench: Bench) -> list[Table]:
    """The same by kind of prompt, by model and by category, a band a judge; where there are two groups or more."""
    made = []
    for title, groups in GROUPS.values():
        bands: dict[str, Sequence[Row]] = {
            one.judge: [
                [
                    Cell(one_line(group.group), f"{group.n} answers"),
                    *(_figure(group, name) for name in (*COLUMNS, "kappa")),
                ]
                for group in groups(one)
            ]
            for one in bench.judges
        }
        if any(len(rows) > 1 for rows in bands.values()):
            made.append(Table(("", *COLUMNS.values(), "κ"), bands, title=title))
    return made


def agreement_table(bench: Bench) -> Table:
    """How far judges say the same of five labels: share above, kappa below; nothing of one judge alone."""
    names = [one.judge for one in bench.judges]
    pairs = {frozenset((one.first, one.second)): one for one in bench.pairs}

    def cell(first: str, second: str) -> Cell:
        pair = pairs.get(frozenset((first, second)))
        if pair is None or not pair.same.n:
            return Cell()
        kappa = kappa_cell(pair.kappa)
        return share_cell(pair.same)._replace(note=f"κ {kappa.text} ({kappa.below})" if pair.kappa else "κ not defined")

    return Table.of(("", *names), [[name, *(cell(name, other) for other in names)] for name in names] if pairs else [])


def curve_table(bench: Bench) -> Table:
    """Each judge's score in bins against the share that complies."""
    bands: dict[str, Sequence[Row]] = {
        one.judge: [
            [f"{part.low:.1f} to {part.high:.1f}", f"{part.score:.2f}", share_cell(part.true)]
            for part in one.curve.bins
        ]
        for one in bench.judges
    }
    return Table(("Score", "Mean score", "Complies, %"), bands)


def headline(bench: Bench) -> str:
    """What there was to judge, in a sentence."""
    prompts = len({one.prompt for one in bench.answers})
    labels = ", ".join(f"{count} {label}" for label, count in bench.labels.items())
    return f"{len(bench.answers)} answers to {prompts} prompts, labelled by people: {labels}."


def notes(bench: Bench) -> list[str]:
    """What a reader must know."""
    said = list(NOTES)
    if not any(one.harmful_prompt for one in bench.answers):
        said.append("No answer says `harmful_prompt: true`, so nothing is known of how harmful answers are told.")
    for name, count in bench.seen.items():
        said.append(
            f"{name} learnt from {count} of these answers: on them its figures say how well it fits, not how good it is elsewhere."
        )
    if unsure := bench.labels.get("unsure"):
        said.append(f"Of {unsure} answers people were unsure: they count for agreement between judges alone.")
    return said


def print_bench(bench: Bench, console: Console) -> None:
    """Print what judges are worth."""
    from rich.text import Text

    console.print(Text(headline(bench)))
    tables = [overall_table(bench), *group_tables(bench)]
    if agreement := agreement_table(bench):
        tables.append(Table(agreement.head, agreement.bands, title="Agreement between judges"))
    for table in tables:
        console.print(terminal(table))
    for note in notes(bench):
        console.print(Text(note, style="dim"))


def bench_markdown(bench: Bench) -> str:
    """Return the same as Markdown."""
    lines = [headline(bench), "", *markdown(overall_table(bench)), ""]
    for table in group_tables(bench):
        for judge, rows in table.bands.items():
            lines += [f"{table.title}, {as_markdown(judge)}:", "", *markdown(Table.of(table.head, rows)), ""]
    if agreement := agreement_table(bench):
        lines += ["Agreement between judges:", "", *markdown(agreement), ""]
    return visible("\n".join([*lines, *(f"{as_markdown(note)}\n" for note in notes(bench))]))


def write_bench(path: Path, bench: Bench, provenance: Mapping[str, Any]) -> Path:
    """Write what judges are worth as one HTML file and return its path.

    Args:
        path: The file.
        bench: What was found.
        provenance: Where it comes from.
    """
    curves = {place: one.curve.bins for place, one in enumerate(bench.judges) if one.curve.bins}
    ends = "; ".join(
        f"{one.judge}: " + ", ".join(f"{part.score:.2f} → {percent_text(part.true.share)}" for part in one.curve.bins)
        for one in bench.judges
        if one.curve.bins
    )
    about = Table.pairs("answers", {name: f"sha256 {digest}…" for name, digest in provenance["answers"].items()})
    return write_page(
        path,
        "bench.html.j2",
        title=" and ".join(one.judge for one in bench.judges) + " against people",
        headline=headline(bench),
        overall=overall_table(bench),
        groups=group_tables(bench),
        agreement=agreement_table(bench),
        plot=charts.calibration(curves, f"Score against the share that complies. {ends}.", "curve") if curves else None,
        legend=[(drawing.arm_swatch(place), bench.judges[place].judge) for place in curves],
        curve=curve_table(bench),
        notes=notes(bench),
        beginning=BEGINNING,
        disagreements=[_sample(one.judge, bench.disagreements[one.judge]) for one in bench.judges],
        provenance=provenance,
        origin=origin_tables(provenance, about),
    )


def _sample(judge: str, found: Sequence[Disagreement]) -> dict[str, Any]:
    """Some disagreements at even distances, so that nobody picked them."""
    count = min(SHOWN, len(found))
    shown = [found[(2 * place + 1) * len(found) // (2 * count)] for place in range(count)]
    return {
        "judge": judge,
        "total": len(found),
        "rows": [
            {
                "prompt": one.answer.prompt,
                "answer": one.answer.response[:BEGINNING],
                "cut": len(one.answer.response) > BEGINNING,
                "people": one.answer.label,
                "verdict": verdict_badge(one.verdict.label),
                "raw": one.verdict.raw[:BEGINNING],
                "model": one.answer.model,
            }
            for one in shown
        ],
    }
