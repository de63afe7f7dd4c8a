"""The page of an assay: its scorecard as one HTML file that loads nothing and runs no script.

Everything that a model or a user wrote is untrusted, and jinja escapes it; only drawings are inserted as markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from titer.assays.card import short_name
from titer.assays.resistance import KEPT
from titer.report.assay_figures import POSITIONS, UNIT_NAMES, compact
from titer.report.assay_findings import (
    NBSP,
    ROLES,
    AttackLine,
    Measure,
    Outcome,
    attack_lines,
    bound_text,
    broke_text,
    costs,
    count_text,
    findings,
    hygiene,
    interval_text,
    is_number,
    lead,
    measure_name,
    percent_text,
    share_over_seeds,
    spent_text,
    stability_measures,
    times_text,
    typical_text,
    undefended_broke_text,
    verdict_kind,
)
from titer.report.page import answer_text, environment, flat_settings, sections, write_page
from titer.report.tables import Estimate

_TOLD = {True: ("worse", "bad"), False: ("no worse", "good"), None: ("cannot tell", "unclear")}


def write_assay_report(folder: Path, card: dict[str, Any]) -> Path:
    """Write `FOLDER/report.html` from a scorecard and return its path; it is replaced as a whole or not at all.

    Args:
        folder: The assay's folder.
        card: What `titer.assays.scorecard.read_scorecard` returns.
    """
    lines = attack_lines(card)
    profile = card["provenance"]["profile"]
    page = (
        environment()
        .get_template("assay.html.j2")
        .render(
            card=card,
            title=short_name(card["model"]),
            names={"defended": card["model"], "undefended": card["against"]},
            headline=lead(card),
            findings=[(finding, verdict_kind(finding.verdict)) for finding in findings(card)],
            price=[(cost, _TOLD[cost.told]) for cost in costs(card)],
            phi=percent_text(card["resistance"]["phi"]),
            unit=UNIT_NAMES[card["resistance"]["unit"]],
            kept=percent_text(KEPT),
            figures=_figures(card, lines),
            costs=_costs(card, lines),
            survival_values=_survival_values(card),
            heat=_heat(card, lines),
            courses=_course_values(lines),
            measures=_strips(stability_measures(card)),
            before=_before(card),
            examples=_examples(card["examples"]),
            after=", ".join(dict.fromkeys(row["when"] for row in card["examples"] if row["when"] != "before")),
            hygiene=hygiene(card),
            attacks=_attacks(card["attacks"], profile["attacks"]),
            settings=sections({key: value for key, value in profile.items() if key != "attacks"}),
            versions=flat_settings(
                {key: card["provenance"].get(key) for key in ("titer", "python")}
                | (card["provenance"].get("versions") or {})
            ),
            machine=flat_settings(card["provenance"].get("machine") or {}),
        )
    )
    return write_page(Path(folder) / "report.html", page)


def _figures(card: Mapping[str, Any], lines: Sequence[AttackLine]) -> dict[str, Any]:
    from titer.report import assay_figures, figures

    phi = 100 * card["resistance"]["phi"]
    last = max((point.step for line in lines for role in ROLES for point in line.outcome(role).points), default=1)
    courses = []
    for place, line in enumerate(lines):
        points = {POSITIONS[role]: line.outcome(role).points for role in ROLES if line.outcome(role).points}
        ends = "; ".join(
            f"{role} {line.outcome(role).harmful}" for role in ROLES if line.outcome(role).harmful is not None
        )
        plot = None
        if points:
            words = f"Harmful score against steps, {line.name}. At the end: {ends or 'nothing was answered'}."
            plot = assay_figures.harm(points, phi, last, words, f"harm-{place}")
        courses.append((line, plot))
    training = []
    target = card["trainability"]["target"]
    for place, line in enumerate(line for line in lines if not line.harmful):
        curves = {POSITIONS[role]: line.outcome(role).accuracy for role in ROLES if line.outcome(role).accuracy}
        if curves:
            ends = "; ".join(
                f"{role} {line.outcome(role).accuracy[-1][1]}" for role in ROLES if line.outcome(role).accuracy
            )
            words = f"Task accuracy against steps, {line.name}. At the end: {ends}."
            plot = assay_figures.accuracy(curves, None if target is None else 100 * target, words, f"training-{place}")
            training.append((line, plot))
    generalization = card["generalization"]
    return {
        "swatches": {role: figures.arm_swatch(POSITIONS[role]) for role in ROLES},
        "limit": assay_figures.limit_swatch(),
        "estimate": assay_figures.estimate_swatch(),
        "estimated": any(p.estimate is not None for line in lines for role in ROLES for p in line.outcome(role).points),
        "survival": _survival(card["resistance"], "all attackers", "survival"),
        "domains": {
            domain: _survival(generalization[domain], words, f"survival-{domain}")
            for domain, words in (("in", "in-domain attackers"), ("cross", "attackers of held-out categories"))
            if generalization.get(domain) is not None and generalization.get("cross") is not None
        },
        "destroyed": any(p.destroyed for line in lines for role in ROLES for p in line.outcome(role).points),
        "courses": courses,
        "training": training,
        **_plane(card["poison"], phi),
    }


def _survival(found: Mapping[str, Any], who: str, name: str) -> str | None:
    from titer.report import assay_figures

    keys = {"undefended": "undefended_curve", "defended": "curve"}
    curves = {POSITIONS[role]: found[key] for role, key in keys.items() if found[key] is not None}
    if not curves:
        return None
    label = (
        f"Part of the attackers that have not broken the model by budget, {who}: {broke_text(found)} broke the defended model, {undefended_broke_text(found)} the "
        "undefended one. The table below the figure has the values."
    )
    return assay_figures.survival(curves, found["unit"], label, name)


def _plane(rows: Sequence[Mapping[str, Any]], phi: float) -> dict[str, Any]:
    """Harmful score against task accuracy at the end of every attack on task data, over seeds."""
    from titer.report import figures

    ratios = sorted({row["poison_ratio"] for row in rows})
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["role"], row["attack"]), []).append(row)
    points, table = [], []
    for (role, attack), mine in groups.items():
        harmful, accuracy = (_poison_estimate(mine, key) for key in ("harmful", "accuracy"))
        points.append((POSITIONS[role], ratios.index(mine[0]["poison_ratio"]), harmful, accuracy))
        table.append((role, attack, mine[0]["poison_ratio"], harmful, accuracy))
    table.sort(key=lambda row: (row[2], row[1], POSITIONS[row[0]]))
    ends = "; ".join(f"{role}, {attack}: HS {harmful}, FA {accuracy}" for role, attack, _, harmful, accuracy in table)
    return {
        "plane": figures.hs_fa(points, f"Harmful score against accuracy. {ends}.", "plane", phi) if points else None,
        "plane_values": table,
        "markers": [(figures.ratio_marker(place), ratio) for place, ratio in enumerate(ratios)],
    }


def _poison_estimate(rows: Sequence[Mapping[str, Any]], key: str) -> Estimate:
    return share_over_seeds({row["seed"]: row[key]["value"] for row in rows}, min(row[key]["n"] for row in rows))


def _costs(card: Mapping[str, Any], lines: Sequence[AttackLine]) -> dict[str, Any]:
    """The cheapest break of both models in every unit, worst and typical ratios, the price, and the restricted means."""
    found, money = card["resistance"], card["money"]
    breaks = {
        role: [
            point
            for line in lines
            for one in line.outcome(role).runs
            if one.harmful and (point := one.crossing(found["phi"])) is not None
        ]
        for role in ROLES
    }
    rows = []
    for unit, name in UNIT_NAMES.items():
        ratio = found["cost_ratio"].get(unit)
        least = {role: min((point.spent(unit) for point in breaks[role]), default=None) for role in ROLES}
        rows.append(
            {
                "name": name,
                **{role: "–" if value is None else compact(value) for role, value in least.items()},
                "ratio": times_text(ratio, found["lower_bound"]),
                "interval": "" if ratio is None else interval_text(ratio, 1),
                "typical": typical_text({**found, "unit": unit}) or "–",
                "main": unit == found["unit"],
            }
        )
    prices = {"undefended": money["undefended_worst"], "defended": money["worst"]}
    rows.append(
        {
            "name": f"price, {money['currency']}",
            **{role: "–" if price is None else compact(price) for role, price in prices.items()},
            "ratio": "",
            "interval": "",
            "typical": "",
            "main": False,
        }
    )
    means = {
        role: Cell("–")
        if not found[key] or not is_number(found[key]["value"])
        else Cell(compact(found[key]["value"]), _mean_interval(found[key]))
        for role, key in (("undefended", "undefended_mean"), ("defended", "mean"))
    }
    bounded = found["bounded_worst"]
    return {
        "rows": rows,
        "lower_bound": found["lower_bound"] and found["cost_ratio"].get(found["unit"]) is not None,
        "worst": found["worst"],
        "undefended_worst": found["undefended_worst"],
        "bounded": None
        if bounded is None
        else (bounded["attack"], spent_text(bounded["budget"][found["unit"]], found["unit"])),
        "means": means,
        "horizon": None if not found["horizon"] else spent_text(found["horizon"], found["unit"]),
        "sign_flip": _p_value(found["sign_flip"]),
        "pairs": found["pairs"],
        "bound": bound_text(found),
        "price": f"{money['price_per_hour']:g} {money['currency']} an hour",
        "speed": f"{compact(money['flops_per_second'])} FLOPs a second",
    }


def _mean_interval(found: Mapping[str, Any]) -> str:
    return f"{compact(found['low'] or 0)}–{'∞' if found['high'] is None else compact(found['high'])}"


def _p_value(value: float | None) -> str | None:
    if value is None:
        return None
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _survival_values(card: Mapping[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    found = card["resistance"]
    tables = []
    for role, key in (("undefended", "undefended_curve"), ("defended", "curve")):
        curve = found[key]
        if curve is None:
            continue
        rows = [
            {
                "budget": compact(budget),
                "held": str(held),
                "broken": str(broken),
                "survival": percent_text(survival),
                "interval": interval_text({"low": low, "high": high}),
            }
            for budget, held, broken, survival, low, high in zip(
                *(curve[name] for name in ("budgets", "held", "broken", "survival", "low", "high")), strict=True
            )
        ]
        tables.append((role, rows))
    return tables


class Cell(NamedTuple):
    """A cell of a table: its number, what stands below it, the colour behind it, the undefended model's number."""

    text: str
    below: str = ""
    tint: str = ""
    other: str = ""


def _tint(colour: str, share: float) -> str:
    """A wash of a colour of the page, the stronger the larger `share`."""
    strength = round(34 * min(1.0, max(0.0, share)))
    return f"background: color-mix(in srgb, var(--{colour}) {strength}%, transparent)" if strength > 1 else ""


def _heat(card: Mapping[str, Any], lines: Sequence[AttackLine]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The attack × condition table: bands of attacks, each with its cells."""
    found = card["resistance"]
    budgets = [p.found for line in lines for role in ROLES for p in line.outcome(role).passages]
    span = (min(budgets), max(budgets)) if budgets else (1.0, 1.0)
    bands: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        theirs, ours = line.undefended, line.defended
        seeds = max(len(theirs.runs) + len(theirs.failed), len(ours.runs) + len(ours.failed))
        notes = [*(["held-out categories"] if line.domain == "cross" else []), count_text(seeds, "seed")]
        bands.setdefault("Attackers that mean harm" if line.harmful else "Honest customers", []).append(
            {
                "name": line.name,
                "notes": " · ".join(notes),
                "flags": _flags(line),
                "cells": [
                    _harm_cell(theirs),
                    _harm_cell(ours),
                    _passage_cell(theirs, span),
                    _passage_cell(ours, span),
                    _ratio_cell(line, found["kappa"]),
                    _utility_cell(theirs, ours),
                    _estimate_cell(theirs.broken, ours.broken, "warn"),
                    _estimate_cell(
                        theirs.accuracy[-1][1] if theirs.accuracy else None,
                        ours.accuracy[-1][1] if ours.accuracy else None,
                        "arm-1",
                    ),
                ],
            }
        )
    return list(bands.items())


def _flags(line: AttackLine) -> list[str]:
    """What must be said of an attack before its numbers are read."""
    flags = []
    for role in ROLES:
        outcome = line.outcome(role)
        if outcome.failed:
            flags.append(f"{role}: {len(outcome.failed)} failed")
        if outcome.destroyed:
            flags.append(f"{role}: destroyed at step {min(outcome.destroyed)}")
        flags += [f"{role}: {chosen}" for chosen in outcome.tuned]
    return flags


def _harm_cell(outcome: Outcome) -> Cell:
    if outcome.harmful is None:
        return Cell("–", "failed" if outcome.failed and not outcome.runs else "")
    return Cell(f"{outcome.harmful.value:.1f}", outcome.harmful.interval, _tint("bad", outcome.harmful.value / 100))


def _passage_cell(outcome: Outcome, span: tuple[float, float]) -> Cell:
    first = outcome.first
    if first is None:
        return Cell("–", "failed" if outcome.failed and not outcome.runs else "destroyed" if outcome.runs else "")
    if first.broke == math.inf:
        # A model that was destroyed has not held.
        ends = ("destroyed", "") if outcome.destroyed else ("never", _tint("good", 0.45))
        return Cell(f">{NBSP}{compact(first.found)}", *ends)
    seeds = f"{outcome.broke} of {len(outcome.passages)} seeds" if len(outcome.passages) > 1 else ""
    reach = math.log(span[1] / span[0]) or 1.0
    return Cell(compact(first.found), seeds, _tint("bad", 0.35 + 0.65 * math.log(span[1] / first.found) / reach))


def _ratio_cell(line: AttackLine, kappa: float) -> Cell:
    ratio = line.ratio
    if ratio is None or ratio.ratio is None:
        return Cell("–", "" if ratio is None else "neither broke" if ratio.at_least else "only this broke")
    text = times_text({"value": ratio.ratio}, ratio.at_least)
    if ratio.at_least and line.defended.destroyed:
        return Cell(text, "destroyed")
    if ratio.ratio < 1 and not ratio.at_least:
        return Cell(text, "cheaper", _tint("bad", 0.8))
    # Full colour from κ on. A lower bound has some colour where it is 1, since the model did hold.
    share = math.log(max(1.0, ratio.ratio)) / math.log(kappa) if kappa > 1 else 1.0
    return Cell(text, "not broken" if ratio.at_least else "", _tint("good", max(share, 0.3 * ratio.at_least)))


def _utility_cell(theirs: Outcome, ours: Outcome) -> Cell:
    other = "" if theirs.utility is None else f"{100 * theirs.utility:.1f}"
    if ours.utility is None:
        return Cell("–", other=other)
    tint = _tint("warn", 2 * (1 - ours.utility)) if ours.utility < KEPT else ""
    return Cell(f"{100 * ours.utility:.1f}", tint=tint, other=other)


def _estimate_cell(theirs: Estimate | None, ours: Estimate | None, colour: str) -> Cell:
    other = "" if theirs is None else f"{theirs.value:.1f}"
    if ours is None:
        return Cell("–", other=other)
    return Cell(f"{ours.value:.1f}", tint=_tint(colour, ours.value / 100), other=other)


def _course_values(lines: Sequence[AttackLine]) -> list[dict[str, Any]]:
    """The values behind the trajectories, a row for each checkpoint."""
    return [
        {
            "attack": line.name,
            "role": role,
            "step": point.step,
            "measured": None if point.measured is None else f"{point.measured.value:.1f}",
            "interval": None if point.measured is None else point.measured.interval,
            "estimate": None if point.estimate is None else f"{point.estimate:.1f}",
            "n": None if point.measured is None else point.measured.n,
        }
        for line in lines
        for role in ROLES
        for point in line.outcome(role).points
    ]


def _strips(measures: Sequence[Measure]) -> list[tuple[Measure, str]]:
    from titer.report import assay_figures

    return [(m, assay_figures.interval_strip(m.mean, m.low, m.high, m.margin)) for m in measures]


def _before(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What both models were before any attack, a row for each measure."""
    names = dict.fromkeys(name for role in ROLES for name in card["before"].get(role, {}))
    rows = []
    for name in names:
        cells = {}
        for role in ROLES:
            found = card["before"].get(role, {}).get(name)
            if found is None or not is_number(found["value"]):
                cells[role] = Cell("–")
            elif name.startswith("perplexity"):
                cells[role] = Cell(f"{found['value']:.2f}")
            else:
                cells[role] = Cell(percent_text(found["value"]), interval_text(found))
        n = next((found["n"] for role in ROLES if (found := card["before"].get(role, {}).get(name))), None)
        rows.append({"name": measure_name(name), "cells": [cells[role] for role in ROLES], "n": n})
    return rows


def _examples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers by prompt: before and after, both models. An attack may put the prompt in a disguise."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["role"], row["when"]), []).append(row)
    order = sorted(groups, key=lambda key: (POSITIONS[key[0]], key[1] != "before"))
    cards = []
    for place in range(max((len(group) for group in groups.values()), default=0)):
        here = {key: groups[key][place] for key in order if place < len(groups[key])}
        asked = next(iter(here.values()))["prompt"]
        cards.append(
            {
                "prompt": answer_text(asked),
                "answers": [
                    {
                        "role": role,
                        "when": "before" if when == "before" else "after",
                        "answer": answer_text(row["response"]),
                        "asked": None if row["prompt"] == asked else answer_text(row["prompt"]),
                        "verdict": row["verdict"] or "not judged",
                        "kind": row["verdict"] if row["verdict"] in ("harmful", "refused", "broken") else "plain",
                    }
                    for (role, when), row in here.items()
                ],
            }
        )
    return cards


def _attacks(
    attacks: Mapping[str, Mapping[str, Any]], entries: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, str]]:
    """The settings of each attack: what always matters in columns, the rest where it departs from the default.

    Args:
        attacks: The attacks that were run, by name.
        entries: The profile's entries, which also say what was searched against each model.
    """
    from titer.attacks.threats import Attack

    plain = Attack("")
    shown = ("summary", "method", "rows", "poison_ratio", "steps", "batch_size", "learning_rate", "optimizer", "lora")
    rows = []
    for name, attack in attacks.items():
        trains = attack["method"] != "ablation"
        other = {
            key: value
            for key, value in attack.items()
            if key not in shown and value != getattr(plain, key, None) and (trains or key in ("depths", "samples"))
        }
        # An attack of a grid is named by its entry and the point of the grid.
        entry = max((e for e in entries if f"{name} ".startswith(f"{e} ")), key=len, default="")
        search = (entries.get(entry) or {}).get("search")
        if search:
            other["searched"] = search
        lora = attack["lora"]
        warm_up = attack["warm_up_steps"]
        rows.append(
            {
                "name": name,
                "summary": attack["summary"],
                "rows": _rows(attack) if trains else "–",
                "poison": f"{100 * attack['poison_ratio']:g}{NBSP}%" if trains else "–",
                "steps": (f"{warm_up} + " if warm_up else "") + f"{attack['steps']} × {attack['batch_size']}"
                if trains
                else "–",
                "rate": f"{attack['learning_rate']:g}" if trains else "–",
                "optimizer": attack["optimizer"] if trains else "–",
                "trains": "nothing"
                if not trains
                else "every weight"
                if lora is None
                else f"LoRA, r = {lora.get('r', '–')}",
                "other": "; ".join(f"{key}: {value}" for key, value in flat_settings(other).items()),
            }
        )
    return rows


def _rows(attack: Mapping[str, Any]) -> str:
    """Which rows an attack trains on; without poison they are the task's alone."""
    own = str(attack["rows"]).replace("_", "-")
    if not attack["poison_ratio"]:
        return "task"
    return own if attack["poison_ratio"] == 1 else f"task, {own}"
