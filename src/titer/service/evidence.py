"""What a job left in the store that its decisions rest on: the rows of its audit, and the hashes of all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from titer.service.store import LIST, Store, pieces
from titer.service.tables import Appeal, Job, Model
from titer.service.tenants import Tenant

LIKELY = 0.5
"""P(harmful) above which a row is flagged."""
EXCERPT = 300
"""Most characters of a prompt or an answer that are shown."""
KEPT = 4
"""How many audits' rows are kept in memory, so that paging through one does not read it again and again."""


def audited_rows(store: Store, job: Job) -> tuple[dict[str, Any], ...] | None:
    """Return the rows of a job's audit with excerpts of their texts, the most suspicious first.

    Returns:
        `None` where there is none: not yet, or not any more, since its file was deleted or its time is over.
    """
    place = (job.audit or {}).get("place")
    # Whether it is still there is asked each time: what was deleted is not shown from memory.
    if place is None or not store.exists(place):
        return None
    try:
        return _rows(store, place, job.attempt)
    except FileNotFoundError:  # deleted in between
        return None


@lru_cache(maxsize=KEPT)
def _rows(store: Store, place: str, attempt: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "index": row["index"],
            "p_harmful": row.get("p_harmful"),
            "reason": row.get("reason"),
            "weight": row["weight"],
            "flagged": (row.get("p_harmful") or 0.0) > LIKELY,
            "prompt": _excerpt(row["prompt"]),
            "completion": _excerpt(row["completion"]),
        }
        for row in json.loads(store.read(place))["rows"]
    )


def cleared_rows(tenant: Tenant, file: str) -> set[int]:
    """Return the numbers of the rows of a file that a reviewer found honest."""
    return {row for found in tenant.all(Appeal, Appeal.file_id == file) for row in found.rows}


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"


def hashes(store: Store, job: Job, models: Sequence[Model]) -> list[dict[str, str]]:
    """Return SHA-256 of each artefact of a job that is there: its audit, its measurements, its models."""
    found: list[dict[str, str]] = []
    audit, gate = (job.audit or {}).get("place"), (job.gate or {}).get("place")
    if audit is not None and store.exists(audit):
        found.append({"place": audit, "sha256": _digest(store, audit)})
    for place in [*([] if gate is None else [gate]), *(model.place for model in models)]:
        if store.has_folder(place):
            listed = json.loads(store.read(f"{place}/{LIST}"))
            found += [{"place": f"{place}/{name}", "sha256": digest} for name, digest in sorted(listed.items())]
    return found


def _digest(store: Store, place: str) -> str:
    digest = hashlib.sha256()
    with store.open(place) as file:
        for data in pieces(file):
            digest.update(data)
    return digest.hexdigest()
