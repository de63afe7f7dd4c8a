"""`titer judges`: who judges answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from titer.cli.common import Json, Verb
from titer.cli.mirror import Call, mirror
from titer.text import first_sentence, say, to_json
from titer.workflows.bench import BenchRun, bench
from titer.workflows.common import Unfinished

HELP = "Explain the judges of answers."
EXAMPLES = """
Examples:

`titer judges list` — every judge in a sentence

`titer judges show offline` — all that is said of it

`titer judges show mine.py:MyJudge` — one of your own

`titer judges bench answers.jsonl --judge offline --judge keywords --html judges.html` — judges against people
"""
BENCH = """
Examples:

`titer judges bench answers.jsonl --judge offline --judge keywords` — figures with intervals; bench/verdicts.jsonl, bench/bench.json

`titer judges bench answers.jsonl --judge mine.py:MyJudge --html judges.html --markdown judges.md` — a page and Markdown tables

`titer judges bench answers.jsonl --judge keywords --write-error-rates rates.json` — then `titer evaluate --rejudge scores --judge keywords --error-rates rates.json` corrects the harmful score

`answers.jsonl` holds `prompt`, `response` and `label` (compliance, refusal, partial, benign, broken or unsure), and if known `harmful_prompt`, `model` and `category`. A verdict that is in the folder is not asked for again.
"""

app = typer.Typer(help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")


def _about(name: str) -> dict[str, Any]:
    import inspect

    from titer import judges

    judge = judges.get(name)
    kind = type(judge)
    return {
        "judge": name,
        "name": judge.name,
        "summary": first_sentence(kind.__doc__),
        "description": inspect.getdoc(kind) or "",
    }


@app.command("list", cls=Verb, help="Every judge in a sentence.", epilog="Example: `titer judges list --json`")
def list_judges(as_json: Json = False) -> None:
    """List the table."""
    from titer.judges import JUDGES

    rows = [_about(name) for name in JUDGES]
    if as_json:
        say(to_json(rows))
        return
    from titer.screen import Screen, table

    shown = table("judge", "revision", "what it does", typed=1)
    for row in rows:
        shown.add_row(row["judge"], row["name"], row["summary"])
    Screen().print(shown)
    say("Your own: --judge mine.py:MyJudge, or in an experiment `evaluate: {judge: mine.py:MyJudge}`.")


@app.command("show", cls=Verb, help="All that is said of a judge.", epilog="Example: `titer judges show keywords`")
def show_judge(
    name: Annotated[str, typer.Argument(help="A judge of `titer judges list`, or an import path.")],
    as_json: Json = False,
) -> None:
    """Show one judge."""
    about = _about(name)
    say(to_json(about) if as_json else f"{name}, {about['name']}: {about['description']}")


@app.command("bench", cls=Verb, help="Hold judges against answers that people have labelled.", epilog=BENCH)
@mirror(bench, arguments=["answers"])
def bench_judges(call: Call[BenchRun], as_json: Json = False) -> None:
    """Measure judges."""
    try:
        _print(call(), as_json)
    except Unfinished as error:
        _print(error.result, as_json)
        raise


def _print(found: BenchRun, as_json: bool) -> None:
    from titer.report import print_bench
    from titer.screen import Screen

    if as_json:
        say(to_json(found.document))
        return
    print_bench(found.bench, Screen())
    say(f"Verdicts: {found.folder / 'verdicts.jsonl'}; figures: {found.folder / 'bench.json'}")
