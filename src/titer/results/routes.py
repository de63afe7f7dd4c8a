"""How often a served guard's router had the refusal adapter answer, by the answers that were kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from titer.results.artefacts import HARMFUL, LOOKALIKE, TASK_PREFIX, Inference

ON = "refusal_adapter"
"""Of an answer's `generation`: whether the refusal adapter gave it."""
SETS = {HARMFUL: "harmful prompts", LOOKALIKE: "look-alikes"}

Routes = Mapping[str, list[int]]
"""By evaluation set, of how many prompts the refusal adapter was on, and how many there were."""


def routes_of(inferences: Iterable[Inference]) -> dict[str, dict[str, list[int]]]:
    """Return the routes of each arm that has a router."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in inferences:
        if ON in row.generation:
            counts = found.setdefault(row.arm, {}).setdefault(row.set, [0, 0])
            counts[0] += bool(row.generation[ON])
            counts[1] += 1
    return found


def told(routes: Routes) -> str:
    """Return routes in words: `refuses on 5 of 11 prompts (4 of 4 harmful prompts, 1 of 3 look-alikes, 0 of 4 of sentiment)`."""
    parts = [
        f"{on} of {asked} {SETS[name]}" if name in SETS else f"{on} of {asked} of {name.removeprefix(TASK_PREFIX)}"
        for name, (on, asked) in routes.items()
    ]
    on, asked = (sum(counts[place] for counts in routes.values()) for place in (0, 1))
    return f"refuses on {on} of {asked} prompts ({', '.join(parts)})"


def with_routes(serving: Mapping[str, Mapping[str, Any]], inferences: Iterable[Inference]) -> dict[str, dict[str, Any]]:
    """Return what provenance says of serving, with the routes of arms that have a router."""
    found = routes_of(inferences)
    return {arm: {**about, **({"routes": found[arm]} if arm in found else {})} for arm, about in serving.items()}
