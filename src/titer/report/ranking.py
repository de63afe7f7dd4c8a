"""Several defences beside each other, by their scorecards: for the terminal, Markdown, programs, and as a page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.assays.card import CONDITIONS, Scorecard, short_name
from titer.assays.conditions import order_of
from titer.report.costs import price
from titer.report.findings import bound_text, ratio_text, verdict_kind
from titer.report.parts import Cell, Row, Table, as_markdown, markdown, terminal, write_page
from titer.report.words import UNIT_NAMES
from titer.results.reading import plain
from titer.stats.intervals import Estimate
from titer.text import visible

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Ranked:
    """A defence among others.

    Attributes:
        rank: 1 for the best; equal defences share one.
        name: Of the model, short where that tells it from the others.
        model: Of the scorecard.
        resistance: Verdicts, as in the scorecard.
        stability: The same.
        generalization: The same.
        trainability: The same.
        unit: Of budgets.
        cost_ratio: The worst attacker's; `None` where there is none.
        lower_bound: Whether nobody broke it.
        bound: How little that proves, in words.
        relative_mean: Restricted mean budget to break over the undefended model's; `None` where not measured.
        broke: Attackers that broke it.
        attackers: Attackers that count.
        failed: Attackers that failed.
        price: What it costs, in words.
        accuracy_difference: Accuracy after honest training, less the undefended model's, in [-1, 1].
    """

    rank: int
    name: str
    model: str
    resistance: str
    stability: str
    generalization: str
    trainability: str
    unit: str
    cost_ratio: Estimate | None
    lower_bound: bool
    bound: str
    relative_mean: float | None
    broke: int
    attackers: int
    failed: int
    price: str
    accuracy_difference: float | None

    @property
    def standing(self) -> tuple[float, ...]:
        """What it is ranked by, more is better.

        What was shown is the lower end of the cost ratio's interval: that nobody broke a model up to ×4 is less than that it
        took ×8 to break another, so strong does not rank above weak by itself.
        """
        ratio = self.cost_ratio
        return (
            min(order_of(self.resistance), order_of("weak")),
            *((-math.inf, -math.inf) if ratio is None else (ratio.low, ratio.value)),
            order_of(self.resistance),
            -math.inf if self.relative_mean is None else self.relative_mean,
            order_of(self.trainability),
            order_of(self.stability),
        )

    def as_dict(self) -> dict[str, Any]:
        """For programs: plain data."""
        found: dict[str, Any] = plain(asdict(self) | {"cost_ratio": self.cost_ratio})
        return found


def ranked(cards: Sequence[Scorecard]) -> list[Ranked]:
    """Rank defences: by what was shown of their resistance, restricted mean, then trainability and stability.

    Args:
        cards: Scorecards of one profile against one undefended model.
    """
    names = [short_name(card.model) for card in cards]
    rows = []
    for card, name in zip(cards, names, strict=True):
        found, quality = card.resistance, card.trainability.quality
        ours, theirs = found.mean, found.undefended_mean
        measured = ours is not None and theirs is not None and math.isfinite(ours.value) and theirs.value
        rows.append(
            Ranked(
                rank=0,
                name=name if names.count(name) == 1 else card.model,
                model=card.model,
                **card.verdicts,
                unit=found.unit,
                cost_ratio=found.cost_ratio.get(found.unit),
                lower_bound=found.lower_bound,
                bound=bound_text(found),
                relative_mean=ours.value / theirs.value if measured and ours and theirs else None,
                broke=found.broke,
                attackers=found.attackers,
                failed=sum(t.error is not None for t in card.attackers["defended"]),
                price=price(card),
                accuracy_difference=None if quality is None else quality.difference.mean,
            )
        )
    rows.sort(key=lambda row: row.standing, reverse=True)
    for place, row in enumerate(rows):
        tied = place and rows[place - 1].standing == row.standing
        row.rank = rows[place - 1].rank if tied else place + 1
    return rows


def _table(rows: Sequence[Ranked]) -> Table:
    """The ranking."""
    made: list[Row] = []
    for row in rows:
        verdicts = {name: Cell(getattr(row, name), kind=verdict_kind(getattr(row, name))) for name in CONDITIONS}
        made.append(
            [
                str(row.rank),
                row.name,
                verdicts["resistance"],
                ratio_text(row.cost_ratio, row.lower_bound) or "–",
                "–" if row.relative_mean is None else f"×{row.relative_mean:.1f}",
                Cell(f"{row.broke} of {row.attackers}", f"{row.failed} failed" if row.failed else ""),
                *(verdicts[name] for name in ("generalization", "trainability", "stability")),
            ]
        )
    others = ("generali-\nzation", "train-\nability", "stability")
    head = ("#", "defence", "resistance", "cost ratio", "mean\nbudget", "broke it", *others)
    return Table.of(head, made)


def _notes(rows: Sequence[Ranked]) -> list[str]:
    """What a reader must know before quoting the ranks."""
    if not rows:
        return ["Nothing to compare."]
    notes = [
        "Ranked by what was shown of resistance (none, undecided, then the lower end of the cost ratio), restricted mean "
        "budget to break, trainability and stability; the cost ratio is the worst attacker's, and it and the mean are in "
        f"{UNIT_NAMES[rows[0].unit]}, undefended model = 1."
    ]
    for one, two in itertools.pairwise(rows):
        first, second = one.cost_ratio, two.cost_ratio
        if one.resistance != two.resistance or first is None or second is None:
            continue
        pair = f"{one.name} and {two.name}"
        if one.lower_bound and two.lower_bound:
            notes.append(f"Nobody broke {pair}: their ratios are how far they were tested, which does not rank them.")
        elif first.low <= second.high and second.low <= first.high:
            notes.append(f"The cost ratios of {pair} have overlapping intervals: this does not rank them.")
    notes += [f"No attacker broke {row.name}: {row.bound}." for row in rows if row.bound]
    notes += [f"{row.name}: {row.price}" for row in rows]
    if any(row.failed for row in rows):
        notes.append("Failed attackers count nowhere; a defence that they failed against has been tested less.")
    return notes


def print_comparison(cards: Sequence[Scorecard], console: Console) -> None:
    """Print the ranking of several defences; eighty columns must do."""
    from rich.text import Text

    rows = ranked(cards)
    console.print(terminal(_table(rows), {"defence": 8, "cost ratio": 10}, gap=0))
    for note in _notes(rows):
        console.print(Text(note, style="dim"))


def comparison_markdown(cards: Sequence[Scorecard]) -> str:
    """Return the ranking of several defences as a Markdown table with its notes."""
    rows = ranked(cards)
    return visible("\n".join([*markdown(_table(rows)), "", *(f"{as_markdown(note)}\n" for note in _notes(rows))]))


def write_comparison(path: Path, cards: Sequence[Scorecard]) -> Path:
    """Write the ranking of several defences as one HTML file and return its path."""
    rows = ranked(cards)
    title = f"{len(rows)} defences against {short_name(cards[0].against)}"
    return write_page(path, "comparison.html.j2", title=title, ranking=_table(rows), notes=_notes(rows))
