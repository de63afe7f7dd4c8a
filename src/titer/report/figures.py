"""The figures of the report: matplotlib drawings as SVG that take their colours from the page.

A figure is drawn in placeholder colours, which `svg` turns into CSS variables (`--arm-0`, `--ink`, …). One drawing
thus serves light, dark and print, and an arm has the same colour wherever it appears. Text stays text. matplotlib is
imported inside the functions, without pyplot and its global state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from titer.report.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARM_COLOURS = 7  # of Okabe and Ito's eight; the page defines --arm-0 … --arm-6 in light and dark
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1.5), (8, 2), (1, 3))
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Placeholders that `svg` turns into colours of the page.
INK, SOFT, GRID, PAGE = "#010101", "#020202", "#030303", "#040404"
_BENIGN, _HARMFUL = "#050505", "#060606"
_VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    GRID: "--grid",
    PAGE: "--card",
    _BENIGN: "--benign",
    _HARMFUL: "--harmful",
}
LIMIT_DASH = (0, (6, 2.5))  # of a line at a threshold
SIZE = (4.7, 3.1)  # inches, of 72 units; a phone shows them in about as many pixels
TITLE, LABEL = 11.0, 10.5  # units; what is drawn wider than SIZE cannot be read on a phone


def arm_colour(position: int) -> str:
    """The CSS colour of the arm at `position`."""
    return f"var(--arm-{position % ARM_COLOURS})"


def arm_swatch(position: int) -> str:
    """A short line in the arm's colour and dash pattern, for legends."""
    dash = " ".join(f"{1.5 * length:g}" for length in _DASHES[position % len(_DASHES)])
    return (
        '<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true">'
        f'<line x1="1" y1="5" x2="33" y2="5" stroke="{arm_colour(position)}" stroke-width="2.6"'
        f' stroke-dasharray="{dash or "none"}"/>'
        f'<circle cx="17" cy="5" r="3.6" fill="{arm_colour(position)}"/></svg>'
    )


def ratio_marker(position: int) -> str:
    """The marker of a poison ratio in `hs_fa`, as a character for legends."""
    return "●■▲◆▼✚"[position % len(_MARKERS)]


def trajectories(lines: Mapping[int, Sequence[tuple[int, Estimate]]], title: str, label: str, name: str) -> str:
    """One metric against fine-tuning steps, a line and a band for each arm.

    Args:
        lines: An arm's position → its (step, estimate) points.
        title: What stands over the panel.
        label: What the figure shows, in words, for those who cannot see it.
        name: A name that no other figure of the page has.
    """
    figure, axes = panel(title)
    ends: list[tuple[float, int]] = []
    last = 1
    for arm, points in lines.items():
        if not points:
            continue
        course(axes, arm, points)
        last = max(last, points[-1][0])
        ends.append((points[-1][1].value, arm))
    axes.set_xlim(-0.02 * last, 1.02 * last)
    ticks = sorted({step for points in lines.values() for step, _ in points})
    if 1 < len(ticks) <= 7 and min(b - a for a, b in pairwise(ticks)) >= 0.07 * last:
        axes.set_xticks(ticks)
    label_ends(axes, ends)
    axes.set_xlabel("fine-tuning step (0: aligned model)")
    return svg(figure, label, name)


def hs_fa(
    points: Sequence[tuple[int, int, Estimate, Estimate]], label: str, name: str, limit: float | None = None
) -> str:
    """Harmful score against fine-tuning accuracy at the last checkpoint, both intervals as crosshairs.

    Args:
        points: (arm's position, poison ratio's position, harmful score, fine-tuning accuracy).
        label: What the figure shows, in words.
        name: A name that no other figure of the page has.
        limit: A harmful score to draw a line at, in percent.
    """
    figure, axes = panel("Harmful score against task accuracy")
    if limit is not None:
        axes.axhline(limit, color=SOFT, lw=1.0, ls=LIMIT_DASH, zorder=1)
    for arm, ratio, harmful, accuracy in points:
        colour = arm_ink(arm)
        axes.plot(
            [accuracy.low, accuracy.high], [harmful.value] * 2, color=colour, lw=1.3, alpha=0.75, dashes=arm_dash(arm)
        )
        axes.plot(
            [accuracy.value] * 2, [harmful.low, harmful.high], color=colour, lw=1.3, alpha=0.75, dashes=arm_dash(arm)
        )
        axes.plot(
            [accuracy.value],
            [harmful.value],
            color=colour,
            marker=_MARKERS[ratio % len(_MARKERS)],
            ms=7.5,
            mec=PAGE,
            mew=0.8,
            zorder=3,
        )
    axes.set_xlim(-2, 102)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(True, axis="x", color=GRID, lw=0.7)
    axes.set_xlabel("fine-tuning accuracy FA, % (higher is better)")
    axes.set_ylabel("harmful score HS, % (lower is safer)")
    return svg(figure, label, name)


def hs_poison(lines: Mapping[int, Sequence[tuple[float, Estimate]]], label: str, name: str) -> str:
    """Harmful score at the last checkpoint against the share of harmful rows in the upload.

    Args:
        lines: An arm's position → its (poison ratio, estimate) points.
        label: What the figure shows, in words.
        name: A name that no other figure of the page has.
    """
    figure, axes = panel("Harmful score against poison ratio")
    ratios = sorted({ratio for points in lines.values() for ratio, _ in points})
    width = 100 * (ratios[-1] - ratios[0])
    for place, (arm, points) in enumerate(lines.items()):
        # Shifted a little, so that intervals do not cover each other.
        x = [100 * ratio + 0.012 * width * (place - (len(lines) - 1) / 2) for ratio, _ in points]
        y = [point.value for _, point in points]
        reach = [[p.value - p.low for _, p in points], [p.high - p.value for _, p in points]]
        axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=arm_ink(arm), elinewidth=1.2, alpha=0.75)
        axes.plot(x, y, color=arm_ink(arm), lw=1.7, marker="o", ms=5, mec=PAGE, mew=0.7, dashes=arm_dash(arm))
    axes.set_xlim(100 * ratios[0] - 0.06 * width, 100 * ratios[-1] + 0.06 * width)
    axes.set_xticks([100 * ratio for ratio in ratios], [f"{100 * ratio:g}" for ratio in ratios])
    axes.set_xlabel("harmful rows in the fine-tuning data, %")
    axes.set_ylabel("harmful score HS, %")
    return svg(figure, label, name)


def log_ratios(
    benign: Sequence[float],
    harmful: Sequence[float],
    limits: tuple[float, float],
    title: str,
    label: str,
    name: str,
    unknown: Sequence[float] = (),
) -> str:
    """Two histograms of the log-likelihood ratio, each in percent of its own group.

    Args:
        benign: Log ratios of the rows that are known to be harmless.
        harmful: Log ratios of the rows that are known to be harmful.
        limits: The ends of the x axis; pass the same for panels to be compared.
        title: What stands over the panel.
        label: What the figure shows, in words.
        name: A name that no other figure of the page has.
        unknown: Log ratios of rows of unknown origin.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(title)
    rows = len(benign) + len(harmful) + len(unknown)
    edges = np.linspace(limits[0], limits[1], 1 + min(36, max(10, round(1.4 * rows**0.5))))
    top = 1.0
    for values, colour in ((benign, _BENIGN), (harmful, _HARMFUL), (unknown, SOFT)):
        if not len(values):
            continue
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
    axes.set_xlabel("log r (left: a refusal is likelier)")
    axes.set_ylabel("% of the group's rows")
    return svg(figure, label, name)


def log_ratio_limits(values: Sequence[float]) -> tuple[float, float]:
    """An x axis that holds all `values`."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or max(1.0, 0.1 * abs(high))
    return low - margin, high + margin


def arm_ink(position: int) -> str:
    """The placeholder in which an arm is drawn; `svg` turns it into the arm's colour."""
    return f"#0a0a{position % ARM_COLOURS:02x}"


def arm_dash(position: int) -> tuple[float, ...] | tuple[None, None]:
    """The dash pattern of an arm's lines, so that arms differ without colour too."""
    return _DASHES[position % len(_DASHES)] or (None, None)


def course(axes: Axes, arm: int, points: Sequence[tuple[int, Estimate]]) -> None:
    """Draw one arm's line by step, with its band."""
    x = [step for step, _ in points]
    colour = arm_ink(arm)
    axes.fill_between(x, [p.low for _, p in points], [p.high for _, p in points], color=colour, alpha=0.11, lw=0)
    axes.plot(x, [p.value for _, p in points], color=colour, lw=1.9, marker="o", ms=3.6, dashes=arm_dash(arm))


def label_ends(axes: Axes, ends: Sequence[tuple[float, int]], gap: float = 7.5) -> None:
    """Write the last value of each line at the right, in its arm's colour.

    Args:
        axes: A panel whose y axis is in percent.
        ends: (value in percent, arm's position).
        gap: Least distance between two labels, in percent of the axis.
    """
    heights = _spread([value for value, _ in sorted(ends)], gap)
    # Within the axes, so that panels beside each other are laid out alike.
    heights = [
        min(height, 98 - gap * above) for above, height in zip(range(len(ends) - 1, -1, -1), heights, strict=True)
    ]
    heights = [max(height, 2 + gap * below) for below, height in enumerate(heights)]
    for (value, arm), height in zip(sorted(ends), heights, strict=True):
        axes.annotate(
            f"{value:.1f}",
            (1.0, height / 100),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=arm_ink(arm),
            va="center",
            fontsize=LABEL,
            fontweight="bold",
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending `heights` apart until neighbours are `gap` from each other, each group about its own middle."""
    groups: list[tuple[float, int]] = []  # (middle, how many)
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1:
            (low, below), (high, above) = groups[-2:]
            if high - low >= gap * (below + above) / 2:
                break
            groups[-2:] = [((low * below + high * above) / (below + above), below + above)]
    return [middle + gap * (place - (count - 1) / 2) for middle, count in groups for place in range(count)]


def panel(title: str, size: tuple[float, float] = SIZE) -> tuple[Any, Axes]:
    """An empty drawing of `size` inches in the report's style, its y axis in percent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_title(title, loc="left", fontsize=TITLE, fontweight="bold", color=INK, pad=9, parse_math=False)
    axes.set_ylim(-2, 102)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(True, axis="y", color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelcolor=SOFT, labelsize=LABEL, length=0, pad=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=SOFT, fontsize=LABEL)
    return figure, axes


def svg(figure: Any, label: str, name: str) -> str:
    """The drawing as an `<svg>` for inlining: page colours, page font, unique ids, nothing that points outside."""
    import io

    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<style[^>]*>.*?</style>", "", drawing, flags=re.DOTALL)  # it would apply to the whole page
    drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', drawing)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    opening = f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{escape(label, quote=True)}">'
    drawing = re.sub(r"^<svg[^>]*>", lambda _: opening, drawing)
    drawing = drawing.replace("xlink:href=", "href=")
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = drawing.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    drawing = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", drawing)
    for placeholder, variable in _VARIABLES.items():
        drawing = drawing.replace(placeholder, f"var({variable})")
    for position in range(ARM_COLOURS):
        drawing = drawing.replace(arm_ink(position), arm_colour(position))
    return drawing.strip()


def finite(values: Sequence[float]) -> list[float]:
    """The finite ones of `values`."""
    return [value for value in values if math.isfinite(value)]
