"""The drawings of the papers' pictures that no page of titer has: values spread out, and losses over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from titer.report.charts import limits_of
from titer.report.drawing import MIDDLE, arm_swatch, dash, ink, panel, svg
from titer.report.parts import Drawing

POINTS = 40
"""Most points of a line; of a longer training each is the mean of as many logged steps."""


def figure(drawings: Iterable[str], legend: Sequence[tuple[str, str]], caption: str) -> Drawing:
    """Return drawings beside each other under one legend, whose names anybody may have written."""
    marks = "".join(f"<li>{mark}{escape(name)}</li>" for mark, name in legend)
    return Drawing(f'<ul class="legend">{marks}</ul><div class="grid">{"".join(drawings)}</div>', caption)


def swatches(documents: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the legend of models, by their places."""
    return [(arm_swatch(place), str(one["name"])) for place, one in enumerate(documents)]


def slug(*words: str) -> str:
    """Return a name that no other drawing of the page has, for markup."""
    return "-".join("".join(letter if letter.isalnum() else "-" for letter in word) for word in words)


def ecdf(lines: Sequence[Sequence[float]], limits: tuple[float, float], title: str, name: str) -> str:
    """Which part of some values, a line for each model, is at most x, in percent on a logarithmic axis."""
    drawing, axes = panel(title, MIDDLE)
    for place, values in enumerate(lines):
        x = np.sort(values)
        axes.step(
            [limits[0], *x, limits[1]], [0, *(100 * np.arange(1, len(x) + 1) / len(x)), 100], where="post",
            color=ink(place), lw=1.9, dashes=dash(place),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_xlabel("gradient norm of a row (log scale)")
    axes.set_ylabel("rows at or below, %")
    _plain_ticks(axes, limits)
    return svg(drawing, f"Gradient norms of {title}: medians {', '.join(f'{median(one):.3g}' for one in lines)}.", name)


def _plain_ticks(axes: Any, limits: tuple[float, float]) -> None:
    """Put ticks at 1, 2 and 5 of each decade of a logarithmic axis; at 1 alone where there are many."""
    decades = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [
            step * 10.0**decade for decade in decades for step in steps if limits[0] <= step * 10.0**decade <= limits[1]
        ]
        if len(ticks) <= 7:
            break
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def losses(lines: Sequence[Sequence[tuple[float, float]]], from_zero: bool, title: str, label: str, name: str) -> str:
    """A loss over steps in nats a token, a line of (step, loss) for each model; with zero on its axis if `from_zero`."""
    drawing, axes = panel(title, MIDDLE)
    every: list[float] = []
    for place, line in enumerate(lines):
        many = math.ceil(len(line) / POINTS)
        points = [np.mean(line[start : start + many], axis=0) for start in range(0, len(line), many)]
        x, y = ([float(value) for value in column] for column in zip(*points, strict=True))
        axes.plot(x, y, color=ink(place), lw=1.7, marker="o", ms=3.2, dashes=dash(place))
        every += y
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(*limits_of([*every, 0.0] if from_zero else every))
    axes.set_xlabel("alignment step")
    axes.set_ylabel("nats a token")
    return svg(drawing, label, name)
