"""`titer run`: an experiment from its YAML file to its report."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from titer.cli.common import (
    DataDir,
    Json,
    Overrides,
    Show,
    fail,
    path,
    print_plan,
    refuse_unused_data_dir,
)
from titer.progress import duration
from titer.text import say, to_json

NAME = "run"
HELP = "Run an experiment: align, fine-tune, score and report every arm. Resumes where it stopped."
EXAMPLES = """
Examples:

`titer run quickstart` — undefended against antibody on built-in data

`titer run experiments/sst2_advbench.yaml --data-dir data/` — real data

`titer run quickstart --dry-run` — what would run, and how long it would take

`titer run quickstart --set seeds='[0, 1, 2]' --set finetune.poison_ratios='[0, 0.2]'`
"""


def command(
    context: typer.Context,
    experiment: Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled experiment.")] = "quickstart",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=path, metavar="PATH", help="Run folder; runs/NAME by default."),
    ] = None,
    data_dir: DataDir = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and an estimate of the time.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run stages again that are done.")] = False,
    as_json: Json = False,
) -> None:
    """Run an experiment."""
    started = time.perf_counter()
    show = Show()
    show.remark("Loading libraries …")
    from titer.jobs.plan import execute
    from titer.screen import Screen
    from titer.workflows import experiment as experiments

    settings = experiments.read_experiment(experiment, overrides or ())
    data = settings.data
    refuse_unused_data_dir(context, [data.harmful, *data.helpful, data.lookalikes, data.task])
    folder = output or Path("runs") / settings.name
    plan = experiments.make_plan(settings, folder, data_dir)
    if dry_run:
        print_plan(settings.name, plan, plan.overlap, as_json, force)
        return
    shared = sum(plan.overlap.values())
    show.console.print(f"{settings.name}: {settings.description}")
    show.remark(f"Prompts shared between pools: {shared}. Run folder: {folder}")
    show.expect([*plan.to_do(force).values()])
    complete = execute(plan, show, force)
    line = shlex.join(["titer", *sys.argv[1:]])
    report = experiments.collect(plan, line, started)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if as_json:
        say(to_json(results))
    else:
        from titer.report import print_summary, print_verdict

        screen = Screen()
        print_summary(results, screen)
        print_verdict(results, screen)
        say(f"Report: {report}")
    show.remark(f"Took {duration(time.perf_counter() - started)}.")
    if not complete:
        failed = [f"  {stage.name}: {stage.reason}" for stage in plan.jobs.values() if stage.status == "failed"]
        by_user = any(stage.mistake for stage in plan.jobs.values())
        fail(
            "Failed stages:\n" + "\n".join(failed) + f"\nTracebacks: {folder}/jobs/*/error.txt",
            code=2 if by_user else 1,
        )
