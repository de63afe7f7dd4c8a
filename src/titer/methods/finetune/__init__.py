"""Fine-tuning-stage methods: what a provider does while it trains on a customer's data."""

from typing import Any


def __getattr__(name: str) -> Any:
    from titer.methods import exported

    return exported(name, "finetune")
