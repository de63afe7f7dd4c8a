"""`titer report`: the table and the HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.common import Json, path
from titer.text import say, to_json

NAME = "report"
HELP = "Write the HTML report of a run again, and print its table."
EXAMPLES = """
Examples:

`titer report runs/quickstart`

`titer report runs/quickstart --json` — the summary for programs
"""


def command(
    run: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="A run folder, with results.json.")],
    as_json: Json = False,
) -> None:
    """Report a run."""
    from titer.files import check_output
    from titer.report import print_summary, read_results, summary_rows, write_report
    from titer.screen import Screen

    results = read_results(run)
    check_output(run, ["report.html"])
    report = write_report(run)
    if as_json:
        import dataclasses

        say(to_json([dataclasses.asdict(row) for row in summary_rows(results)]))
        return
    print_summary(results, Screen())
    say(f"Report: {report}")
