"""Attacks on the user's own models, to measure how well a defence holds."""

from titer.attacks.fleet import Fleet, FleetTrainer, shared_copy

__all__ = ["Fleet", "FleetTrainer", "shared_copy"]
