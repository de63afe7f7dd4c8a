"""The database: migrations up and down, one writer at a time, and tables that are those of the source."""

import subprocess
import sys
import threading
import time

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select

from titer.errors import TiterError
from titer.service.database import Database
from titer.service.tables import Base, Organisation


@pytest.fixture
def database(database_url, tmp_path):
    found = Database(database_url or f"sqlite:///{tmp_path / 'titer.db'}")
    yield found
    found.close()


def test_migrations_make_the_tables_of_the_source(database):
    database.migrate()
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert database.is_ready


def test_migrations_can_be_taken_back(database):
    database.migrate()
    database.migrate("base")
    assert set(inspect(database.engine).get_table_names()) <= {"alembic_version"}
    assert not database.is_ready
    database.migrate()
    assert database.is_ready


def test_jobs_of_an_older_version_are_kept(database):
    database.migrate("0001")
    with database.writing() as session:
        connection = session.connection()
        columns = [column["name"] for column in inspect(connection).get_columns("jobs")]
        assert "validation_rows" not in columns
        kept = {
            "id": "ftjob-a", "org_id": "org-a", "created_at": 1, "number": 1, "kind": "fine_tuning", "model": "m", "file_id": "f",
            "method": {}, "seed": 0, "status": "queued", "stage": "audit", "policy": {}, "priority": 0, "attempt": 0, "beats": 0,
            "result_files": [], "tidied": False, "rows": 12,
        }  # fmt: skip
        event = {"id": "ftevent-a", "org_id": "org-a", "created_at": 1, "number": 2, "job_id": "ftjob-a", "place": 1,
                 "level": "info", "kind": "message", "message": "m"}  # fmt: skip
        organisation = {"id": "org-a", "name": "a", "priority": 0, "limits": {}, "created_at": 1}
        for table, values in (("organisations", organisation), ("jobs", kept), ("events", event)):
            connection.execute(Base.metadata.tables[table].insert().values(values))
    for revision in ("head", "-1", "head"):
        database.migrate(revision)
        with database.reading() as session:
            jobs, events = (
                session.connection().exec_driver_sql(f"SELECT {what}").one()
                for what in ("id, rows FROM jobs", "id, job_id FROM events")
            )
        assert (tuple(jobs), tuple(events)) == (("ftjob-a", 12), ("ftevent-a", "ftjob-a"))


def test_a_server_and_its_workers_may_start_at_once(database_url, tmp_path):
    """In processes of their own, since Alembic keeps what it works on in its module."""
    url = database_url or f"sqlite:///{tmp_path / 'titer.db'}"
    lines = "import sys; from titer.service.database import Database as D; d = D(sys.argv[1]); sys.stdin.read(); d.migrate()"
    words = [sys.executable, "-c", lines, url]
    processes = [subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    time.sleep(1)  # until most have imported what they need
    for process in processes:
        process.stdin.close()
    assert [process.stderr.read().decode() for process in processes] == [""] * 3


def test_a_database_of_a_newer_titer_is_refused(database):
    database.migrate()
    with database.writing() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(TiterError, match="newer titer"):
        database.migrate()


def test_transactions_that_read_and_write_take_turns(database):
    """Two that read a number and write it plus one give two more, whatever the moment."""
    database.migrate()
    with database.writing() as session:
        session.add(Organisation(id="org-a", name="a"))

    def count():
        for _ in range(20):
            with database.writing() as session:
                row = session.scalar(select(Organisation).with_for_update())
                row.priority += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.scalar(select(Organisation.priority)) == 80


def test_nothing_is_kept_of_a_transaction_that_failed(database):
    database.migrate()

    def fail():
        with database.writing() as session:
            session.add(Organisation(id="org-a", name="a"))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.reading() as session:
        assert session.scalar(select(Organisation)) is None


def test_what_is_no_database_is_an_error_that_says_so(tmp_path):
    with pytest.raises(TiterError, match="no URL"):
        Database("nonsense")
    with pytest.raises(TiterError, match="cannot be used"):
        Database("postgresql://titer@127.0.0.1:1/none").migrate()
