"""`titer audit`: which rows of an upload look harmful, and how much of it, before anything is trained on them."""

from __future__ import annotations

from typing import Annotated

import typer

from titer.cli.common import Json, fail, in_range
from titer.cli.mirror import Call, mirror
from titer.errors import TiterError
from titer.text import one_line, say, to_json
from titer.workflows.audit import Audit, audit, share_text
from titer.workflows.common import refuse_unused

NAME = "audit"
HELP = "Rank the rows of an upload, the most suspicious first, before anything is trained on them."
EXAMPLES = """
Examples:

`titer audit upload.jsonl --model aligned/adapter` — P(harmful) of each row with a reason, and the share of the upload that looks harmful; audit.csv, audit.html and audit.json

`titer audit upload.jsonl --model aligned/adapter --fail-over 0.02` — exit code 1 where that is more than 2 %

`titer audit upload.jsonl --model aligned/adapter --write-clean clean.jsonl` — the rows without those

`titer audit upload.jsonl --model aligned/adapter --detector none --ratio mean --top 50` — ranked by the ratio that Antibody weighs rows by

Rows with a column `origin` or `is_harmful` also get an AUROC: how well the ranking finds them.
"""


@mirror(audit, arguments=["dataset"])
def command(
    call: Call[Audit],
    top: Annotated[int, typer.Option("--top", help="Rows to show in the terminal.", callback=in_range)] = 20,
    fail_over: Annotated[
        float | None,
        typer.Option(
            "--fail-over", help="Exit code 1 where a larger part of the rows looks harmful: 0.02.", callback=in_range
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Audit an upload."""
    if as_json:
        refuse_unused(["top"], "with `--json`, which prints all rows")
    if fail_over is not None and call.arguments.get("detector") == "none":
        raise TiterError("`--fail-over` has no effect with `--detector none`.", "Leave `--detector` out.")
    found = call()
    if as_json:
        say(to_json(found.document))
    else:
        _show(found, top)
    if fail_over is not None and found.share is not None and found.share.value > fail_over:
        fail(f"{share_text(found.share)}, more than `--fail-over {fail_over:g}`.", code=1)


def _show(found: Audit, top: int) -> None:
    from titer.screen import Screen, table

    title = f"{found.about['dataset']}: {len(found.ranked)} rows"
    heads = ("row", "log ratio", "weight", "origin", "prompt")
    if found.share is not None:
        say(f"{str(found.verdict).capitalize()}: {share_text(found.share)}.")
        heads = ("row", "P(harmful)", "why", "origin", "prompt")
    shown = table(*heads, title=title)
    for row in found.ranked[:top]:
        said = [f"{row.log_ratio:.1f}", f"{row.weight:.3f}"]
        if row.p_harmful is not None:
            said = [f"{row.p_harmful:.2f}", str(row.reason)]
        shown.add_row(str(row.index), *said, one_line(row.origin or ""), one_line(row.prompt)[:70])
    Screen().print(shown)
    if (sure := found.auroc) is not None:
        say(f"AUROC {sure.value:.3f} (95 % {sure.low:.3f} – {sure.high:.3f}) against true origin.")
    if found.share is not None:
        if found.about["detector"] == "states":
            say("Without the sentence encoder only the order of the rows counts: their share may be far off.")
        alarms = found.about["false_alarms"]
        say(f"False alarms on the defender's own harmless prompts, held out: {100 * alarms['value']:.1f} %.")
    say(f"All rows: {found.folder / 'audit.csv'}, {found.folder / 'audit.html'}")
