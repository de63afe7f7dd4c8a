"""`titer assay`: how immune is a model? The four immunization conditions against another model, or several compared."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from titer.cli.common import (
    DataDir,
    DefaultVerb,
    Json,
    Overrides,
    PlanOnly,
    Show,
    Verb,
    Workers,
    fail,
    path,
    print_plan,
    refuse_unused_data_dir,
    say_planned,
)  # fmt: skip
from titer.progress import duration
from titer.text import say, to_json

HELP = "Measure how immune a model is: resistance, stability, generalization and trainability, with a verdict on each."
EXAMPLES = """
Examples:

`titer assay aligned/antibody --against aligned/sft` — attacks both, compares, writes scorecard and report

`titer assay aligned/antibody --against aligned/sft --profile quick --dry-run` — the plan, its FLOPs and its time

`titer assay my-model/ --against org/base --require 'resistance>=weak,stability,trainability'` — exit code 1 when unmet

`titer assay compare runs/assay/booster runs/assay/antibody` — ranks defences by their scorecards
"""


app = typer.Typer(cls=DefaultVerb, help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")


@app.command("run", cls=Verb, help=HELP, epilog=EXAMPLES)
def run(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The defended model: a folder, a hub id, an adapter.")],
    against: Annotated[str, typer.Option("--against", help="The undefended model to compare it with.")],
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="smoke, quick, standard, thorough, or a YAML file.")
    ] = "quick",
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=path,
            metavar="PATH",
            help="Folder of assays; those in one folder attack a model once.",
        ),
    ] = Path("runs/assay"),
    name: Annotated[str | None, typer.Option("--name", help="Of this assay's folder; the model's by default.")] = None,
    defence_data: Annotated[
        list[str] | None,
        typer.Option("--defence-data", help="Dataset that the defence was made from; kept out of attack and scoring."),
    ] = None,
    data_dir: DataDir = None,
    require: Annotated[
        str | None, typer.Option("--require", help="Verdicts to exit 0 for: 'resistance>=weak,stability'.")
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, its FLOPs and its time.")] = False,
    plan_only: PlanOnly = False,
    workers: Workers = 1,
    force: Annotated[bool, typer.Option("--force", help="Run jobs again that are done.")] = False,
    as_json: Json = False,
) -> None:
    """Assay a model."""
    started = time.perf_counter()
    from titer.assays.card import assay_folder, parse_requirements, unmet
    from titer.assays.profile import read_profile

    requirements = parse_requirements(require) if require is not None else []
    folder = assay_folder(output, name, model)
    chosen = read_profile(profile, overrides or ())
    data = chosen.data
    named = [data.harmful, *data.helpful, data.lookalikes, data.task, chosen.reference, *chosen.reference_tasks]
    refuse_unused_data_dir(context, [*named, *(defence_data or ())])
    show = Show()
    show.remark("Loading libraries …")
    from titer.assays.run import AssayStopped, carry_out
    from titer.assays.runner import plan_assay
    from titer.report import lead, print_scorecard
    from titer.screen import Screen

    plan = plan_assay(chosen, model, against, output, data_dir, defence_data or ())
    if dry_run:
        print_plan(
            f"assay of {model} against {against}, profile {chosen.name}", plan, plan.pools.overlap, as_json, force
        )
        return
    if plan_only:
        say_planned(plan)
        return
    show.console.print(f"{chosen.name}: {chosen.description}")
    shared = sum(plan.pools.overlap.values())
    show.remark(f"Prompts shared between pools: {shared}. Assay: {folder}")
    show.expect([*plan.to_do(force).values()])
    try:
        card = carry_out(plan, folder, shlex.join(["titer", *sys.argv[1:]]), show, force, workers)
    except AssayStopped as error:
        fail(str(error), code=1)
    if as_json:
        say(to_json(card))
    else:
        print_scorecard(card, Screen())
        say(lead(card))
        for what, file in (("Scorecard", "scorecard.json"), ("Model card", "model_card.md"), ("Report", "report.html")):
            say(f"{what}: {folder / file}")
    show.remark(f"Took {duration(time.perf_counter() - started)}.")
    failed = card["hygiene"]["failed"]
    if failed:
        fail(
            "Failed attackers (they count nowhere):\n"
            + "\n".join(f"  {row['role']}, {row['attacker']}: {row['reason']}" for row in failed),
            code=1,
        )
    if lacking := unmet(card, requirements):
        fail("Required and not met:\n" + "\n".join(f"  {line}" for line in lacking), code=1)


@app.command(
    "compare",
    cls=Verb,
    help="Rank several defences by their scorecards.",
    epilog="Example: `titer assay compare runs/assay/booster runs/assay/antibody --markdown comparison.md`",
)
def compare(
    scorecards: Annotated[list[Path], typer.Argument(help="Folders of assays, or scorecard.json files.")],
    markdown: Annotated[
        Path | None, typer.Option("--markdown", parser=path, metavar="PATH", help="Also write the table to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare defences."""
    from titer.assays.card import read_scorecard
    from titer.errors import TiterError
    from titer.files import check_output
    from titer.report import comparison_markdown, comparison_rows, print_comparison
    from titer.results.artefacts import write_atomically
    from titer.screen import Screen

    if markdown is not None:
        check_output(markdown.parent, [markdown.name])
    cards = [read_scorecard(path) for path in scorecards]
    if len(cards) < 2:
        raise TiterError("A comparison needs two scorecards or more.")
    warn = _not_comparable(cards)
    if warn is not None:
        raise TiterError(*warn)
    if markdown is not None:
        write_atomically(markdown, comparison_markdown(cards).encode())
    if as_json:
        say(to_json(comparison_rows(cards)))
        return
    print_comparison(cards, Screen())


def _not_comparable(cards: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Say why scorecards cannot be ranked beside each other, and what to do."""
    against = {card["against"] for card in cards}
    if len(against) > 1:
        return f"The scorecards compare with different models: {', '.join(sorted(against))}.", "Assay against one."
    profiles = {json.dumps(card["provenance"]["profile"], sort_keys=True) for card in cards}
    if len(profiles) > 1:
        return "The scorecards come from different profiles.", "Assay all models with the same profile."
    return None
