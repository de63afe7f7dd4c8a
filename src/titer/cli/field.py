"""`titer field`: every defence under one protocol, cell by cell, over days and machines."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.common import DataDir, Json, fail, in_range, path, took
from titer.errors import TiterError
from titer.text import say, to_json
from titer.workflows.common import refuse_unused

if TYPE_CHECKING:
    from titer.workflows.field import Standing

NAME = "field"
HELP = "Compare every defence under one protocol, cell by cell: what is done, what is missing, how long it would take."
EXAMPLES = """
Examples:

`titer field` — how far the table is, by the cells in docs/field/cells

`titer field --run --hours 8 --data-dir data/` — go on with it for a night

`titer field --run --cells 1 --only 'label.*'` — one more cell of this form

`titer field --pages` — docs/field/: the table, its pictures, and which published orderings hold

`titer field field_7b --dry-run --data-dir data/` — what a model of 7B would take

`titer field paper/booster_table1 --small --run --hours 4 --data-dir data/` — a paper's table, with the embedded model

Cells are files of their own: whoever has them goes on from there, on any machine.
"""
DOCS = Path("docs")
RUNS = Path("runs")


def command(
    file: Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled field.")] = "field",
    run: Annotated[bool, typer.Option("--run", help="Do cells that are missing, cheapest first.")] = False,
    pages: Annotated[bool, typer.Option("--pages", help="Write the pages of what is done.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan what is missing, with its FLOPs and costs.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CELLS", help="Cells by name, `label.*` or `*.sieve.*`. Several times."),
    ] = None,
    hours: Annotated[float | None, typer.Option(callback=in_range, help="Begin no cell after so long.")] = None,
    cells: Annotated[int | None, typer.Option(callback=in_range, help="Do so many at most.")] = None,
    trials: Annotated[bool, typer.Option("--trials", help="Trials of learning rates too.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Also cells that failed here before.")] = False,
    builtin: Annotated[bool, typer.Option("--builtin", help="On titer's own corpora, without other data.")] = False,
    small: Annotated[
        bool, typer.Option("--small", help="A paper's table with the embedded model: the file's section `small`.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=path, metavar="PATH", help="Cells and pages; docs/NAME by default."),
    ] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option(
            parser=path, metavar="PATH", help="Of the jobs; runs/NAME by default, runs/paper of papers' tables."
        ),
    ] = None,
    data_dir: DataDir = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare every defence under one protocol."""
    _refuse_what_has_no_effect(run, pages, dry_run, builtin)
    from titer.workflows import field as fields
    from titer.workflows.field_cells import run_cells
    from titer.workflows.field_costs import dry_run as planned
    from titer.workflows.field_file import chosen, place_of, read_field

    started = time.perf_counter()
    found = read_field(file, settings or (), builtin, small)
    place = place_of(file, found.name)
    folder = output or DOCS / place
    # The tables of papers ask for many of the same alignments.
    runs = run_folder or RUNS / place.parts[0]
    fields.refuse_other_field(folder / "cells", found.name)
    state = fields.standing(found, folder / "cells", runs)
    wanted = fields.in_order(state, trials=trials, retry=retry)
    if only:
        named = {spot.name for spot in chosen(state.every, only)}
        wanted = [spot for spot in wanted if spot.name in named]
    if pages:
        kind = " --small" if small else " --builtin" if builtin else ""
        again = f"titer field {shlex.quote(file)}{kind} --run --hours 8"
        say(f"Pages: {fields.write_pages(state, folder, again, read_field(file) if small else None)}")
        return
    if dry_run:
        say("\n".join(planned(found, wanted, runs, data_dir)))
        return
    if not run:
        _show(state, wanted, as_json)
        return
    report = run_cells(found, wanted, folder / "cells", runs, data_dir, hours, cells)
    say(f"{len(report.done)} cells done, {len(report.failed)} failed, {report.left} of these left.")
    took(started)
    if report.failed:
        fail("Failed cells:" + "".join(f"\n  {name}: {why}" for name, why in report.failed.items()), code=1)


def _refuse_what_has_no_effect(run: bool, pages: bool, dry_run: bool, builtin: bool) -> None:
    given = [name for name, flag in (("run", run), ("pages", pages), ("dry-run", dry_run)) if flag]
    if len(given) > 1:
        raise TiterError(f"`--{given[0]}` and `--{given[1]}` are two things.", "Give one of them.")
    if not run:
        refuse_unused(["hours", "cells", "retry"], "without `--run`")
    if not (run or dry_run):
        refuse_unused(["data_dir"], "without `--run` or `--dry-run`")
    if builtin:
        refuse_unused(["small"], "with `--builtin`, whose forms stand in a section of their own")
        refuse_unused(["data_dir"], "with `--builtin`, which takes titer's own corpora")
    if run or pages or dry_run:
        refuse_unused(["as_json"], "with `--run`, `--pages` or `--dry-run`")
    if pages:
        refuse_unused(["only", "trials"], "with `--pages`, which show what is done")


def _show(state: Standing, wanted: list[Any], as_json: bool) -> None:
    """Print how far a field is."""
    from titer.screen import Screen, table
    from titer.workflows.field import total
    from titer.workflows.field_costs import Seconds

    if as_json:
        say(to_json(state.as_dict(wanted)))
        return
    shown = table(
        "form", "p", "seed", "done", "missing", "about", title=f"{state.asked.name}: {state.asked.description}"
    )
    for (form, ratio, seed), (done, missing) in state.groups(wanted).items():
        about = total(state, missing)
        shown.add_row(form, f"{ratio:g}", str(seed), str(done), str(len(missing)), about)
    Screen().print(shown)
    where = "on this machine" if Seconds(state.cells.values()).here else "on the machine of those that are done"
    about = f": {total(state, wanted)} {where}" if state.cells and wanted else ""
    say(f"{len(state.cells)} cells done, {len(wanted)} missing{about}.")
    if state.stale:
        say(f"{len(state.stale)} files are of another protocol and count for nothing, {state.stale[0]} first.")
    for name, why in state.failed.items():
        say(f"Failed here: {name}: {why}")
