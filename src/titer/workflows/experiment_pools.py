"""The data of an experiment: what the defender, the attacker and the evaluation hold, disjoint by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from titer.data import Record, check_disjoint, split_pools
from titer.data.pools import first, harmful_pools, helpful_rows, lookalike_pools, task_pools
from titer.workflows.experiment_file import Experiment


@dataclass(frozen=True)
class Pools:
    """The records of one seed, disjoint by normalised prompt."""

    defence: list[Record]
    attack: list[Record]
    harmful_evaluation: list[Record]
    helpful: list[Record]
    lookalike_evaluation: list[Record]
    task_train: list[Record]
    task_test: list[Record]
    overlap: dict[str, int]


def load_pools(experiment: Experiment, seed: int, data_dir: Path | None) -> Pools:
    """Load the datasets of an experiment and share them out; raises when two pools share a prompt."""
    data, sizes = experiment.data, experiment.evaluate
    harmful, lookalikes = harmful_pools(data, seed, data_dir), lookalike_pools(data, seed, data_dir)
    task = task_pools(data, seed, data_dir)
    test = split_pools(task["test"], {"test": 1.0}, seed)["test"]

    def asked(records: list[Record], what: str) -> list[Record]:
        count = getattr(sizes, what)
        return first(records, count, f"evaluate.{what}", after=count if sizes.validation else 0)

    helpful = round(experiment.align.samples * experiment.align.helpful_ratio)
    pools = {
        "defence": harmful["defence"],
        "attack": harmful["attack"],
        "evaluation": asked(harmful["evaluation"], "harmful"),
        "helpful": helpful_rows(data, lookalikes, helpful, data_dir),
        "lookalikes": asked(lookalikes["evaluation"], "lookalikes"),
        "task train": task["train"],
        "task test": asked(test, "task"),
    }
    # Published tasks repeat a few short sentences between their splits; such rows leave the training side.
    tested = {record.prompt_key for record in pools["task test"]}
    pools["task train"] = [record for record in pools["task train"] if record.prompt_key not in tested]
    overlap = dict(check_disjoint(pools))
    return Pools(
        defence=pools["defence"],
        attack=pools["attack"],
        harmful_evaluation=pools["evaluation"],
        helpful=pools["helpful"],
        lookalike_evaluation=pools["lookalikes"],
        task_train=pools["task train"],
        task_test=pools["task test"],
        overlap=overlap,
    )
