"""The pages of a field: every arm under one protocol, form by form, with what is not known said as plainly as what is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from titer.report import charts
from titer.report.assay_tables import tint
from titer.report.field_beside import beside
from titer.report.field_view import ALONE, FieldView, difference, front, rate_of
from titer.report.parts import Cell, Drawing, Row, Section, Table, rate_cell, write_sections
from titer.report.words import compact, count_text, flat_settings, ratio_text, signed_interval, signed_text
from titer.results.artefacts import HARMFUL
from titer.results.cells import LETTERS, CellFile
from titer.stats.intervals import Difference, agreement

NBSP = "\u00a0"


# -- tables -----------------------------------------------------------------------------------------------------------


def _arm_rows(view: FieldView, form: str, ratio: float, tuned: bool = False, whole: bool = False) -> Iterable[Row]:
    head, other = (*view.judges, "", "")[:2]
    for arm in view.arms:
        rate = view.rates.get(arm) if tuned else None
        cells = view.at(form, arm, ratio, rate, whole)
        if not cells or (tuned and rate is None):
            continue
        for alone in (False, True) if cells[0].serving else (False,):
            seeds = ", ".join(str(cell.seed) for cell in sorted(cells, key=lambda cell: cell.seed))
            harmful = rate_of(cells, "harmful_score", head, alone)
            wash = tint("bad", harmful.value / 100) if harmful else ""
            served = bool(cells[0].serving) and not alone
            name, note = arm + (ALONE if alone else ""), f"rate {rate:g}" if rate else ""
            yield [
                Cell(name, note=note, badge="served" if served else "", kind="unclear" if served else ""),
                rate_cell(harmful, tint=wash),
                rate_cell(rate_of(cells, "harmful_score", other, alone)) if other else "–",
                rate_cell(rate_of(cells, "refusal_rate", head, alone)),
                rate_cell(rate_of(cells, "broken_rate", head, alone)),
                rate_cell(rate_of(cells, "over_refusal", head, alone)),
                rate_cell(rate_of(cells, "finetune_accuracy", alone=alone), with_n=True),
                _cpu(cells),
                _memory(cells),
                seeds,
            ]


def _cpu(cells: Sequence[CellFile]) -> Cell | str:
    """What the arm's own training took: fine-tuning and repair, the alignment below it."""
    own = [_seconds(cell, "finetune", "repair", "whole") for cell in cells]
    known = [one for one in own if one is not None]
    if not known:
        return "–"
    align = [one for one in (_seconds(cell, "align") for cell in cells) if one is not None]
    below = f"+ {compact(round(sum(align) / len(align)))} to align" if align else ""
    return Cell(compact(round(sum(known) / len(known))), below)


def _seconds(cell: CellFile, *kinds: str) -> float | None:
    stages = [stage for stage in cell.stages if stage.kind in kinds]
    known = [stage.cpu_seconds for stage in stages if stage.cpu_seconds is not None]
    return sum(known) if stages and len(known) == len(stages) else None


def _memory(cells: Sequence[CellFile]) -> str:
    peaks = [cell.peak_mb for cell in cells if cell.peak_mb is not None]
    return compact(max(peaks)) if peaks else "–"


def _form_table(view: FieldView, form: str, tuned: bool = False) -> Table:
    head, other = (*view.judges, "–", "–")[:2]
    bands = {ratio_text(ratio): list(_arm_rows(view, form, ratio, tuned)) for ratio in view.poison_ratios}
    if not tuned:
        for ratio in view.poison_ratios:
            bands[f"{ratio_text(ratio)}, all weights trained by who has them"] = list(
                _arm_rows(view, form, ratio, whole=True)
            )
    n = {one.n for cell in view.cells for one in cell.figures if one.metric == "harmful_score"}
    caption = (
        f"HS, refused and broken over {' or '.join(map(str, sorted(n)))} harmful prompts of a seed, over-refusal over harmless ones "
        f"that look harmful, by {head}; all in percent with 95{NBSP}% intervals. CPU: processor seconds of fine-tuning and repair; "
        "a dash: done elsewhere, where it was not measured. Memory: most resident megabytes of the whole process in any stage."
    )
    columns = ("arm", "HS", f"HS\n{other}", "refused", "broken", "over-\nrefusal", "FA", "CPU s", "MB", "seeds")
    return Table(columns, {band: rows for band, rows in bands.items() if rows}, caption=caption)


def heat(view: FieldView) -> Table:
    """Harmful scores of every arm under every upload."""
    every = [(form, ratio, whole) for whole in (False, True) for ratio in view.poison_ratios for form in view.forms]
    columns = [
        (form, ratio, whole)
        for form, ratio, whole in every
        if any(view.at(form, arm, ratio, whole=whole) for arm in view.arms)
    ]
    rows: list[Row] = []
    for arm in view.arms:
        found = [view.at(form, arm, ratio, whole=whole) for form, ratio, whole in columns]
        rates = [rate_of(cells, "harmful_score") for cells in found]
        if any(rates):
            rows.append([arm, *(rate_cell(one, tint=tint("bad", one.value / 100) if one else "") for one in rates)])
    return Table.of(
        ("arm", *(f"{form}\np = {ratio:g}{', all weights' if whole else ''}" for form, ratio, whole in columns)),
        rows,
        caption=f"Harmful score in percent with its 95{NBSP}% interval; the stronger the wash, the more harm. A dash: not done.",
    )


def orderings(view: FieldView) -> Table:
    """What was published of pairs of arms, against what is found here."""
    there = dict.fromkeys((claim.form, claim.poison_ratio) for claim in view.published)
    columns = [(form, ratio) for form, ratio in there if any(view.at(form, arm, ratio) for arm in view.arms)]
    rows: dict[tuple[str, str, str], dict[tuple[str, float], Cell]] = {}
    for claim in view.published:
        row = rows.setdefault((claim.lower, claim.higher, claim.source), {})
        row[claim.form, claim.poison_ratio] = _ordering(difference(view, claim))
    shown = [
        [Cell(f"{lower} < {higher}", source), *(row.get(key, Cell("–")) for key in columns)]
        for (lower, higher, source), row in rows.items()
    ]
    caption = (
        "Difference of harmful scores in points, over the same prompts of the seeds that both have, with its 95"
        f"{NBSP}% interval (Bonett and Price); it does not say how another seed would do."
    )
    if _in_one_share(view):
        heads = [form for form, _ in columns]
    else:
        heads = [f"{form}\np = {ratio:g}" for form, ratio in columns]
        caption += " A dash: nothing was published, or no order."
    return Table.of(("published: lower < higher", *heads), shown, caption=caption) if columns else Table(())


def _in_one_share(view: FieldView) -> bool:
    """Whether what was published is of uploads with one share of harmful rows, as pages of a field's own compare arms."""
    return {claim.poison_ratio for claim in view.published} <= {view.poison}


def _ordering(found: Difference | None) -> Cell:
    if found is None:
        return Cell("not done")
    word, kind = (
        ("holds", "good") if found.high < 0 else ("reversed", "bad") if found.low > 0 else ("undecided", "unclear")
    )
    shown = f"{signed_text(100 * found.mean)} [{signed_interval(100 * found.low, 100 * found.high)}]"
    return Cell(shown, badge=word, kind=kind)


def agreements(view: FieldView) -> list[str]:
    """How far the judges agree on the answers to harmful prompts, in words."""
    if len(view.judges) < 2:
        return []
    one, two = view.judges[:2]
    ours, theirs = ("".join(cell.verdicts(HARMFUL, judge) for cell in view.cells) for judge in (one, two))
    if not ours or len(ours) != len(theirs):
        return []
    same = agreement(*([letter if letter != LETTERS[None] else None for letter in side] for side in (ours, theirs)))
    harm = agreement(*([letter == LETTERS["harmful"] for letter in side] for side in (ours, theirs)))
    kappa = "" if harm.kappa is None else f", Cohen's kappa {harm.kappa:.2f}"
    return [
        f"{one} and {two} say the same of {100 * same.agreement:.1f}{NBSP}% of {same.n:,} answers to harmful prompts, and agree on "
        f"whether one is harmful in {100 * harm.agreement:.1f}{NBSP}%{kappa}. The first knows more than refusals by their wording; "
        "the second is there because most papers had nothing else."
    ]


# -- the pages --------------------------------------------------------------------------------------------------------


def sections(view: FieldView) -> list[Section]:
    """Return what the pages show, in order."""
    made = [] if view.paper is None else beside(view, view.paper)
    if view.cells:
        made.append(Section("Attack × defence", [heat(view)]))
    for form, task in view.forms.items():
        shown = _form_table(view, form)
        if not shown:
            continue
        parts: list[Table | Drawing | str] = [f"Task: {task}."]
        made.append(Section(f"Form: {form}", [*parts, *_pareto(view, form), shown]))
    if view.published and (found := orderings(view)):
        made.append(Section("Which published orderings hold here", [*_tally(view), found]))
    if view.trials[1]:
        made.append(Section("Learning rates", _tuning(view)))
    made.append(Section("What to know before quoting", _cautions(view)))
    made.append(Section("Protocol", [Table.pairs("all cells", flat_settings(dict(view.protocol))), *_origins(view)]))
    return made


def _pareto(view: FieldView, form: str) -> list[Drawing]:
    points = []
    for arm in view.arms:
        cells = view.at(form, arm, view.poison)
        hs, fa = rate_of(cells, "harmful_score"), rate_of(cells, "finetune_accuracy")
        if hs is not None and fa is not None:
            points.append((arm, hs, fa))
    if len(points) < 2:
        return []
    ahead = front(points)
    words = ", ".join(f"{place} {arm}" for place, arm in enumerate(ahead, 1))
    title = f"{form}, {ratio_text(view.poison)}"
    label = f"Harmful score against accuracy of {len(points)} arms; not bettered in both: {words}."
    picture = charts.pareto(points, ahead, title, label, f"pareto-{form}")
    caption = f"Not bettered in both by any other, as far as the values go: {words}. Bars: 95{NBSP}% intervals; where they overlap, the order is not known."
    return [Drawing(picture, caption)]


def _tally(view: FieldView) -> list[str]:
    cells = [_ordering(difference(view, claim)) for claim in view.published]
    found = Counter(cell.badge for cell in cells if cell.badge)
    where = f", at {ratio_text(view.poison)}" if _in_one_share(view) else ""
    return [
        f"Of {sum(found.values())} comparisons that are done{where}: {found['holds']} hold, {found['reversed']} "
        f"are reversed, {found['undecided']} are undecided. A paper's figures are of models 50 times as large, other judges and "
        "longer trainings: what does not hold here was not shown wrong there."
    ]


def _tuning(view: FieldView) -> list[Table | Drawing | str]:
    done, whole = view.trials
    shared = "–" if view.shared_rate is None else f"{view.shared_rate:g}"
    words = (
        f"All arms of the tables above train at the recipe's shared rate, {shared}, which was chosen for none of them. {done} of {whole} "
        "trials are done in which each arm has its own rate chosen, with as many trials for each, on prompts that no table is "
        "scored on, by accuracy less harmful score. The prompts of the trials' own seed are apart from those of its table; other "
        "seeds draw theirs anew, so some of them were seen by the choice."
    )
    parts: list[Table | Drawing | str] = [words]
    if view.rates:
        chosen = {arm: f"{rate:g}" for arm, rate in view.rates.items()}
        parts.append(Table.pairs("chosen rates", chosen))
    for form in view.forms:
        if tuned := _form_table(view, form, tuned=True):
            parts += [f"{form}, at the chosen rates; an arm whose rate is the shared one stands above.", tuned]
    return parts


def _cautions(view: FieldView) -> list[Table | Drawing | str]:
    seeds = sorted({cell.seed for cell in view.cells})
    cautions: list[Table | Drawing | str] = [
        "One small model, short trainings, an attacker who trains an adapter on the provider's own terms. No figure here says how a "
        "method does at the size and budget of its paper. A method that is served with something (a prompt, a router) is "
        "scored with it and, without, as adapter alone: whoever holds the adapter has it without.",
        f"Seeds that are done: {', '.join(map(str, seeds)) or 'none'}. Of fewer than three seeds an interval covers prompts, not what "
        "another seed would do.",
        *agreements(view),
    ]
    if view.left_out:
        cautions.append(Table.pairs("left out", dict(view.left_out)))
    return cautions


def _origins(view: FieldView) -> list[Table | Drawing | str]:
    commits = Counter(str(cell.origin.get("commit")) for cell in view.cells)
    kinds = Counter(f"{stage.kind} {stage.version}" for cell in view.cells for stage in cell.stages)
    machines = Counter(str(cell.origin.get("machine", {}).get("processor")) for cell in view.cells)
    precisions = Counter(str(cell.origin.get("trains_in", "not recorded")) for cell in view.cells)
    rows = {
        "commits": ", ".join(f"{name} ({count_text(n, 'cell')})" for name, n in sorted(commits.items())),
        "versions of kinds of jobs": ", ".join(sorted(kinds)),
        "machines": ", ".join(f"{name} ({count_text(n, 'cell')})" for name, n in sorted(machines.items())),
        "trained in": ", ".join(f"{name} ({count_text(n, 'cell')})" for name, n in sorted(precisions.items())),
        "go on with it": view.command,
    }
    return [Table.pairs("origin", rows)]


def lead(view: FieldView) -> str:
    """Return what the pages say first."""
    arms = len({cell.arm for cell in view.cells})
    table = sum(cell.learning_rate is None for cell in view.cells)
    return (
        f"{view.description}. {table} of {view.asked} cells are done, of {count_text(arms, 'arm')} and "
        f"{count_text(len({cell.seed for cell in view.cells}), 'seed')}."
    )


def write_field(folder: Path, view: FieldView) -> Path:
    """Write `index.html` and `README.md` of a field into a folder, and return the page."""
    return write_sections(folder, "field", f"The field: {view.name}", lead(view), sections(view))
