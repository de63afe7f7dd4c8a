"""Holds every method against every rule of its kind, and writes contract.md: `make contract`.

The rules are those of `titer.testing.check_method`, which users run over methods of their own, and which the tests run over
titer's. `tests/test_faithfulness.py` fails when the page lacks a method or a rule.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titer import methods
from titer.methods import Method
from titer.testing import METHOD_CHECKS, REPAIR_CHECKS, repair_trials, trials
from titer.testing.trainings import REFUSED

PAGE = Path(__file__).parent / "contract.md"
INTRO = """# The contract

Every method of titer, in each of its variants, against the rules that [`check_method`](writing_a_method.md#test-it-against-its-formula) holds methods to. Made by
`make contract`, which runs them; `make test` runs them too. ✓: holds. ✗: broken. *refused*: the setting that would have to change nothing is refused
by name.
"""
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "Methods that train": (True, METHOD_CHECKS),
    "Repairs": (False, REPAIR_CHECKS),
}


def variants(trains: bool) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield label, method and settings of every variant of the methods that train, or of the repairs."""
    for stage, name, method in methods.every():
        if isinstance(method, Method) is trains:
            for variant, settings in method.variants.items():
                yield f"{stage} {name} {variant}".strip(), method, dict(settings)


def result(check: Any, label: str, method: Any, variant: dict[str, Any]) -> str:
    """Return what comes of a rule."""
    with tempfile.TemporaryDirectory() as folder:
        tried: Any = trials if isinstance(method, Method) else repair_trials
        trial = next(trial for _, trial in tried(method, Path(folder)) if dict(trial.settings) == variant)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the library prints a line a step
                said = check(trial)
            return "*refused*" if said == REFUSED else "✓"
        except Exception as error:
            print(f"{label}: {check.__name__}: {error}", file=sys.stderr)
            return "✗"


def main() -> None:
    """Run everything, and write the page."""
    parts = [INTRO]
    for title, (trains, checks) in KINDS.items():
        parts += [f"## {title}\n"]
        parts += [
            f"{number}. {name.replace('_', ' ')}: {check.__doc__}"
            for number, (name, check) in enumerate(checks.items(), 1)
        ]
        parts += [
            "",
            "| |" + "|".join(f" {number} " for number in range(1, len(checks) + 1)) + "|",
            "|---" * (1 + len(checks)) + "|",
        ]
        for label, method, variant in variants(trains):
            print(label, file=sys.stderr)
            cells = [result(check, label, method, variant) for check in checks.values()]
            parts.append(f"| `{label}` | " + " | ".join(cells) + " |")
        parts.append("")
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
