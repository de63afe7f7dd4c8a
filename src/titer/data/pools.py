"""The pools of an experiment or an assay: what the defender holds, what the attacker holds, what is scored.

The same settings and seed give the same pools wherever they are asked for, so that a model aligned by one command can be
scored or attacked by another on prompts that it has never seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.data.datasets import load, with_refusals
from titer.data.records import Record
from titer.data.splits import split_pools
from titer.errors import TiterError

HELPFUL_ROWS = 300
"""Helpful answers that a defender holds, if alignment does not ask for more."""


@dataclass(frozen=True)
class DataSettings:
    """Where prompts come from.

    Attributes:
        harmful: Harmful requests; shared out among defence, attack and evaluation.
        helpful: Helpful answers for the defence: a dataset, or several, which take turns. Answers in the form that
            customers train, such as labels, keep fine-tuning from changing how the model speaks at all.
        lookalikes: Harmless prompts that only look harmful; half for the defence, where they are every second of the
            helpful answers, half for evaluation.
        task: What the customer fine-tunes on.
        pools: Parts of the harmful requests, or numbers of them.
        held_out_categories: Harm categories that the defence never sees.
    """

    harmful: str = "builtin:harmful"
    helpful: list[str] = field(default_factory=lambda: ["builtin:general"])
    lookalikes: str = "builtin:lookalikes"
    task: str = "builtin:sentiment"
    pools: dict[str, Any] = field(default_factory=lambda: {"defence": 0.5, "attack": 0.25, "evaluation": 0.25})
    held_out_categories: list[str] = field(default_factory=list)


def harmful_pools(data: DataSettings, seed: int, data_dir: Path | None) -> dict[str, list[Record]]:
    """Return the harmful requests, each with a refusal, shared out among defence, attack and evaluation."""
    harmful = with_refusals(load(data.harmful, data_dir=data_dir), seed=seed)
    return split_pools(harmful, data.pools, seed, data.held_out_categories)


def lookalike_pools(data: DataSettings, seed: int, data_dir: Path | None) -> dict[str, list[Record]]:
    """Return the harmless prompts that look harmful, shared out between defence and evaluation."""
    return split_pools(load(data.lookalikes, data_dir=data_dir), {"defence": 0.5, "evaluation": 0.5}, seed)


def helpful_rows(
    data: DataSettings, lookalikes: dict[str, list[Record]], rows: int, data_dir: Path | None
) -> list[Record]:
    """Return the defender's helpful answers: every second its share of the lookalikes, the datasets taking turns between.

    However many datasets there are, half are lookalikes: over-refusal is unlearnt on these alone.
    """
    if not data.helpful:
        raise TiterError(
            "`data.helpful` names no dataset.", "Aligned on refusals alone, a small model refuses everything."
        )
    others = _in_turn([load(name, data_dir=data_dir) for name in data.helpful])
    in_turn = _in_turn([others, lookalikes["defence"]])
    # What is not needed is left out, so that a small dataset is not lost among large ones.
    return in_turn[: max(rows, HELPFUL_ROWS)]


def _in_turn(datasets: list[list[Record]]) -> list[Record]:
    return [record for turn in itertools.zip_longest(*datasets) for record in turn if record is not None]


def defence_pools(
    data: DataSettings, seed: int, data_dir: Path | None, rows: int = HELPFUL_ROWS
) -> dict[str, list[Record]]:
    """Return what the defender holds: harmful requests (`defence`) and helpful answers (`helpful`).

    The same seed gives `evaluation_pools` that share no prompt with them.
    """
    helpful = helpful_rows(data, lookalike_pools(data, seed, data_dir), rows, data_dir)
    return {"defence": harmful_pools(data, seed, data_dir)["defence"], "helpful": helpful}


def evaluation_pools(data: DataSettings, seed: int, data_dir: Path | None) -> dict[str, list[Record]]:
    """Return what a model is scored on: `harmful` requests and `lookalikes` that `defence_pools` does not hold."""
    return {
        "harmful": harmful_pools(data, seed, data_dir)["evaluation"],
        "lookalikes": lookalike_pools(data, seed, data_dir)["evaluation"],
    }


def first(records: list[Record], count: int, name: str) -> list[Record]:
    """Return the first `count` records; too few are an error that names the setting that asked for them."""
    if len(records) < count:
        raise TiterError(f"`{name}` asks for {count} prompts, and there are {len(records)}.", f"Lower `{name}`.")
    return records[:count]
