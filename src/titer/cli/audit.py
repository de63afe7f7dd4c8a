"""`titer audit`: rank the rows of an upload by how the aligned model weighs answer against refusal."""

from __future__ import annotations

from typing import Annotated

import typer

from titer.cli.common import Json, in_range
from titer.cli.mirror import Call, mirror
from titer.text import one_line, say, to_json
from titer.workflows.audit import Audit, audit
from titer.workflows.common import refuse_unused

NAME = "audit"
HELP = "Rank the rows of an upload, the most suspicious first, before anything is trained on them."
EXAMPLES = """
Examples:

`titer audit upload.jsonl --model aligned/adapter` — a table, audit.csv and audit.html

`titer audit upload.jsonl --model aligned/adapter --ratio mean --top 50 --output audits/customer-7`

Rows with a column `origin` or `is_harmful` also get an AUROC: how well the ranking finds them.
"""


@mirror(audit, arguments=["dataset"])
def command(
    call: Call[Audit],
    top: Annotated[int, typer.Option("--top", help="Rows to show in the terminal.", callback=in_range)] = 20,
    as_json: Json = False,
) -> None:
    """Audit an upload."""
    from titer.screen import Screen, table

    if as_json:
        refuse_unused(["top"], "with `--json`, which prints all rows")
    found = call()
    if as_json:
        say(to_json(found.document))
        return
    title = f"{found.about['dataset']}: {len(found.ranked)} rows"
    shown = table("row", "log ratio", "weight", "origin", "prompt", title=title)
    for row in found.ranked[:top]:
        prompt, origin = one_line(row.prompt)[:70], one_line(row.origin or "")
        shown.add_row(str(row.index), f"{row.log_ratio:.1f}", f"{row.weight:.3f}", origin, prompt)
    Screen().print(shown)
    if (sure := found.auroc) is not None:
        say(f"AUROC {sure.value:.3f} (95 % {sure.low:.3f} – {sure.high:.3f}) against true origin.")
    say(f"All rows: {found.folder / 'audit.csv'}, {found.folder / 'audit.html'}")
