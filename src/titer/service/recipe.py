"""How a job trains: the policy's method with the job's hyperparameters, and about how long that takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer import methods
from titer.data import Record
from titer.methods import Method
from titer.service.inputs import Start, Upload, from_home
from titer.service.running import JobFailed, Running
from titer.train.trainer import PackedSFTConfig
from titer.workflows.training import defence_streams

SHOWN = 200
"""About how many steps of a training are told."""
CHECKPOINTS = "train/checkpoints"


@dataclass(frozen=True)
class Recipe:
    """How a job trains.

    Attributes:
        name: The method's name.
        method: The method.
        values: The settings that were given.
        args: All settings.
        streams: The defender's own rows.
        steps: Optimizer steps of all epochs.
    """

    name: str
    method: Method
    values: dict[str, Any]
    args: PackedSFTConfig
    streams: dict[str, list[Record]]
    steps: int

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return float(self.args.num_train_epochs)


def make_recipe(run: Running, upload: Upload, cleared: Sequence[int], home: Path) -> Recipe:
    """Return how a job trains on rows.

    Args:
        run: The job.
        upload: What it trains on.
        cleared: Rows of the file that a reviewer found honest.
        home: From where relative paths of the policy go.

    Raises:
        JobFailed: For a method that the policy does not allow, or that this service cannot serve.
        TiterError: For settings that the method cannot take.
    """
    rules = run.policy
    name = _method_of(run)
    method = methods.find("finetune", name)
    if method.serving is not None:
        raise JobFailed(
            "invalid_policy", f"`{name}` acts by a system prompt that this server does not add to chats.", "method"
        )
    epochs, batch, multiplier = _hyperparameters(run)
    steps = epochs * math.ceil(len(upload.records) / batch)
    own = rules.training.settings if name == rules.training.method else {}
    values: dict[str, Any] = {
        "max_length": rules.limits.row_tokens,
        "save_strategy": "epoch",
        "logging_steps": max(1, math.ceil(steps / SHOWN)),
        **own,
        "learning_rate": own.get("learning_rate", rules.training.learning_rate) * multiplier,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
    }
    if cleared and "cleared" in {field.name for field in dataclasses.fields(method.config)}:
        values["cleared"] = upload.of(cleared)
    args = methods.settings(method, values, "training.settings", CHECKPOINTS, run.job.seed)
    streams: dict[str, list[Record]] = {}
    if method.streams:
        # Who holds which prompts does not depend on the job's seed: what the gate asks is never trained on.
        lookalikes = rules.gate.lookalikes
        helpful = [from_home(each, home) for each in rules.audit.helpful if each != lookalikes]
        streams = defence_streams(from_home(rules.audit.harmful, home), helpful, from_home(lookalikes, home), 0, None)
    return Recipe(name, method, values, args, streams, steps)


def seconds(recipe: Recipe, start: Start, upload: Upload, validation: Sequence[Record]) -> float:
    """Return about how long a training takes on this machine."""
    from titer.jobs.estimates import each
    from titer.jobs.work import training

    kind = f"finetune {recipe.name}"
    work = training(kind, recipe.method, recipe.args, start.base, upload.records, recipe.streams, validation)
    return round(sum(one.seconds for one in each([work.after_loading])), 1)


def _method_of(run: Running) -> str:
    """Return the method: the policy's, or another one that it allows and the client asked for."""
    rules = run.policy.training
    asked = (run.job.details or {}).get("titer_method")
    if asked is None or asked == rules.method:
        return rules.method
    if asked not in rules.allowed:
        raise JobFailed("invalid_value", f"The policy does not allow the method `{asked}`.", "metadata.titer_method")
    return str(asked)


def _hyperparameters(run: Running) -> tuple[int, int, float]:
    """Return epochs, batch size and what the learning rate is multiplied by; the policy's for `auto`."""
    kind = run.job.method.get("type", "supervised")
    if kind != "supervised":
        raise JobFailed("unsupported_method", f"This server does not train by `{kind}`.", "method.type")
    given = (run.job.method.get(kind) or {}).get("hyperparameters") or {}

    def value(name: str, automatic: float) -> float:
        found = given.get(name, "auto")
        return automatic if found in ("auto", None) else found

    rules = run.policy.training
    return (
        int(value("n_epochs", rules.n_epochs)),
        int(value("batch_size", rules.batch_size)),
        float(value("learning_rate_multiplier", 1.0)),
    )
