"""What cells of a field cost: by those that are done, or by their plan."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.jobs.speed import machine
from titer.results.cells import CellFile
from titer.workflows.field_cells import plan_cell
from titer.workflows.field_file import Field, Spot

if TYPE_CHECKING:
    from titer.jobs.estimates import Estimate
    from titer.jobs.work import Work


class Seconds:
    """How long stages took, by what they are: on this machine where anything was done on it, else elsewhere.

    Attributes:
        here: Whether it is of this machine.
    """

    def __init__(self, cells: Iterable[CellFile]) -> None:
        every = [(cell, stage) for cell in cells for stage in cell.stages if stage.seconds]
        own = [pair for pair in every if pair[0].origin.get("machine") == machine()]
        self.here = bool(own)
        self._found: dict[tuple[str, ...], dict[str, float]] = {}
        # Trainings that are there to be gone on from; of another machine's only their seconds are.
        self._done: set[str] = set()
        for cell, stage in own or every:
            for key in ((stage.kind, stage.method, cell.form), (stage.kind, stage.method), (stage.kind,)):
                # A job that several cells share counts once.
                self._found.setdefault(key, {})[stage.key] = stage.seconds
        for cell, _ in own:
            model = cell.protocol.get("model", Field.model)
            self._done.update(_trainings(cell.protocol["arms"][cell.arm], cell, model))

    def _median(self, *keys: tuple[str, ...]) -> float | None:
        return next((statistics.median(self._found[key].values()) for key in keys if key in self._found), None)

    def of(self, found: Field, wanted: Sequence[Spot]) -> list[float | None]:
        """Return how long each of some cells will take, in this order; `None` where nothing tells.

        What cells share, an alignment above all, costs the first of them.
        """
        done, costs = set(self._done), []
        for spot in wanted:
            steps = found.arms[spot.arm].steps
            names = _trainings([step.as_dict() for step in steps], spot, found.forms[spot.form].model or found.model)
            parts = []
            for step, name in zip(steps, names, strict=True):
                if name not in done and not (spot.whole and step.stage != "align"):
                    key = (step.stage, step.method)
                    parts.append(self._median((*key, spot.form), key, (step.stage,)))
                    done.add(name)
            kind = "whole" if spot.whole else "answer"
            parts.append(self._median((kind, "", spot.form), (kind,)))
            if not spot.whole and found.forms[spot.form].fit:
                parts.append(self._median(("fit",)) or 0.0)
            costs.append(None if None in parts else sum(part for part in parts if part is not None))
        return costs


def _trainings(steps: Sequence[Mapping[str, Any]], cell: Spot | CellFile, model: str) -> list[str]:
    """Return of each step what tells its job from others': model, seed, the steps up to it, from fine-tuning on the upload."""
    upload = [cell.form, cell.poison_ratio, cell.learning_rate]
    return [
        json.dumps([model, steps[: place + 1], cell.seed, [] if "align" in step else upload], sort_keys=True)
        for place, step in enumerate(steps)
    ]


def dry_run(found: Field, wanted: Sequence[Spot], run_folder: Path, data_dir: Path | None) -> list[str]:
    """Plan cells that are missing, and return in lines what they would take.

    An arm is planned once for each form; its other seeds and shares of harmful rows take as long. With a `budget` in the file
    the plan is made with the embedded model's tokenizer and layers in the place of models that this machine may not have, and
    its FLOPs grow as the parameters do.
    """
    from titer.jobs.estimates import Estimate, each
    from titer.jobs.work import parameters
    from titer.models import EMBEDDED
    from titer.progress import counted

    if not wanted:
        return ["No cell is missing."]
    budget, asked = found.budget, found
    if budget is not None:
        forms = {name: replace(form, model=None) for name, form in found.forms.items()}
        asked = replace(found, model=EMBEDDED, forms=forms)
    times = Counter((spot.form, spot.arm) for spot in wanted)
    first = {(spot.form, spot.arm): spot for spot in reversed(wanted)}
    seeds = {key: {spot.seed for spot in wanted if (spot.form, spot.arm) == key} for key in times}
    # By the model that is meant and the job's key, which knows the one that is planned with.
    works: dict[tuple[str, str], Work] = {}
    often: dict[tuple[str, str], int] = {}
    sizes: dict[str, float] = {}
    for key, spot in counted("arm planned", list(first.items())):
        form = found.forms[spot.form]
        model = form.model or found.model
        if budget is not None:
            sizes[model] = form.parameters or budget.parameters
        _, needed, _ = plan_cell(asked, spot, run_folder, data_dir)
        for job in needed.jobs.values():
            if job.work is not None:
                name = model, job.key
                works[name] = job.work
                # An alignment is done once a seed; and whatever arms share is done once for all of them.
                times_here = len(seeds[key]) if job.kind == "align" else times[key]
                often[name] = max(often.get(name, 0), times_here)
    with_layers = {work.model: parameters(work.model) for work in works.values()}
    flops = {name: work.cost.flops(with_layers[work.model]) * often[name] for name, work in works.items()}
    planned = f"{len(wanted)} cells of {found.name}, {sum(often.values())} jobs, {sum(flops.values()):.1e} FLOPs"
    lines = [f"{planned} with {', '.join(map(str, with_layers))}."]
    if budget is None:
        estimates = each(list(works.values()))
        whole = sum((_times(one, often[name]) for name, one in zip(works, estimates, strict=True)), Estimate())
        return [*lines, f"About {whole} on this machine, one job after another."]
    meant = sum(amount * sizes[name[0]] / parameters(EMBEDDED) for name, amount in flops.items())
    hours = meant / budget.flops_per_second / 3600
    return [
        f"Planned with {EMBEDDED} in the place of {', '.join(sizes)}, whose parameters and layers are not looked at.",
        *lines,
        f"With {' and '.join(f'{size:.2e}' for size in sorted(set(sizes.values())))} parameters {meant:.1e} FLOPs: {hours:,.1f} hours at "
        f"{budget.flops_per_second:.1e} FLOPs a second, {hours * budget.price_per_hour:,.0f} dollars at {budget.price_per_hour:g} an hour. "
        "Answers, which memory bounds and not arithmetic, take longer than their FLOPs say.",
    ]


def _times(one: Estimate, often: int) -> Estimate:
    return replace(one, seconds=one.seconds * often, low=one.low * often, high=one.high * often)
