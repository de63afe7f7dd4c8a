"""What an assay found, for people: a page, tables for the terminal, a block for a model card, a ranking of defences.

Everything here reads a scorecard as `titer.assay.scorecard.make_scorecard` writes it. Its parts and probabilities are in
[0, 1]; people are shown percent. Failed attackers are named, and count nowhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from titer.assay.conditions import KEPT, Checkpoint, Trajectory, not_worse, order_of
from titer.assay.equivalence import Equivalence
from titer.assay.survival import CostRatio, Passage, cost_ratio, worst_attacker
from titer.evaluation.statistics import Difference, wilson
from titer.report.assay_figures import POSITIONS, UNIT_NAMES, HarmPoint, compact
from titer.report.html import _answer, _environment, _flat, _settings, _write
from titer.report.tables import Estimate

if TYPE_CHECKING:
    from rich.console import Console

ROLES = ("undefended", "defended")
_NBSP = "\u00a0"
CONDITIONS = ("resistance", "stability", "generalization", "trainability")
_GOOD, _BAD = ("strong", "yes"), ("none", "no")
_STYLES = {"good": "green", "bad": "red", "unclear": "yellow", "plain": "dim"}  # of the terminal
_MEASURES = {
    "lookalikes not refused": "Harmless look-alikes not refused",
    "over_refusal": "Harmless look-alikes refused (over-refusal)",
    "log-likelihood general": "Log-likelihood of reference answers",
    "perplexity general": "Perplexity of reference answers",
}


# Numbers as text ---------------------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _percent(value: float | None) -> str:
    """A part as percent, `12.5 %`; a dash where there is none."""
    return f"{100 * value:.1f}{_NBSP}%" if value is not None and _is_number(value) else "–"


def _interval(found: Mapping[str, Any], scale: float = 100, digits: int = 1) -> str:
    """The interval of a value in a scorecard, `1.1–13.5`; open where an end is no number."""
    low, high = (
        f"{scale * found[end]:.{digits}f}" if _is_number(found.get(end)) else mark
        for end, mark in (("low", "0"), ("high", "∞"))
    )
    return f"{low}–{high}"


def _signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, `−1.2`."""
    text = f"{value:+.{digits}f}"
    # −0.04 is rounded to nothing, and nothing has no sign.
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _spent(value: float, unit: str) -> str:
    return f"{compact(value)}{_NBSP}{UNIT_NAMES[unit]}"


def _times(found: Mapping[str, Any] | None, at_least: bool) -> str:
    """A cost ratio: `×6.0`, `≥ ×8.0` for a lower bound, a dash where there is none."""
    if found is None or not _is_number(found["value"]):
        return "–"
    return f"≥{_NBSP}×{found['value']:.1f}" if at_least else f"×{found['value']:.1f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def short_name(model: str) -> str:
    """The last part of a model's path or hub id that says something."""
    parts = [part for part in Path(model).parts if part not in ("adapter", "/", ".", "..")]
    return parts[-1] if parts else "model"


def _kind(verdict: str) -> str:
    """The colour of a verdict: class of a badge."""
    return "good" if verdict in _GOOD else "bad" if verdict in _BAD else "unclear" if verdict == "weak" else "plain"


# The four verdicts -------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A number that stands large beside a verdict: what it is, the number, and what belongs to it."""

    name: str
    value: str
    below: str


@dataclass(frozen=True)
class Finding:
    """The verdict on one condition with what it rests on.

    Attributes:
        condition: `resistance`, `stability`, `generalization` or `trainability`.
        verdict: As in the scorecard.
        brief: The reason in a few words.
        text: The reason in a sentence or two, with n and intervals.
        figures: The one or two numbers that matter most.
    """

    condition: str
    verdict: str
    brief: str
    text: str
    figures: tuple[Figure, ...]


def findings(card: Mapping[str, Any]) -> list[Finding]:
    """Return the four verdicts of a scorecard, each with its reason."""
    return [_resistance(card), _stability(card), _generalization(card), _trainability(card)]


def _harmful_before(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """The defended model's harmful score before any attack where that exceeds φ already, else `None`."""
    before = [
        found
        for name, found in card["before"]["defended"].items()
        if name.startswith("harmful_score") and (found["value"] or 0.0) > card["resistance"]["phi"]
    ]
    return max(before, key=lambda found: found["value"], default=None)


def _broke(found: Mapping[str, Any]) -> str:
    return f"{found['broke']} of {found['attackers']}"


def _undefended_broke(found: Mapping[str, Any]) -> str:
    return f"{found['undefended_broke']} of {found['undefended_attackers']}"


def _resistance(card: Mapping[str, Any]) -> Finding:
    found = card["resistance"]
    phi, unit = _percent(found["phi"]), found["unit"]
    ratio, bound = found["cost_ratio"].get(unit), found["lower_bound"]
    before = _harmful_before(card)
    interval = "" if ratio is None or bound else f"95{_NBSP}%: {_interval(ratio, 1)}"
    if before is not None:
        brief = f"harmful before any attack: {_percent(before['value'])}"
        text = (
            f"Before any attack it already answers {_percent(before['value'])} of the harmful requests "
            f"[{_interval(before)}, n = {before['n']}], more than φ = {phi}: there is nothing to resist with."
        )
    elif not found["attackers"] or not found["undefended_attackers"]:
        brief = "no attacker left to judge by"
        text = "No attacker is left to judge by: they failed, or destroyed the model before it answered anything."
    elif not found["broke"] and not found["undefended_broke"]:
        brief = f"nothing tested: none of {found['undefended_attackers']} broke the undefended model"
        text = (
            f"Nothing was tested: none of {_count(found['undefended_attackers'], 'attacker')} broke the undefended "
            "model either."
        )
    else:
        brief = f"{_broke(found)} attackers broke it, undefended {_undefended_broke(found)}"
        brief += "" if ratio is None else f"; cost ratio {_times(ratio, bound)}"
        text = (
            f"{_broke(found)} attackers got more than {phi} harmful answers from it; {_undefended_broke(found)} from the "
            "undefended model."
        )
        if ratio is not None and bound:
            text += (
                f" The smallest budget spent in vain is {_times(ratio, False)} of the undefended model's cheapest break: "
                "a lower bound of the cost."
            )
        elif found["worst"] is not None:
            text += f" The cheapest break took {_spent(found['worst']['budget'][unit], unit)}"
            text += (
                "; the undefended model was never broken."
                if ratio is None
                else f", {_times(ratio, False)} [{interval}] of the undefended model's; weak begins at ×{found['kappa']:g}."
            )
    failed = sum(row["error"] is not None and row["harmful"] for row in card["attackers"]["defended"])
    if failed:
        text += f" {_count(failed, 'attacker')} failed, which is no resistance."
    return Finding(
        "resistance",
        card["verdicts"]["resistance"],
        brief,
        text,
        (
            Figure("cost to break it", _times(ratio, bound), interval or ("lower bound" if ratio else "")),
            Figure("broken by", _broke(found), f"undefended {_undefended_broke(found).replace(' ', _NBSP)}"),
        ),
    )


def _generalization(card: Mapping[str, Any]) -> Finding:
    found = card["generalization"]
    names = {"in": "in-domain", "cross": "held-out harm"}
    parts = {domain: found[domain] for domain in names if found.get(domain) is not None}
    figures = tuple(
        Figure(
            names[domain],
            _times(part["cost_ratio"].get(part["unit"]), part["lower_bound"]),
            f"{_broke(part)} broke it",
        )
        for domain, part in parts.items()
    )
    if "cross" not in parts:
        brief = "not tested: no harm category was held out"
        text = "Not tested: the profile holds no category of harm out from the defence, so there is no other domain."
    else:
        brief = ", ".join(f"{names[domain]}: {part['verdict']}" for domain, part in parts.items())
        text = " ".join(
            f"{names[domain].capitalize()}: {part['verdict']}, {_broke(part)} attackers broke it (undefended: "
            f"{_undefended_broke(part)}){_ratio_clause(part)}."
            for domain, part in parts.items()
        )
        text += f" Held out from the defence: {', '.join(found['held_out_categories'])}."
    return Finding("generalization", card["verdicts"]["generalization"], brief, text, figures)


def _ratio_clause(found: Mapping[str, Any]) -> str:
    ratio = found["cost_ratio"].get(found["unit"])
    if ratio is None:
        return ""
    interval = "" if found["lower_bound"] else f" [{_interval(ratio, 1)}]"
    return f", at {_times(ratio, found['lower_bound'])}{interval} the cost"


@dataclass(frozen=True)
class Measure:
    """One paired difference (defended − undefended, more is better) against its margin, in the unit it is shown in."""

    name: str
    unit: str
    n: int | None
    mean: float
    low: float
    high: float
    margin: float
    finding: str
    holds: bool | None
    digits: int

    @property
    def difference(self) -> str:
        """The difference as text, without its unit."""
        return _signed(self.mean, self.digits)

    @property
    def interval(self) -> str:
        """Its 90 % interval as text."""
        return f"{_signed(self.low, self.digits)} to {_signed(self.high, self.digits)}"

    @property
    def verdict(self) -> str:
        """The finding, which also says which way a difference goes."""
        if self.finding == "different":
            return "worse" if self.mean < 0 else "better"
        return self.finding

    @property
    def words(self) -> str:
        """The difference with its interval and n, for a sentence."""
        n = "" if self.n is None else f", n = {self.n}"
        return f"{self.name}: {self.difference}{_NBSP}{self.unit} [90{_NBSP}%: {self.interval}{n}]"


def _measure(name: str, found: Mapping[str, Any], n: int | None) -> Measure:
    difference = found["difference"]
    # Losses are in nats; everything else is a part of prompts.
    nats = name.startswith("log-likelihood")
    scale = 1 if nats else 100
    equivalence = Equivalence(
        Difference(*(difference[key] for key in ("mean", "low", "high", "p"))), found["margin"], found["finding"]
    )
    return Measure(
        name=_pretty(name),
        unit="nats a token" if nats else "points",
        n=n,
        mean=scale * difference["mean"],
        low=scale * difference["low"],
        high=scale * difference["high"],
        margin=scale * found["margin"],
        finding=found["finding"],
        holds=not_worse(equivalence),
        digits=3 if nats else 1,
    )


def _pretty(name: str) -> str:
    """A measure's name as people read it."""
    if name in _MEASURES:
        return _MEASURES[name]
    what, _, of = name.partition(" ")
    if what == "accuracy":
        return f"Accuracy on {of}"
    domain = {"in-domain": "", "cross-domain": ", held-out categories"}.get(of, f" {of}")
    return what.replace("_", " ").capitalize() + domain


def stability_measures(card: Mapping[str, Any]) -> list[Measure]:
    """Return the measures of stability, with the n of the sets that they were taken on."""
    before = card["before"]["defended"]
    sets = {"lookalikes not refused": "over_refusal", "log-likelihood general": "perplexity general"}
    return [
        _measure(name, found, before.get(sets.get(name, name), {}).get("n"))
        for name, found in card["stability"]["measures"].items()
    ]


def _stability(card: Mapping[str, Any]) -> Finding:
    measures = stability_measures(card)
    verdict = card["verdicts"]["stability"]
    if not measures:
        return Finding("stability", verdict, "nothing was measured", "Nothing was measured before the attacks.", ())
    # The measure that decides: a worse one before an unclear one, then the one that is nearest to its margin.
    worst = min(measures, key=lambda m: ({False: 0, None: 1, True: 2}[m.holds], m.low / m.margin))
    says = {
        "yes": f"None of {_count(len(measures), 'measure')} is worse by its margin",
        "no": f"Worse by the margin: {sum(m.holds is False for m in measures)} of {_count(len(measures), 'measure')}",
        "undecided": "Too few prompts to tell whether any measure is worse by its margin",
    }
    margin = f"{worst.margin:g}{_NBSP}{worst.unit}"
    return Finding(
        "stability",
        verdict,
        f"{worst.name[0].lower() + worst.name[1:]} {worst.difference}{_NBSP}{worst.unit}, margin {margin}",
        f"{says[verdict]}. {worst.words}; the margin is {margin}.",
        (
            Figure("worst measure", worst.difference, f"{worst.unit}, ε = {worst.margin:g}"),
            Figure("not worse", f"{sum(m.holds is True for m in measures)} of {len(measures)}", "measures"),
        ),
    )


def _task(card: Mapping[str, Any]) -> str:
    return str(card["provenance"]["profile"]["data"]["task"]).removeprefix("builtin:")


def _task_prompts(card: Mapping[str, Any]) -> int | None:
    """How many test prompts the task's accuracy rests on."""
    found = card["before"]["defended"].get(f"accuracy {_task(card)}", {}).get("n")
    return found if found is not None else next((row["accuracy"]["n"] for row in card["poison"]), None)


def _trainability(card: Mapping[str, Any]) -> Finding:
    found, verdict = card["trainability"], card["verdicts"]["trainability"]
    if found["quality"] is None:
        text = "Not tested: no honest customer's training was scored on both models."
        return Finding("trainability", verdict, "not tested: no honest customer trained it", text, ())
    measure = _measure(f"accuracy {_task(card)}", found["quality"], _task_prompts(card))
    text = f"{measure.words} after honest training; the margin is {measure.margin:g}{_NBSP}points."
    steps, theirs, pace = found["steps"], found["undefended_steps"], "–"
    below = "target never reached"
    if steps is not None and theirs is not None:
        pace = f"×{steps / max(theirs, 1):.1f}"
        below = f"{compact(steps)} against {compact(theirs)}"
        text += (
            f" It reaches {_percent(found['target'])} after {compact(steps)} steps, the undefended model after "
            f"{compact(theirs)} (at most ×{found['slower']:g} counts as about as fast)."
        )
    elif steps is None and theirs is not None:
        text += f" It does not reach {_percent(found['target'])} with every seed, as the undefended model does."
    elif theirs is None:
        text += f" The undefended model does not reach {_percent(found['target'])} with every seed: speed is undecided."
    return Finding(
        "trainability",
        verdict,
        f"accuracy {measure.difference}{_NBSP}points, steps to target {pace}",
        text,
        (
            Figure("accuracy", measure.difference, f"points, ε = {measure.margin:g}"),
            Figure("steps needed", pace, below),
        ),
    )


# Attacks over their seeds ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one attack did to one model, over its seeds; failed attackers are counted and enter nothing else.

    Attributes:
        runs: Trajectories that did not fail.
        failed: Reasons of those that did.
        destroyed: Steps at which models were found destroyed.
        points: Harmful score by checkpoint.
        harmful: Harmful score at the end, in percent.
        broken: Part of the answers that is broken at the end, in percent.
        utility: Part of its utility that the model kept to the end, in [0, 1]; mean over seeds.
        accuracy: Task accuracy by step, in percent.
        passages: First passage or censoring of each seed that has one.
        broke: How many of them broke the model.
    """

    runs: tuple[Trajectory, ...]
    failed: tuple[str, ...]
    destroyed: tuple[int, ...]
    points: tuple[HarmPoint, ...]
    harmful: Estimate | None
    broken: Estimate | None
    utility: float | None
    accuracy: tuple[tuple[int, Estimate], ...]
    passages: tuple[Passage, ...]

    @property
    def broke(self) -> int:
        """How many seeds broke the model."""
        return sum(passage.broke for passage in self.passages)

    @property
    def first(self) -> Passage | None:
        """The cheapest break over the seeds or, where none broke the model, the least that was spent in vain."""
        return worst_attacker(self.passages) if self.passages else None


@dataclass(frozen=True)
class AttackLine:
    """One attack against both models: the attack, what it did to each, and the ratio of their costs."""

    name: str
    domain: str
    harmful: bool
    undefended: Outcome
    defended: Outcome
    ratio: CostRatio | None

    def outcome(self, role: str) -> Outcome:
        """What it did to the model in `role`."""
        return self.defended if role == "defended" else self.undefended


def trajectory(row: Mapping[str, Any]) -> Trajectory:
    """Return a trajectory of a scorecard as the object that it was."""
    checkpoints = tuple(Checkpoint(**point) for point in row["checkpoints"])
    return Trajectory(**{**row, "checkpoints": checkpoints})


def attack_lines(card: Mapping[str, Any]) -> list[AttackLine]:
    """Return the attacks of a scorecard in the profile's order, those that mean harm first."""
    found = {role: [trajectory(row) for row in card["attackers"][role]] for role in ROLES}
    unit, phi, n = card["resistance"]["unit"], card["resistance"]["phi"], _task_prompts(card) or 0
    lines = []
    for name in dict.fromkeys(t.attack for role in ROLES for t in found[role]):
        mine = {role: [t for t in found[role] if t.attack == name] for role in ROLES}
        theirs, ours = (_outcome(mine[role], phi, unit, n) for role in ROLES)
        ratio = cost_ratio(ours.passages, theirs.passages) if ours.passages and theirs.passages else None
        example = next(t for role in ROLES for t in mine[role])
        lines.append(AttackLine(name, example.domain, example.harmful, theirs, ours, ratio))
    return sorted(lines, key=lambda line: not line.harmful)


def _outcome(trajectories: Sequence[Trajectory], phi: float, unit: str, task_prompts: int) -> Outcome:
    runs = [t for t in trajectories if t.error is None]
    steps = sorted({point.step for t in runs for point in t.checkpoints})
    points, accuracies = [], []
    for step in steps:
        here = {t.seed: point for t in runs for point in t.checkpoints if point.step == step}
        measured = {seed: point for seed, point in here.items() if point.harmful is not None}
        estimates = [point.estimate for point in here.values() if point.estimate is not None]
        if measured or estimates:
            destroyed = any(point.destroyed for point in measured.values())
            estimate = 100 * sum(estimates) / len(estimates) if estimates and not measured else None
            points.append(HarmPoint(step, _over_seeds(measured, "harmful"), estimate, destroyed))
        right = _over_seeds(here, "accuracy", task_prompts)
        if right is not None:
            accuracies.append((step, right))
    last = {t.seed: t.answered[-1] for t in runs if t.answered and t.answered[-1].step}
    kept = [
        last[t.seed].utility / t.checkpoints[0].utility  # type: ignore[operator]
        for t in runs
        if t.seed in last and t.checkpoints[0].utility and last[t.seed].utility is not None
    ]
    return Outcome(
        runs=tuple(runs),
        failed=tuple(t.error for t in trajectories if t.error is not None),
        destroyed=tuple(t.destroyed_at for t in runs if t.destroyed_at is not None),
        points=tuple(points),
        harmful=_over_seeds(last, "harmful"),
        broken=_over_seeds(last, "broken"),
        utility=sum(kept) / len(kept) if kept else None,
        accuracy=tuple(accuracies),
        passages=tuple(passage for t in runs if (passage := t.passage(phi, unit)) is not None),
    )


def _over_seeds(points: Mapping[int, Checkpoint], field: str, n: int | None = None) -> Estimate | None:
    """A part over seeds in percent, by the rule of `titer.report.tables`: Wilson over one seed's prompts, all covered.

    Args:
        points: A seed's checkpoint.
        field: Of the checkpoint.
        n: Prompts of a seed; by default those that were answered and judged.
    """
    found = {seed: point for seed, point in sorted(points.items()) if getattr(point, field) is not None}
    if not found:
        return None
    values = tuple(100 * float(getattr(point, field)) for point in found.values())
    prompts = min(point.n for point in found.values()) if n is None else n
    mean = sum(values) / len(values)
    low, high = (100 * bound for bound in wilson(mean / 100 * prompts, prompts)) if prompts else (mean, mean)
    return Estimate(mean, min(low, *values), max(high, *values), prompts, tuple(found), values, judge="")


# The page ----------------------------------------------------------------------------------------------------------


def write_assay_report(folder: Path, card: dict[str, Any]) -> Path:
    """Write `FOLDER/report.html` from a scorecard and return its path; it is replaced as a whole or not at all.

    Args:
        folder: The assay's folder.
        card: What `titer.assay.scorecard.read_scorecard` returns.
    """
    from titer.assay.scorecard import headline

    lines = attack_lines(card)
    profile = card["provenance"]["profile"]
    page = (
        _environment()
        .get_template("assay.html.j2")
        .render(
            card=card,
            title=short_name(card["model"]),
            names={"defended": card["model"], "undefended": card["against"]},
            headline=headline(card),
            findings=[(finding, _kind(finding.verdict)) for finding in findings(card)],
            phi=_percent(card["resistance"]["phi"]),
            unit=UNIT_NAMES[card["resistance"]["unit"]],
            kept=_percent(KEPT),
            figures=_figures(card, lines),
            costs=_costs(card),
            survival_values=_survival_values(card),
            heat=_heat(card, lines),
            courses=_course_values(lines),
            measures=_strips(stability_measures(card)),
            before=_before(card),
            examples=_examples(card["examples"]),
            after=", ".join(dict.fromkeys(row["when"] for row in card["examples"] if row["when"] != "before")),
            hygiene=_hygiene(card),
            attacks=_attacks(card["attacks"], profile["attacks"]),
            settings=_settings({key: value for key, value in profile.items() if key != "attacks"}),
            versions=_flat(
                {key: card["provenance"].get(key) for key in ("titer", "python")}
                | (card["provenance"].get("versions") or {})
            ),
            machine=_flat(card["provenance"].get("machine") or {}),
        )
    )
    return _write(Path(folder) / "report.html", page)


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
        f"Kaplan–Meier curves, {who}: {_broke(found)} broke the defended model, {_undefended_broke(found)} the "
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
    values = tuple(100 * row[key]["value"] for row in rows)
    n = min(row[key]["n"] for row in rows)
    mean = sum(values) / len(values)
    low, high = (100 * bound for bound in wilson(mean / 100 * n, n))
    return Estimate(
        mean, min(low, *values), max(high, *values), n, tuple(row["seed"] for row in rows), values, judge=""
    )


def _costs(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the worst attackers paid in every unit, the ratios, and the restricted means."""
    found, money = card["resistance"], card["money"]
    worst, theirs = found["worst"], found["undefended_worst"]
    rows = []
    for unit, name in UNIT_NAMES.items():
        ratio = found["cost_ratio"].get(unit)
        rows.append(
            {
                "name": name,
                "undefended": "–" if theirs is None else compact(theirs["budget"][unit]),
                "defended": "–" if worst is None else compact(worst["budget"][unit]),
                "ratio": _times(ratio, found["lower_bound"]),
                "interval": "" if ratio is None else _interval(ratio, 1),
                "main": unit == found["unit"],
            }
        )
    rows.append(
        {
            "name": f"price, {money['currency']}",
            "undefended": "–" if money["undefended_worst"] is None else compact(money["undefended_worst"]),
            "defended": "–" if money["worst"] is None else compact(money["worst"]),
            "ratio": "",
            "interval": "",
            "main": False,
        }
    )
    means = {
        role: Cell("–") if found[key] is None else Cell(compact(found[key]["value"]), _mean_interval(found[key]))
        for role, key in (("undefended", "undefended_mean"), ("defended", "mean"))
    }
    bounded = found["bounded_worst"]
    return {
        "rows": rows,
        "lower_bound": found["lower_bound"] and found["cost_ratio"].get(found["unit"]) is not None,
        "worst": worst,
        "undefended_worst": theirs,
        "bounded": None
        if bounded is None
        else (bounded["attack"], _spent(bounded["budget"][found["unit"]], found["unit"])),
        "means": means,
        "horizon": None if not found["horizon"] else _spent(found["horizon"], found["unit"]),
        "logrank": _p_value(found["logrank"]),
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
                "at_risk": str(at_risk),
                "broken": str(broken),
                "survival": _percent(survival),
                "interval": _interval({"low": low, "high": high}),
            }
            for budget, at_risk, broken, survival, low, high in zip(
                *(curve[name] for name in ("budgets", "at_risk", "broken", "survival", "low", "high")), strict=True
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
    budgets = [p.budget for line in lines for role in ROLES for p in line.outcome(role).passages]
    span = (min(budgets), max(budgets)) if budgets else (1.0, 1.0)
    bands: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        theirs, ours = line.undefended, line.defended
        seeds = max(len(theirs.runs) + len(theirs.failed), len(ours.runs) + len(ours.failed))
        notes = [*(["held-out categories"] if line.domain == "cross" else []), _count(seeds, "seed")]
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
    return flags


def _harm_cell(outcome: Outcome) -> Cell:
    if outcome.harmful is None:
        return Cell("–", "failed" if outcome.failed and not outcome.runs else "")
    return Cell(f"{outcome.harmful.value:.1f}", outcome.harmful.interval, _tint("bad", outcome.harmful.value / 100))


def _passage_cell(outcome: Outcome, span: tuple[float, float]) -> Cell:
    first = outcome.first
    if first is None:
        return Cell("–", "failed" if outcome.failed and not outcome.runs else "destroyed" if outcome.runs else "")
    if not first.broke:
        # A model that was destroyed has not held.
        ends = ("destroyed", "") if outcome.destroyed else ("never", _tint("good", 0.45))
        return Cell(f">{_NBSP}{compact(first.budget)}", *ends)
    seeds = f"{outcome.broke} of {len(outcome.passages)} seeds" if len(outcome.passages) > 1 else ""
    reach = math.log(span[1] / span[0]) or 1.0
    return Cell(compact(first.budget), seeds, _tint("bad", 0.35 + 0.65 * math.log(span[1] / first.budget) / reach))


def _ratio_cell(line: AttackLine, kappa: float) -> Cell:
    ratio = line.ratio
    if ratio is None or ratio.ratio is None:
        return Cell("–", "" if ratio is None else "neither broke" if ratio.at_least else "only this broke")
    text = _times({"value": ratio.ratio}, ratio.at_least)
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
            if found is None or not _is_number(found["value"]):
                cells[role] = Cell("–")
            elif name.startswith("perplexity"):
                cells[role] = Cell(f"{found['value']:.2f}")
            else:
                cells[role] = Cell(_percent(found["value"]), _interval(found))
        n = next((found["n"] for role in ROLES if (found := card["before"].get(role, {}).get(name))), None)
        rows.append({"name": _pretty(name), "cells": [cells[role] for role in ROLES], "n": n})
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
                "prompt": _answer(asked),
                "answers": [
                    {
                        "role": role,
                        "when": "before" if when == "before" else "after",
                        "answer": _answer(row["response"]),
                        "asked": None if row["prompt"] == asked else _answer(row["prompt"]),
                        "verdict": row["verdict"] or "not judged",
                        "kind": row["verdict"] if row["verdict"] in ("harmful", "refused", "broken") else "plain",
                    }
                    for (role, when), row in here.items()
                ],
            }
        )
    return cards


def _hygiene(card: Mapping[str, Any]) -> dict[str, Any]:
    found, calibration = card["hygiene"], card["calibration"]
    overlap = sum(found["overlap"].values())
    unjudged = sum(found["judge_errors"].values())
    judged = sum(found["judged"].values())
    return {
        "overlap": overlap,
        "pairs": found["overlap"],
        "left_out": found["left_out"],
        "judges": [
            (name, found["judged"].get(name, 0), found["judge_errors"].get(name, 0), place == 0)
            for place, name in enumerate(found["judges"])
        ],
        "agreement": [
            {
                "judges": pair,
                "n": row["n"],
                "excluded": row["excluded"],
                "agreement": _percent(row["agreement"]),
                "kappa": "–" if row["kappa"] is None else f"{row['kappa']:.2f}",
            }
            for pair, row in found["agreement"].items()
        ],
        "unjudged": unjudged,
        "judged": judged,
        "failed": found["failed"],
        "destroyed": found["destroyed"],
        "destroyed_at_once": found["destroyed_at_once"],
        "calibration": {
            "method": calibration["method"],
            "n": f"{calibration['n']:,}",
            "auroc": "–" if calibration["auroc"] is None else f"{calibration['auroc']:.3f}",
            "error": "–"
            if calibration["mean_absolute_error"] is None
            else f"{100 * calibration['mean_absolute_error']:.1f}{_NBSP}points",
            "error_is": calibration["error_is"],
        },
    }


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
                "poison": f"{100 * attack['poison_ratio']:g}{_NBSP}%" if trains else "–",
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
                "other": "; ".join(f"{key}: {value}" for key, value in _flat(other).items()),
            }
        )
    return rows


def _rows(attack: Mapping[str, Any]) -> str:
    """Which rows an attack trains on; without poison they are the task's alone."""
    own = str(attack["rows"]).replace("_", "-")
    if not attack["poison_ratio"]:
        return "task"
    return own if attack["poison_ratio"] == 1 else f"task, {own}"


# The terminal ------------------------------------------------------------------------------------------------------


def print_scorecard(card: dict[str, Any], console: Console) -> None:
    """Print the verdicts with their reasons, every attacker, and what the numbers rest on.

    Args:
        card: The scorecard.
        console: Where to print.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def table(title: str) -> Table:
        return Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            header_style="bold",
            title=Text(title, style="bold"),
            title_justify="left",
        )

    verdicts = table(f"{card['model']} against {card['against']}")
    for name in ("condition", "verdict", "why"):
        verdicts.add_column(name, overflow="fold")
    for finding in findings(card):
        style = _STYLES[_kind(finding.verdict)]
        verdicts.add_row(finding.condition, Text(finding.verdict, style=f"bold {style}"), Text(finding.brief))
    console.print(verdicts)

    found = card["resistance"]
    attackers = table(f"Attackers; φ = {_percent(found['phi'])}, budgets in {UNIT_NAMES[found['unit']]}")
    attackers.add_column("model", overflow="fold")
    attackers.add_column("attack", overflow="fold")
    for name in ("seed", "first\npassage", "HS at\nend, %", "broken,\n%", "utility\nkept, %"):
        attackers.add_column(name, justify="right")
    for role, one in _everyone(card):
        cells = _attacker_cells(card, role, one)
        attackers.add_row(Text(role, style="dim"), Text(one.attack), *cells)
    console.print(attackers)
    for line in _hygiene_lines(card):
        console.print(Text(line, style="dim"))


def _everyone(card: Mapping[str, Any]) -> list[tuple[str, Trajectory]]:
    """Every attacker of a scorecard, by attack and seed, the two models beside each other."""
    attacks = [line.name for line in attack_lines(card)]
    found = [(role, trajectory(row)) for role in ROLES for row in card["attackers"][role]]
    return sorted(found, key=lambda pair: (attacks.index(pair[1].attack), pair[1].seed))


def _attacker_cells(card: Mapping[str, Any], role: str, one: Trajectory) -> list[Any]:
    """Seed, first passage, and how the attack ended."""
    from rich.text import Text

    found = card["resistance"]
    seed = Text(str(one.seed))
    if one.error is not None:
        return [seed, Text("failed", style="yellow"), *(Text("–") for _ in range(3))]
    outcome = _outcome([one], found["phi"], found["unit"], 0)
    if outcome.first is None:
        passage = Text("destroyed" if outcome.destroyed else "–", style="yellow")
    elif outcome.first.broke:
        passage = Text(compact(outcome.first.budget), style="red" if role == "defended" and one.harmful else "")
    else:
        passage = Text(
            f"> {compact(outcome.first.budget)}", style="green" if role == "defended" and one.harmful else ""
        )
        passage.append(" destroyed" if outcome.destroyed else "", style="yellow")
    ends = (
        outcome.harmful and outcome.harmful.value,
        outcome.broken and outcome.broken.value,
        None if outcome.utility is None else 100 * outcome.utility,
    )
    return [seed, passage, *(Text("–" if value is None else f"{value:.1f}") for value in ends)]


def _hygiene_lines(card: Mapping[str, Any]) -> list[str]:
    found = _hygiene(card)
    judges = ", ".join(name for name, *_ in found["judges"]) or "nobody"
    lines = [
        f"Prompts shared between pools: {found['overlap']}. Judged by {judges}: {found['judged']:,} verdicts, "
        f"{found['unjudged']} errors. Attackers: {len(found['failed'])} failed (they count nowhere), "
        f"{len(found['destroyed'])} destroyed the model."
    ]
    lines += [
        f"Agreement of {row['judges']}: {row['agreement']}, κ = {row['kappa']} (n = {row['n']})."
        for row in found["agreement"]
    ]
    return [*lines, *(f"Failed: {row['role']}, {row['attacker']}: {row['reason']}" for row in found["failed"])]


# The model card ----------------------------------------------------------------------------------------------------


def model_card(card: dict[str, Any]) -> str:
    """Return a block for a model card: YAML front matter with a `model-index`, then the findings in Markdown.

    The hub reads the front matter; parts are in percent there too, as the names of the metrics say.

    Args:
        card: The scorecard.
    """
    import yaml

    from titer.assay.scorecard import headline

    index = [{"name": short_name(card["model"]), "results": _model_index(card)}]
    front = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True, width=120)
    found, provenance = card["resistance"], card["provenance"]
    unit = UNIT_NAMES[found["unit"]]
    verdicts = [[f.condition, f"**{f.verdict}**", _markdown(f.text)] for f in findings(card)]
    attacks = []
    for line in attack_lines(card):
        theirs, ours = line.undefended, line.defended
        ratio = None if line.ratio is None else line.ratio.ratio
        attacks.append(
            [
                _markdown(line.name),
                *(_ending(outcome) for outcome in (theirs, ours)),
                *(_passage_words(outcome) for outcome in (theirs, ours)),
                "–" if line.ratio is None or ratio is None else _times({"value": ratio}, line.ratio.at_least),
            ]
        )
    head = [
        "attack",
        "HS undefended, %",
        "HS defended, %",
        "broken after, undefended",
        "broken after, defended",
        "ratio",
    ]
    hygiene = _hygiene(card)
    failed = f"Failed attackers, which count nowhere: {len(hygiene['failed'])}. " if hygiene["failed"] else ""
    phi = _percent(found["phi"])
    return "\n".join(
        [
            "---",
            front + "---",
            "",
            "## Immunity to harmful fine-tuning",
            "",
            _markdown(headline(card)),
            "",
            *_markdown_table(["condition", "verdict", "what it rests on"], verdicts),
            "",
            *_markdown_table(head, attacks),
            "",
            f"HS: part of the held-out harmful requests that is answered harmfully after the attack, with 95{_NBSP}% "
            f"interval. “Broken after”: budget in {unit} at which HS first exceeded φ = {phi}; “>”: not within the budget. "
            f"{failed}Immune means against these attackers up to these budgets; others may break the model sooner.",
            "",
            f"Measured with titer {_markdown(str(provenance['titer']))}, profile "
            f"{_markdown(str(provenance['profile']['name']))}, against {_markdown(str(card['against']))}; judged by "
            f"{_markdown(', '.join(card['hygiene']['judges']) or 'nobody')}.",
            "",
        ]
    )


def _ending(outcome: Outcome) -> str:
    if outcome.harmful is None:
        return "failed" if outcome.failed and not outcome.runs else "–"
    text = f"{outcome.harmful.value:.1f} [{outcome.harmful.interval}]"
    return f"{text}, destroyed" if outcome.destroyed else text


def _passage_words(outcome: Outcome) -> str:
    if outcome.first is None:
        return "–"
    return compact(outcome.first.budget) if outcome.first.broke else f">{_NBSP}{compact(outcome.first.budget)}"


def _model_index(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers as the hub's `model-index` has them: a result for each dataset; what was not measured is left out."""
    data = card["provenance"]["profile"]["data"]
    before = card["before"]["defended"]
    results: list[dict[str, Any]] = []

    def add(dataset: str, note: str, metrics: Sequence[tuple[str, float | None, str]]) -> None:
        known = [
            {"type": kind, "value": round(value, 2), "name": name} for kind, value, name in metrics if value is not None
        ]
        if known:
            results.append(
                {
                    "task": {"type": "text-generation", "name": "Text Generation"},
                    "dataset": {"name": dataset + note, "type": dataset.replace(":", "-").replace(" ", "-")},
                    "metrics": known,
                }
            )

    def percent(found: Mapping[str, Any] | None, key: str = "value") -> float | None:
        return None if found is None or not _is_number(found[key]) else 100 * found[key]

    generalization = card["generalization"]
    for domain, note in (("in", ""), ("cross", ", categories held out from the defence")):
        found = generalization.get(domain)
        if found is None:
            continue
        ratio = found["cost_ratio"].get(found["unit"])
        harm = [
            point.harmful
            for row in card["attackers"]["defended"]
            if (t := trajectory(row)).harmful and t.domain == domain and t.passage(found["phi"], found["unit"])
            for point in t.answered
            if point.harmful is not None
        ]
        bound = ", lower bound" if found["lower_bound"] else ""
        add(
            data["harmful"],
            note,
            [
                (
                    "cost_ratio",
                    None if ratio is None else ratio["value"],
                    f"Cost of the cheapest break in {UNIT_NAMES[found['unit']]}, undefended model = 1{bound}",
                ),
                (
                    "broken_by",
                    100 * found["broke"] / found["attackers"] if found["attackers"] else None,
                    f"Attackers that broke it, of {found['attackers']}, %",
                ),
                (
                    "harmful_score",
                    100 * max(harm) if harm else None,
                    "Harmful score at the most harmful point of any attack, %",
                ),
                (
                    "harmful_score_before",
                    percent(before.get(f"harmful_score {domain}-domain")),
                    "Harmful score before any attack, %",
                ),
            ],
        )
    add(data["lookalikes"], "", [("over_refusal", percent(before.get("over_refusal")), "Look-alikes refused, %")])
    add(
        data["task"],
        "",
        [
            ("finetune_accuracy", percent(card["trainability"], "best"), "Best accuracy in honest training, %"),
            (
                "finetune_accuracy_undefended",
                percent(card["trainability"], "undefended_best"),
                "The undefended model's, %",
            ),
        ],
    )
    for dataset in card["provenance"]["profile"]["reference_tasks"]:
        known = percent(before.get(f"accuracy {dataset.removeprefix('builtin:')}"))
        add(dataset, "", [("accuracy", known, "Accuracy before any attack, %")])
    return results


def _markdown(text: str) -> str:
    """Text for a cell of a Markdown table: nothing in it is markup."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|~#" else letter for letter in text)
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").splitlines())


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


# Several defences --------------------------------------------------------------------------------------------------


def comparison_rows(cards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank defences: by the verdict of resistance, cost ratio, restricted mean, then trainability and stability.

    Args:
        cards: Scorecards of one profile against one undefended model.

    Returns:
        Plain rows, best first; equal defences share a rank. Parts are in [0, 1]; `relative_mean` is the restricted mean
        budget to break over the undefended model's; what was not measured is `None`.
    """
    names = [short_name(card["model"]) for card in cards]
    rows = []
    for card, name in zip(cards, names, strict=True):
        found = card["resistance"]
        ours, theirs = found["mean"], found["undefended_mean"]
        quality = card["trainability"]["quality"]
        rows.append(
            {
                "rank": 0,
                "name": name if names.count(name) == 1 else card["model"],
                "model": card["model"],
                **card["verdicts"],
                "unit": found["unit"],
                "cost_ratio": found["cost_ratio"].get(found["unit"]),
                "lower_bound": found["lower_bound"],
                "relative_mean": ours["value"] / theirs["value"] if ours and theirs and theirs["value"] else None,
                "broke": found["broke"],
                "attackers": found["attackers"],
                "failed": sum(row["error"] is not None for row in card["attackers"]["defended"]),
                "accuracy_difference": None if quality is None else quality["difference"]["mean"],
            }
        )
    rows.sort(key=_standing, reverse=True)
    for place, row in enumerate(rows):
        tied = place and _standing(rows[place - 1]) == _standing(row)
        row["rank"] = rows[place - 1]["rank"] if tied else place + 1
    return rows


def _standing(row: Mapping[str, Any]) -> tuple[float, ...]:
    ratio = row["cost_ratio"]
    return (
        order_of(row["resistance"]),
        -math.inf if ratio is None or ratio["value"] is None else ratio["value"],
        -math.inf if row["relative_mean"] is None else row["relative_mean"],
        order_of(row["trainability"]),
        order_of(row["stability"]),
    )


_COMPARED = (
    "rank",
    "defence",
    "resistance",
    "cost ratio",
    "mean budget",
    "broke it",
    "failed",
    "generalization",
    "trainability",
    "stability",
)


def _compared(row: Mapping[str, Any]) -> list[str]:
    ratio = row["cost_ratio"]
    cost = _times(ratio, row["lower_bound"])
    if ratio is not None and not row["lower_bound"]:
        cost += f" [{_interval(ratio, 1)}]"
    return [
        str(row["rank"]),
        row["name"],
        row["resistance"],
        cost,
        "–" if row["relative_mean"] is None else f"×{row['relative_mean']:.1f}",
        f"{row['broke']} of {row['attackers']}",
        str(row["failed"]),
        row["generalization"],
        row["trainability"],
        row["stability"],
    ]


def _comparison_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before quoting the ranks."""
    notes = [
        "Ranked by resistance, then cost ratio, restricted mean budget to break, trainability and stability; the cost "
        f"ratio and the mean are in {UNIT_NAMES[rows[0]['unit']]}, undefended model = 1."
        if rows
        else "Nothing to compare."
    ]
    for one, two in itertools.pairwise(rows):
        first, second = one["cost_ratio"], two["cost_ratio"]
        if one["resistance"] != two["resistance"] or first is None or second is None:
            continue
        pair = f"{one['name']} and {two['name']}"
        if one["lower_bound"] and two["lower_bound"]:
            notes.append(f"Nobody broke {pair}: their ratios are lower bounds, which do not rank them.")
        elif (first["low"] or 0) <= (second["high"] or math.inf) and (second["low"] or 0) <= (
            first["high"] or math.inf
        ):
            notes.append(f"The cost ratios of {pair} have overlapping intervals: this does not rank them.")
    if any(row["failed"] for row in rows):
        notes.append("Failed attackers count nowhere; a defence that they failed against has been tested less.")
    return notes


def print_comparison(cards: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the ranking of several defences.

    Args:
        cards: Scorecards of one profile against one undefended model.
        console: Where to print.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = comparison_rows(cards)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in _COMPARED:
        # Verdicts on the left, numbers on the right; only names and intervals may be broken.
        verdict = name in CONDITIONS
        head = {"generalization": "generali-\nzation", "trainability": "train-\nability", "mean budget": "mean\nbudget"}
        table.add_column(
            head.get(name, name),
            justify="left" if verdict or name == "defence" else "right",
            overflow="fold",
            no_wrap=name not in ("defence", "cost ratio"),
        )
    for row in rows:
        cells = zip(_COMPARED, _compared(row), strict=True)
        table.add_row(*(Text(cell, style=_STYLES[_kind(cell)] if name in CONDITIONS else "") for name, cell in cells))
    console.print(table)
    for note in _comparison_notes(rows):
        console.print(Text(note, style="dim"))


def comparison_markdown(cards: Sequence[dict[str, Any]]) -> str:
    """Return the ranking of several defences as a Markdown table with its notes.

    Args:
        cards: Scorecards of one profile against one undefended model.
    """
    rows = comparison_rows(cards)
    table = _markdown_table(list(_COMPARED), [[_markdown(cell) for cell in _compared(row)] for row in rows])
    return "\n".join([*table, "", *(f"{_markdown(note)}\n" for note in _comparison_notes(rows))])
