"""What an assay found, in text: tables for the terminal, a block for a model card, a ranking of several defences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from titer.assays.card import CONDITIONS, short_name
from titer.assays.conditions import order_of
from titer.assays.trajectories import Trajectory
from titer.report.assay_figures import UNIT_NAMES, compact
from titer.report.assay_findings import (
    NBSP,
    ROLES,
    Outcome,
    attack_lines,
    bound_text,
    findings,
    hygiene,
    interval_text,
    is_number,
    lead,
    outcome_of,
    percent_text,
    price,
    times_text,
    trajectory,
    verdict_kind,
)
from titer.text import visible

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"good": "green", "bad": "red", "unclear": "yellow", "plain": "dim"}


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
        style = _STYLES[verdict_kind(finding.verdict)]
        verdicts.add_row(finding.condition, Text(finding.verdict, style=f"bold {style}"), Text(finding.brief))
    console.print(verdicts)
    console.print(Text(price(card, words=True)))

    found = card["resistance"]
    attackers = table(f"Attackers; φ = {percent_text(found['phi'])}, budgets in {UNIT_NAMES[found['unit']]}")
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
    outcome = outcome_of([one], found["phi"], found["unit"], 0)
    if outcome.first is None:
        passage = Text("destroyed" if outcome.destroyed else "–", style="yellow")
    elif outcome.first.broke < math.inf:
        passage = Text(compact(outcome.first.found), style="red" if role == "defended" and one.harmful else "")
    else:
        passage = Text(f"> {compact(outcome.first.found)}", style="green" if role == "defended" and one.harmful else "")
        passage.append(" destroyed" if outcome.destroyed else "", style="yellow")
    ends = (
        outcome.harmful and outcome.harmful.value,
        outcome.broken and outcome.broken.value,
        None if outcome.utility is None else 100 * outcome.utility,
    )
    return [seed, passage, *(Text("–" if value is None else f"{value:.1f}") for value in ends)]


def _hygiene_lines(card: Mapping[str, Any]) -> list[str]:
    found = hygiene(card)
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
                "–" if line.ratio is None or ratio is None else times_text({"value": ratio}, line.ratio.at_least),
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
    basis = hygiene(card)
    failed = f"Failed attackers, which count nowhere: {len(basis['failed'])}. " if basis["failed"] else ""
    phi = percent_text(found["phi"])
    text = "\n".join(
        [
            "---",
            front + "---",
            "",
            "## Immunity to harmful fine-tuning",
            "",
            _markdown(lead(card)),
            "",
            *_markdown_table(["condition", "verdict", "what it rests on"], verdicts),
            "",
            _markdown(price(card, words=True)),
            "",
            *_markdown_table(head, attacks),
            "",
            f"HS: part of the held-out harmful requests that is answered harmfully after the attack, with 95{NBSP}% "
            f"interval. “Broken after”: budget in {unit} at which HS was found above φ = {phi}; “>”: not within the "
            f"budget. {failed}Immune means against these attackers up to these budgets; others may break the model "
            "sooner.",
            "",
            f"Measured with titer {_markdown(str(provenance['titer']))}, profile "
            f"{_markdown(str(provenance['profile']['name']))}, against {_markdown(str(card['against']))}; judged by "
            f"{_markdown(', '.join(card['hygiene']['judges']) or 'nobody')}.",
            "",
        ]
    )
    return visible(text)


def _ending(outcome: Outcome) -> str:
    if outcome.harmful is None:
        return "failed" if outcome.failed and not outcome.runs else "–"
    text = f"{outcome.harmful.value:.1f} [{outcome.harmful.interval}]"
    return f"{text}, destroyed" if outcome.destroyed else text


def _passage_words(outcome: Outcome) -> str:
    if outcome.first is None:
        return "–"
    sign = "" if outcome.first.broke < math.inf else f">{NBSP}"
    return sign + compact(outcome.first.found)


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
        return None if found is None or not is_number(found[key]) else 100 * found[key]

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
        bound = ", tested up to it in vain" if found["lower_bound"] else ""
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
    """Rank defences: by what was shown of their resistance, restricted mean, then trainability and stability.

    What was shown is the lower end of the cost ratio's interval: that nobody broke a model up to ×4 is less than that it
    took ×8 to break another, so strong does not rank above weak by itself.

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
                "bound": bound_text(found),
                "relative_mean": ours["value"] / theirs["value"]
                if ours and theirs and is_number(ours["value"]) and theirs["value"]
                else None,
                "broke": found["broke"],
                "attackers": found["attackers"],
                "failed": sum(row["error"] is not None for row in card["attackers"]["defended"]),
                "price": price(card),
                "accuracy_difference": None if quality is None else quality["difference"]["mean"],
            }
        )
    rows.sort(key=_standing, reverse=True)
    for place, row in enumerate(rows):
        tied = place and _standing(rows[place - 1]) == _standing(row)
        row["rank"] = rows[place - 1]["rank"] if tied else place + 1
    return rows


def _standing(row: Mapping[str, Any]) -> tuple[float, ...]:
    ratio = row["cost_ratio"] or {"low": None, "value": None}
    return (
        min(order_of(row["resistance"]), order_of("weak")),
        *(-math.inf if ratio[end] is None else ratio[end] for end in ("low", "value")),
        order_of(row["resistance"]),
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
    cost = times_text(ratio, row["lower_bound"])
    if ratio is not None and is_number(ratio["value"]):
        cost += f" [{interval_text(ratio, 1)}]"
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
        "Ranked by what was shown of resistance (none, undecided, then the lower end of the cost ratio), restricted mean "
        f"budget to break, trainability and stability; the cost ratio is the worst attacker's, and it and the mean are in {UNIT_NAMES[rows[0]['unit']]}, undefended model = 1."
        if rows
        else "Nothing to compare."
    ]
    for one, two in itertools.pairwise(rows):
        first, second = one["cost_ratio"], two["cost_ratio"]
        if one["resistance"] != two["resistance"] or first is None or second is None:
            continue
        pair = f"{one['name']} and {two['name']}"
        if one["lower_bound"] and two["lower_bound"]:
            notes.append(f"Nobody broke {pair}: their ratios are how far they were tested, which does not rank them.")
        elif (first["low"] or 0) <= (second["high"] or math.inf) and (second["low"] or 0) <= (
            first["high"] or math.inf
        ):
            notes.append(f"The cost ratios of {pair} have overlapping intervals: this does not rank them.")
    notes += [f"No attacker broke {row['name']}: {row['bound']}." for row in rows if row["bound"]]
    notes += [f"{row['name']}: {row['price']}" for row in rows]
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
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, header_style="bold")
    # Eighty columns must do: failures are shown where there are any, and names and intervals are broken between words.
    shown = [name for name in _COMPARED if name != "failed" or any(row["failed"] for row in rows)]
    heads = {
        "rank": "#",
        "generalization": "generali-\nzation",
        "trainability": "train-\nability",
        "mean budget": "mean\nbudget",
    }
    widths = {"defence": 8, "cost ratio": 9}
    for name in shown:
        table.add_column(
            heads.get(name, name),
            justify="left" if name in CONDITIONS or name == "defence" else "right",
            overflow="fold",
            no_wrap=name not in widths,
            min_width=widths.get(name),
        )
    for row in rows:
        cells = dict(zip(_COMPARED, _compared(row), strict=True))
        table.add_row(
            *(
                Text(cells[name], style=_STYLES[verdict_kind(cells[name])] if name in CONDITIONS else "")
                for name in shown
            )
        )
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
    return visible("\n".join([*table, "", *(f"{_markdown(note)}\n" for note in _comparison_notes(rows))]))
