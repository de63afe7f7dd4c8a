"""A PostgreSQL server of one's own, of Debian's package, reached through a socket in its folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from sqlalchemy import create_engine, text

EVERYBODY = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'titer_%'"


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; `None` where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class Postgres:
    """A PostgreSQL server of one's own.

    Args:
        folder: Of its data, emptied first; its user must be able to reach it, and its path be short, as a socket's must.
        safe: Whether what is committed survives a power failure, which takes longer.
    """

    def __init__(self, folder: Path, safe: bool = True) -> None:
        self.folder, self.safe, self.made = folder, safe, 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.before: list[str] = []
        if os.getuid() == 0:  # it does not run as root
            shutil.chown(folder, "postgres", "postgres")
            self.before = ["runuser", "-u", "postgres", "--"]
        found = programs()
        if found is None:
            raise SystemExit("PostgreSQL is not installed (apt-get install postgresql).")
        self.programs = found
        self._run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "titer", "-E", "UTF8")
        self.start()

    def _run(self, program: str, *words: str) -> None:
        command = [*self.before, str(self.programs / program), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        """Start it."""
        options = (
            f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync={'on' if self.safe else 'off'}"
        )
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self) -> None:
        """Stop it as a power failure would."""
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "stop")

    def restart(self, seconds: float) -> None:
        """Stop it for a while."""
        self.stop()
        time.sleep(seconds)
        self.start()

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://titer@/{name}?host={self.folder}"

    def _ask(self, statement: str) -> None:
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def new(self) -> str:
        """Make an empty database and return its URL."""
        self.made += 1
        self._ask(f"CREATE DATABASE titer_{self.made}")
        return self.url(f"titer_{self.made}")

    def close_connections(self) -> None:
        """Close everybody's connection."""
        self._ask(EVERYBODY)

    def refuse(self) -> Callable[[], object]:
        """Close everybody's connection and take no new one; returns what lets them come again."""
        there, away = self.folder / ".s.PGSQL.5432", self.folder / "away"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            there.rename(away)
            connection.execute(text(EVERYBODY))
        engine.dispose()
        return lambda: away.rename(there)

    def freeze(self) -> Callable[[], object]:
        """Let it stand still, with all connections open; returns what lets it go on."""
        first = psutil.Process(int((self.folder / "data" / "postmaster.pid").read_text().split()[0]))
        processes = [first, *first.children(recursive=True)]

        def tell(number: int) -> None:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

        tell(signal.SIGSTOP)
        return lambda: tell(signal.SIGCONT)

    def remove(self) -> None:
        """Stop it and remove all of it."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
