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

`titer judges list` — every judge, and what it takes to run it

`titer judges show qwen3guard` — all that is said of it, and its settings

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

    from titer import judges, plugins
    from titer.judges.hub.base import HubJudge

    plain = name.partition(" ")[0].partition("@")[0]
    kind = plugins.find(plain, judges.JUDGES, "judge") if plain in judges.JUDGES else None
    if isinstance(kind, type) and issubclass(kind, HubJudge):
        # Some need settings to be made; what they are is known without.
        revision = f"{kind.base}@{kind.version}" if name == plain else judges.get(name).name
    else:
        judge = judges.get(name)
        kind, revision = type(judge), judge.name
    return {
        "judge": name,
        "name": revision,
        "summary": first_sentence(kind.__doc__),
        "description": inspect.getdoc(kind) or "",
        **(_costs(kind) if issubclass(kind, HubJudge) else {}),
    }


def _costs(kind: Any) -> dict[str, Any]:
    """Return what a judge of the hub is and takes, and its settings."""
    card = kind.card
    return {
        "models": [
            {"model": model, "parameters_billions": size, "memory_gb": card.memory(model)}
            for model, size in card.models.items()
        ],
        "licence": card.licence,
        "gated": card.gated,
        "source": card.source,
        "settings": [{"setting": key, "default": default, "help": help} for key, default, help in kind.settings()],
    }


def _least_and_most(about: dict[str, Any], key: str, unit: str) -> str:
    """Return the range of what the models of a judge take; a dash where it takes none, or where that is not told."""
    known = [one[key] for one in about.get("models", []) if one[key] is not None]
    if not known:
        return "–"
    least, most = min(known), max(known)
    return f"{least:.3g} {unit}" if least == most else f"{least:.3g} – {most:.3g} {unit}"


@app.command(
    "list", cls=Verb, help="Every judge, and what it takes to run it.", epilog="Example: `titer judges list --json`"
)
def list_judges(as_json: Json = False) -> None:
    """List the table."""
    from titer.judges import JUDGES

    rows = [_about(name) for name in JUDGES]
    if as_json:
        say(to_json(rows))
        return
    from titer.screen import Screen, table

    shown = table("judge", "revision", "size", "licence", "gated", "GPU memory", typed=1)
    for row in rows:
        shown.add_row(
            row["judge"],
            row["name"].rpartition("@")[2],
            _least_and_most(row, "parameters_billions", "B"),
            row.get("licence", "–"),
            {True: "yes", False: "no", None: "–"}[row.get("gated")],
            _least_and_most(row, "memory_gb", "GB"),
        )
    Screen().print(shown)
    say("GPU memory is computed: 2 bytes a parameter and a fifth more. `(?)`: as remembered, not read at the source.")
    say(
        'Settings follow the name: --judge "qwen3guard url=http://localhost:8000/v1". `titer judges show NAME` has them all.'
    )
    say("Your own: --judge mine.py:MyJudge, or in an experiment `evaluate: {judge: mine.py:MyJudge}`.")


@app.command("show", cls=Verb, help="All that is said of a judge.", epilog="Example: `titer judges show keywords`")
def show_judge(
    name: Annotated[str, typer.Argument(help="A judge of `titer judges list`, or an import path.")],
    as_json: Json = False,
) -> None:
    """Show one judge."""
    about = _about(name)
    if as_json:
        say(to_json(about))
        return
    say(f"{name}, {about['name']}: {about['description']}")
    if "models" not in about:
        return
    from titer.screen import Screen, table

    models = table("model", "size", "GPU memory (computed)", typed=1)
    for one in about["models"]:
        alone = {"models": [one]}
        models.add_row(
            one["model"], _least_and_most(alone, "parameters_billions", "B"), _least_and_most(alone, "memory_gb", "GB")
        )
    settings = table("setting", "default", "what it is", typed=1)
    for one in about["settings"]:
        settings.add_row(one["setting"], str(one["default"]), one["help"])
    Screen().print(models, settings)
    say(f"Licence: {about['licence']}; {'gated' if about['gated'] else 'not gated'}. Source: {about['source']}.")


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
