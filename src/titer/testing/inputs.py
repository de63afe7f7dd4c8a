"""What must hold for every attack and every dataset."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from titer.data.records import Record


def check_attack(attack: Any) -> None:
    """Describe an attack anew from its fields, and see that they say what it does.

    Args:
        attack: A `titer.attacks.Attack`, its name or its import path.

    Raises:
        AssertionError: Names what is wrong with it.
    """
    from titer.attacks import threats

    attack = threats.find(attack) if isinstance(attack, str) else attack
    fields = dataclasses.asdict(attack)
    assert attack.summary.strip(), "it has no summary"
    assert json.loads(json.dumps(fields)) == fields, "its fields are no plain data, so that no file can hold them"
    assert type(attack)(**fields) == attack, "made anew from its fields, it is another attack"
    assert attack.total_steps >= 1, f"it takes {attack.total_steps} steps"
    assert attack.means_harm or attack.has_task, (
        "it neither means harm nor trains a task, so nothing of it can be scored"
    )


def check_dataset(load: Callable[[str], Any] | str, split: str = "train") -> None:
    """Load a dataset twice and hold its rows against what training asks of them.

    Args:
        load: What takes a split and returns records or rows; the dataset's name or its import path.
        split: The split.

    Raises:
        AssertionError: Names what is wrong with it.
        TiterError: Names the row that cannot be read.
    """
    from titer.data import datasets

    def rows() -> list[Record]:
        if isinstance(load, str):
            return datasets.load(load, split)
        return datasets.records_of(load(split), f"{getattr(load, '__name__', 'dataset')} [{split}]")

    first, second = rows(), rows()
    assert first, "it has no rows"
    assert first == second, "loaded twice it has other rows, or another order: draw with a seed of its own"
    for number, record in enumerate(first):
        again = Record.from_row(json.loads(json.dumps(record.to_row())), f"row {number}")
        assert again == record, f"row {number} is not what it was once it has been written to a file and read"
    try:
        datasets.load(load, "no such split") if isinstance(load, str) else load("no such split")
    except Exception:
        return
    raise AssertionError("it has rows of a split that there is none of: those of `train` would be tested on")
