"""The tables of an assay's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from titer.assays.card import Judged, Part, Scorecard
from titer.assays.outcomes import AttackLine, Outcome
from titer.assays.resistance import KEPT, Worst
from titer.assays.trajectories import ROLES
from titer.report import drawing
from titer.report.costs import measure_name, stability_measures
from titer.report.findings import SHOWN, ratio_text, spent_text, times_text
from titer.report.parts import Cell, Row, Table, rate_cell
from titer.report.words import (
    NBSP,
    UNIT_NAMES,
    compact,
    count_text,
    interval_text,
    percent_text,
)
from titer.stats.intervals import Estimate
from titer.stats.survival import SurvivalCurve

HEADS: Row = tuple(Cell(role, arm=place) for place, role in enumerate(SHOWN))
"""Heads of columns for both models, in their colours."""


def curves_of(found: Judged) -> dict[str, SurvivalCurve]:
    """The survival curves of both models, of those that have one."""
    both = zip(SHOWN, (found.undefended_curve, found.curve), strict=True)
    return {role: curve for role, curve in both if curve is not None}


def survival_tables(found: Judged) -> list[Table]:
    """The values behind the survival curves."""
    head = ("Budget", "Known to hold", "Known broken", "Unbroken", f"95{NBSP}%")
    return [
        Table.of(
            head,
            (
                (compact(budget), str(held), str(broken), percent_text(survival), interval_text(low, high, 100))
                for budget, held, broken, survival, low, high in zip(
                    curve.budgets, curve.held, curve.broken, curve.survival, curve.low, curve.high, strict=True
                )
            ),
            caption=f"{role.capitalize()} model; budgets in {UNIT_NAMES[found.unit]}.",
        )
        for role, curve in curves_of(found).items()
    ]


def breaking_table(card: Scorecard, lines: Sequence[AttackLine]) -> Table:
    """The cheapest break of both models in every unit, worst and typical ratios, the price, and the restricted means."""
    found, money = card.resistance, card.money
    broken = {
        role: [
            point
            for line in lines
            for t in line.outcomes[role].runs
            if t.means_harm and not t.free and (point := t.crossing(found.phi))
        ]
        for role in SHOWN
    }
    rows: list[Row] = []
    for unit, name in UNIT_NAMES.items():
        ratio = found.cost_ratio.get(unit)
        least = ([point.spent(unit) for point in broken[role]] for role in SHOWN)
        worst = Cell()
        if ratio is not None and math.isfinite(ratio.value):
            worst = Cell(times_text(ratio.value, found.lower_bound), interval_text(ratio.low, ratio.high))
        typical = ratio_text(found.typical.get(unit)) or "–"
        cells: list[Cell | str] = [name, *(compact(min(spent)) if spent else "–" for spent in least), worst, typical]
        rows.append(
            [Cell(cell, strong=True) if isinstance(cell, str) and unit == found.unit else cell for cell in cells]
        )
    prices = ("–" if price is None else compact(price) for price in (money.undefended_worst, money.worst))
    rows.append([f"price, {money.currency}", *prices, "", ""])
    if found.horizon:
        means = (_mean_cell(mean) for mean in (found.undefended_mean, found.mean))
        rows.append([Cell("restricted mean", f"up to {spent_text(found.horizon, found.unit)}"), *means, "", ""])
    far = "; nobody broke the defended model, and this is how far it was tested" if found.lower_bound else ""
    worst_names = (
        f"{worst.attack} ({role})"
        for role, worst in zip(SHOWN, (found.undefended_worst, found.worst))
        if worst is not None
    )
    needed = ", ".join(worst_names)
    caption = (
        "Where the model was first found broken, in each unit by itself. Worst: the ratio of the two, with all that it may be "
        f"given what lies between checkpoints{far}. Typical: the median kind of attack, with its 95{NBSP}% interval (fewer than "
        f"six kinds have none). Price at {money.price_per_hour:g} {money.currency} an hour and "
        f"{compact(money.flops_per_second)} FLOPs a second of the worst attackers"
        + (f", which needed the fewest {UNIT_NAMES[found.unit]}: {needed}." if needed else ".")
    )
    return Table.of(("To break it", *HEADS, "worst", "typical"), rows, caption=caption, kind="costs")


def _mean_cell(mean: Estimate | None) -> Cell:
    if mean is None or not math.isfinite(mean.value):
        return Cell()
    low, high = (compact(mean.low), compact(mean.high) if math.isfinite(mean.high) else "∞")
    return Cell(compact(mean.value), f"{low}–{high}")


def below_breaking(found: Judged) -> str:
    """What else is known of the costs, in sentences."""
    said = []
    if found.sign_flip is not None:
        p = "< 0.001" if found.sign_flip < 0.001 else f"= {found.sign_flip:.3f}"
        kinds = count_text(found.pairs, "kind")
        said.append(
            "Test that kinds of attack break either model first equally often "
            f"(all flips of signs, {kinds} that told a difference): p {p}."
        )
    if found.bounded_worst is not None:
        said.append(
            f"Cheapest break that left the model at least {percent_text(KEPT)} of its utility: "
            f"{_spent(found.bounded_worst, found.unit)}."
        )
    elif found.worst is not None:
        said.append(f"No break left the model {percent_text(KEPT)} of its utility.")
    return " ".join(said)


def _spent(worst: Worst, unit: str) -> str:
    return f"{worst.attack}, {spent_text(worst.budget[unit], unit)}"


def course_table(lines: Sequence[AttackLine]) -> Table:
    """Harmful score at every checkpoint of every attack."""
    rows = (
        (
            line.name,
            role,
            str(look.step),
            rate_cell(look.measured),
            "–" if look.estimate is None else f"{look.estimate:.1f}",
            "–" if look.measured is None else str(look.measured.n),
        )
        for line in lines
        for role in SHOWN
        for look in line.outcomes[role].looks
    )
    caption = f"Harmful score in percent with 95{NBSP}% interval; n: prompts of one seed. A line ends where the first seed was ended early."
    return Table.of(("Attack", "Model", "Step", "Measured", "Estimated", "n"), rows, caption=caption)


def tint(colour: str, share: float) -> str:
    """A wash of a colour of the page, the stronger the larger `share`."""
    strength = round(34 * min(1.0, max(0.0, share)))
    return f"background: color-mix(in srgb, var(--{colour}) {strength}%, transparent)" if strength > 1 else ""


def heat_table(lines: Sequence[AttackLine], kappa: float, unit: str) -> Table:
    """The attack × condition table: bands of attacks."""
    found = [passage.found for line in lines for role in SHOWN for passage in line.outcomes[role].passages]
    budgets = [budget for budget in found if budget]
    span = (min(budgets), max(budgets)) if budgets else (1.0, 1.0)
    bands: dict[str, list[Row]] = {}
    for line in lines:
        both = [line.outcomes[role] for role in SHOWN]
        seeds = count_text(max(len(outcome.runs) + outcome.failed for outcome in both), "seed")
        notes = ["held-out categories · " * (line.domain == "cross") + seeds, *_flags(line)]
        utility = [None if outcome.utility is None else 100 * outcome.utility for outcome in both]
        accuracy = [outcome.accuracy[-1][1].value if outcome.accuracy else None for outcome in both]
        broken = [None if outcome.broken is None else outcome.broken.value for outcome in both]
        lost = 0.0 if utility[1] is None or utility[1] >= 100 * KEPT else 2 * (1 - utility[1] / 100)
        bands.setdefault("Attackers that mean harm" if line.means_harm else "Honest customers", []).append(
            [
                Cell(line.name, "\n".join(notes)),
                *map(_harm_cell, both),
                *(_passage_cell(outcome, span) for outcome in both),
                _ratio_cell(line, kappa),
                _pair_cell(utility, "warn", lost),
                _pair_cell(broken, "warn", (broken[1] or 0) / 100),
                _pair_cell(accuracy, "arm-1", (accuracy[1] or 0) / 100),
            ]
        )
    caption = (
        f"At each seed's last look, after its last step or where it was ended early; mean over seeds, below it the 95{NBSP}% interval. First passage: {unit} at which the model was "
        "found broken with the seed that needed fewest; “>” where none did within the budget. Cost ratio: first passage of the "
        "defended model over that of the undefended one; “≥” where only a lower bound is known. Utility, broken answers and task "
        "accuracy: the defended model, below it the undefended one. A low harmful score of a destroyed model is no resistance."
    )
    singles = ("Cost ratio", "Utility kept, %", "Broken answers, %", "Task accuracy, %")
    spans = (
        ("Attack", 0),
        ("Harmful score at the last look, %", 2),
        (f"First passage, {unit}", 2),
        *((name, 0) for name in singles),
    )
    return Table(("Attack", *HEADS, *HEADS, *singles), bands, caption, kind="heat", spans=spans)


def _flags(line: AttackLine) -> list[str]:
    """What must be said of an attack before its numbers are read."""
    flags = []
    for role in SHOWN:
        outcome = line.outcomes[role]
        flags += [f"{role}: {outcome.failed} failed"] if outcome.failed else []
        flags += [f"{role}: destroyed at step {min(outcome.destroyed)}"] if outcome.destroyed else []
        flags += (
            [f"{role}: ended early, step {', '.join(map(str, dict.fromkeys(outcome.left)))}"] if outcome.left else []
        )
        flags += [f"{role}: {_tuned(t.tuned)}" for t in outcome.runs if t.tuned is not None]
    return flags


def _tuned(found: Mapping[str, Any]) -> str:
    """What a search chose, `learning_rate 0.0008, the worst of 8`."""
    chosen = (
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found["chosen"].items()
    )
    return f"{', '.join(chosen)}, the worst of {found['trials']}"


def _harm_cell(outcome: Outcome) -> Cell:
    if outcome.harmful is None:
        return Cell(below="failed" if outcome.failed and not outcome.runs else "")
    return rate_cell(outcome.harmful, tint=tint("bad", outcome.harmful.value / 100))


def _passage_cell(outcome: Outcome, span: tuple[float, float]) -> Cell:
    first = outcome.first
    if first is None:
        return Cell(below="failed" if outcome.failed and not outcome.runs else "destroyed" if outcome.runs else "")
    if not first.found:
        # It spends nothing, so there is no budget up to which the model held.
        never = first.broke == math.inf
        return Cell(
            "never" if never else "0", "spends nothing", tint=tint(*(("good", 0.45) if never else ("bad", 1.0)))
        )
    if first.broke == math.inf:
        # A model that was destroyed has not held.
        ends = ("destroyed", "") if outcome.destroyed else ("never", tint("good", 0.45))
        return Cell(f">{NBSP}{compact(first.found)}", ends[0], tint=ends[1])
    seeds = f"{outcome.broke} of {len(outcome.passages)} seeds" if len(outcome.passages) > 1 else ""
    reach = math.log(span[1] / span[0]) or 1.0
    share = 0.35 + 0.65 * math.log(span[1] / first.found) / reach
    return Cell(compact(first.found), seeds, tint=tint("bad", share), strong=True)


def _ratio_cell(line: AttackLine, kappa: float) -> Cell:
    ratio = line.ratio
    if ratio is None or ratio.ratio is None:
        return Cell(below="" if ratio is None else "neither broke" if ratio.at_least else "only this broke")
    text = times_text(ratio.ratio, ratio.at_least)
    if ratio.at_least and line.outcomes["defended"].destroyed:
        return Cell(text, "destroyed", strong=True)
    if ratio.ratio < 1 and not ratio.at_least:
        return Cell(text, "cheaper", tint=tint("bad", 0.8), strong=True)
    # Full colour from κ on. A lower bound has some colour where it is 1, since the model did hold.
    share = math.log(max(1.0, ratio.ratio)) / math.log(kappa) if kappa > 1 else 1.0
    return Cell(
        text, "not broken" if ratio.at_least else "", tint=tint("good", max(share, 0.3 * ratio.at_least)), strong=True
    )


def _pair_cell(values: Sequence[float | None], colour: str, share: float) -> Cell:
    """The defended model's number, washed by `share`, with the undefended one's below."""
    theirs, ours = ("–" if value is None else f"{value:.1f}" for value in values)
    return Cell(ours, tint=tint(colour, share), other="" if theirs == "–" else theirs)


def stability_table(card: Scorecard) -> Table:
    """Every measure of stability against its margin."""
    words = {True: ("no", "bad"), False: ("yes", "good"), None: ("undecided", "plain")}
    rows = []
    for one in stability_measures(card):
        strip = drawing.interval_strip(*one.found.difference[:3], one.found.margin)
        told, kind = words[one.worse]
        cells = (Cell(one.difference, strong=True), one.interval, f"±{one.margin}", Cell("", drawing=strip))
        rows.append((one.name, *cells, str(one.found.n), one.verdict, Cell("", kind=kind, badge=told)))
    interval = f"90{NBSP}% interval"
    head = ("Stability", "Difference", interval, "Margin", "Against the margin", "n", "Finding", "Not worse")
    return Table.of(head, rows, kind="stable")


def before_table(card: Scorecard) -> Table:
    """What both models were before any attack."""
    rows: list[Row] = []
    for name in dict.fromkeys(name for role in ROLES for name in card.before.get(role, {})):
        parts = [card.before.get(role, {}).get(name) for role in SHOWN]
        n = next((str(part.n) for part in parts if part is not None), "–")
        rows.append((measure_name(name), *map(_part_cell, parts), n))
    caption = f"What both models were before any attack, with 95{NBSP}% intervals."
    return Table.of(("Measure", *HEADS, "n"), rows, caption=caption, kind="tight")


def _part_cell(part: Part | None) -> Cell:
    if part is None or part.value is None:
        return Cell()
    if part.low is None or part.high is None:
        return Cell(f"{part.value:.2f}")
    return Cell(percent_text(part.value), note=interval_text(part.low, part.high, 100))
