"""Results of a run from plain data, as a file would hold them."""

from __future__ import annotations

from typing import Any

from titer.results import Result
from titer.results.reading import typed
from titer.results.summary import Run


def as_run(results: dict[str, Any]) -> Run:
    """What a file with these results would be read as."""
    rows = [typed(Result, row, f"results[{number}]") for number, row in enumerate(results["results"])]
    return Run(rows, results["provenance"])
