"""A paper's table beside ours, cell by cell, and what differs between how the two were made."""

from __future__ import annotations

from collections.abc import Iterable

from titer.report.field_view import FieldView, Paper, rate_of
from titer.report.parts import Cell, Drawing, Row, Section, Table, rate_cell
from titer.report.words import NBSP, count_text, ratio_text, signed_interval, signed_text
from titer.results.summary import Rate
from titer.stats.intervals import Estimate, difference_of, wilson


def beside(view: FieldView) -> list[Section]:
    """Return the sections on what a paper published of the same table."""
    assert view.paper is not None
    tables = [_of_form(view, view.paper, form) for form in view.forms]
    return [
        Section("Beside the paper", [_known(view.paper, view), *tables]),
        Section("What differs", _differs(view.paper)),
    ]


def _known(paper: Paper, view: FieldView) -> str:
    """Say how much of the table could be read, and how much of it is done."""
    asked = [(form, arm, ratio) for form in view.forms for arm in paper.arms for ratio in view.poison_ratios]
    read = [key for key in asked if key in paper.cells and paper.cells[key].harmful is not None]
    done = [(form, arm, ratio) for form, arm, ratio in asked if view.at(form, arm, ratio)]
    both = set(read) & set(done)
    return (
        f"{paper.source}. Of {count_text(len(asked), 'cell')} the published harmful score of {len(read)} could be read, {len(done)} are "
        f"done here, {len(both)} are both."
    )


def _of_form(view: FieldView, paper: Paper, form: str) -> Table:
    judge = next(iter(view.judges), "the headline judge")
    theirs = f"of {paper.prompts:,} prompts" if paper.prompts else "of a number of prompts that is not known"
    caption = (
        f"HS: harmful score, FA: accuracy after fine-tuning, in percent; here by {judge}, with 95{NBSP}% interval and n, there {theirs}. "
        f"Differences: here less there, in points, with the interval that the prompts of either side leave (Newcombe); of FA "
        "those of ours alone. A dash: not read, or nothing to compare. It says how far two tables are apart, and not why."
    )
    head = (
        "arm", "HS\nhere", "HS\nthere", "difference", "FA\nhere", "FA\nthere", "difference",
    )  # fmt: skip
    bands = {ratio_text(ratio): list(_rows(view, paper, form, ratio)) for ratio in view.poison_ratios}
    return Table(head, bands, caption=caption, title=f"{form} ({view.forms[form]})")


def _rows(view: FieldView, paper: Paper, form: str, ratio: float) -> Iterable[Row]:
    for arm in view.arms:
        cells, their = view.at(form, arm, ratio), paper.cells.get((form, arm, ratio))
        harmful, accuracy = rate_of(cells, "harmful_score"), rate_of(cells, "finetune_accuracy")
        missing = "not read" if arm in paper.arms else "not in it"
        there = {"HS": their.harmful if their else None, "FA": their.accuracy if their else None}
        notes = their.read if their else ""
        yield [
            arm,
            _ours(harmful),
            _published(there["HS"], missing, notes),
            _apart(harmful, there["HS"], paper.prompts),
            _ours(accuracy),
            _published(there["FA"], missing, notes),
            _apart(accuracy, there["FA"], None),
        ]


def _ours(rate: Rate | None) -> Cell:
    return Cell("–", "not done") if rate is None else rate_cell(rate, with_n=True)


def _published(percent: float | None, missing: str, read: str) -> Cell:
    return Cell("–", missing) if percent is None else Cell(f"{percent:.2f}".removesuffix("0"), read)


def _apart(ours: Rate | None, theirs: float | None, prompts: int | None) -> Cell:
    """Return how far our figure is from theirs, in points."""
    if ours is None or theirs is None:
        return Cell("–")
    low, high = (100 * end for end in wilson(theirs / 100 * prompts, prompts)) if prompts else (theirs, theirs)
    found = difference_of(Estimate(ours.value, ours.low, ours.high), Estimate(theirs, low, high))
    return Cell(signed_text(found.value), signed_interval(found.low, found.high))


def _differs(paper: Paper) -> list[Table | Drawing | str]:
    parts: list[Table | Drawing | str] = []
    if paper.about:
        parts.append(Table.pairs("how theirs was made, and what that means here", dict(paper.about)))
    if paper.differs:
        rows: list[Row] = [[name, *both] for name, both in paper.differs.items()]
        caption = (
            "Settings of the table as it was published against those of the cells above. A dash: titer's default, or "
            "nothing of the kind."
        )
        parts.append(Table.of(("setting", "there", "here"), rows, caption=caption, kind="plain"))
    else:
        parts.append("Settings are the paper's, as far as they are known.")
    return parts
