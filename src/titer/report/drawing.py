"""Drawings that take their colours from the page: matplotlib's, as SVG, and small ones that stand in the text.

A figure is drawn in placeholder colours, which `svg` turns into CSS variables (`--arm-0`, `--ink`, …). One drawing
thus serves light, dark and print, and an arm has the same colour wherever it appears. Text stays text. matplotlib is
imported inside the functions, without pyplot and its global state.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from titer.results.summary import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARM_COLOURS = 7  # of Okabe and Ito's eight; the page defines --arm-0 … --arm-6 in light and dark
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1.5), (8, 2), (1, 3))
# Placeholders that `svg` turns into colours of the page.
INK, SOFT, GRID, PAGE, BENIGN, HARMFUL = (f"#0{n}0{n}0{n}" for n in range(1, 7))
_VARIABLES = dict(zip((INK, SOFT, GRID, PAGE, BENIGN, HARMFUL), ("ink", "soft", "grid", "card", "benign", "harmful")))
# Inches, of 72 units; a phone shows WIDE in about as many pixels, and two or three of the others stand beside each other.
WIDE, MIDDLE, SMALL = (4.7, 3.1), (4.2, 2.8), (3.45, 2.15)
TITLE, LABEL = 11.0, 10.5  # units; what is drawn wider than WIDE cannot be read on a phone


def arm_colour(position: int) -> str:
    """The CSS colour of the arm at `position`."""
    return f"var(--arm-{position % ARM_COLOURS})"


def ink(position: int) -> str:
    """The placeholder in which an arm is drawn; `svg` turns it into the arm's colour."""
    return f"#0a0a{position % ARM_COLOURS:02x}"


def dash(position: int) -> tuple[float, ...] | tuple[None, None]:
    """The dash pattern of an arm's lines, so that arms differ without colour too."""
    return DASHES[position % len(DASHES)] or (None, None)


def panel(title: str, size: tuple[float, float] = WIDE) -> tuple[Any, Axes]:
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


def limit_line(axes: Axes, value: float) -> None:
    """Draw the line of a threshold, in percent."""
    axes.axhline(value, color=SOFT, lw=1.0, ls=(0, (6, 2.5)), zorder=1)


def course(axes: Axes, arm: int, points: Sequence[tuple[int, Rate]]) -> None:
    """Draw one arm's line by step, with its band."""
    x = [step for step, _ in points]
    axes.fill_between(x, [p.low for _, p in points], [p.high for _, p in points], color=ink(arm), alpha=0.11, lw=0)
    axes.plot(x, [p.value for _, p in points], color=ink(arm), lw=1.9, marker="o", ms=3.6, dashes=dash(arm))


def label_ends(axes: Axes, ends: Sequence[tuple[float, int]], gap: float = 7.5) -> None:
    """Write the last value of each line at the right, in its arm's colour, so that no two cover each other.

    Args:
        axes: A panel whose y axis is in percent.
        ends: (value in percent, arm's position).
        gap: Least distance between two labels, in percent of the axis.
    """
    from scipy.optimize import isotonic_regression

    ordered = sorted(ends)
    if not ordered:
        return
    # The heights nearest to the values of which each is a gap above the one before: less its gaps, an ascending sequence.
    nearest = isotonic_regression([value - gap * place for place, (value, _) in enumerate(ordered)]).x
    most = 98 - gap * (len(ordered) - 1)
    for place, ((value, arm), height) in enumerate(zip(ordered, nearest, strict=True)):
        axes.annotate(
            f"{value:.1f}",
            (1.0, (max(2, min(height, most)) + gap * place) / 100),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=ink(arm),
            va="center",
            fontsize=LABEL,
            fontweight="bold",
        )


def svg(figure: Any, label: str, name: str) -> str:
    """The drawing as an `<svg>` for inlining: page colours, page font, unique ids, nothing that points outside.

    Args:
        figure: matplotlib's.
        label: What it shows, in words, for those who cannot see it.
        name: A name that no other figure of the page has.
    """
    import io

    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    # A style of its own would apply to the whole page.
    drawing = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
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
        drawing = drawing.replace(placeholder, f"var(--{variable})")
    for position in range(ARM_COLOURS):
        drawing = drawing.replace(ink(position), arm_colour(position))
    return drawing.strip()


# Small drawings that stand in the text -----------------------------------------------------------------------------


def _swatch(colour: str, dashes: str, inside: str = "") -> str:
    return (
        f'<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true"><line x1="1" y1="5" x2="33" y2="5" '
        f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>{inside}</svg>'
    )


def arm_swatch(position: int) -> str:
    """A short line in the arm's colour and dash pattern, for legends."""
    dashes = " ".join(f"{1.5 * length:g}" for length in DASHES[position % len(DASHES)])
    point = f'<circle cx="17" cy="5" r="3.6" fill="{arm_colour(position)}"/>'
    return _swatch(arm_colour(position), dashes or "none", point)


LIMIT_SWATCH = _swatch("var(--soft)", "8 3.5")
"""The line at φ or at a target."""
ESTIMATE_SWATCH = _swatch(
    "var(--soft)",
    "1.5 2.7",
    '<circle cx="17" cy="5" r="3.6" fill="var(--card)" stroke="var(--soft)" stroke-width="1.5"/>',
)
"""The hollow points of estimates."""


def dot(colour: str) -> str:
    """A dot in a colour of the page, for legends."""
    return f'<span class="dot" style="background: var(--{colour})"></span>'


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
