"""`titer audit`: rank the rows of an upload by how the aligned model weighs answer against refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.common import (
    EMBEDDED,
    DataDir,
    Json,
    Model,
    Show,
    in_range,
    path,
    refuse_unused,
    refuse_unused_data_dir,
)
from titer.text import one_line, say, to_csv, to_json

NAME = "audit"
HELP = "Rank the rows of an upload, the most suspicious first, before anything is trained on them."
EXAMPLES = """
Examples:

`titer audit upload.jsonl --model aligned/adapter` — a table, audit.csv and audit.html

`titer audit upload.jsonl --model aligned/adapter --ratio mean --top 50 --output audits/customer-7`

Rows with a column `origin` or `is_harmful` also get an AUROC: how well the ranking finds them.
"""


def command(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="The upload: a .jsonl file, a named dataset, or a hub id.")],
    model: Model = EMBEDDED,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, metavar="PATH", help="Folder for audit.csv and audit.html.")
    ] = Path("audit"),
    ratio: Annotated[str, typer.Option("--ratio", help="Likelihoods of answers: sum (as printed) or mean.")] = "sum",
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Rows that weights are shared among.", callback=in_range)
    ] = 16,
    top: Annotated[int, typer.Option("--top", help="Rows to show in the terminal.", callback=in_range)] = 20,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Audit an upload."""
    from titer.data import load
    from titer.errors import check_known
    from titer.files import check_output
    from titer.jobs import answers
    from titer.jobs.estimates import recorded, weighing
    from titer.jobs.provenance import weights_digest
    from titer.models import split_adapter
    from titer.packing.losses import RATIOS
    from titer.report import write_audit
    from titer.results.artefacts import write_atomically
    from titer.stats.intervals import auroc_interval

    check_known([ratio], RATIOS, "ratio")
    refuse_unused_data_dir(context, [dataset])
    if as_json:
        refuse_unused(context, ["top"], "with `--json`, which prints all rows")
    check_output(output, ["audit.csv", "audit.html", "audit.json"])
    records = load(dataset, data_dir=data_dir)
    base, adapter = split_adapter(model)
    work = weighing("weigh", base, records).after_loading
    Show().expect([work])
    with recorded(work):
        ratios = answers.weigh(base, adapter, records, ratio)
    weights = answers.batch_weights(ratios, batch_size)
    rows: list[dict[str, object]] = [
        {
            "index": index,
            "log_ratio": value,
            "weight": weight,
            "prompt": record.prompt_text,
            "completion": record.completion_text,
            "origin": None if record.is_harmful is None else record.origin,
        }
        for index, (record, value, weight) in enumerate(zip(records, ratios, weights, strict=True))
    ]
    # A harmful row teaches against the aligned model's wish to refuse: its ratio is low.
    rows.sort(key=lambda row: float(str(row["log_ratio"])))
    meta: dict[str, object] = {
        "dataset": dataset,
        "model": model,
        "weights": weights_digest(base, adapter),
        "ratio": ratio,
        "n": len(rows),
        "batch_size": batch_size,
    }
    truth = [record.is_harmful for record in records]
    if all(flag is not None for flag in truth) and len(set(truth)) == 2:
        found = auroc_interval([-value for value in ratios], [bool(flag) for flag in truth])
        meta |= {"auroc": found.value, "auroc_low": found.low, "auroc_high": found.high}
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "audit.csv", to_csv(rows).encode())
    write_audit(output / "audit.html", rows, meta)
    document = {"schema": "titer/audit/1", **meta, "rows": rows}
    write_atomically(output / "audit.json", to_json(document).encode())
    if as_json:
        say(to_json(document))
        return
    _print(rows[:top], meta, output)


def _print(rows: list[dict[str, object]], meta: dict[str, object], output: Path) -> None:
    """Print the most suspicious rows."""
    from titer.screen import Screen, table

    shown = table("row", "log ratio", "weight", "origin", "prompt", title=f"{meta['dataset']}: {meta['n']} rows")
    for row in rows:
        prompt = one_line(str(row["prompt"]))[:70]
        ratio, weight = f"{row['log_ratio']:.1f}", f"{row['weight']:.3f}"
        shown.add_row(str(row["index"]), ratio, weight, one_line(str(row["origin"] or "")), prompt)
    Screen().print(shown)
    if "auroc" in meta:
        say(f"AUROC {meta['auroc']:.3f} (95 % {meta['auroc_low']:.3f} – {meta['auroc_high']:.3f}) against true origin.")
    say(f"All rows: {output / 'audit.csv'}, {output / 'audit.html'}")
