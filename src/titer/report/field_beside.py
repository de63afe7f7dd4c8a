"""A paper's table beside ours, cell by cell, and what differs between how the two were made."""

from __future__ import annotations

from collections.abc import Iterable

from titer.report.field_view import FieldView, Paper, rate_of
from titer.report.parts import Cell, Drawing, Row, Section, Table, rate_cell
from titer.report.words import NBSP, count_text, ratio_text, signed_interval, signed_text
from titer.results.summary import Rate
from titer.stats.intervals import Estimate, difference_of, wilson

HEAD = ("arm", "HS\nhere", "HS\nthere", "difference", "FA\nhere", "FA\nthere", "difference")


def beside(view: FieldView, paper: Paper) -> list[Section]:
    """Return the sections on what a paper published of the same table."""
    bands = {
        f"{form if form == task else f'{form} ({task})'}, {ratio_text(ratio)}": list(_rows(view, paper, form, ratio))
        for form, task in _forms(view, paper).items()
        for ratio in view.poison_ratios
    }
    return [
        Section("Beside the paper", [_known(view, paper), Table(HEAD, bands, caption=_caption(view, paper))]),
        Section("What differs", _differs(paper)),
    ]


def _forms(view: FieldView, paper: Paper) -> dict[str, str]:
    """Return the forms that are asked for here, with their tasks, and behind them others of which a cell could be read."""
    return {**view.forms, **{form: form for form, _, _ in paper.cells if form not in view.forms}}


def _known(view: FieldView, paper: Paper) -> str:
    """Say how much of the table could be read, and how much of it is done."""
    asked = {(form, arm, ratio) for form in _forms(view, paper) for arm in view.arms for ratio in view.poison_ratios}
    read = {key for key in asked if key in paper.cells and paper.cells[key].harmful is not None}
    done = {key for key in asked if view.at(*key)}
    return (
        f"{paper.source}. Of {count_text(len(asked), 'cell')} {len(done)} are done here; the published harmful score could be read of "
        f"{len(read)}, of which {len(read & done)} are done."
    )


def _caption(view: FieldView, paper: Paper) -> str:
    judge = next(iter(view.judges), "the headline judge")
    theirs = f"of {paper.prompts:,} prompts" if paper.prompts else "of a number of prompts that is not known"
    return (
        f"HS: harmful score, FA: accuracy after fine-tuning, in percent; here by {judge}, with 95{NBSP}% interval and n; there {theirs}, "
        f"read in {paper.read} where nothing else is said. Differences: here less there, in points, with the interval that the prompts "
        "of both sides leave (Newcombe), or those of ours where theirs are not known. They say how far two tables are apart, and not why."
    )


def _rows(view: FieldView, paper: Paper, form: str, ratio: float) -> Iterable[Row]:
    for arm in view.arms:
        cells, their = view.at(form, arm, ratio), paper.cells.get((form, arm, ratio))
        undone = Cell("–", "not done" if form in view.forms else "not asked")
        unread = Cell("–", "not read" if form in paper.columns and arm in paper.arms else "not in it")
        read = their.read if their else ""
        row: list[Cell | str] = [arm]
        for metric, theirs, prompts in (
            ("harmful_score", their.harmful if their else None, paper.prompts),
            ("finetune_accuracy", their.accuracy if their else None, None),
        ):
            ours = rate_of(cells, metric)
            row += [
                undone if ours is None else rate_cell(ours, with_n=True),
                unread if theirs is None else Cell(f"{theirs:.2f}".removesuffix("0"), read),
                Cell("–") if ours is None or theirs is None else _apart(ours, theirs, prompts),
            ]
        yield row


def _apart(ours: Rate, theirs: float, prompts: int | None) -> Cell:
    """Return how far our figure is from theirs, in points."""
    low, high = (100 * end for end in wilson(theirs / 100 * prompts, prompts)) if prompts else (theirs, theirs)
    found = difference_of(Estimate(ours.value, ours.low, ours.high), Estimate(theirs, low, high))
    return Cell(signed_text(found.value), signed_interval(found.low, found.high))


def _differs(paper: Paper) -> list[Table | Drawing | str]:
    parts: list[Table | Drawing | str] = []
    if paper.about:
        parts.append(Table.pairs("how theirs was made", dict(paper.about)))
    if not paper.differs:
        return [*parts, "The settings are the paper's, as far as they are known."]
    rows: list[Row] = [[name, *both] for name, both in paper.differs.items()]
    caption = "Settings of the table as it was published against those of the cells here. A dash: titer's default, or nothing of the kind."
    return [*parts, Table.of(("setting", "there", "here"), rows, caption=caption)]
