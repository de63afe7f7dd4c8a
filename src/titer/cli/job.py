"""`titer job`: one job of a run, by its folder; what schedulers of clusters call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.common import fail, path
from titer.text import say

NAME = "job"
HELP = "Run one job of an experiment or an assay that was planned: what a scheduler of a cluster calls."
ELSEWHERE = 75
"""Exit code while another process works on the job (EX_TEMPFAIL of sysexits.h)."""
EXAMPLES = """
Examples:

`titer run quickstart --plan-only` — leaves the folders of all jobs in runs/quickstart/jobs

`titer job runs/quickstart/jobs/align-0123456789abcdef` — does one; those that it needs must be done

Exit codes: 0 done, 1 failed, 2 something in your hands, 75 another process works on it.
"""


def command(
    folder: Annotated[Path, typer.Argument(parser=path, metavar="FOLDER", help="Of the job: RUN/jobs/KIND-KEY.")],
    force: Annotated[bool, typer.Option("--force", help="Do it again when it is done.")] = False,
) -> None:
    """Run a job."""
    from titer.errors import TiterError
    from titer.jobs.job import Job
    from titer.jobs.leases import Held, LeaseLost
    from titer.progress import Task, duration

    job = Job.read(folder)
    missing = [needed for needed in job.needs if not needed.done]
    if missing:
        raise TiterError(
            f"`{job.name}` needs {len(missing)} jobs that are not done, first `{missing[0].name}`.",
            f"Do that first: titer job {missing[0].folder}",
        )
    try:
        with Task(job.name):
            outcome = job.attempt(force)
    except (Held, LeaseLost) as error:
        fail(f"{job.name}: at work elsewhere ({error}).", ELSEWHERE)
    if outcome.status in ("done", "cached"):
        say(f"{job.name}: {'done before' if outcome.status == 'cached' else 'done, ' + duration(outcome.seconds)}")
        return
    fail(f"{job.name}: {outcome.status}: {outcome.reason}", 2 if outcome.mistake else 1)
