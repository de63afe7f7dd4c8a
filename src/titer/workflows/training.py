"""What the workflows that train an adapter share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.files import read_json, read_text
from titer.workflows.common import Show, Table, listener, spell

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from titer.data import Record
    from titer.methods import Method
    from titer.train.trainer import PackedSFTConfig


@dataclass(frozen=True)
class Training(Table):
    """A training that is done; as a table its log, a logged step a row.

    Attributes:
        folder: Where everything of it is.
        method: How it trained.
        adapter: The PEFT adapter.
        log: What was logged at each step: `step`, `loss`, and what the method adds; `None` for what was no number.
        sample_weights: What each row was allowed to teach (`docs/formats.md`), from methods that weigh rows.
        serving: What the adapter is served with (`docs/formats.md`), from serving controls and served guards.
        router: What was found and measured when a served guard was made (`docs/formats.md`).
    """

    folder: Path
    method: str
    adapter: Path
    log: tuple[Mapping[str, Any], ...] = field(repr=False)
    sample_weights: Path | None
    serving: Path | None = None
    router: Path | None = None

    @property
    def guarded(self) -> str | None:
        """Of a served guard, in words, how its router routes the defender's own prompts; `None` of other methods."""
        if self.router is None:
            return None
        found = read_json(self.router)
        count = found["prototypes"]
        return (
            f"refuses on {found['harmful_on']} of {count} of the defender's harmful prompts, and on {found['benign_on']} of {count} "
            "of the harmless ones"
        )

    @property
    def held_back(self) -> tuple[int, int] | None:
        """How many rows a gate or a sieve let teach less than half of what they hold, and of how many; `None` of other methods."""
        from titer.methods.finetune.base import read_weight_log

        lines = [] if self.sample_weights is None else read_weight_log(self.folder)
        weighed = [line["weight"] for line in lines if "probability" in line]
        return (sum(weight < 0.5 for weight in weighed), len(weighed)) if weighed else None

    def rows(self) -> list[dict[str, Any]]:
        """Return the log."""
        return [dict(line) for line in self.log]

    def __str__(self) -> str:
        losses = [line["loss"] for line in self.log if line.get("loss") is not None]
        loss = f", loss {losses[0]:.3f} → {losses[-1]:.3f}" if losses else ""
        steps = max((line.get("step", 0) for line in self.log), default=0)
        return f"{self.method}: {steps} steps{loss}; {self.adapter}"


def train(
    stage: str,
    name: str,
    method: Method,
    values: dict[str, Any],
    args: PackedSFTConfig,
    base: str,
    adapter: Path | None,
    lora: dict[str, Any],
    records: Sequence[Record],
    streams: dict[str, list[Record]],
    output: Path,
    show: Show | bool,
    aligned: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    validation: Sequence[Record] = (),
) -> Training:
    """Try a training on a toy, say how long it will take, and carry it out in a folder.

    Args:
        stage: What it is, for estimates of what is like it.
        name: The method's name.
        method: How to train.
        values: The settings that were given.
        args: All settings.
        base: The base model.
        adapter: The adapter to go on with.
        lora: Settings of a new one.
        records: The training data.
        streams: Further data by argument name.
        output: The folder.
        show: Who is told.
        aligned: The adapter before its user's fine-tuning, for a served guard.
        callbacks: Who else follows the training.
        validation: Rows that the loss is measured on too, and that teach nothing.
    """
    from titer.infer.serving import SERVING
    from titer.jobs import trainings
    from titer.jobs.estimates import recorded
    from titer.jobs.rehearsal import rehearse
    from titer.jobs.routers import FOUND
    from titer.jobs.work import training

    rehearse(method, values, spell("settings"), base, lora if adapter is None else None, records, streams)
    work = training(f"{stage} {name}", method, args, base, records, streams, validation).after_loading
    listener(show).expect([work])
    # What was begun, or finished, before takes less than all of it.
    begun = any((output / part).exists() for part in ("adapter", "checkpoints"))
    with recorded(work, whole=not begun):
        more: dict[str, Any] = {"aligned": aligned, "callbacks": callbacks, "validation": validation}
        trainings.train(method, args, base, adapter, lora, records, streams, output, **more)
    log = tuple(json.loads(line) for line in read_text(output / "log.jsonl").splitlines())
    beside = (
        path if path.is_file() else None for path in map(output.joinpath, ("sample_weights.jsonl", SERVING, FOUND))
    )
    return Training(output, name, output / "adapter", log, *beside)


def defence_streams(
    harmful: str, helpful: Sequence[str], lookalikes: str, seed: int, copies: Path | None
) -> dict[str, list[Record]]:
    """Return the rows that the defender holds by the arguments that trainers have for them.

    Args:
        harmful: The dataset of harmful requests.
        helpful: Those of helpful answers.
        lookalikes: That of harmless prompts that look harmful.
        seed: Seeds who holds which.
        copies: Folder with local copies of named datasets.
    """
    from titer.data.pools import DataSettings, defence_pools

    pools = defence_pools(DataSettings(harmful=harmful, helpful=[*helpful], lookalikes=lookalikes), seed, copies)
    return {"harmful_dataset": pools["defence"], "helpful_dataset": pools["helpful"]}
