"""The pools of an experiment or an assay: what the defender holds, what the attacker holds, what is scored.

The same settings and seed give the same pools wherever they are asked for, so that a model aligned by one command can be
scored or attacked by another on prompts that it has never seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.data.datasets import available, load, with_refusals
from titer.data.records import Record
from titer.data.splits import DEFENCE, split_pools
from titer.errors import TiterError

HELPFUL_ROWS = 300
"""Helpful answers that a defender holds, if alignment does not ask for more."""


@dataclass(frozen=True)
class DataSettings:
    """Where prompts come from.

    Attributes:
        harmful: Harmful requests; shared out among defence, attack and evaluation.
        attack: Harmful requests of the attacker and of the evaluation, where they are not the defender's: shared out between
            the two as `pools` says, so that no defence was made from their like.
        helpful: Helpful answers for the defence: a dataset, or several, which take turns. Answers in the form that
            customers train, such as labels, keep fine-tuning from changing how the model speaks at all.
        lookalikes: Harmless prompts that only look harmful; half for the defence, where they are every second of the
            helpful answers, half for evaluation.
        task: What the customer fine-tunes on. Of a dataset without a test split, a fifth is held out for the test.
        longest: Most characters of a row of the task; longer ones are left out.
        pools: Parts of the harmful requests, or numbers of them.
        held_out_categories: Harm categories that the defence never sees.
    """

    harmful: str = "builtin:harmful"
    attack: str | None = None
    helpful: list[str] = field(default_factory=lambda: ["builtin:general"])
    lookalikes: str = "builtin:lookalikes"
    task: str = "builtin:sentiment"
    longest: int | None = None
    pools: dict[str, Any] = field(default_factory=lambda: {"defence": 0.5, "attack": 0.25, "evaluation": 0.25})
    held_out_categories: list[str] = field(default_factory=list)


def harmful_pools(data: DataSettings, seed: int, data_dir: Path | None) -> dict[str, list[Record]]:
    """Return the harmful requests, each with a refusal, shared out among defence, attack and evaluation."""
    harmful = with_refusals(load(data.harmful, data_dir=data_dir), seed=seed)
    pools = split_pools(harmful, data.pools, seed, data.held_out_categories)
    if data.attack is None:
        return pools
    others = with_refusals(load(data.attack, data_dir=data_dir), seed=seed)
    sizes = {name: size for name, size in data.pools.items() if name != DEFENCE}
    if not all(isinstance(size, int) for size in sizes.values()):
        whole = sum(sizes.values()) or 1.0
        sizes = {name: size / whole for name, size in sizes.items()}
    return {DEFENCE: pools[DEFENCE], **split_pools(others, sizes, seed)}


def task_pools(data: DataSettings, seed: int, data_dir: Path | None) -> dict[str, list[Record]]:
    """Return the rows of the task: `train` and `test`, a fifth of the rows where the dataset has no test split."""
    splits = next((one.splits for one in available() if one.name == data.task), ("train", "test"))
    if "test" in splits:
        pools = {name: load(data.task, split=name, data_dir=data_dir) for name in ("train", "test")}
    else:
        pools = split_pools(load(data.task, data_dir=data_dir), {"train": 0.8, "test": 0.2}, seed)
    if data.longest is None:
        return pools
    return {
        name: [one for one in rows if len(one.prompt_text) + len(one.completion_text) <= data.longest]
        for name, rows in pools.items()
    }


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


def first(records: list[Record], count: int, name: str, after: int = 0) -> list[Record]:
    """Return the first `count` records `after` so many; too few are an error that names the setting that asked for them."""
    if len(records) < after + count:
        beyond = f" beyond {after} others" if after else ""
        raise TiterError(
            f"`{name}` asks for {count} prompts{beyond}, and there are {len(records)}.", f"Lower `{name}`."
        )
    return records[after : after + count]
