"""`titer audit-log`: what was done to a service's things, and whether the record of it was changed since."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from titer.cli.common import Json, Verb, fail, in_range
from titer.cli.serve import Data, Database, existing
from titer.text import say, to_json

HELP = "Show a service's audit log, and find out whether it was changed."
EXAMPLES = """
Examples:

`titer audit-log verify --data service/` — reads all of it; prints its end, to be kept elsewhere. Exit code 1: it was changed

`titer audit-log verify --data service/ --known 42:0123…` — also whether it still goes on from an end that was kept

`titer audit-log show --data service/ --last 20`
"""

app = typer.Typer(help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")


@app.command(
    "verify", cls=Verb, help="Find the first line that was changed, removed, added or moved; exit code 1 for one."
)
def verify(
    data: Data,
    known: Annotated[
        str | None, typer.Option("--known", metavar="NUMBER:HASH", help="An end of the log that was printed before.")
    ] = None,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Read the whole log."""
    from titer.service import chain

    kept = None if known is None else chain.Head.parse(known)
    service = existing(data, database)
    try:
        with service.database.reading() as session:
            head = chain.verify(session, kept)
    except chain.Broken as error:
        if as_json:
            say(to_json({"intact": False, "line": error.number, "reason": error.reason, "head": None}))
            raise typer.Exit(1) from None
        fail(f"The audit log was changed. Line {error.number}: {error.reason}.", 1)
    finally:
        service.close()
    if as_json:
        say(to_json({"intact": True, "line": None, "reason": None, "head": str(head)}))
    else:
        say(f"intact: {head.number} lines\n{head}")


@app.command("show", cls=Verb, help="Show the last lines, the oldest first.")
def show(
    data: Data,
    last: Annotated[int, typer.Option("--last", help="How many.", callback=in_range)] = 50,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Show lines of the log."""
    from titer.service import chain
    from titer.service.api.operations import line_object

    service = existing(data, database)
    try:
        with service.database.reading() as session:
            lines = chain.last(session, last)
    finally:
        service.close()
    for line in lines:
        about = {**line_object(line), "org_id": line.org_id}
        if as_json:
            say(json.dumps(about))
            continue
        at = datetime.fromtimestamp(line.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        details = json.dumps(line.details) if line.details else ""
        say(f"{line.number:6} {at} {line.actor} {line.action} {line.subject} {details}".rstrip())
