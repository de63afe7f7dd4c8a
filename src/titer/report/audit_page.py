"""The page of an audit: the rows of an upload, the most suspicious first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from titer.errors import TiterError
from titer.report import charts
from titer.report.parts import Table, write_page
from titer.report.run_page import grouped
from titer.report.words import flat_settings, interval_text, percent_text
from titer.results.artefacts import HARMFUL
from titer.stats.intervals import Estimate, auroc, log_odds

_SHOWN = 100


def write_audit(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    meta: Mapping[str, Any],
    verdict: str | None = None,
    share: Estimate | None = None,
) -> Path:
    """Write the audit of an upload as one HTML file and return its path.

    Args:
        path: The file to write.
        rows: The upload's rows, most suspicious first: `index`, `prompt`, `completion`, `log_ratio`, `weight` and
            `origin` (`task`, `harmful`, or None where nobody knows); of a detector also `p_harmful` and `reason`.
        meta: What was audited and with what (dataset, model, ratio, versions …), shown as given.
        verdict: A detector's: `clean`, `suspicious` or `poisoned`.
        share: Which part of the rows it takes for harmful, in [0, 1].

    Raises:
        TiterError: There is no row.
    """
    if not rows:
        raise TiterError("There is nothing to audit: the data set has no rows.")
    ratios = [float(row["log_ratio"]) if share is None else -log_odds(row["p_harmful"]) for row in rows]
    groups = grouped((ratio, row["origin"]) for ratio, row in zip(ratios, rows, strict=True))
    finite = [value for values in groups.values() for value in values]
    caught = [row["origin"] == HARMFUL for row in rows]
    known = [
        (-ratio, one)
        for ratio, one, row in zip(ratios, caught, rows, strict=True)
        if row["origin"] is not None and not math.isnan(ratio)
    ]
    both = len({one for _, one in known}) == 2
    measure = "log r" if share is None else "log odds of harmless"
    words = f"Histogram of {measure} of {len(finite)} rows; the table below lists the lowest."
    title = f"Rows of the upload by {measure}"
    return write_page(
        path,
        "audit.html.j2",
        title=str(meta.get("dataset") or Path(path).stem),
        meta=Table.pairs("audit", flat_settings(meta)),
        count=len(rows),
        groups={group: len(values) for group, values in groups.items()},
        auroc=auroc(*zip(*known)) if both else None,
        total=sum(caught),
        hits=sum(caught[: sum(caught)]),
        hits_shown=sum(caught[:_SHOWN]),
        plot=charts.log_ratios(groups, charts.limits_of(finite), title, words, "audit") if finite else None,
        measure=measure,
        rows=rows[:_SHOWN],
        verdict=verdict,
        no_encoder=meta.get("detector") == "states",
        verdict_kind={"clean": "good", "suspicious": "unclear", "poisoned": "bad"}.get(verdict or "", "plain"),
        share=None if share is None else f"{percent_text(share.value)} [{interval_text(share.low, share.high, 100)}]",
        alarms=percent_text(meta["false_alarms"]["value"]) if "false_alarms" in meta else None,
    )
