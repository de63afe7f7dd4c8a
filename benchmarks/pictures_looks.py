"""What looks at models under attack say: when each was first above φ, and which of the two was later."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from titer.assays.outcomes import Look
from titer.assays.trajectories import ROLES
from titer.results.summary import Rate


def looks_of(looks: Sequence[Mapping[str, Any]]) -> list[Look]:
    """Return looks as they were before they were plain data."""
    return [
        Look(**{**look, "measured": None if look["measured"] is None else Rate(**look["measured"])}) for look in looks
    ]


def first_over(looks: Sequence[Look], phi: float) -> float:
    """Return the step of the first measured look above φ under attack; infinite without one."""
    return next((look.step for look in looks if look.step and look.measured and look.measured.value > phi), math.inf)


def over(looks: Sequence[Look], phi: float) -> str:
    """Return when a model was first above φ and where it ended, in words."""
    measured = [(look.step, look.measured) for look in looks if look.measured]
    if not measured:
        return "nothing measured"
    first = first_over(looks, phi)
    words = f"above φ at step {first:g}" if first < math.inf else "never above φ"
    return f"{words}; {measured[-1][1]} at step {measured[-1][0]}"


def sooner(lines: Mapping[str, Mapping[str, Sequence[Look]]], phi: float) -> str:
    """Return under how many attacks the defended model was above φ at a later look than the other, or at a sooner one."""
    ours, theirs = ([first_over(roles[role], phi) for roles in lines.values()] for role in ROLES)
    pairs = list(zip(ours, theirs, strict=True))
    later, before = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    return f"Of {len(pairs)} attacks the defended model was above it at a later look in {later}, at a sooner one in {before}."
