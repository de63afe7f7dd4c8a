"""`titer assay`: how immune is a model? The four immunization conditions against another model, or several compared."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.common import (
    DefaultVerb,
    DryRun,
    Json,
    PlanOnly,
    Sections,
    Verb,
    fail,
    load_sections,
    path,
    print_plan,
    say_planned,
    took,
)
from titer.cli.mirror import Call, mirror
from titer.text import say, to_json
from titer.workflows.assay import Assay, AssayStopped, assay, plan
from titer.workflows.common import HANDED_OUT, refuse_unused

if TYPE_CHECKING:
    from titer.assays.card import Scorecard

HELP = "Measure how immune a model is: resistance, stability, generalization and trainability, with a verdict on each."
EXAMPLES = """
Examples:

`titer assay aligned/antibody --against aligned/sft` — attacks both, compares, writes scorecard and report

`titer assay aligned/antibody --against aligned/sft --profile quick --dry-run` — the plan, its FLOPs and its time

`titer assay aligned/antibody --against aligned/sft --workers 2` — two jobs at the same time, where there is room for it

`titer assay aligned/antibody --against aligned/sft --launcher slurm --partition gpu --parallel 64` — attackers as arrays of Slurm

`titer assay my-model/ --against org/base --require 'resistance>=weak,stability,trainability'` — exit code 1 when unmet

`titer assay compare runs/assay/booster runs/assay/antibody` — ranks defences by their scorecards

`titer assay report runs/assay/antibody --section mine.py:PRICES` — the page again, with a section of one's own
"""


app = typer.Typer(cls=DefaultVerb, help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")


@app.command("run", cls=Verb, help=HELP, epilog=EXAMPLES)
@mirror(assay, arguments=["model"])
def run(
    call: Call[Assay],
    require: Annotated[
        str | None, typer.Option("--require", help="Verdicts to exit 0 for: 'resistance>=weak,stability'.")
    ] = None,
    dry_run: DryRun = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
) -> None:
    """Assay a model."""
    started = time.perf_counter()
    from titer.assays.card import parse_requirements, unmet

    requirements = parse_requirements(require) if require is not None else []
    if dry_run:
        refuse_unused(HANDED_OUT, "with `--dry-run`, which runs no job")
        planned = call.to(plan)
        title = "assay of {defended} against {undefended}, profile ".format(**planned.models) + planned.profile.name
        print_plan(title, planned, planned.pools.overlap, as_json, call.arguments.get("force", False))
        return
    if plan_only:
        refuse_unused([*HANDED_OUT, "force"], "with `--plan-only`, which runs no job")
        say_planned(call.to(plan))
        return
    try:
        found = call()
    except AssayStopped as error:
        fail(str(error), code=1)
    if as_json:
        say(to_json(found.scorecard.as_dict()))
    else:
        from titer.report import lead, print_scorecard
        from titer.screen import Screen

        print_scorecard(found.scorecard, Screen())
        say(lead(found.scorecard))
        for what, file in (("Scorecard", "scorecard.json"), ("Model card", "model_card.md"), ("Report", "report.html")):
            say(f"{what}: {found.folder / file}")
    took(started)
    if found.failed:
        lines = "".join(f"\n  {row['role']}, {row['attacker']}: {row['reason']}" for row in found.failed)
        fail(f"Failed attackers (they count nowhere):{lines}", code=1)
    if lacking := unmet(found.verdicts, requirements):
        fail("Required and not met:\n" + "\n".join(f"  {line}" for line in lacking), code=1)


@app.command(
    "compare",
    cls=Verb,
    help="Rank several defences by their scorecards.",
    epilog="Example: `titer assay compare runs/assay/booster runs/assay/antibody --html comparison.html`",
)
def compare(
    scorecards: Annotated[list[Path], typer.Argument(help="Folders of assays, or scorecard.json files.")],
    markdown: Annotated[
        Path | None, typer.Option("--markdown", parser=path, metavar="PATH", help="Also write the table to this file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", parser=path, metavar="PATH", help="Also write the page to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare defences."""
    from titer.assays.card import read_scorecard
    from titer.errors import TiterError
    from titer.files import check_output
    from titer.report import comparison_markdown, print_comparison, ranked, write_comparison
    from titer.results.artefacts import write_atomically
    from titer.screen import Screen

    for file in filter(None, (markdown, html)):
        check_output(file.parent, [file.name])
    cards = [read_scorecard(path) for path in scorecards]
    if len(cards) < 2:
        raise TiterError("A comparison needs two scorecards or more.")
    warn = _not_comparable(cards)
    if warn is not None:
        raise TiterError(*warn)
    if markdown is not None:
        write_atomically(markdown, comparison_markdown(cards).encode())
    if html is not None:
        write_comparison(html, cards)
    if as_json:
        say(to_json([row.as_dict() for row in ranked(cards)]))
        return
    print_comparison(cards, Screen())


@app.command(
    "report",
    cls=Verb,
    help="Write the page and the model card of an assay again, and print its verdicts.",
    epilog="Example: `titer assay report runs/assay/antibody --section mine.py:PRICES`",
)
def report(
    scorecard: Annotated[Path, typer.Argument(help="The folder of an assay.")],
    section: Sections = None,
    as_json: Json = False,
) -> None:
    """Report an assay."""
    from titer.assays.card import read_scorecard
    from titer.files import check_output
    from titer.report import model_card, print_scorecard, write_assay_report
    from titer.results.artefacts import write_atomically
    from titer.screen import Screen

    card = read_scorecard(scorecard)
    check_output(scorecard, ["report.html", "model_card.md"])
    written = write_assay_report(scorecard, card, load_sections(section))
    write_atomically(scorecard / "model_card.md", model_card(card).encode())
    if as_json:
        say(to_json(card.as_dict()))
        return
    print_scorecard(card, Screen())
    say(f"Report: {written}")


def _not_comparable(cards: list[Scorecard]) -> tuple[str, str] | None:
    """Say why scorecards cannot be ranked beside each other, and what to do."""
    against = {card.against for card in cards}
    if len(against) > 1:
        return f"The scorecards compare with different models: {', '.join(sorted(against))}.", "Assay against one."
    profiles = {json.dumps(card.provenance["profile"], sort_keys=True) for card in cards}
    if len(profiles) > 1:
        return "The scorecards come from different profiles.", "Assay all models with the same profile."
    return None
