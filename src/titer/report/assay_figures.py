"""The figures of an assay's report, in the manner of `titer.report.figures`: the undefended model always in colour 0.

Steps and budgets stand on logarithmic axes, since attackers are scored after each doubling and differ by factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from titer.report.figures import (
    GRID,
    LIMIT_DASH,
    PAGE,
    SOFT,
    arm_colour,
    arm_dash,
    arm_ink,
    course,
    label_ends,
    panel,
    svg,
)
from titer.report.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITIONS = {"undefended": 0, "defended": 1}
UNIT_NAMES = {"steps": "optimizer steps", "samples": "samples", "tokens": "tokens", "flops": "FLOPs"}
_MIDDLE, _SMALL = (4.2, 2.8), (3.45, 2.15)  # inches; two or three of them stand beside each other
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


class HarmPoint(NamedTuple):
    """One checkpoint of an attack, over its seeds.

    Attributes:
        step: Optimizer steps.
        measured: Harmful score of generated answers, in percent; `None` where none were generated.
        estimate: Harmful score as calibrated on margins, in percent; not a measurement.
        destroyed: Whether most answers of a seed were broken.
    """

    step: int
    measured: Estimate | None
    estimate: float | None = None
    destroyed: bool = False


def compact(value: float) -> str:
    """A count as people read it: `1,536`, `48.2k`, `3.1M`, `3.2 × 10¹⁴`."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if abs(value) >= 1e9 or abs(value) < 1e-3:
        exponent = math.floor(math.log10(abs(value)))
        factor = value / 10.0**exponent
        if f"{factor:.1f}" == "10.0":
            factor, exponent = 1.0, exponent + 1
        return f"{factor:.1f}\u00a0×\u00a010{str(exponent).translate(_SUPERSCRIPTS)}".replace("-", "−")
    if abs(value) < 100 and value != round(value):
        return f"{value:.3g}"
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        # 999,960 would be rounded to 1000.0k.
        if abs(value) >= 0.9999 * size:
            return f"{value / size:.3g}{letter}"
    raise AssertionError("every number is in one of the cases above")


def survival(curves: Mapping[int, Mapping[str, Any]], unit: str, label: str, name: str) -> str:
    """Survival curves: which part of the attackers have not broken the model, against what they spent.

    Known at the budgets of checkpoints, which are marked; the lines between them are there to guide the eye.

    Args:
        curves: A model's position → its curve as in a scorecard (`SurvivalCurve` as plain data).
        unit: Of the budgets.
        label: What the figure shows, in words.
        name: A name that no other figure of the page has.
    """
    import numpy as np

    figure, axes = panel("", _MIDDLE)
    budgets = [float(budget) for curve in curves.values() for budget in curve["budgets"]]
    start, end = min(budgets) / 1.6, max(budgets) * 1.12
    for position, curve in curves.items():
        x = np.array([start, *curve["budgets"]], dtype=float)
        y, low, high = (100 * np.array([1.0, *curve[key]], dtype=float) for key in ("survival", "low", "high"))
        colour = arm_ink(position)
        # Between two budgets the curve lies anywhere between what it is at both: so does the band.
        axes.fill_between(x, np.append(low[1:], low[-1]), high, step="post", color=colour, alpha=0.12, lw=0)
        axes.plot(x, y, color=colour, lw=2.1, dashes=arm_dash(position))
        axes.plot(x[1:], y[1:], color=colour, ls="none", marker="o", ms=4.5, zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(start, end)
    ticks = _log_ticks(start, end, budgets)
    axes.set_xticks(ticks, [_tick(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"budget spent, {UNIT_NAMES[unit]} (log scale)")
    axes.set_ylabel("attackers yet to break it, %")
    return svg(figure, label, name)


def harm(lines: Mapping[int, Sequence[HarmPoint]], phi: float, last: int, label: str, name: str) -> str:
    """Harmful score along one attack, a line and a band for each model, with estimates between the measurements.

    Args:
        lines: A model's position → its checkpoints.
        phi: φ, in percent.
        last: Where the axis ends, the same for panels to be compared.
        label: What the figure shows, in words.
        name: A name that no other figure of the page has.
    """
    figure, axes = panel("", _SMALL)
    axes.axhline(phi, color=SOFT, lw=1.0, ls=LIMIT_DASH, zorder=1)
    ends: list[tuple[float, int]] = []
    for position, points in lines.items():
        colour = arm_ink(position)
        _course(axes, position, [(point.step, point.measured) for point in points if point.measured], ends)
        known = [(p.step, p.measured.value if p.measured else p.estimate) for p in points]
        if any(point.measured is None and point.estimate is not None for point in points):
            path = [(step, value) for step, value in known if value is not None]
            axes.plot(*zip(*path, strict=True), color=colour, lw=1.0, ls=(0, (1, 1.8)), zorder=2)
        for point in points:
            if point.measured is None and point.estimate is not None:
                axes.plot([point.step], [point.estimate], color=colour, marker="o", ms=4.2, mfc=PAGE, mew=1.1, zorder=3)
            elif point.measured is not None and point.destroyed:
                axes.plot(
                    [point.step], [point.measured.value], color=colour, marker="X", ms=8.5, mec=PAGE, mew=0.8, zorder=4
                )
    label_ends(axes, ends, gap=11)
    axes.set_yticks([0, 50, 100])
    axes.set_yticks([25, 75], minor=True)
    axes.grid(True, axis="y", which="minor", color=GRID, lw=0.7)
    axes.tick_params(which="minor", length=0)
    _steps_axis(axes, last)
    return svg(figure, label, name)


def accuracy(lines: Mapping[int, Sequence[tuple[int, Estimate]]], target: float | None, label: str, name: str) -> str:
    """Task accuracy along an honest customer's training, a line and a band for each model.

    Args:
        lines: A model's position → its (step, estimate) points.
        target: The accuracy to be reached, in percent.
        label: What the figure shows, in words.
        name: A name that no other figure of the page has.
    """
    figure, axes = panel("Task accuracy, %", _MIDDLE)
    if target is not None:
        axes.axhline(target, color=SOFT, lw=1.0, ls=LIMIT_DASH, zorder=1)
    ends: list[tuple[float, int]] = []
    for position, points in lines.items():
        _course(axes, position, points, ends)
    label_ends(axes, ends)
    _steps_axis(axes, max((points[-1][0] for points in lines.values() if points), default=1))
    return svg(figure, label, name)


def _course(axes: Axes, position: int, points: Sequence[tuple[int, Estimate]], ends: list[tuple[float, int]]) -> None:
    """Draw one model's line with its band, and note where it ends."""
    if not points:
        return
    course(axes, position, points)
    ends.append((points[-1][1].value, position))


def _steps_axis(axes: Axes, last: int) -> None:
    """Steps, doubling from tick to tick, with room for the 0 that a logarithm has none for."""
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=1)
    doublings = max(0, math.floor(math.log2(max(1, last))))
    stride = math.ceil((doublings + 1) / 5)
    ticks = [0, *(2**power for power in range(doublings % stride, doublings + 1, stride))]
    if stride == 1 and last > 1.4 * ticks[-1]:
        ticks.append(last)
    axes.set_xticks(ticks, [_tick(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
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


def _tick(value: float) -> str:
    """A round number, without the decimals that `compact` gives large ones."""
    return compact(value).replace(".0\u00a0×", "\u00a0×").replace("1\u00a0×\u00a0", "")


# Small drawings that stand in the text -----------------------------------------------------------------------------


def _swatch(inside: str) -> str:
    return f'<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true">{inside}</svg>'


def limit_swatch() -> str:
    """The line at φ or at a target, for legends."""
    return _swatch(
        '<line x1="1" y1="5" x2="33" y2="5" stroke="var(--soft)" stroke-width="1.6" stroke-dasharray="8 3.5"/>'
    )


def estimate_swatch() -> str:
    """The hollow points of estimates, for legends."""
    return _swatch(
        '<line x1="1" y1="5" x2="33" y2="5" stroke="var(--soft)" stroke-width="1.5" stroke-dasharray="1.5 2.7"/>'
        '<circle cx="17" cy="5" r="3.6" fill="var(--card)" stroke="var(--soft)" stroke-width="1.5"/>'
    )


def interval_strip(mean: float, low: float, high: float, margin: float) -> str:
    """A difference and its interval against the margin: the shaded band is ±ε, its middle no difference.

    Args:
        mean: The difference.
        low: Lower end of its interval.
        high: Upper end.
        margin: ε, in the same unit.
    """
    reach = max(2.0, *(1.1 * abs(end) / margin for end in (low, high)))

    def x(value: float) -> float:
        return round(100 + 96 * value / margin / reach, 1)

    return (
        '<svg class="strip" viewBox="0 0 200 24" aria-hidden="true">'
        f'<rect x="{x(-margin)}" y="2" width="{round(x(margin) - x(-margin), 1)}" height="20" rx="2" '
        'fill="var(--good)" fill-opacity=".13"/>'
        '<line x1="2" y1="12" x2="198" y2="12" stroke="var(--line)" stroke-width="1"/>'
        '<line x1="100" y1="4" x2="100" y2="20" stroke="var(--soft)" stroke-width="1" stroke-dasharray="2 2"/>'
        f'<line x1="{x(low)}" y1="12" x2="{x(high)}" y2="12" stroke="{arm_colour(1)}" stroke-width="3"/>'
        f'<circle cx="{x(mean)}" cy="12" r="5" fill="{arm_colour(1)}"/></svg>'
    )
