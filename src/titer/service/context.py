"""What all parts of the service share: where its database, its artefacts and its own folder are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from titer.files import check_output
from titer.service import policy
from titer.service.database import Database
from titer.service.policy import Policy
from titer.service.store import Store
from titer.service.tables import File, Model


@dataclass(frozen=True)
class Service:
    """A service.

    Attributes:
        data: Its folder on this machine; workers have their work in progress there.
        database: Where it keeps what it knows.
        store: Where files and adapters lie.
    """

    data: Path
    database: Database
    store: Store

    @property
    def work(self) -> Path:
        """Where jobs are at work on this machine."""
        return self.data / "work"

    def policy(self) -> Policy:
        """Return the policy that holds now."""
        with self.database.reading() as session:
            return policy.current(session)

    def close(self) -> None:
        """Close the connections to the database."""
        self.database.close()


def open_service(data: Path, database: str | None = None, store: str | None = None) -> Service:
    """Return the service whose folder is `data`, with its tables up to date.

    Args:
        data: Its folder; made where it is not there.
        database: The database's URL; by default SQLite in the folder.
        store: The artefact store; by default a folder in it.

    Raises:
        TiterError: For a folder that cannot be written, and a database or store that cannot be used.
    """
    check_output(data, ["titer.db"], ["work", "store"])
    data.mkdir(parents=True, exist_ok=True)
    found = Database(database or f"sqlite:///{data.absolute() / 'titer.db'}")
    found.migrate()
    service = Service(data, found, Store(store or str(data.absolute() / "store")))
    with found.reading() as session:
        new = all(session.scalar(select(kind.number).limit(1)) is None for kind in (File, Model))
    if new:  # of any other one the mark is there, or the store is not
        service.store.mark()
    return service
