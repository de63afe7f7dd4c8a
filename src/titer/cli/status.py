"""`titer status`: what runs where, what failed and why, how long it will take yet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.common import Json, path
from titer.progress import Task, duration
from titer.text import say, to_json
from titer.workflows.common import refuse_unused

if TYPE_CHECKING:
    from titer.jobs.status import RunStatus

NAME = "status"
HELP = "Show how a run is that any process or cluster works on: what runs where, what failed and why, time left."
EXAMPLES = """
Examples:

`titer status runs/quickstart` — counts by kind, what runs where since when, what failed and why

`titer status runs/quickstart --watch` — drawn again until there is nothing to do; Ctrl-C leaves the run alone

`titer status runs/quickstart --json` — every job, for programs

It reads the run's folder and changes nothing.
"""
LOOK_EVERY = 2.0
"""Seconds between looks."""


def command(
    run: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="Folder of a run, or of assays.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show it until there is nothing to do.")] = False,
    as_json: Json = False,
) -> None:
    """Show how a run is."""
    from titer.jobs.status import read_status
    from titer.screen import Screen

    if as_json:
        refuse_unused(["watch"], "with `--json`, which shows it once")
        say(to_json(read_status(run).as_dict()))
        return
    screen = Screen()
    if watch:
        try:
            _watch(run, screen)
        except KeyboardInterrupt:
            return  # how one leaves it
    if not (watch and screen.is_terminal):
        screen.print(_shown(read_status(run)))


def _watch(run: Path, screen: Any) -> None:
    """Show it in a terminal, and elsewhere a line every half minute, until there is nothing to do."""
    from rich.live import Live

    from titer.jobs.status import read_status

    found = read_status(run)
    if screen.is_terminal:
        with Live(_shown(found), console=screen, auto_refresh=False) as live:
            while found.open:
                time.sleep(LOOK_EVERY)
                found = read_status(run)
                live.update(_shown(found), refresh=True)
        return
    say(str(found))
    with Task(str(found)) as task:
        while found.open:
            time.sleep(LOOK_EVERY)
            found = read_status(run)
            task.what = str(found)


def _shown(found: RunStatus) -> Any:
    """Return the line, the kinds, what is at work, and what failed."""
    from rich.console import Group
    from rich.text import Text

    from titer.jobs.status import STATES
    from titer.screen import table

    now = time.time()
    kinds = table("kind", *STATES, "mean")
    for kind, counts in found.kinds().items():
        mean = found.mean(kind)
        kinds.add_row(kind, *(str(counts[state] or "–") for state in STATES), "" if mean is None else duration(mean))
    parts: list[Any] = [Text(str(found)), kinds]
    at_work = [job for job in found.jobs if job.status in ("running", "submitted")]
    if at_work:
        rows = table("job", "status", "where", "since")
        for job in at_work:
            since = "" if job.since is None else f"{duration(max(0.0, now - job.since))} ago"
            rows.add_row(job.name, job.status, job.where, since)
        parts.append(rows)
    for job in found.jobs:
        if job.status == "failed":
            parts.append(Text.assemble(("✗", "red"), f" {job.name}: {job.reason}  ", (job.path, "dim")))
    return Group(*parts)
