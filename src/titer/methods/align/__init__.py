"""Alignment-stage methods: what the provider or the lab does before anyone else trains the model."""

from typing import Any


def __getattr__(name: str) -> Any:
    from titer.methods import exported

    return exported(name, "align")
