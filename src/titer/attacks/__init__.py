"""Attacks on the user's own models, to measure how well a defence holds."""

from importlib import import_module
from typing import Any

from titer.attacks.threats import CATALOGUE, Attack
from titer.attacks.uploads import UPLOADS, Upload, disguise

__all__ = ["CATALOGUE", "UPLOADS", "Attack", "Fleet", "FleetTrainer", "Upload", "disguise", "shared_copy"]


def __getattr__(name: str) -> Any:
    # Fleets bring torch and TRL with them, which take seconds to import; a list of attacks needs neither.
    if name not in ("Fleet", "FleetTrainer", "shared_copy"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("titer.attacks.fleet"), name)
