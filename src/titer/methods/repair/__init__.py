"""Repair-stage methods: what a provider does to a fine-tuned adapter, mostly without training."""

from typing import Any


def __getattr__(name: str) -> Any:
    from titer.methods import exported

    return exported(name, "repair")
