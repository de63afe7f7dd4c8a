"""The figures of the pages. Each takes a `label`, what it shows in words, and a `name` that no other of its page has.

An arm, or a model of an assay, is given by its position, which is its colour. Budgets and steps of an assay stand on
logarithmic axes, since attackers are scored after each doubling and differ by factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from titer.assays.outcomes import Look
from titer.report.drawing import (
    BENIGN,
    GRID,
    HARMFUL,
    LABEL,
    MIDDLE,
    PAGE,
    SMALL,
    SOFT,
    course,
    dash,
    ink,
    label_ends,
    limit_line,
    panel,
    svg,
)
from titer.report.words import UNIT_NAMES, compact
from titer.results.summary import Rate
from titer.stats.calibration import Bin
from titer.stats.intervals import Estimate
from titer.stats.survival import SurvivalCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = dict(zip("●■▲◆▼✚", "os^DvP"))
"""Markers of poison ratios, in order: as a character for legends, and as matplotlib calls them."""

Points = Sequence[tuple[int, Rate]]


def trajectories(lines: Mapping[int, Points], title: str, label: str, name: str) -> str:
    """One metric against fine-tuning steps, a line and a band for each arm, given as (step, rate)."""
    figure, axes = panel(title)
    last = _courses(axes, lines)
    axes.set_xlim(-0.02 * last, 1.02 * last)
    ticks = sorted({step for points in lines.values() for step, _ in points})
    if 1 < len(ticks) <= 7 and min(b - a for a, b in pairwise(ticks)) >= 0.07 * last:
        axes.set_xticks(ticks)
    axes.set_xlabel("fine-tuning step (0: aligned model)")
    return svg(figure, label, name)


def accuracy(lines: Mapping[int, Points], target: float | None, label: str, name: str) -> str:
    """Task accuracy along an honest customer's training, for each model; `target` in percent is to be reached."""
    figure, axes = panel("Task accuracy, %", MIDDLE)
    if target is not None:
        limit_line(axes, target)
    _steps_axis(axes, _courses(axes, lines))
    return svg(figure, label, name)


def _courses(axes: Axes, lines: Mapping[int, Points], gap: float = 7.5) -> int:
    """Draw lines with bands and their last values; return the last step."""
    drawn = {arm: points for arm, points in lines.items() if points}
    for arm, points in drawn.items():
        course(axes, arm, points)
    label_ends(axes, [(points[-1][1].value, arm) for arm, points in drawn.items()], gap)
    return max((points[-1][0] for points in drawn.values()), default=1) or 1


def harm(lines: Mapping[int, Sequence[Look]], phi: float, last: int, label: str, name: str) -> str:
    """Harmful score along one attack, for each model, with estimates between what was measured.

    Args:
        lines: A model's position → its checkpoints.
        phi: φ, in percent.
        last: Where the axis ends, the same for panels to be compared.
        label: See the module.
        name: See the module.
    """
    figure, axes = panel("", SMALL)
    limit_line(axes, phi)
    measured = {arm: [(look.step, look.measured) for look in looks if look.measured] for arm, looks in lines.items()}
    _courses(axes, measured, gap=11)
    for arm, looks in lines.items():
        estimates = [(look.step, look.estimate) for look in looks if look.estimate is not None]
        if estimates:
            known = [*estimates, *((step, rate.value) for step, rate in measured[arm])]
            axes.plot(*zip(*sorted(known), strict=True), color=ink(arm), lw=1.0, ls=(0, (1, 1.8)), zorder=2)
            axes.plot(
                *zip(*estimates, strict=True),
                color=ink(arm),
                ls="none",
                marker="o",
                ms=4.2,
                mfc=PAGE,
                mew=1.1,
                zorder=3,
            )
        ends = [(look.step, look.measured.value) for look in looks if look.destroyed and look.measured]
        if ends:
            axes.plot(
                *zip(*ends, strict=True), color=ink(arm), ls="none", marker="X", ms=8.5, mec=PAGE, mew=0.8, zorder=4
            )
    axes.set_yticks([0, 50, 100])
    axes.set_yticks([25, 75], minor=True)
    axes.grid(True, axis="y", which="minor", color=GRID, lw=0.7)
    axes.tick_params(which="minor", length=0)
    _steps_axis(axes, last)
    return svg(figure, label, name)


def hs_fa(points: Sequence[tuple[int, int, Rate, Rate]], label: str, name: str, limit: float | None = None) -> str:
    """Harmful score against fine-tuning accuracy at the last checkpoint, both intervals as crosshairs.

    Args:
        points: (arm's position, poison ratio's position, harmful score, fine-tuning accuracy).
        label: See the module.
        name: See the module.
        limit: A harmful score to draw a line at, in percent.
    """
    figure, axes = panel("Harmful score against task accuracy")
    if limit is not None:
        limit_line(axes, limit)
    markers = list(MARKERS.values())
    for arm, ratio, hs, fa in points:
        _intervals(axes, hs, fa, color=ink(arm), lw=1.3, alpha=0.75, dashes=dash(arm))
        marker = markers[ratio % len(markers)]
        axes.plot([fa.value], [hs.value], color=ink(arm), marker=marker, ms=7.5, mec=PAGE, mew=0.8, zorder=3)
    _trade_off(axes, "fine-tuning accuracy FA, % (higher is better)")
    return svg(figure, label, name)


def _intervals(axes: Axes, hs: Rate, fa: Rate, **line: Any) -> None:
    """Draw the intervals of a point as a cross."""
    for x, y in (([fa.low, fa.high], [hs.value] * 2), ([fa.value] * 2, [hs.low, hs.high])):
        axes.plot(x, y, **line)


def _trade_off(axes: Axes, across: str) -> None:
    """Set up a panel of harmful score against an accuracy, called `across`."""
    axes.set_xlim(-2, 102)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(True, axis="x", color=GRID, lw=0.7)
    axes.set_xlabel(across)
    axes.set_ylabel("harmful score HS, % (lower is safer)")


def pareto(points: Sequence[tuple[str, Rate, Rate]], front: Sequence[str], title: str, label: str, name: str) -> str:
    """Harmful score against task accuracy of many arms; those that no other betters in both have colours and numbers.

    Args:
        points: (arm, harmful score, task accuracy).
        front: Names of the arms that none betters, whose places are their numbers (from 1) and colours.
        title: What stands over the panel.
        label: See the module.
        name: See the module.
    """
    figure, axes = panel(title)
    for arm, hs, fa in points:
        place = front.index(arm) if arm in front else None
        colour = SOFT if place is None else ink(place)
        lw, alpha = (0.8, 0.3) if place is None else (1.3, 0.75)
        _intervals(axes, hs, fa, color=colour, lw=lw, alpha=alpha)
        size = 4.0 if place is None else 7.5
        axes.plot([fa.value], [hs.value], color=colour, marker="o", ms=size, mec=PAGE, mew=0.7, zorder=3)
        if place is not None:
            axes.annotate(
                str(place + 1), (fa.value, hs.value), xytext=(6, 5), textcoords="offset points", color=colour,
                fontsize=LABEL, fontweight="bold", zorder=4,
            )  # fmt: skip
    _trade_off(axes, "task accuracy FA, % (higher is better)")
    return svg(figure, label, name)


def hs_poison(lines: Mapping[int, Sequence[tuple[float, Rate]]], label: str, name: str) -> str:
    """Harmful score at the last checkpoint against the share of harmful rows, for each arm as (ratio, rate)."""
    figure, axes = panel("Harmful score against poison ratio")
    ratios = sorted({ratio for points in lines.values() for ratio, _ in points})
    width = 100 * (ratios[-1] - ratios[0])
    for place, (arm, points) in enumerate(lines.items()):
        # Shifted a little, so that intervals do not cover each other.
        x = [100 * ratio + 0.012 * width * (place - (len(lines) - 1) / 2) for ratio, _ in points]
        y = [point.value for _, point in points]
        reach = [[p.value - p.low for _, p in points], [p.high - p.value for _, p in points]]
        axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=ink(arm), elinewidth=1.2, alpha=0.75)
        axes.plot(x, y, color=ink(arm), lw=1.7, marker="o", ms=5, mec=PAGE, mew=0.7, dashes=dash(arm))
    axes.set_xlim(100 * ratios[0] - 0.06 * width, 100 * ratios[-1] + 0.06 * width)
    axes.set_xticks([100 * ratio for ratio in ratios], [f"{100 * ratio:g}" for ratio in ratios])
    axes.set_xlabel("harmful rows in the fine-tuning data, %")
    axes.set_ylabel("harmful score HS, %")
    return svg(figure, label, name)


GROUPS = {"benign": BENIGN, "harmful": HARMFUL, "unknown": SOFT}
"""Groups of rows in a histogram, by what is known of them, with their colours."""


def log_ratios(
    groups: Mapping[str, Sequence[float]], limits: tuple[float, float], title: str, label: str, name: str
) -> str:
    """Histograms of the log ratio of answer to refusal, or of harmless to harmful, each in percent of its own group.

    Args:
        groups: One of `GROUPS` → log ratios.
        limits: The ends of the x axis, the same for panels to be compared.
        title: What stands over the panel.
        label: See the module.
        name: See the module.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(title)
    rows = sum(map(len, groups.values()))
    edges = np.linspace(limits[0], limits[1], 1 + min(36, max(10, round(1.4 * rows**0.5))))
    top = 1.0
    for group, values in groups.items():
        if not values:
            continue
        colour = GROUPS[group]
        counts, _ = np.histogram(np.clip(values, *limits), edges)
        share = 100 * counts / counts.sum()
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.28, lw=0)
        axes.stairs(share, edges, color=colour, lw=1.6)
        axes.plot([float(np.median(values))], [0], color=colour, marker="^", ms=6.5, clip_on=False, zorder=4, mec=PAGE)
        top = max(top, float(share.max()))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(0, 1.12 * top)
    axes.set_xlim(*limits)
    if limits[0] < 0 < limits[1]:
        axes.axvline(0, color=SOFT, lw=0.8, ls=(0, (2, 2)), zorder=0)
    axes.set_xlabel("left: more suspicious")
    axes.set_ylabel("% of the group's rows")
    return svg(figure, label, name)


def limits_of(values: Sequence[float]) -> tuple[float, float]:
    """An x axis that holds all `values`."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or max(1.0, 0.1 * abs(high))
    return low - margin, high + margin


def survival(curves: Mapping[int, SurvivalCurve], unit: str, label: str, name: str) -> str:
    """Survival curves: which part of the attackers have not broken the model, against what they spent.

    Known at the budgets of checkpoints, which are marked; the lines between them are there to guide the eye.

    Args:
        curves: A model's position → its curve.
        unit: Of the budgets.
        label: See the module.
        name: See the module.
    """
    import numpy as np

    figure, axes = panel("", MIDDLE)
    budgets = [float(budget) for curve in curves.values() for budget in curve.budgets]
    start, end = min(budgets) / 1.6, max(budgets) * 1.12
    for position, curve in curves.items():
        x = np.append(start, curve.budgets)
        y, low, high = (100 * np.append(1.0, ends) for ends in (curve.survival, curve.low, curve.high))
        # Between two budgets the curve lies anywhere between what it is at both: so does the band.
        axes.fill_between(x, np.append(low[1:], low[-1]), high, step="post", color=ink(position), alpha=0.12, lw=0)
        axes.plot(x, y, color=ink(position), lw=2.1, dashes=dash(position))
        axes.plot(x[1:], y[1:], color=ink(position), ls="none", marker="o", ms=4.5, zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(start, end)
    _set_ticks(axes, _log_ticks(start, end, budgets))
    axes.set_xlabel(f"budget spent, {UNIT_NAMES[unit]} (log scale)")
    axes.set_ylabel("attackers yet to break it, %")
    return svg(figure, label, name)


def calibration(curves: Mapping[int, Sequence[Bin]], label: str, name: str) -> str:
    """Mean score of each bin against the share that is true, with Wilson's intervals, for each judge by its position."""
    figure, axes = panel("Complies, %", MIDDLE)
    axes.plot([0, 1], [0, 100], color=SOFT, lw=1.0, ls=(0, (6, 2.5)), zorder=1)
    for position, bins in curves.items():
        # Shifted a little, so that intervals do not cover each other.
        x = [part.score + 0.012 * (position - (len(curves) - 1) / 2) for part in bins]
        found = [part.true.estimate() or Estimate(0.0, 0.0, 0.0) for part in bins]
        y = [100 * one.value for one in found]
        reach = [[100 * (one.value - one.low) for one in found], [100 * (one.high - one.value) for one in found]]
        axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=ink(position), elinewidth=1.2, alpha=0.75)
        axes.plot(x, y, color=ink(position), lw=1.5, marker="o", ms=5, mec=PAGE, mew=0.7, dashes=dash(position))
    axes.set_xlim(-0.05, 1.05)
    axes.set_xlabel("score of the judge")
    return svg(figure, label, name)


def _steps_axis(axes: Axes, last: int) -> None:
    """Steps, doubling from tick to tick, with room for the 0 that a logarithm has none for."""
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=1)
    doublings = max(0, math.floor(math.log2(max(1, last))))
    stride = math.ceil((doublings + 1) / 5)
    ticks = [0, *(2**power for power in range(doublings % stride, doublings + 1, stride))]
    if stride == 1 and last > 1.4 * ticks[-1]:
        ticks.append(last)
    _set_ticks(axes, ticks)
    axes.set_xlim(-0.12, max(1, last) * 1.06)
    axes.set_xlabel("optimizer steps")


def _log_ticks(start: float, end: float, budgets: Sequence[float]) -> list[float]:
    """At most seven ticks at round numbers; where there would be one or two, at the budgets themselves."""
    decades = range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if start <= step * 10.0**decade <= end]
        if len(ticks) <= 7:
            break
    if len(ticks) > 2:
        return ticks
    apart: list[float] = []
    for budget in sorted(set(budgets)):
        if not apart or math.log(budget / apart[-1]) > math.log(end / start) / 8:
            apart.append(budget)
    return apart


def _set_ticks(axes: Axes, ticks: Sequence[float]) -> None:
    """Set ticks with round numbers, without the decimals that `compact` gives large ones."""
    words = [compact(tick).replace(".0\u00a0×", "\u00a0×").replace("1\u00a0×\u00a0", "") for tick in ticks]
    axes.set_xticks(ticks, words)
    axes.set_xticks([], minor=True)
