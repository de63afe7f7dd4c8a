"""The files of a job, checked whole once more before anything is trained on them."""

from __future__ import annotations

from typing import Any

from titer.service import chat_rows, json_lines
from titer.service.store import Store, pieces
from titer.service.tables import File

LEAST = 10
"""Fewest examples that a job trains on, as OpenAI's."""


def check_files(
    store: Store, files: dict[str, File | None], most: int, least: int
) -> tuple[dict[str, int], dict[str, Any] | None]:
    """Return how many examples each file holds, and OpenAI's `error` for a job whose files cannot be used.

    Args:
        store: Where they lie.
        files: Of each parameter its file; `None` for one that is gone.
        most: Most rows of a file.
        least: Fewest examples of the training file.
    """
    rows: dict[str, int] = {}
    for param, file in files.items():
        try:
            if file is None:
                raise FileNotFoundError
            with store.open(file.place) as data:
                found = chat_rows.check(json_lines.split(pieces(data)), rows=most)
        except FileNotFoundError:
            return rows, _wrong(param, "It is not there any more.")
        if found.errors:
            rest = [f"and {found.more} more."] if found.more else []
            return rows, _wrong(param, "\n".join(["Its errors:", *map(str, found.errors), *rest]))
        rows[param] = found.examples
        if param == "training_file" and found.examples < least:
            return rows, _wrong(param, f"It has {found.examples} examples; a job needs at least {least}.")
    return rows, None


def _wrong(param: str, what: str) -> dict[str, Any]:
    message = f"The {param.replace('_', ' ')} cannot be used. {what}"
    return {"code": f"invalid_{param}", "message": message, "param": param}
