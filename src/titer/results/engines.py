"""Which engine gave answers, where it was not titer's own decoding."""

from __future__ import annotations

from collections.abc import Iterable

from titer.results.artefacts import Inference

KEY = "engine"
"""Of an answer's `generation`: which engine decoded it, with its version; not there for titer's own decoding."""

OWN = "titer's own decoding"

OTHERS = "Greedy texts of two engines differ in some answers, so compare these figures with those of the same engine."


def engines_of(inferences: Iterable[Inference]) -> dict[str, str]:
    """Return which engine gave the answers of each arm; nothing where all are of titer's own decoding.

    Several of one arm are named one behind the other.
    """
    found: dict[str, dict[str, None]] = {}
    for row in inferences:
        found.setdefault(row.arm, {})[str(row.generation.get(KEY, OWN))] = None
    if all([*names] == [OWN] for names in found.values()):
        return {}
    return {arm: ", ".join(names) for arm, names in found.items()}
