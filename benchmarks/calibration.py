"""What the verdicts of an assay are worth: models whose truth is planted, judged by titer's own rules.

Attackers, seeds, checkpoints, budgets and prompts are those of a bundled profile, so a changed profile changes the simulation.
The undefended model's cheapest attacker breaks it uniformly in log budget between the first and the second checkpoint of the
attack `harmful`. Break times differ by 0.3 octave between kinds of attack and by 0.2 between seeds, alike for both models, and
by another 0.2 for each model by itself; the defended model's are `truth` times later, or never. Harmfulness is the judge's false
rate f0 up to φ, and then rises to 60 % within half an octave (in the assays of docs/benchmarks.md it went from 5 to 95 % within
one). Looks are independent, or the same prompts fail at every one of them, in both models.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from titer.assays.conditions import Paired, stability, trainability
from titer.assays.profile import PlannedAttack, Profile, answered_steps, read_profile
from titer.assays.resistance import Start, resistance
from titer.assays.trajectories import Checkpoint, Trajectory
from titer.stats.intervals import wilson

KIND, SEED, REST = 0.3, 0.2, 0.2
"""Standard deviations of break times, in octaves."""
LEVEL, RISE = 0.6, 0.5
"""Harmfulness of a broken model, and the octaves in which it is reached."""
VERDICTS = ("none", "weak", "strong", "undecided")
TRUTHS = (1.0, 2.0, 4.0, 8.0, math.inf)


@dataclass(frozen=True)
class Plan:
    """The attackers of a profile as a simulation needs them.

    Attributes:
        profile: The profile.
        attackers: Those that mean harm.
        steps: Of each, where it is scored.
        size: Rows of a step of each.
    """

    profile: Profile
    attackers: Sequence[PlannedAttack]
    steps: Sequence[Sequence[int]]
    size: Sequence[int]

    @classmethod
    def of(cls, profile: Profile) -> Plan:
        """Read a profile's attackers."""
        attackers = [
            planned for planned in profile.attackers() if planned.attack.means_harm and not planned.attack.free
        ]
        steps, size = [], []
        for _, attack, *_ in attackers:
            steps.append([1] if not attack.trains else answered_steps(attack.total_steps, profile.checkpoints))
            size.append(attack.batch_size if attack.trains else attack.samples)
        return cls(profile, attackers, steps, size)

    def looks(self, number: int) -> np.ndarray:
        """Return the budgets, in rows, at which an attacker is scored; `(looks,)`."""
        return self.size[number] * np.array(self.steps[number], dtype=float)


class World:
    """One draw of break times and prompts, the same for both models.

    Args:
        plan: The attackers.
        f0: Part of a safe model's answers that the judge calls harmful.
        persistent: Whether the same prompts fail at every look.
        seed: Of the draw.
        behind: Checkpoint of `harmful` behind which its undefended model breaks; the first, or −2 for the last but one.
    """

    def __init__(self, plan: Plan, f0: float, persistent: bool, seed: int, behind: int = 0) -> None:
        self.plan, self.f0, self.persistent = plan, f0, persistent
        self.draw = np.random.default_rng(seed)
        n = plan.profile.harmful
        self.failing = {domain: int(self.draw.binomial(n, f0)) for domain in ("in", "cross")}
        kinds = {planned.name.split(" ")[0] for planned in plan.attackers}
        kind = {name: self.draw.normal(0, KIND) for name in sorted(kinds)}
        # An attack of a grid meets the same seeds at each point of it.
        own = [kind[planned.name.split(" ")[0]] + self.draw.normal(0, SEED) for planned in plan.attackers]
        self.shared = np.array(own)
        # The anchor: between the first and the second checkpoint of the attack that every other one is a variant of.
        looks = plan.looks(next(i for i, planned in enumerate(plan.attackers) if planned.name.startswith("harmful")))
        self.anchor = math.log2(looks[behind]) + self.draw.uniform(0, math.log2(looks[behind + 1] / looks[behind]))
        self.cheapest = self.shared + self.draw.normal(0, REST, len(own))
        self.undefended = self.anchor + self.cheapest - self.cheapest.min()

    def breaks(self, truth: float) -> np.ndarray:
        """Return the log2 budgets at which the defended model breaks, `(attackers,)`."""
        own = self.shared + self.draw.normal(0, REST, len(self.shared))
        return self.anchor + own - self.cheapest.min() + math.log2(truth)

    def _harmful(self, f: float, domain: str) -> int:
        n = self.plan.profile.harmful
        if not self.persistent:
            return int(self.draw.binomial(n, max(f, self.f0)))
        failing = self.failing[domain]
        return failing + int(self.draw.binomial(n - failing, max(0.0, (f - self.f0) / (1 - self.f0))))

    def start(self) -> Start:
        """Return the defended model before any attack: the worse of the domains, as a scorecard has it."""
        n = self.plan.profile.harmful
        counts = [self._harmful(0.0, domain) for domain in ("in", "cross")]
        return Start(max(counts) / n, n, *wilson(max(counts), n))

    def trajectories(self, breaks: np.ndarray) -> list[Trajectory]:
        """Return what the attackers of a model are seen to do that breaks at these log2 budgets."""
        phi, n = self.plan.profile.phi, self.plan.profile.harmful
        found = []
        for number, (name, attack, seed, *_) in enumerate(self.plan.attackers):
            points = [Checkpoint(step=0, samples=0, tokens=0, flops=0.0)]
            for step, spent in zip(self.plan.steps[number], self.plan.looks(number), strict=True):
                past = math.log2(spent) - breaks[number]
                f = 0.0 if past < 0 else phi + (LEVEL - phi) * min(1.0, past / RISE)
                harmful = self._harmful(f, attack.domain) / n
                rows = int(spent)
                points.append(
                    Checkpoint(step, rows, rows, float(rows), harmful=harmful, refused=1 - harmful, broken=0.0, n=n)
                )
            found.append(Trajectory(name, seed, attack.domain, attack.poison_ratio, True, tuple(points)))
        return found


def resistance_row(
    plan: Plan, truth: float, f0: float, persistent: bool, repetitions: int, seed: int, behind: int = 0
) -> dict[str, Any]:
    """Return how often each verdict was given, and how often the intervals of both cost ratios hold the truth."""
    profile = plan.profile
    verdicts: Counter[str] = Counter()
    covered: dict[str, list[bool]] = {"cost_ratio": [], "typical": []}
    for repetition in range(repetitions):
        world = World(plan, f0, persistent, hash((seed, repetition)) % 2**32, behind)
        theirs = world.trajectories(world.undefended)
        ours = world.trajectories(world.breaks(truth))
        found = resistance(ours, theirs, profile.phi, profile.kappa, "samples", world.start())
        verdicts[found.verdict] += 1
        for name, held in covered.items():
            ratio = getattr(found, name)["samples"]
            if ratio is not None:
                held.append(ratio.low <= truth <= ratio.high)
    return {
        "profile": profile.name,
        "truth": "never" if math.isinf(truth) else int(truth),
        "f0": f0,
        "looks": "persistent" if persistent else "independent",
        "repetitions": repetitions,
        "verdicts": {verdict: verdicts[verdict] / repetitions for verdict in VERDICTS},
        "coverage": _part(covered["cost_ratio"]),
        "coverage_typical": _part(covered["typical"]),
    }


def _part(held: Sequence[bool]) -> float | None:
    return sum(held) / len(held) if held else None


def unchanged(profile: Profile, differ: float, repetitions: int, seed: int) -> dict[str, Any]:
    """Return how often two equally good models are called stable and trainable.

    Args:
        profile: The profile.
        differ: Part of the prompts that the two models answer differently, half of them better.
        repetitions: Draws.
        seed: Of the draws.
    """
    draw = np.random.default_rng(seed)
    honest = [planned for planned in profile.attackers() if not planned.attack.means_harm]
    verdicts: dict[str, Counter[str]] = {"stability": Counter(), "trainability": Counter()}

    def pair(n: int) -> tuple[np.ndarray, np.ndarray]:
        theirs = (draw.random(n) < 0.85).astype(float)
        # Answers turn both ways equally often, so that nothing has changed on average.
        turned = draw.random(n) < differ * np.where(theirs == 1, 0.5 / 0.85, 0.5 / 0.15)
        return np.where(turned, 1 - theirs, theirs), theirs

    for _ in range(repetitions):
        pairs = {
            name: Paired(*(side.tolist() for side in pair(profile.reference_task)), profile.accuracy_margin)
            for name in profile.reference_tasks
        }
        pairs["lookalikes"] = Paired(*(side.tolist() for side in pair(profile.lookalikes)), profile.accuracy_margin)
        losses = draw.normal(2.0, 0.5, profile.general)
        moved = losses + draw.normal(0, 0.1, profile.general)
        pairs["log-likelihood"] = Paired((-moved).tolist(), (-losses).tolist(), profile.nll_margin, shares=False)
        verdicts["stability"][stability(pairs).verdict] += 1
        runs: list[list[Trajectory]] = [[], []]
        ends: list[list[np.ndarray]] = [[], []]
        for planned in honest:
            last = pair(profile.task)
            steps = answered_steps(planned.attack.total_steps, profile.checkpoints)
            for role, right in enumerate(last):
                points = []
                for step in (0, *steps):
                    # Half of what is to be learnt is learnt in a quarter of the steps.
                    part = 0.5 + (right.mean() - 0.5) * (1 - 2.0 ** (-4 * step / steps[-1])) / (1 - 2.0**-4)
                    accuracy = right.mean() if step == steps[-1] else draw.binomial(profile.task, part) / profile.task
                    points.append(Checkpoint(step, 0, 0, 0.0, harmful=0.0, accuracy=float(accuracy)))
                runs[role].append(Trajectory(planned.name, planned.seed, "in", 0.0, False, tuple(points)))
                ends[role].append(right)
        right = tuple(np.mean(side, axis=0).tolist() for side in ends)
        found = trainability(runs[0], runs[1], right, profile.accuracy_margin, profile.slower)  # type: ignore[arg-type]
        verdicts["trainability"][found.verdict] += 1
    return {
        "profile": profile.name,
        "differ": differ,
        "repetitions": repetitions,
        **{
            name: {verdict: counts[verdict] / repetitions for verdict in ("yes", "no", "undecided")}
            for name, counts in verdicts.items()
        },
    }


def calibrate(
    plans: Sequence[Plan], rates: Sequence[float], repetitions: int, seed: int, behind: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield a row for each profile, false rate, kind of looks and truth."""
    for plan in plans:
        for f0 in rates:
            for persistent in (False, True):
                for truth in TRUTHS:
                    yield resistance_row(plan, truth, f0, persistent, repetitions, seed, behind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", default=["quick", "standard"], help="bundled profiles or files")
    parser.add_argument("--f0", nargs="+", type=float, default=[0.02, 0.05], help="the judge's false rates")
    parser.add_argument("--late", action="store_true", help="the undefended model breaks before the last checkpoint")
    parser.add_argument("--repetitions", type=int, default=500, help="draws for each row")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--quick", action="store_true", help="a run that only shows that everything works")
    parser.add_argument("--json", metavar="FILE", help="write the rows to a file")
    args = parser.parse_args()
    repetitions = 3 if args.quick else args.repetitions
    console, started = Console(), time.perf_counter()
    plans = [Plan.of(read_profile(name)) for name in args.profiles]
    table = Table(title=f"{repetitions} draws for each row, seed {args.seed}")
    for name in (
        "profile",
        "f0",
        "looks",
        "true ratio",
        *(f"{verdict}, %" for verdict in VERDICTS),
        "covered, %",
        "typical, %",
    ):
        table.add_column(name, justify="left" if name in ("profile", "looks") else "right")
    rows = []
    for row in calibrate(plans, args.f0, repetitions, args.seed, -2 if args.late else 0):
        rows.append(row)
        shares = [f"{100 * row['verdicts'][verdict]:.1f}" for verdict in VERDICTS]
        covered = ["–" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("coverage", "coverage_typical")]
        table.add_row(row["profile"], f"{row['f0']:.0%}", row["looks"], str(row["truth"]), *shares, *covered)
    console.print(table)
    same = Table(title="Nothing changed but a part of the answers")
    for name in ("profile", "differ", "stable: yes, %", "no, %", "trainable: yes, %", "no, %"):
        same.add_column(name, justify="left" if name == "profile" else "right")
    for plan in plans:
        for differ in (0.05, 0.1, 0.2):
            found = unchanged(plan.profile, differ, repetitions, args.seed)
            cells = [
                f"{100 * found[name][verdict]:.1f}"
                for name in ("stability", "trainability")
                for verdict in ("yes", "no")
            ]
            same.add_row(plan.profile.name, f"{differ:.0%}", *cells)
    console.print(same)
    console.print(f"{time.perf_counter() - started:.0f} s")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
