"""The console's charts as SVG in the colours of the page.

titer's reports draw with matplotlib, whose `style` attributes a strict content policy forbids and which would be loaded into
every server; these few shapes are written by hand, with attributes alone. Colours are variables of the page, so that one drawing
serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from titer.report.words import compact

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
COLOURS = ("--arm-1", "--arm-0", "--arm-2")
DASHES = ("none", "6 3", "2 3")


def lines(courses: Mapping[str, Points], across: str, label: str) -> Markup:
    """Curves over steps.

    Args:
        courses: A curve's name → its points (x, y); at most three.
        across: What the x axis is.
        label: What the chart shows, for those who cannot see it.
    """
    every = [point for points in courses.values() for point in points]
    (low, high), ticks = _axis([y for _, y in every])
    first, last = min(x for x, _ in every), max(x for x, _ in every)

    def place(x: float, y: float) -> tuple[float, float]:
        return _between(x, first, last, LEFT, WIDTH - RIGHT), _between(y, low, high, HEIGHT - BOTTOM, TOP)

    parts = [_grid(place(first, tick)[1], compact(tick)) for tick in ticks]
    for step in sorted({first, round((first + last) / 2), last}):
        parts.append(_text(place(step, low)[0], HEIGHT - BOTTOM + 18, f"{step:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, across, "middle"))
    for colour, dash, points in zip(COLOURS, DASHES, courses.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="var({colour})" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        if len(points) <= 40:
            parts += [_dot(*place(*point), colour) for point in points]
    return _svg(WIDTH, HEIGHT, label, parts)


def histogram(values: Sequence[float], limit: float | None, label: str) -> Markup:
    """How many of `values`, each in [0, 1], lie in each twentieth; `limit` is drawn as a line."""
    counts = [0] * 20
    for value in values:
        counts[min(19, int(20 * value))] += 1
    # Few harmful rows among thousands would not be seen on an even scale.
    top = math.log1p(max(counts))
    parts = [_grid(HEIGHT - BOTTOM, "0")]
    for place, count in enumerate(counts):
        height = (HEIGHT - BOTTOM - TOP - 14) * math.log1p(count) / top if count else 0
        x = _between(place / 20, 0, 1, LEFT, WIDTH - RIGHT)
        wide = (WIDTH - RIGHT - LEFT) / 20
        if count:
            colour = "--harmful" if place >= 10 else "--benign"
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{wide - 2:.1f}" height="{height:.1f}" '
                f'fill="var({colour})"/>'
            )
            parts.append(_text(x + wide / 2, HEIGHT - BOTTOM - height - 4, f"{count}", "middle"))
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(_between(tick, 0, 1, LEFT, WIDTH - RIGHT), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    if limit is not None:
        x = _between(limit, 0, 1, LEFT, WIDTH - RIGHT)
        parts.append(_limit(x, TOP, HEIGHT - BOTTOM))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "P(harmful)", "middle"))
    return _svg(WIDTH, HEIGHT, label, parts)


def intervals(figures: Mapping[str, Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]], label: str) -> Markup:
    """Rates in percent with their 95 % intervals, before and after, and the limits that they are held against.

    Args:
        figures: A metric's name for people → `value`, `low`, `high`, `limit` of the model.
        before: The same metrics of the model before, where they were measured.
        label: See `lines`.
    """
    row, left = 56, 122
    height = row * len(figures) + 30

    def across(value: float) -> float:
        return _between(value, 0, 100, left, WIDTH - 50)

    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = across(tick)
        parts.append(f'<line x1="{x}" x2="{x}" y1="4" y2="{height - 24}" stroke="var(--grid)"/>')
        parts.append(_text(x, height - 6, f"{tick} %", "middle"))
    for place, (name, figure) in enumerate(figures.items()):
        middle = row * place + row / 2
        parts.append(_text(0, middle + 4, name, "start", "--ink"))
        pair = ((before.get(name), -10, "--arm-6", "2 3"), (figure, 10, "--arm-1", "none"))
        for rate, shift, colour, dash in pair:
            if rate is None:
                continue
            y = middle + shift
            parts.append(
                f'<line x1="{across(rate["low"])}" x2="{across(rate["high"])}" y1="{y}" y2="{y}" '
                f'stroke="var({colour})" stroke-width="3" stroke-dasharray="{dash}"/>'
            )
            parts.append(_dot(across(rate["value"]), y, colour, 5))
            parts.append(_text(WIDTH, y + 4, f"{rate['value']:.1f}", "end", colour))
        if figure.get("limit") is not None:
            parts.append(_limit(across(figure["limit"]), middle - row / 2 + 6, middle + row / 2 - 6))
    return _svg(WIDTH, height, label, parts)


def _axis(values: Sequence[float]) -> tuple[tuple[float, float], list[float]]:
    """The ends of an axis that holds `values`, and four or so round ticks on it."""
    low, high = min(0.0, *values), max(values)
    reach = high - low or 1.0
    step = 10 ** math.floor(math.log10(reach / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if reach / (factor * step) <= 5)
    ticks = [step * place for place in range(math.floor(low / step), math.ceil((low + reach) / step) + 1)]
    return (ticks[0], ticks[-1]), ticks


def _between(value: float, low: float, high: float, start: float, end: float) -> float:
    return round(start + (end - start) * ((value - low) / (high - low) if high > low else 0.5), 1)


def _grid(y: float, text: str) -> str:
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="var(--grid)"/>'
    return line + _text(LEFT - 8, y + 4, text, "end")


def _limit(x: float, top: float, bottom: float) -> str:
    return f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" stroke="var(--bad)" stroke-width="2" stroke-dasharray="5 3"/>'


def _dot(x: float, y: float, colour: str, radius: float = 3) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="var({colour})"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "--soft") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="var({colour})" font-size="13">{escape(text)}</text>'


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> Markup:
    opening = f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}">'
    return Markup(opening + "".join(parts) + "</svg>")
