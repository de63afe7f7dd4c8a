"""`titer worker`: do the jobs of a service, on any machine that reaches its database and its artefact store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.common import in_range, path

NAME = "worker"
HELP = "Do the jobs of a fine-tuning service: audits, trainings, gates. Any number may run, on any machine."
EXAMPLES = """
Examples:

`titer worker --data service/` — beside `titer serve --data service/ --no-worker` on the same machine

`titer worker --data scratch/ --database postgresql://titer@db/titer --store s3://titer/store --jobs 2` — elsewhere

SIGTERM and Ctrl-C let it end: its jobs stop at a checkpoint, and another worker goes on with them.
"""


def command(
    data: Annotated[
        Path, typer.Option("--data", parser=path, metavar="PATH", help="Folder of the service on this machine.")
    ],
    database: Annotated[
        str | None,
        typer.Option(
            "--database", envvar="TITER_DATABASE", help="URL of the database; by default SQLite in the folder."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="TITER_STORE", help="URL of the artefact store; by default in the folder."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="How many jobs at a time.", callback=in_range)] = 1,
    tries: Annotated[
        int,
        typer.Option(
            "--tries", help="A job has failed when its process died so often at the same place.", callback=in_range
        ),
    ] = 3,
) -> None:
    """Do the jobs of a service."""
    import signal

    from titer.service import tracing
    from titer.service.context import open_service
    from titer.service.worker import Worker

    # Its jobs' processes trace; what they need for that is asked for before any begins.
    tracing.start("worker")
    service = open_service(data, database, store)
    worker = Worker(service, jobs=jobs, tries=tries)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.end)
    try:
        worker.run()
    finally:
        tracing.stop()
        service.close()
