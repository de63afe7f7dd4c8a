"""Bytes in the artefact store that no row names: what whoever died in between had put there.

They are found by listing the store, and noted. A day later those that still nobody names go (`retention.empty`): no job that is at
work, and no upload, takes as long between putting something there and naming it. No time of the store is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from titer.service.context import Service
from titer.service.quotas import ENDS
from titer.service.running import reaching
from titer.service.store import KEY, is_scratch
from titer.service.tables import DAY, File, Job, Model, Part, Removal, now

DEPTHS = {"files": 3, "parts": 3, "models": 2, "jobs": 3}
"""Folders of the store whose contents rows name, and how many segments of a key are a place of its own."""
SHARED = ("gates", "detectors")
"""Folders of what all jobs share, by hashes of what it follows from: only what broke off is looked for in them."""
AT_ONCE = 500
"""Most notes that are made in one transaction."""


class Named:
    """What is named by rows, or belongs to a job that is not at its end, at one moment.

    Args:
        session: The transaction.
    """

    def __init__(self, session: Session) -> None:
        # Jobs first: what one that has ended by now left has its rows, and what belongs to one that has not is kept without.
        jobs = session.execute(select(Job.id, Job.status, Job.tidied, Job.audit, Job.gate)).all()
        self._open = {job for job, status, *_ in jobs if status not in ENDS}
        self._kept = {job for job, _, tidied, _, _ in jobs if not tidied}  # until their retention is over
        left = [found["place"] for *_, audit, gate in jobs for found in (audit, gate) if found and found.get("place")]
        rows = [place for kind in (File, Part, Model) for place in session.scalars(select(kind.place))]
        self._places = {*left, *rows}

    def keeps(self, place: str) -> bool:
        """Whether a place in the store is to stay."""
        kind, name, *_ = place.split("/")
        job = name.rpartition("-")[0] if kind == "models" and name not in self._kept else name
        if kind in ("jobs", "models") and job in self._open:
            return True
        if is_scratch(place):
            return False
        return place in self._places or (kind in ("jobs", "models") and name in self._kept)


def note(service: Service) -> int:
    """List the store and note what no row names; returns how many places were noted.

    Raises:
        Away: The store cannot be used.
    """
    # Whoever puts something there names it afterwards, and takes back an announcement in the transaction that does: what is in
    # the list and neither announced nor named is nobody's.
    with reaching():
        listed = set(_places(service.store.listing()))
    with service.database.reading() as session:
        noted = set(session.scalars(select(Removal.place)))
    with service.database.reading() as session:
        named = Named(session)
    strays = sorted(place for place in listed if not named.keeps(place) and not _within(place, noted))
    for start in range(0, len(strays), AT_ONCE):
        with service.database.writing() as session:
            for place in strays[start : start + AT_ONCE]:
                session.add(Removal(place=place, created_at=now() + DAY, stray=True))
    return len(strays)


def _places(keys: Iterable[str]) -> Iterator[str]:
    """Yield the places that keys belong to; those of an operator's own files are none."""
    for key in keys:
        parts = key.split("/")
        depth = DEPTHS.get(parts[0], 0)
        if is_scratch(key):
            if depth or parts[0] in SHARED:
                yield key
        elif KEY.fullmatch(key) and 0 < depth <= len(parts):
            yield "/".join(parts[:depth])


def _within(place: str, noted: set[str]) -> bool:
    """Whether a place, or a folder that it is in, is noted already."""
    parts = place.split("/")
    return any("/".join(parts[:count]) in noted for count in range(1, len(parts) + 1))
