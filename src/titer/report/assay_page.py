"""The page of an assay: its scorecard as one HTML file that loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from titer.assays.card import Judged, Part, Scorecard, TaskEnd, short_name
from titer.assays.outcomes import AttackLine, attack_lines
from titer.report import assay_basis as basis
from titer.report import assay_tables as tables
from titer.report import charts, drawing
from titer.report.costs import costs
from titer.report.findings import SHOWN, bound_text, broke_text, findings, lead, verdict_kind
from titer.report.parts import (
    Answer,
    Example,
    Section,
    Table,
    jobs_table,
    origin_tables,
    rate_cell,
    settings_tables,
    verdict_badge,
    write_page,
)
from titer.report.words import NBSP, UNIT_NAMES, percent_text
from titer.results.summary import Rate, over_seeds

_TOLD = {True: ("worse", "bad"), False: ("no worse", "good"), None: ("cannot tell", "unclear")}

SectionMaker = Callable[[Scorecard], Section]
"""Makes a section of one's own of a scorecard."""


def write_assay_report(folder: Path, card: Scorecard, extra: Sequence[SectionMaker] = ()) -> Path:
    """Write `FOLDER/report.html` from a scorecard and return its path; it is replaced as a whole or not at all.

    Args:
        folder: The assay's folder.
        card: The scorecard.
        extra: Sections of one's own, below titer's.
    """
    lines, found, profile = attack_lines(card), card.resistance, card.provenance["profile"]
    return write_page(
        Path(folder) / "report.html",
        "assay.html.j2",
        card=card,
        profile=profile,
        title=short_name(card.model),
        headline=lead(card),
        findings=[(finding, verdict_kind(finding.verdict)) for finding in findings(card)],
        costs=[(cost, *_TOLD[cost.told]) for cost in costs(card)],
        phi=percent_text(found.phi),
        unit=UNIT_NAMES[found.unit],
        legend=[(drawing.arm_swatch(place), role) for place, role in enumerate(SHOWN)],
        limit=drawing.LIMIT_SWATCH,
        estimate=drawing.ESTIMATE_SWATCH,
        survival=_survival(found, "all attackers", "survival"),
        survival_tables=tables.survival_tables(found),
        bound=bound_text(found),
        breaking=tables.breaking_table(card, lines),
        below_breaking=tables.below_breaking(found),
        courses=_courses(lines, found.phi),
        course_table=tables.course_table(lines),
        heat=tables.heat_table(lines, found.kappa, UNIT_NAMES[found.unit]),
        domains=_domains(card),
        training=_training(card, lines),
        **_plane(card.poison, found.phi),
        stable=tables.stability_table(card),
        before=tables.before_table(card),
        examples=_examples(card),
        after=", ".join(dict.fromkeys(row.when for row in card.examples if row.when != "before")),
        hygiene=basis.hygiene_tables(card),
        attacks=basis.attacks_table(card.attacks, profile["attacks"]),
        settings=settings_tables({key: value for key, value in profile.items() if key != "attacks"}),
        origin=origin_tables(card.provenance, basis.about_table(card)),
        jobs=jobs_table(card.provenance["stages"]),
        extra=[make(card) for make in extra],
    )


# How long it holds ---------------------------------------------------------------------------------------------------


def _survival(found: Judged, who: str, name: str) -> str | None:
    curves = {SHOWN.index(role): curve for role, curve in tables.curves_of(found).items()}
    label = (
        f"Part of the attackers that have not broken the model by budget, {who}: {broke_text(found)} broke the defended "
        f"model, {broke_text(found, 'undefended')} the undefended one. The table below the figure has the values."
    )
    return charts.survival(curves, found.unit, label, name) if curves else None


# Attack by attack ----------------------------------------------------------------------------------------------------


def _courses(lines: Sequence[AttackLine], phi: float) -> dict[str, Any]:
    """Harmful score along every attack, and what the legend must explain."""
    looks = [look for line in lines for role in SHOWN for look in line.outcomes[role].looks]
    last = max((look.step for look in looks), default=1)
    panels = []
    for place, line in enumerate(lines):
        mine = {SHOWN.index(role): line.outcomes[role].looks for role in SHOWN if line.outcomes[role].looks}
        ends = "; ".join(f"{role} {rate}" for role in SHOWN if (rate := line.outcomes[role].harmful) is not None)
        words = f"Harmful score against steps, {line.name}. At the last look: {ends or 'nothing was answered'}."
        plot = charts.harm(mine, 100 * phi, last, words, f"harm-{place}") if mine else None
        about = "held-out categories" if line.domain == "cross" else "in-domain"
        about += "" if line.means_harm else " · honest customer"
        about += "".join(f" · {role}: {n} ended early" for role in SHOWN if (n := len(line.outcomes[role].left)))
        about += "".join(f" · {role}: {n} failed" for role in SHOWN if (n := line.outcomes[role].failed))
        panels.append((line.name, about, plot))
    return {
        "panels": panels,
        "estimated": any(look.estimate is not None for look in looks),
        "destroyed": any(look.destroyed for look in looks),
    }


# Domains and honest training -----------------------------------------------------------------------------------------


def _domains(card: Scorecard) -> list[dict[str, Any]]:
    if card.generalization.cross is None:
        return []
    names = {
        "in": ("In-domain", "in-domain attackers"),
        "cross": ("Held-out categories", "attackers of held-out categories"),
    }
    return [
        {
            "title": names[domain][0],
            "verdict": found.verdict,
            "kind": verdict_kind(found.verdict),
            "plot": _survival(found, names[domain][1], f"survival-{domain}"),
            "caption": f"{broke_text(found)} attackers broke the defended model, "
            f"{broke_text(found, 'undefended')} the undefended one."
            + (f" {bound_text(found).capitalize()}." if found.bound is not None else ""),
        }
        for domain, found in card.generalization.domains.items()
    ]


def _training(card: Scorecard, lines: Sequence[AttackLine]) -> list[tuple[str, str]]:
    target, found = card.trainability.target, []
    for place, line in enumerate(line for line in lines if not line.means_harm):
        curves = {SHOWN.index(role): line.outcomes[role].accuracy for role in SHOWN if line.outcomes[role].accuracy}
        if curves:
            ends = "; ".join(f"{SHOWN[arm]} {points[-1][1]}" for arm, points in curves.items())
            words = f"Task accuracy against steps, {line.name}. At the end: {ends}."
            goal = None if target is None else 100 * target
            found.append((line.name, charts.accuracy(curves, goal, words, f"training-{place}")))
    return found


def _plane(ends: Sequence[TaskEnd], phi: float) -> dict[str, Any]:
    """Harmful score against task accuracy at the end of every attack on task data, over seeds."""
    ratios = sorted({end.poison_ratio for end in ends})
    groups: dict[tuple[float, str, int], list[TaskEnd]] = {}
    for end in ends:
        groups.setdefault((end.poison_ratio, end.attack, SHOWN.index(end.role)), []).append(end)
    points, rows, words = [], [], []
    for (ratio, attack, place), mine in sorted(groups.items()):
        hs, fa = (_rate({end.seed: getattr(end, name) for end in mine}) for name in ("harmful", "accuracy"))
        points.append((place, ratios.index(ratio), hs, fa))
        words.append(f"{SHOWN[place]}, {attack}: HS {hs}, FA {fa}")
        cells = (rate_cell(hs, with_n=True), rate_cell(fa, with_n=True))
        rows.append((attack, SHOWN[place], f"{100 * ratio:g} %", *cells))
    label = f"Harmful score against accuracy. {'; '.join(words)}."
    return {
        "plane": charts.hs_fa(points, label, "plane", 100 * phi) if points else None,
        "plane_table": Table.of(("Attack", "Model", "Poison", "HS, %", "FA, %"), rows),
        "markers": [(marker, f"{100 * ratio:g}{NBSP}% harmful") for marker, ratio in zip(charts.MARKERS, ratios)],
    }


def _rate(parts: Mapping[int, Part]) -> Rate:
    return over_seeds({seed: part.value or 0.0 for seed, part in parts.items()}, min(part.n for part in parts.values()))


# Before any attack, and what the figures rest on -----------------------------------------------------------------------


def _examples(card: Scorecard) -> list[Example]:
    """The answers by prompt: before and after, both models. An attack may put the prompt in a disguise."""
    groups: dict[tuple[int, bool], list[Any]] = {}
    for row in card.examples:
        groups.setdefault((SHOWN.index(row.role), row.when != "before"), []).append(row)
    cards = []
    for place in range(max(map(len, groups.values()), default=0)):
        here = {key: rows[place] for key, rows in sorted(groups.items()) if place < len(rows)}
        asked = next(iter(here.values())).prompt
        answers = [
            Answer(
                f"{SHOWN[arm]}, {'after' if after else 'before'}",
                arm,
                row.response,
                [verdict_badge(row.verdict)],
                None if row.prompt == asked else row.prompt,
            )
            for (arm, after), row in here.items()
        ]
        cards.append(Example("Harmful request", asked, answers))
    return cards
