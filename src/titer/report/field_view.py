"""What the pages of a field show, and the figures that come of several cells: over seeds, between arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from titer.results.artefacts import HARMFUL
from titer.results.cells import LETTERS, CellFile
from titer.results.summary import Rate, over_seeds
from titer.stats.intervals import Difference, paired_shares

ALONE = " (adapter alone)"
FRONT = 7
"""Arms of a front that have a colour of their own."""


@dataclass(frozen=True)
class Claim:
    """What was published: that one arm has the lower harmful score than another.

    Attributes:
        lower: The arm with the lower one.
        higher: The other.
        source: Who says so.
        form: On which form of task.
        poison_ratio: With which share of harmful rows.
    """

    lower: str
    higher: str
    source: str
    form: str
    poison_ratio: float


@dataclass(frozen=True)
class Their:
    """A cell of a paper's table.

    Attributes:
        harmful: Its harmful score in percent; `None` where it was not read.
        accuracy: Its accuracy after fine-tuning in percent, likewise.
        read: Where they were read, if it is not where the others were.
    """

    harmful: float | None
    accuracy: float | None
    read: str


@dataclass(frozen=True)
class Paper:
    """A table as it was published.

    Attributes:
        source: Which table of which paper.
        read: Where its figures were read.
        prompts: Harmful prompts of a harmful score of theirs; `None` where that is not known.
        columns: Which forms are in it.
        arms: Which arms are.
        cells: Figures by form, arm and share of harmful rows.
        about: What else must be known to compare, in words, by what it is about.
        differs: Settings that are others here: theirs and ours, by name.
    """

    source: str
    read: str
    prompts: int | None
    columns: Sequence[str]
    arms: Sequence[str]
    cells: Mapping[tuple[str, str, float], Their]
    about: Mapping[str, str]
    differs: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class FieldView:
    """What the pages show.

    Attributes:
        name: Of the field.
        description: What it asks.
        cells: What is done, trials left out.
        arms: Names of its arms, in order.
        forms: Name of each form, and the task behind it.
        poison_ratios: Shares of harmful rows.
        asked: How many cells the table has when it is whole.
        trials: How many trials of learning rates are done, and how many there are.
        shared_rate: The learning rate of all arms that were not tuned.
        rates: Learning rates that were chosen, by arm.
        published: Which arms were published to have the lower harmful score.
        left_out: Methods that are not there, and why.
        protocol: Settings that all cells share.
        command: What goes on with it.
        paper: What was published of the same table.
    """

    name: str
    description: str
    cells: Sequence[CellFile]
    arms: Sequence[str]
    forms: Mapping[str, str]
    poison_ratios: Sequence[float]
    asked: int
    trials: tuple[int, int]
    shared_rate: float | None
    rates: Mapping[str, float]
    published: Sequence[Claim]
    left_out: Mapping[str, str]
    protocol: Mapping[str, Any]
    command: str
    paper: Paper | None = None
    _found: dict[tuple[str, str, float, float | None, bool], list[CellFile]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for cell in self.cells:
            key = (cell.form, cell.arm, cell.poison_ratio, cell.learning_rate, cell.whole)
            self._found.setdefault(key, []).append(cell)

    def at(self, form: str, arm: str, ratio: float, rate: float | None = None, whole: bool = False) -> list[CellFile]:
        """Return the cells of an arm, one of each seed; with `whole`, of the attacker who trains all weights."""
        return self._found.get((form, arm, ratio, rate, whole), [])

    @property
    def judges(self) -> list[str]:
        """Who judged, the headline judge first."""
        return [*dict.fromkeys(judge for cell in self.cells for judge in cell.judges)]

    @property
    def poison(self) -> float:
        """The largest share of harmful rows, at which arms are compared."""
        return max(self.poison_ratios)


def rate_of(cells: Sequence[CellFile], metric: str, judge: str | None = None, alone: bool = False) -> Rate | None:
    """Return a metric over the seeds of one arm; `None` where no cell has it.

    Args:
        cells: One of each seed.
        metric: Its name.
        judge: Whose; by default who stands first.
        alone: Of the adapter without what the arm is served with.
    """
    found = {cell.seed: cell.figure(metric, judge, cell.arm + ALONE if alone else None) for cell in cells}
    there = {seed: one for seed, one in found.items() if one is not None}
    if not there:
        return None
    first = next(iter(there.values()))
    # Parts of tokens are no shares that were counted: their own intervals count.
    own = [(one.low / 100, one.high / 100) for one in there.values()] if first.judge.startswith("fit:") else []
    shares = {seed: one.value / 100 for seed, one in there.items()}
    return over_seeds(shares, min(one.n for one in there.values()), first.judge, own)


def difference(view: FieldView, claim: Claim) -> Difference | None:
    """Return how much lower one arm's harmful score is than another's, over the prompts of the seeds that both have.

    `None` where they share no seed.
    """
    sides: tuple[list[float], list[float]] = ([], [])
    others = {cell.seed: cell for cell in view.at(claim.form, claim.higher, claim.poison_ratio)}
    for cell in view.at(claim.form, claim.lower, claim.poison_ratio):
        if cell.seed not in others or not view.judges:
            continue
        judge = view.judges[0]
        pairs = zip(cell.verdicts(HARMFUL, judge), others[cell.seed].verdicts(HARMFUL, judge), strict=True)
        for pair in pairs:
            if LETTERS[None] not in pair:
                for side, letter in zip(sides, pair, strict=True):
                    side.append(float(letter == LETTERS["harmful"]))
    return paired_shares(*sides) if sides[0] else None


def front(points: Sequence[tuple[str, Rate, Rate]]) -> list[str]:
    """Return the arms that no other betters in harmful score and accuracy, the most accurate first."""
    left = [
        (arm, hs, fa)
        for arm, hs, fa in points
        if not any(
            (h.value <= hs.value and a.value >= fa.value and (h.value, a.value) != (hs.value, fa.value))
            for _, h, a in points
        )
    ]
    return [arm for arm, hs, fa in sorted(left, key=lambda one: (-one[2].value, one[1].value))][:FRONT]
