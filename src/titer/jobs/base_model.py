"""The base model that jobs of one process share."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from titer.models import add_adapter, load_model


@functools.lru_cache(maxsize=1)
def _base(name: str) -> Any:
    return load_model(name)


def fresh_model(name: str, adapter: Path | None, trainable: bool) -> Any:
    """Return a copy of a base model that may be changed freely, with `adapter` on it when one is given."""
    model = copy.deepcopy(_base(name))
    return model if adapter is None else add_adapter(model, adapter, trainable)
