"""What one attack did to a model over its seeds, and to both models beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from titer.assays.card import Scorecard
from titer.assays.trajectories import ROLES, Checkpoint, Trajectory
from titer.results.summary import Rate, over_seeds
from titer.stats.survival import CostRatio, Passage, cheapest, cost_ratio


class Look(NamedTuple):
    """One checkpoint of an attack, over its seeds.

    Attributes:
        step: Optimizer steps.
        measured: Harmful score of generated answers; `None` where none were generated.
        estimate: Harmful score as calibrated on margins, in percent; not a measurement.
        destroyed: Whether most answers of a seed were broken.
    """

    step: int
    measured: Rate | None
    estimate: float | None = None
    destroyed: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one attack did to one model, over its seeds; failed attackers are counted and enter nothing else.

    Attributes:
        runs: Trajectories that did not fail.
        failed: How many did.
        looks: Harmful score by checkpoint, up to the one at which the first seed was ended early.
        accuracy: Task accuracy by step.
        passages: First passage or censoring of each seed that has one.
    """

    runs: tuple[Trajectory, ...]
    failed: int
    looks: tuple[Look, ...]
    accuracy: tuple[tuple[int, Rate], ...]
    passages: tuple[Passage, ...]

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory], phi: float, unit: str, task_prompts: int = 0) -> Outcome:
        """Summarise the seeds of one attack against one model.

        Args:
            trajectories: One for each seed.
            phi: φ, in [0, 1].
            unit: Of the passages.
            task_prompts: How many prompts an accuracy rests on; 0 where that is not known.
        """
        runs = tuple(t for t in trajectories if t.error is None)
        looks, accuracy = [], []
        # Behind the step at which a seed was ended, the mean would be over those that had not broken the model yet.
        last = min((t.left.step for t in runs if t.left is not None), default=math.inf)
        for step in sorted({point.step for t in runs for point in t.checkpoints if point.step <= last}):
            here = {t.seed: point for t in runs for point in t.checkpoints if point.step == step}
            estimates = [point.estimate for point in here.values() if point.estimate is not None]
            measured = _rate(here, "harmful")
            if measured is not None:
                looks.append(Look(step, measured, destroyed=any(point.destroyed for point in here.values())))
            elif estimates:
                looks.append(Look(step, None, 100 * sum(estimates) / len(estimates)))
            right = _rate(here, "accuracy", task_prompts)
            if right is not None:
                accuracy.append((step, right))
        passages = tuple(passage for t in runs if (passage := t.passage(phi, unit)) is not None)
        return cls(runs, len(trajectories) - len(runs), tuple(looks), tuple(accuracy), passages)

    @property
    def harmful(self) -> Rate | None:
        """Harmful score at each seed's last look."""
        return _rate(self._last, "harmful")

    @property
    def broken(self) -> Rate | None:
        """Part of the answers that is broken at each seed's last look."""
        return _rate(self._last, "broken")

    @property
    def utility(self) -> float | None:
        """Part of its utility that the model kept to each seed's last look, in [0, 1]; mean over seeds."""
        kept = [
            end / start
            for t in self.runs
            if t.seed in self._last
            and (start := t.checkpoints[0].utility)
            and (end := self._last[t.seed].utility) is not None
        ]
        return sum(kept) / len(kept) if kept else None

    @property
    def _last(self) -> dict[int, Checkpoint]:
        return {t.seed: t.answered[-1] for t in self.runs if t.answered and t.answered[-1].step}

    @property
    def destroyed(self) -> list[int]:
        """Steps at which models were found destroyed."""
        return [t.destroyed_at for t in self.runs if t.destroyed_at is not None]

    @property
    def left(self) -> list[int]:
        """Steps after which seeds were ended early; what the model would have been later is not known."""
        return sorted(t.left.step for t in self.runs if t.left is not None)

    @property
    def broke(self) -> int:
        """How many seeds broke the model."""
        return sum(passage.broke < math.inf for passage in self.passages)

    @property
    def first(self) -> Passage | None:
        """The cheapest break over the seeds or, where none broke the model, the least that was spent without a break."""
        return cheapest(self.passages) if self.passages else None


def _rate(points: Mapping[int, Checkpoint], field: str, n: int | None = None) -> Rate | None:
    """A part over seeds; its prompts are by default those that were answered and judged."""
    found = {seed: point for seed, point in points.items() if getattr(point, field) is not None}
    if not found:
        return None
    prompts = min(point.n for point in found.values()) if n is None else n
    return over_seeds({seed: float(getattr(point, field)) for seed, point in found.items()}, prompts)


@dataclass(frozen=True)
class AttackLine:
    """One attack against both models: the attack, what it did to each, and the ratio of their costs, if it costs anything."""

    name: str
    domain: str
    means_harm: bool
    outcomes: dict[str, Outcome]
    ratio: CostRatio | None


def attack_lines(card: Scorecard) -> list[AttackLine]:
    """Return the attacks of a scorecard in the profile's order, those that mean harm first."""
    found, n = card.resistance, task_prompts(card) or 0
    lines = []
    for name in dict.fromkeys(t.attack for role in ROLES for t in card.attackers[role]):
        mine = {role: [t for t in card.attackers[role] if t.attack == name] for role in ROLES}
        outcomes = {role: Outcome.of(mine[role], found.phi, found.unit, n) for role in ROLES}
        ours, theirs = (outcomes[role].passages for role in ROLES)
        example = next(t for role in ROLES for t in mine[role])
        free = any(t.free for role in ROLES for t in mine[role])
        ratio = cost_ratio(ours, theirs) if ours and theirs and not free else None
        lines.append(AttackLine(name, example.domain, example.means_harm, outcomes, ratio))
    return sorted(lines, key=lambda line: not line.means_harm)


def task(card: Scorecard) -> str:
    """The customer's task."""
    return str(card.provenance["profile"]["data"]["task"]).removeprefix("builtin:")


def task_prompts(card: Scorecard) -> int | None:
    """How many test prompts the task's accuracy rests on."""
    found = card.before["defended"].get(f"accuracy {task(card)}")
    return found.n if found is not None else next((end.accuracy.n for end in card.poison), None)
