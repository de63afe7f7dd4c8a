"""Jobs that repair a fine-tuned adapter with the aligned one beside it: adapter folders in, adapter folder out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from titer import methods, plugins
from titer.data.records import Record
from titer.errors import TiterError
from titer.jobs.base_model import fresh_model
from titer.jobs.job import Job, Kind
from titer.methods import Method, Repair
from titer.methods.repair.adapters import repair


def _repair(job: Job) -> None:
    settings, (aligned, tuned) = job.settings, job.needs
    method = methods.find("repair", job.places["method"])
    assert isinstance(method, Repair)  # what trains is another kind of job (`titer.jobs.trainings.REPAIR`)
    config = methods.settings(method, settings["settings"], "repair")
    adapters = aligned.folder / "adapter", tuned.folder / settings["adapter"]
    streams = {name: job.records(name) for name in method.streams}
    repair(job.places["model"], *adapters, method, config, job.folder, streams, tuned_model)


def own_rows(method: Method, args: Any, streams: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    """Return the rows that a repair which trains makes for itself, after making sure that they fit its settings.

    Args:
        method: A method with `own_rows`.
        args: Its settings.
        streams: Rows of the defender's by argument name.

    Raises:
        TiterError: When it can make none, or they would make it another method.
    """
    make = method.own_rows
    assert make is not None
    name = f"{getattr(make, '__module__', '')}:{getattr(make, '__qualname__', make)}"
    try:
        rows = list(make(args, {name: streams[name] for name in method.streams}))
    except Exception as error:  # it may be anybody's code
        raise plugins.failed(name, error, "fails") from error
    if not rows or not all(isinstance(row, Record) for row in rows):
        raise TiterError(f"`{name}` makes no training rows.", "It returns a list of one or more `titer.data.Record`s.")
    method.check(args, len(rows))
    return rows


def tuned_model(base: str, adapter: Path) -> Any:
    """Return a base model with an adapter on it."""
    return fresh_model(base, adapter, trainable=False)


REPAIR = Kind("repair", "titer.jobs.repairs:REPAIR", _repair)
