"""What pages are made of: the environment of their templates, texts cut to a readable length, settings as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.files import replacing
from titer.report import tables
from titer.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
_SHORT = 300  # characters of an answer that are shown before "whole answer"
_LONGEST = 20_000  # characters of an answer that are kept at all


def answer_text(text: str) -> dict[str, Any]:
    """A text as the page shows it: a beginning, and the rest on demand."""
    kept = text[:_LONGEST]
    short = len(text) <= _SHORT + 60
    head = text if short else text[:_SHORT].rsplit(" ", 1)[0] if " " in text[_SHORT // 2 : _SHORT] else text[:_SHORT]
    return {"head": head, "whole": None if short else kept, "length": len(text), "cut": len(text) - len(kept)}


def flat_settings(value: object, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and text, `{"a": {"b": [1, 2]}}` → `{"a.b": "1, 2"}`."""
    if isinstance(value, dict) and value:
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat.update(flat_settings(item, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        flat = {}
        for number, item in enumerate(value):
            flat.update(flat_settings(item, f"{prefix}[{number}]"))
        return flat
    return {prefix: _scalar(value)} if prefix else {}


def _scalar(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_scalar(item) for item in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None or value == {} else str(value)


def sections(experiment: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """The experiment's settings by section; what stands at the top level comes first, as `general`."""
    general = {key: value for key, value in experiment.items() if not isinstance(value, dict) and key != "description"}
    found = [("general", flat_settings(general))] if general else []
    return found + [
        (str(key), flat_settings(value)) for key, value in experiment.items() if isinstance(value, dict) and value
    ]


def write_page(path: Path, page: str) -> Path:
    """Replace `path` by what is visible of `page`, in one step."""
    with replacing(path) as file:
        file.write(visible(page).encode())
    return path


def environment() -> Environment:
    """Return the environment of the pages' templates, which escapes whatever it is given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["ratio"] = tables.ratio_text
    made.filters["duration"] = _duration
    made.filters["colour"] = _colour
    made.filters["number"] = _number
    return made


def _colour(position: int) -> str:
    from titer.report import figures

    return figures.arm_colour(position)


def _number(value: object, digits: int = 2) -> str:
    """A number with a true minus sign; a dash where there is none."""
    if not isinstance(value, int | float) or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−").replace("inf", "∞")


def _duration(seconds: object) -> str:
    """Seconds as people read them."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
