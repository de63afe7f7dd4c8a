"""An assay from the names of two models to its scorecard, report and model card."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titer.assays.card import assay_folder, write_scorecard
from titer.assays.profile import Profile, read_profile
from titer.assays.runner import AssayPlan, plan_assay
from titer.assays.scorecard import make_scorecard
from titer.errors import TiterError
from titer.jobs.plan import Silent, execute
from titer.progress import Task
from titer.results.artefacts import write_atomically


def assay(
    defended: str,
    against: str,
    profile: Profile | str | Path = "quick",
    output: Path = Path("runs/assay"),
    name: str | None = None,
    data_dir: Path | None = None,
    defence_data: Sequence[str] = (),
    show: Any = None,
) -> dict[str, Any]:
    """Measure how immune a model is, and return its scorecard (`docs/assay.md` describes every key).

    What an interrupted assay has done is not done again, nor are attacks that another one in the same folder has run.
    Attackers that fail by the machine's or their own fault are in the scorecard's `hygiene`; they count nowhere.

    Args:
        defended: The model to assay: a folder, a hub id, an adapter.
        against: The undefended model to compare it with.
        profile: The attackers: a profile, the name of a bundled one, or a YAML file.
        output: Folder of assays.
        name: Of this assay's folder in it; by default the model's.
        data_dir: Folder with local copies of named datasets.
        defence_data: Datasets that the defence was made from; kept out of attack and scoring.
        show: Tells the user how it goes, see `titer.jobs.plan.execute`; by default nobody is told.

    Raises:
        TiterError: For a wrong profile, a model or data that cannot be loaded, or a model that could not even be asked.
        AssayStopped: For a fault of titer, of a plug-in, or of the machine before any attack.
    """
    chosen = profile if isinstance(profile, Profile) else read_profile(profile)
    folder = assay_folder(output, name, defended)
    plan = plan_assay(chosen, defended, against, output, data_dir, defence_data)
    command = f"titer.assays.assay({defended!r}, {against!r}, profile={chosen.name!r})"
    return carry_out(plan, folder, command, show)


class AssayStopped(RuntimeError):
    """An assay that ended at a failure which is neither an attack's nor in the user's hands."""


def carry_out(plan: AssayPlan, folder: Path, command: str, show: Any = None, force: bool = False) -> dict[str, Any]:
    """Run what is not done of a plan; write `scorecard.json`, `report.html` and `model_card.md`; return the scorecard.

    Args:
        plan: What to run.
        folder: Of the assay.
        command: What the user typed, for the record.
        show: As of `titer.jobs.plan.execute`.
        force: Do stages again that are done.

    Raises:
        TiterError: When a stage failed for something in the user's hands, such as a judge that nobody can reach.
        AssayStopped: When one failed for anything else. A scorecard of the rest would call attacks survived that were not
            carried out, so there is none; attackers that failed by the machine's or their own fault are listed in it.
    """
    from titer.report import model_card, write_assay_report

    started = time.perf_counter()
    execute(plan, show or Silent(), force, stop_at=("baseline", "attack"))
    _check(plan)
    with Task("scorecard"):
        card = make_scorecard(plan, command, time.perf_counter() - started)
        write_scorecard(folder, card)
        write_assay_report(folder, card)
    write_atomically(folder / "model_card.md", model_card(card).encode())
    return card


def _check(plan: AssayPlan) -> None:
    """Raise when a stage failed."""
    failed = [stage for stage in plan.jobs.values() if stage.status == "failed"]
    if not failed:
        return
    lines = "".join(f"\n  {stage.name}: {stage.reason} ({stage.folder / 'error.txt'})" for stage in failed)
    message, hint = f"The assay stopped:{lines}", "What is done is kept: the same command goes on from here."
    if all(stage.mistake for stage in failed):
        raise TiterError(message, hint)
    raise AssayStopped(f"{message}\n{hint}")
