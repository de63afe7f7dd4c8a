"""What the verdicts of an assay are worth: models whose truth is planted, judged by titer's own rules.

Attackers, seeds, checkpoints, budgets and prompts are those of a bundled profile, so a changed profile changes the simulation.
The undefended model's cheapest attacker breaks it uniformly in log budget between the first and the second checkpoint of the
attack `harmful`. Break times differ by 0.3 octave between kinds of attack and by 0.2 between seeds, alike for both models, and
by another 0.2 for each model by itself; the defended model's are `truth` times later, or never. Harmfulness is the judge's false
rate f0 up to φ, and then rises to 60 % within half an octave (in the assays of docs/benchmarks.md it went from 5 to 95 % within
one). Looks are independent, or the same prompts fail at every one of them, in both models. Looks ask as many prompts, and
attackers are ended, as the profile's `harmful_first` and `early_exit` say; the same draws are judged with all prompts and all
looks too (`whole`), and how often the verdict is another one is counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from titer.assays.conditions import Paired, stability, trainability
from titer.assays.profile import PlannedAttack, Profile, answered_steps, read_profile
from titer.assays.resistance import Start, resistance
from titer.assays.trajectories import UNITS, Checkpoint, Left, Trajectory
from titer.progress import counted
from titer.stats.intervals import wilson
from titer.stats.sequential import decided
from titer.stats.survival import ALONE, exceeds

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


class Look(NamedTuple):
    """Harmful answers of a look: to the prompts that are asked first, and to all."""

    first: int
    all: int

    def seen(self, first: int, n: int, phi: float) -> tuple[int, int]:
        """Return how many harmful answers are seen, of how many prompts that are asked."""
        return (self.first, first) if first and decided(self.first, first, n, phi) else (self.all, n)


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
        first = plan.profile.harmful_first
        # Of the prompts that always fail, how many are among those that are asked first.
        self.failing_first = {
            domain: int(self.draw.hypergeometric(failing, n - failing, first)) if first else 0
            for domain, failing in self.failing.items()
        }
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

    def look(self, f: float, domain: str) -> Look:
        """Draw a look."""
        first, n = self.plan.profile.harmful_first, self.plan.profile.harmful
        if not first:
            return Look(0, self._harmful(f, domain))
        parts = []
        failing = self.failing_first[domain], self.failing[domain] - self.failing_first[domain]
        for size, fail in zip((first, n - first), failing, strict=True):
            if self.persistent:
                parts.append(fail + int(self.draw.binomial(size - fail, max(0.0, (f - self.f0) / (1 - self.f0)))))
            else:
                parts.append(int(self.draw.binomial(size, max(f, self.f0))))
        return Look(parts[0], sum(parts))

    def start(self) -> Start:
        """Return the defended model before any attack: the worse of the domains, as a scorecard has it."""
        n = self.plan.profile.harmful
        counts = [self._harmful(0.0, domain) for domain in ("in", "cross")]
        return Start(max(counts) / n, n, *wilson(max(counts), n))

    def looks(self, breaks: np.ndarray) -> list[list[Look]]:
        """Draw what the attackers of a model are seen to do that breaks at these log2 budgets, a list for each attacker."""
        phi, found = self.plan.profile.phi, []
        for number, planned in enumerate(self.plan.attackers):
            past = np.log2(self.plan.looks(number)) - breaks[number]
            rises = [0.0 if octaves < 0 else phi + (LEVEL - phi) * min(1.0, octaves / RISE) for octaves in past]
            found.append([self.look(f, planned.attack.domain) for f in rises])
        return found

    def trajectories(self, drawn: Sequence[Sequence[Look]], whole: bool = False) -> list[Trajectory]:
        """Return what is known of attackers by their looks: as the profile asks and ends them, or of all prompts and steps."""
        profile, found = self.plan.profile, []
        n = profile.harmful
        for number, (name, attack, seed, *_) in enumerate(self.plan.attackers):
            steps, budgets = self.plan.steps[number], self.plan.looks(number)
            one = Trajectory(name, seed, attack.domain, attack.poison_ratio, True, (Checkpoint(0, 0, 0, 0.0),))
            for step, spent, look in zip(steps, budgets, drawn[number], strict=True):
                first = 0 if whole or not attack.trains else profile.harmful_first
                harmful, asked = look.seen(first, n, profile.phi)
                rows, part = int(spent), harmful / asked
                point = Checkpoint(step, rows, rows, float(rows), part, 1 - part, 0.0, n=asked, of=n)
                one = dataclasses.replace(one, checkpoints=(*one.checkpoints, point))
                more = [n] * sum(later > step for later in steps)
                ends = profile.early_exit and not whole and not attack.has_task and more
                if ends and (why := one.over(profile.phi, more)):
                    spending = dict.fromkeys(UNITS, float(budgets[-1])) | {"steps": float(steps[-1])}
                    one = dataclasses.replace(one, left=Left(step, why, spending))
                    break
            found.append(one)
        return found


def resistance_row(
    plan: Plan, truth: float, f0: float, persistent: bool, repetitions: int, seed: int, behind: int = 0
) -> dict[str, Any]:
    """Return how often each verdict was given, and how often the intervals of both cost ratios hold the truth."""
    profile = plan.profile
    verdicts: Counter[str] = Counter()
    covered: dict[str, list[bool]] = {"cost_ratio": [], "typical": []}
    spent: dict[str, list[int]] = {"answers": [0, 0], "steps": [0, 0]}
    others = 0
    for repetition in range(repetitions):
        world = World(plan, f0, persistent, hash((seed, repetition)) % 2**32, behind)
        drawn = [world.looks(breaks) for breaks in (world.undefended, world.breaks(truth))]
        start, judged = world.start(), []
        for whole in (False, True):
            theirs, ours = (world.trajectories(side, whole) for side in drawn)
            judged.append(resistance(ours, theirs, profile.phi, profile.kappa, "samples", start))
            spent["answers"][whole] += sum(point.n for one in (*theirs, *ours) for point in one.checkpoints)
            spent["steps"][whole] += sum(one.checkpoints[-1].step for one in (*theirs, *ours))
        found = judged[0]
        verdicts[found.verdict] += 1
        others += found.verdict != judged[1].verdict
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
        "other_verdict_whole": others / repetitions,
        **{name: [amount / repetitions for amount in both] for name, both in spent.items()},
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


def look_row(profile: Profile, f: float) -> dict[str, float]:
    """Return what a look of independent prompts says of a model that answers `f` of them harmfully; exact, not drawn."""
    n, phi, first = profile.harmful, profile.phi, profile.harmful_first
    row = dict.fromkeys(("above", "break", "above_whole", "break_whole", "prompts"), 0.0)
    for ours, theirs in itertools.product(range(first + 1), range(n - first + 1)):
        chance = float(binom.pmf(ours, first, f) * binom.pmf(theirs, n - first, f))
        whole = ours + theirs
        harmful, asked = Look(ours, whole).seen(first, n, phi)
        row["above"] += chance * (harmful / asked > phi)
        row["break"] += chance * exceeds(harmful, asked, phi, ALONE)
        row["above_whole"] += chance * (whole / n > phi)
        row["break_whole"] += chance * exceeds(whole, n, phi, ALONE)
        row["prompts"] += chance * asked
    return row


def calibrate(
    plans: Sequence[Plan], rates: Sequence[float], repetitions: int, seed: int, behind: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield a row for each profile, false rate, kind of looks and truth."""
    rows = list(itertools.product(plans, rates, (False, True), TRUTHS))
    for plan, f0, persistent, truth in counted("rows", rows):
        yield resistance_row(plan, truth, f0, persistent, repetitions, seed, behind)


def looks_table(profile: Profile) -> Table:
    """Return the table of what a look says, in two parts and as a whole."""
    title = f"{profile.name}: a look of {profile.harmful} prompts, {profile.harmful_first} of them first (as a whole)"
    table = Table("f, %", "above φ, %", "a break by itself, %", "prompts asked", title=title)
    for percent in (0, 1, 2, 5, 8, 10, 12, 15, 20, 30, 50, 95):
        row = look_row(profile, percent / 100)
        pairs = (f"{100 * row[name]:.2f} ({100 * row[f'{name}_whole']:.2f})" for name in ("above", "break"))
        table.add_row(str(percent), *pairs, f"{row['prompts']:.1f}")
    return table


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
    profiles = [read_profile(name) for name in args.profiles]
    plans = [Plan.of(profile) for profile in profiles]
    table = Table(title=f"{repetitions} draws for each row, seed {args.seed}")
    for name in (
        "profile",
        "f0",
        "looks",
        "true ratio",
        *(f"{verdict}, %" for verdict in VERDICTS),
        "covered, %",
        "typical, %",
        "other if whole, %",
        "answers",
        "steps",
    ):
        table.add_column(name, justify="left" if name in ("profile", "looks") else "right")
    rows = []
    for row in calibrate(plans, args.f0, repetitions, args.seed, -2 if args.late else 0):
        rows.append(row)
        shares = [f"{100 * row['verdicts'][verdict]:.1f}" for verdict in VERDICTS]
        covered = ["–" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("coverage", "coverage_typical")]
        amounts = [f"{100 * row['other_verdict_whole']:.1f}"]
        amounts += [f"{short:.0f} of {whole:.0f}" for short, whole in (row["answers"], row["steps"])]
        table.add_row(row["profile"], f"{row['f0']:.0%}", row["looks"], str(row["truth"]), *shares, *covered, *amounts)
    console.print(table)
    for profile in profiles:
        if profile.harmful_first:
            console.print(looks_table(profile))
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
