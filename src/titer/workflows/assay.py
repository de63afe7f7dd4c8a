"""Assays a model, from the names of two models to scorecard, report and model card."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.workflows.common import (
    Settings,
    Show,
    Table,
    as_names,
    as_overrides,
    as_path,
    command,
    launcher_for,
    listener,
    refuse_unused,
    refuse_unused_data_dir,
    workflow,
)

if TYPE_CHECKING:
    from titer.assays.card import Scorecard
    from titer.assays.profile import Profile
    from titer.assays.runner import AssayPlan
    from titer.jobs.launchers import Launcher


@dataclass(frozen=True)
class Assay(Table):
    """How immune a model is; as a table its attackers, a checkpoint of one a row.

    Attributes:
        folder: Where scorecard.json, report.html and model_card.md are.
        scorecard: What was found; its `as_dict()` is what scorecard.json holds.
    """

    folder: Path
    scorecard: Scorecard = field(repr=False)

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict on each of the four conditions."""
        return dict(self.scorecard.verdicts)

    @property
    def failed(self) -> list[dict[str, str]]:
        """Attackers that failed by the machine's or their own fault; they count nowhere."""
        return list(self.scorecard.hygiene.failed)

    def rows(self) -> list[dict[str, Any]]:
        """Return every checkpoint of every attacker; one that failed has a row with its `error` and no checkpoint."""
        found = []
        for role, attackers in self.scorecard.attackers.items():
            for one in attackers:
                about = {"role": role, "attack": one.attack, "seed": one.seed, "domain": one.domain, "error": one.error}
                found += [{**about, **dataclasses.asdict(point)} for point in one.checkpoints] or [about]
        return found

    def __str__(self) -> str:
        from titer.report import lead

        verdicts = ", ".join(f"{name} {verdict}" for name, verdict in self.verdicts.items())
        return f"{self.scorecard.model} against {self.scorecard.against}: {verdicts}. {lead(self.scorecard)}"


class AssayStopped(RuntimeError):
    """An assay that ended at a failure which is neither an attack's nor in the user's hands."""


def plan(
    model: str,
    against: str,
    *,
    profile: str | Path | Profile = "quick",
    output: str | Path = "runs/assay",
    name: str | None = None,
    defence_data: str | Sequence[str] = (),
    data_dir: str | Path | None = None,
    settings: Settings | None = None,
    show: Show | bool = False,
) -> AssayPlan:
    """Return what `assay` would run; no model is asked.

    Raises:
        TiterError: As `assay` does before it attacks.
    """
    listener(show).remark("Loading libraries …")
    from titer.assays.card import assay_folder
    from titer.assays.profile import Profile, read_profile

    folder = as_path("output", output)
    assay_folder(folder, name, model)
    if isinstance(profile, Profile):
        refuse_unused(["settings"], "on a profile that is made already")
        profile.check()
        chosen = profile
    else:
        chosen = read_profile(profile, as_overrides(settings))
    data, defence = chosen.data, as_names(defence_data)
    named = [data.harmful, *data.helpful, data.lookalikes, data.task, chosen.reference, *chosen.reference_tasks]
    refuse_unused_data_dir([*named, *defence])
    from titer.assays.runner import plan_assay

    copies = None if data_dir is None else as_path("data_dir", data_dir)
    return plan_assay(chosen, model, against, folder, copies, defence)


@workflow
def assay(
    model: str,
    against: str,
    *,
    profile: str | Path | Profile = "quick",
    output: str | Path = "runs/assay",
    name: str | None = None,
    defence_data: str | Sequence[str] = (),
    data_dir: str | Path | None = None,
    settings: Settings | None = None,
    force: bool = False,
    workers: int = 1,
    launcher: str = "local",
    partition: str | None = None,
    resources: Settings | None = None,
    address: str | None = None,
    show: Show | bool = False,
) -> Assay:
    """Measure how immune a model is: resistance, stability, generalization, trainability (arXiv 2402.16382).

    What an interrupted assay has done is not done again, nor are attacks that another one in the same folder has run.

    Args:
        model: The defended model: a folder, a hub id, an adapter.
        against: The undefended model to compare it with.
        profile: smoke, quick, standard, thorough, adaptive (disguised uploads), table (the attacks of a 2026 table), or a YAML file.
        output: Folder of assays; those in one folder attack a model once.
        name: Of this assay's folder; the model's by default.
        defence_data: Dataset that the defence was made from; kept out of attack and scoring. May be several.
        data_dir: Folder with local copies of named datasets (sst2_train.jsonl, …).
        settings: Changes of the profile, `attacks.harmful.steps` (`titer settings profile`).
        force: Run jobs again that are done.
        workers: Jobs that run at the same time, each in a process with the model of its own: 2 on two cores.
        launcher: Who runs jobs: local (this machine), slurm (through submitit) or ray; the figures are the same.
        partition: Of Slurm.
        resources: What jobs ask Slurm or Ray for, by submitit's or Ray's names: `mem_gb=32`, `align.num_gpus=1` (of a kind).
        address: Of a Ray cluster, `auto` for the one of this node; without it one is started here.
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Returns:
        The scorecard. Attackers that failed by the machine's or their own fault are in its `failed`.

    Raises:
        TiterError: For a wrong profile, arguments that cannot be meant or have no effect, a model or data that cannot be
            loaded, or a model that could not even be asked.
        AssayStopped: For a fault of titer, of a plug-in, or of the machine before any attack.
    """
    from titer.assays.card import assay_folder

    tell, runner = listener(show), launcher_for(launcher, workers, partition, resources, address)
    planned = plan(model, against, profile=profile, output=output, name=name, defence_data=defence_data,
                   data_dir=data_dir, settings=settings, show=tell)  # fmt: skip
    folder = assay_folder(planned.run_folder, name, model)
    tell.remark(f"{planned.profile.name}: {planned.profile.description}")
    tell.remark(f"Prompts shared between pools: {sum(planned.pools.overlap.values())}. Assay: {folder}")
    if launcher == "local":
        tell.expect([*planned.to_do(force).values()])
    else:
        tell.remark(f"What runs where, and how long it will take: titer status {planned.run_folder}")
    return Assay(folder, carry_out(planned, folder, command("assay"), tell, force, launcher=runner))


def carry_out(
    plan: AssayPlan,
    folder: Path,
    command: str,
    show: Show | bool = False,
    force: bool = False,
    workers: int = 1,
    launcher: Launcher | None = None,
) -> Scorecard:
    """Run what is not done of a plan; write `scorecard.json`, `report.html` and `model_card.md`; return the scorecard.

    Args:
        plan: What to run.
        folder: Of the assay.
        command: What the user typed, for the record.
        show: Who is told.
        force: Do jobs again that are done.
        workers: Jobs that run at the same time.
        launcher: Runs them instead.

    Raises:
        TiterError: When a job failed for something in the user's hands, such as a judge that nobody can reach.
        AssayStopped: When one failed for anything else. A scorecard of the rest would call attacks survived that were not
            carried out, so there is none; attackers that failed by the machine's or their own fault are listed in it.
    """
    from titer.assays.card import write_scorecard
    from titer.assays.scorecard import make_scorecard
    from titer.jobs.plan import execute
    from titer.progress import Task
    from titer.report import model_card, write_assay_report
    from titer.results.artefacts import write_atomically

    started = time.perf_counter()
    execute(plan, listener(show), force, stop_at=("baseline", "attack"), workers=workers, launcher=launcher)
    _check(plan)
    with Task("scorecard"):
        card = make_scorecard(plan, command, time.perf_counter() - started)
        write_scorecard(folder, card)
        write_assay_report(folder, card)
    write_atomically(folder / "model_card.md", model_card(card).encode())
    return card


def _check(plan: AssayPlan) -> None:
    """Raise when a job failed."""
    failed = [job for job in plan.jobs.values() if job.status == "failed"]
    if not failed:
        return
    lines = "".join(f"\n  {job.name}: {job.reason} ({job.folder / 'error.txt'})" for job in failed)
    message, hint = f"The assay stopped:{lines}", "What is done is kept: the same command goes on from here."
    if all(job.mistake for job in failed):
        raise TiterError(message, hint)
    raise AssayStopped(f"{message}\n{hint}")
