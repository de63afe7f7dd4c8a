"""`check_method`: one method against all rules of its kind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from titer.methods import Method, Repair, find, stages_of
from titer.testing.repairs import REPAIR_CHECKS, repair_trials
from titer.testing.rules import run
from titer.testing.trainings import METHOD_CHECKS
from titer.testing.trials import trials


def check_method(method: Method | Repair | str) -> None:
    """Hold a method, in each of its variants, against every one of `METHOD_CHECKS`, or a repair of `REPAIR_CHECKS`.

    Not among them is its formula: write that test longhand (docs/writing_a_method.md).

    Args:
        method: The method, its name (the first stage's that has one of it) or its import path.

    Raises:
        AssertionError: Names every rule that it breaks, and how.
    """
    if isinstance(method, str):
        method = find(stages_of(method)[0], method)
    checks: dict[str, Any] = REPAIR_CHECKS if isinstance(method, Repair) else METHOD_CHECKS
    broken = []
    for name, check in checks.items():
        with tempfile.TemporaryDirectory() as folder:
            tried: Any = repair_trials if isinstance(method, Repair) else trials
            for variant, trial in tried(method, Path(folder)):
                try:
                    run(name, f"variant {variant!r}" if variant else "", check, trial)
                except AssertionError as error:
                    broken.append(str(error))
    assert not broken, "\n".join(broken)
