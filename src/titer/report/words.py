"""Numbers, texts and settings as people read them, for pages, terminal and Markdown alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

NBSP = "\u00a0"
UNIT_NAMES = {"steps": "optimizer steps", "samples": "samples", "tokens": "tokens", "flops": "FLOPs"}
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SHORT = 300  # characters of an answer that are shown before "whole answer"
_LONGEST = 20_000  # characters of an answer that are kept at all


def percent_text(value: float | None) -> str:
    """A part as percent, `12.5 %`; a dash where there is none."""
    return f"{100 * value:.1f}{NBSP}%" if value is not None and math.isfinite(value) else "–"


def interval_text(low: float, high: float, scale: float = 1, digits: int = 1) -> str:
    """An interval, `1.1–13.5`; open where an end is no number."""
    return "–".join(
        f"{scale * end:.{digits}f}" if math.isfinite(end) else mark for end, mark in ((low, "0"), (high, "∞"))
    )


def signed_text(value: float, digits: int = 1) -> str:
    """A difference with its sign, `−1.2`."""
    text = f"{value:+.{digits}f}"
    # −0.04 is rounded to nothing, and nothing has no sign.
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def signed_interval(low: float, high: float, digits: int = 1) -> str:
    """The interval of a difference, `+9.0 to +56.7`."""
    return f"{signed_text(low, digits)} to {signed_text(high, digits)}"


def ratio_text(poison_ratio: float | None) -> str:
    """A poison ratio as people read it: `20 % harmful`."""
    return "nothing scored" if poison_ratio is None else f"{100 * poison_ratio:g}{NBSP}% harmful"


def count_text(number: int, what: str) -> str:
    """A number of things, `1 seed`, `2 seeds`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def compact(value: float) -> str:
    """A count as people read it: `1,536`, `48.2k`, `3.1M`, `3.2 × 10¹⁴`."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if abs(value) >= 1e9 or abs(value) < 1e-3:
        factor, exponent = f"{value:.1e}".split("e")
        return f"{factor}{NBSP}×{NBSP}10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")
    if abs(value) < 100 and value != round(value):
        return f"{value:.3g}"
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    # 999,960 would be rounded to 1000.0k.
    size, letter = (1e6, "M") if abs(value) >= 0.9999e6 else (1e3, "k")
    return f"{value / size:.3g}{letter}"


def number_text(value: float, digits: int = 2) -> str:
    """A number with a true minus sign; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−").replace("inf", "∞")


def duration_text(seconds: object) -> str:
    """Seconds as people read them."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def answer_text(text: str) -> dict[str, Any]:
    """A text as a page shows it: a beginning, and the rest on demand."""
    kept = text[:_LONGEST]
    short = len(text) <= _SHORT + 60
    head = text if short else text[:_SHORT].rsplit(" ", 1)[0] if " " in text[_SHORT // 2 : _SHORT] else text[:_SHORT]
    return {"head": head, "whole": None if short else kept, "length": len(text), "cut": len(text) - len(kept)}


def flat_settings(value: object, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and text, `{"a": {"b": [1, 2]}}` → `{"a.b": "1, 2"}`."""
    inner: Iterable[tuple[str, object]] = ()
    if isinstance(value, Mapping) and value:
        inner = ((f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inner = ((f"{prefix}[{number}]", item) for number, item in enumerate(value))
    else:
        return {prefix: _scalar(value)} if prefix else {}
    return {key: text for name, item in inner for key, text in flat_settings(item, name).items()}


def _scalar(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_scalar, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None or value == {} else str(value)
