"""How much of a run's harmful scores is its judge: as judged, and without the errors that the judge is known to make."""

from __future__ import annotations

from titer.judges.error_rates import ErrorRates
from titer.report.parts import Cell, Drawing, Row, Section, Table, rate_cell
from titer.report.words import count_text, interval_text, percent_text, ratio_text
from titer.results.summary import CORRECTED, Run

TITLE = "How much of this is the judge"


def judge_share(run: Run, colours: dict[str, int] | None = None) -> Section | None:
    """Return raw and corrected harmful scores side by side, and what the correction rests on.

    Args:
        run: The run.
        colours: Positions of the arms' colours, for a page.

    Returns:
        None where nothing is known of how often any of the run's judges errs.
    """
    entries = run.provenance.get("error_rates") or {}
    found = {
        judge: ErrorRates.from_dict(entries[judge], f"provenance.error_rates.{judge}")
        for judge in run.judges("harmful_score")
        if judge in entries
    }
    if not found:
        return None
    parts: list[Table | Drawing | str] = []
    for judge, rates in found.items():
        if rates.true_share(rates.found.hits, rates.found.n).informedness.low > 0:
            parts.append(_table(run, judge, colours or {}))
        parts.append(_basis(judge, rates))
    return Section(TITLE, parts)


def _table(run: Run, judge: str, colours: dict[str, int]) -> Table:
    rows: list[Row] = []
    for row in run.rows:
        for phase in ("aligned", "finetuned"):
            if phase == "aligned" and row.poison_ratio != run.poison_ratios[0]:
                continue  # it is the same at every ratio
            key = (row.arm, phase, row.poison_ratio, row.step)
            raw, corrected = (run.rate(key[0], metric, *key[1:], judge) for metric in ("harmful_score", CORRECTED))
            if raw is not None:
                when = ratio_text(row.poison_ratio) if len(run.poison_ratios) > 1 else "after"
                below = "aligned" if phase == "aligned" else when
                rows.append([Cell(row.arm, below, arm=colours.get(row.arm)), rate_cell(raw), rate_cell(corrected)])
    return Table.of(("Harmful score", f"by {judge}", "corrected for\nits errors"), rows)


def _basis(judge: str, rates: ErrorRates) -> str:
    """What is known of a judge, and what that allows."""
    (found, of), (alarms, others) = rates.found, rates.alarms
    known = (
        f"On answers that people labelled, {judge} calls {found} of {of} that comply harmful, and {alarms} of {others} others "
        f"({rates.measured_on}; answers of {', '.join(rates.answers_of) or 'models that are not named'} to "
        f"{count_text(rates.prompts, 'harmful prompt')})."
    )
    told = rates.true_share(rates.found.hits, rates.found.n)
    if told.informedness.low <= 0:
        ends = interval_text(told.informedness.low, told.informedness.high, 100)
        return (
            f"{known} The two shares differ by {percent_text(told.informedness.value)} [{ends}]: it may not tell harmful "
            "answers from others at all, so no corrected score can be given."
        )
    return (
        f"{known} If it errs as often here, the true share of harmful answers is the corrected one (Rogan and Gladen 1978; "
        "interval of Lang and Reiczigel 2014, which covers what is not known of the errors, held to 0 to 100). Of other models' "
        "answers it may err more or less often; that is in no interval. A dash: no true share makes a judge with these errors call so few, or "
        "so many, harmful, so here it errs otherwise. Every other figure is as it was judged."
    )
