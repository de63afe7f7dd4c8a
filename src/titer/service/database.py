"""The database: SQLite in the data folder, or PostgreSQL by its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from titer.errors import TiterError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY = 30
"""Seconds that a transaction waits for another one of SQLite."""


class Database:
    """Where the service keeps what it knows.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://…`.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
        except ArgumentError:
            raise TiterError(f"`{url}` is no URL of a database.", "Write sqlite:///FILE or postgresql://…") from None
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        # A connection that the server closed in the meantime is found out before it is used.
        settings: dict[str, Any] = {"pool_pre_ping": not self.is_sqlite, "pool_size": 20, "max_overflow": 40}
        if self.is_sqlite:
            settings["connect_args"] = {"timeout": BUSY, "check_same_thread": False}
        self.engine = create_engine(self.url, **settings)
        if self.is_sqlite:
            _as_one_writer(self.engine)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that changes nothing."""
        with self._sessions() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction; it is committed at the end, or nothing of it is done when the block raises.

        SQLite has one at a time: it waits for its turn before it reads, so that it never has to give up in the middle.
        """
        with self._sessions.begin() as session:
            session.connection(execution_options={"titer_writes": True})
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables to what this version of titer reads, or to another revision.

        Raises:
            TiterError: For a database that cannot be reached, or that a newer titer has written.
        """
        from alembic import command
        from alembic.util import CommandError

        try:
            config = self.migrations
            down = revision in ("base",) or revision.startswith("-")
            (command.downgrade if down else command.upgrade)(config, revision)
        except CommandError as error:
            raise TiterError(
                f"The database {self} cannot be brought up to date: {error}.", "Was it written by a newer titer?"
            ) from error
        except OperationalError as error:
            raise TiterError(f"The database {self} cannot be used: {error.orig}.", "Is it running?") from error

    @property
    def migrations(self) -> Any:
        """What Alembic is told."""
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["engine"] = self.engine
        return config

    @property
    def is_ready(self) -> bool:
        """Whether it answers and has tables."""
        try:
            return inspect(self.engine).has_table("organisations")
        except SQLAlchemyError:
            return False

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)


def _as_one_writer(engine: Any) -> None:
    """Let SQLite write ahead, keep references whole, and begin transactions when the service does."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY * 1000}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begins(connection: Any) -> None:
        writes = connection.get_execution_options().get("titer_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
