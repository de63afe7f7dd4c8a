"""`titer report`: the table and the HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.common import Json, Sections, load_sections, path
from titer.text import say, to_json

NAME = "report"
HELP = "Write the HTML report of a run again, and print its table and verdict."
EXAMPLES = """
Examples:

`titer report runs/quickstart`

`titer report runs/quickstart --json` — the summary for programs, with the verdict on each arm

`titer report runs/quickstart --section mine.py:LATENCY` — with a section of one's own (docs/writing_a_method.md)
"""


def command(
    run: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="A run folder, with results.json.")],
    section: Sections = None,
    as_json: Json = False,
) -> None:
    """Report a run."""
    from titer.files import check_output
    from titer.report import print_summary, print_verdict, summary, write_report
    from titer.results.summary import Run
    from titer.screen import Screen

    results = Run.read(run)
    check_output(run, ["report.html"])
    report = write_report(run, load_sections(section))
    if as_json:
        say(to_json(summary(results)))
        return
    screen = Screen()
    print_summary(results, screen)
    print_verdict(results, screen)
    say(f"Report: {report}")
