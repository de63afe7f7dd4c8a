"""The prompts of an assay: what attackers hold, what models are scored on, and proof that they are disjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titer.assays.profile import Profile
from titer.attacks.rows import AttackerPools
from titer.data import Record, check_disjoint, load, split_pools
from titer.data.pools import defence_pools, first, harmful_pools, lookalike_pools, task_pools
from titer.errors import TiterError


@dataclass(frozen=True)
class AssayPools:
    """The records of an assay.

    Attributes:
        attackers: What attackers hold.
        harmful: Domain (`in`, `cross`) → harmful prompts to be answered, with compliant answers for the margin.
        lookalikes: Harmless prompts that look harmful.
        task: Test rows of the task.
        reference_tasks: Name → test rows.
        general: Reference prompts with answers.
        overlap: Shared prompts between pools, by pair; all zero.
        left_out: Prompts that the defence is known to hold, taken out of the pools.
    """

    attackers: AttackerPools
    harmful: dict[str, list[Record]]
    lookalikes: list[Record]
    task: list[Record]
    reference_tasks: dict[str, list[Record]]
    general: list[Record]
    overlap: dict[str, int]
    left_out: int


def load_assay_pools(profile: Profile, data_dir: Path | None, defence: Sequence[str] = ()) -> AssayPools:
    """Load and share out the prompts of an assay.

    Args:
        profile: The profile.
        data_dir: Folder with local copies of named datasets.
        defence: Datasets that the defence was made from; without any, what `titer align` takes from the profile's `data`
            with its `data_seed`.

    Raises:
        TiterError: For data that cannot be found, are too few, or overlap.
    """
    data, seed = profile.data, profile.data_seed
    task_name = data.task.removeprefix("builtin:")
    if data.task in profile.reference_tasks:
        raise TiterError(f"`{data.task}` is the task that customers train; a reference task must be another.")
    if defence:
        known = [record for name in defence for record in load(name, data_dir=data_dir)]
    else:
        held = defence_pools(data, seed, data_dir)
        known = [*held["defence"], *held["helpful"]]
    keys = {record.prompt_key for record in known}
    left_out: set[str] = set()

    def unknown(records: Sequence[Record]) -> list[Record]:
        """Leave out what the defence holds."""
        left_out.update(record.prompt_key for record in records if record.prompt_key in keys)
        return [record for record in records if record.prompt_key not in keys]

    harmful = harmful_pools(data, seed, data_dir)
    held_out = set(data.held_out_categories)
    by_domain = {
        pool: {
            domain: [
                record for record in unknown(harmful[pool]) if (record.category in held_out) == (domain == "cross")
            ]
            for domain in ("in", "cross")
        }
        for pool in ("attack", "evaluation")
    }
    domains = ("in", "cross") if held_out else ("in",)
    scored = {
        domain: first(by_domain["evaluation"][domain], profile.harmful, f"harmful ({domain}-domain)")
        for domain in domains
    }
    own = task_pools(data, seed, data_dir)

    def test_rows(name: str) -> list[Record]:
        return own["test"] if name == data.task else load(name, split="test", data_dir=data_dir)

    tests = {
        name.removeprefix("builtin:"): first(
            unknown(split_pools(test_rows(name), {"test": 1.0}, seed)["test"]),
            count,
            setting,
        )
        for name, count, setting in (
            (data.task, profile.task, "task"),
            *((name, profile.reference_task, "reference_task") for name in profile.reference_tasks),
        )
    }
    tested = {record.prompt_key for records in tests.values() for record in records}
    task = [record for record in unknown(own["train"]) if record.prompt_key not in tested]
    reference = split_pools(unknown(load(profile.reference, data_dir=data_dir)), {"general": 0.5, "benign": 0.5}, seed)
    general = first(reference["general"], profile.general, "general")
    lookalikes = first(unknown(lookalike_pools(data, seed, data_dir)["evaluation"]), profile.lookalikes, "lookalikes")
    overlap = check_disjoint(
        {
            "defence": known,
            "attack": by_domain["attack"]["in"],
            "attack, held-out categories": by_domain["attack"]["cross"],
            "warm-up": reference["benign"],
            "task": task,
            **{f"scored {domain}-domain": records for domain, records in scored.items()},
            "lookalikes": lookalikes,
            "reference": general,
            **{f"{name} test": records for name, records in tests.items()},
        }
    )
    return AssayPools(
        attackers=AttackerPools(by_domain["attack"]["in"], by_domain["attack"]["cross"], task, reference["benign"]),
        harmful=scored,
        lookalikes=lookalikes,
        task=tests.pop(task_name),
        reference_tasks=tests,
        general=general,
        overlap=dict(overlap),
        left_out=len(left_out),
    )
