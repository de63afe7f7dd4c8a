"""Jobs that repair a fine-tuned adapter with the aligned one beside it: adapter folders in, adapter folder out."""

from __future__ import annotations

from titer import methods
from titer.jobs.job import Job, Kind
from titer.methods.repair.adapters import repair


def _repair(job: Job) -> None:
    settings, (aligned, tuned) = job.settings, job.needs
    method = methods.find("repair", job.places["method"])
    config = methods.settings(method, settings["settings"], "repair")
    adapters = aligned.folder / "adapter", tuned.folder / settings["adapter"]
    repair(job.places["model"], *adapters, method, config, job.folder)


REPAIR = Kind("repair", "titer.jobs.repairs:REPAIR", _repair)
