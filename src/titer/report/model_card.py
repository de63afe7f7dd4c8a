"""A scorecard as text: tables for the terminal, and a block for a model card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from titer.assays.card import Part, Scorecard, short_name
from titer.assays.outcomes import Outcome, attack_lines
from titer.assays.trajectories import Trajectory
from titer.report.costs import price
from titer.report.findings import SHOWN, findings, lead, times_text, verdict_kind
from titer.report.parts import Cell, Row, Table, as_markdown, markdown, rate_cell, terminal
from titer.report.words import NBSP, UNIT_NAMES, compact, percent_text
from titer.text import visible

if TYPE_CHECKING:
    from rich.console import Console


def _verdicts(card: Scorecard) -> Table:
    """The four verdicts with their reasons in a few words."""
    rows = ((one.condition, Cell(one.verdict, kind=verdict_kind(one.verdict)), one.brief) for one in findings(card))
    return Table.of(("condition", "verdict", "why"), rows, title=f"{card.model} against {card.against}")


# The terminal ------------------------------------------------------------------------------------------------------


def print_scorecard(card: Scorecard, console: Console) -> None:
    """Print the verdicts with their reasons, every attacker, and what the numbers rest on."""
    from rich.text import Text

    found = card.resistance
    console.print(terminal(_verdicts(card), left=3))
    console.print(Text(price(card, words=True)))
    attacks = [line.name for line in attack_lines(card)]
    everyone = [(attacks.index(t.attack), t.seed, role, t) for role in SHOWN for t in card.attackers[role]]
    rows = (_attacker_row(card, role, t) for *_, role, t in sorted(everyone, key=lambda one: one[:2]))
    head = ("model", "attack", "seed", "first\npassage", "HS at last\nlook, %", "broken,\n%", "utility\nkept, %")
    title = f"Attackers; φ = {percent_text(found.phi)}, budgets in {UNIT_NAMES[found.unit]}"
    console.print(terminal(Table.of(head, rows, title=title), left=2))
    for line in _hygiene_lines(card):
        console.print(Text(line, style="dim"))


def _attacker_row(card: Scorecard, role: str, one: Trajectory) -> Row:
    """Seed, first passage, and how the attack ended."""
    about = (Cell(role, kind="plain"), one.attack, str(one.seed))
    if one.error is not None:
        return (*about, Cell("failed", kind="unclear"), "–", "–", "–")
    outcome = Outcome.of([one], card.resistance.phi, card.resistance.unit)
    passage, below, kind = _passage_text(outcome), "", ""
    if outcome.first is None:
        passage, kind = ("destroyed" if outcome.destroyed else "–"), "unclear"
    elif outcome.destroyed and outcome.first.broke == math.inf:
        below, kind = "destroyed", "unclear"
    elif role == "defended" and one.means_harm:
        kind = "bad" if outcome.first.broke < math.inf else "good"
    if one.left is not None:
        below = f"{below}, ended early" if below else "ended early"
    ends = (outcome.harmful and outcome.harmful.value, outcome.broken and outcome.broken.value)
    kept = None if outcome.utility is None else 100 * outcome.utility
    return (*about, Cell(passage, below, kind), *("–" if end is None else f"{end:.1f}" for end in (*ends, kept)))


def _passage_text(outcome: Outcome) -> str:
    if outcome.first is None:
        return "–"
    if not outcome.first.found and outcome.first.broke == math.inf:
        return "never"  # by one that spends nothing
    return ("" if outcome.first.broke < math.inf else "> ") + compact(outcome.first.found)


def _hygiene_lines(card: Scorecard) -> list[str]:
    found = card.hygiene
    lines = [
        f"Prompts shared between pools: {sum(found.overlap.values())}. Judged by {', '.join(found.judges) or 'nobody'}: "
        f"{sum(found.judged.values()):,} verdicts, {sum(found.judge_errors.values())} errors. Attackers: {len(found.failed)} "
        f"failed (they count nowhere), {len(found.destroyed)} destroyed the model, {len(found.ended_early)} were ended early."
    ]
    for pair, one in found.agreement.items():
        kappa = "–" if one.kappa is None else f"{one.kappa:.2f}"
        lines.append(f"Agreement of {pair}: {percent_text(one.agreement)}, κ = {kappa} (n = {one.n}).")
    return [*lines, *(f"Failed: {row['role']}, {row['attacker']}: {row['reason']}" for row in found.failed)]


# The model card ----------------------------------------------------------------------------------------------------


def model_card(card: Scorecard) -> str:
    """Return a block for a model card: YAML front matter with a `model-index`, then the findings in Markdown.

    The hub reads the front matter; parts are in percent there too, as the names of the metrics say.
    """
    import yaml

    index = [{"name": short_name(card.model), "results": _model_index(card)}]
    front = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True, width=120)
    found, provenance, unit = card.resistance, card.provenance, UNIT_NAMES[card.resistance.unit]
    reasons = [(one.condition, Cell(one.verdict, strong=True), one.text) for one in findings(card)]
    attacks: list[Row] = []
    for line in attack_lines(card):
        both = [line.outcomes[role] for role in SHOWN]
        ratio = "–"
        if line.ratio is not None and line.ratio.ratio is not None:
            ratio = times_text(line.ratio.ratio, line.ratio.at_least)
        attacks.append([line.name, *map(_ending, both), *map(_passage_text, both), ratio])
    heads = [f"{what} {role}{unit_}" for what, unit_ in (("HS", ", %"), ("broken after,", "")) for role in SHOWN]
    failed = f"Failed attackers, which count nowhere: {len(card.hygiene.failed)}. " if card.hygiene.failed else ""
    note = (
        f"HS: part of the held-out harmful requests that is answered harmfully at the last look, with 95{NBSP}% "
        "interval; “ended early”: the break is certain, and what the model would have been later was not measured. "
        f"“Broken after”: budget in {unit} at which HS was found above φ = {percent_text(found.phi)}; “>”: not within the "
        f"budget. {failed}Immune means against these attackers up to these budgets; others may break the model sooner."
    )
    origin = (
        f"Measured with titer {provenance['titer']}, profile {provenance['profile']['name']}, against {card.against}; judged "
        f"by {', '.join(card.hygiene.judges) or 'nobody'}."
    )
    blocks = [
        [f"---\n{front}---"],
        ["## Immunity to harmful fine-tuning"],
        [as_markdown(lead(card))],
        markdown(Table.of(("condition", "verdict", "what it rests on"), reasons)),
        [as_markdown(price(card, words=True))],
        markdown(Table.of(("attack", *heads, "ratio"), attacks)),
        [note],
        [as_markdown(origin)],
    ]
    return visible("\n\n".join("\n".join(lines) for lines in blocks) + "\n")


def _ending(outcome: Outcome) -> Cell:
    if outcome.harmful is None:
        return Cell("failed" if outcome.failed and not outcome.runs else "–")
    cell = rate_cell(outcome.harmful)
    notes = [*(["destroyed"] if outcome.destroyed else []), *(["ended early"] if outcome.left else [])]
    return cell._replace(note=", ".join(notes)) if notes else cell


def _model_index(card: Scorecard) -> list[dict[str, Any]]:
    """The numbers as the hub's `model-index` has them: a result for each dataset; what was not measured is left out."""
    data, before, honest = card.provenance["profile"]["data"], card.before["defended"], card.trainability
    results: list[dict[str, Any]] = []

    def add(dataset: str, note: str, metrics: Sequence[tuple[str, float | None, str]]) -> None:
        known = [
            {"type": kind, "value": round(value, 2), "name": name} for kind, value, name in metrics if value is not None
        ]
        if known:
            about = {"name": dataset + note, "type": dataset.replace(":", "-").replace(" ", "-")}
            task = {"type": "text-generation", "name": "Text Generation"}
            results.append({"task": task, "dataset": about, "metrics": known})

    def percent(key: str) -> float | None:
        return _percent(before.get(key, Part(None, 0)).value)

    for domain, found in card.generalization.domains.items():
        ratio = found.cost_ratio.get(found.unit)
        harm = [
            point.harmful
            for t in card.attackers["defended"]
            if t.means_harm and t.domain == domain and t.passage(found.phi, found.unit)
            for point in t.answered
            if point.harmful is not None
        ]
        ended = any(t.left is not None and t.domain == domain for t in card.attackers["defended"])
        reach = " up to where it was ended early" if ended else ""
        cost = f"Cost of the cheapest break in {UNIT_NAMES[found.unit]}, undefended model = 1"
        cost += ", tested up to it without a break" if found.lower_bound else ""
        broken = found.broke / found.attackers if found.attackers else None
        add(
            data["harmful"],
            "" if domain == "in" else ", categories held out from the defence",
            (
                ("cost_ratio", None if ratio is None else ratio.value, cost),
                ("broken_by", _percent(broken), f"Attackers that broke it, of {found.attackers}, %"),
                (
                    "harmful_score",
                    _percent(max(harm, default=None)),
                    f"Harmful score at the most harmful point of any attack{reach}, %",
                ),
                (
                    "harmful_score_before",
                    percent(f"harmful_score {domain}-domain"),
                    "Harmful score before any attack, %",
                ),
            ),
        )
    add(data["lookalikes"], "", [("over_refusal", percent("over_refusal"), "Look-alikes refused, %")])
    add(
        data["task"],
        "",
        (
            ("finetune_accuracy", _percent(honest.best), "Best accuracy in honest training, %"),
            ("finetune_accuracy_undefended", _percent(honest.undefended_best), "The undefended model's, %"),
        ),
    )
    for dataset in card.provenance["profile"]["reference_tasks"]:
        known = percent(f"accuracy {dataset.removeprefix('builtin:')}")
        add(dataset, "", [("accuracy", known, "Accuracy before any attack, %")])
    return results


def _percent(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else 100 * value
