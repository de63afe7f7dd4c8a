"""What jobs leave where the database or the store goes away at one moment or another."""

import contextlib
import sqlite3

import pytest
from sqlalchemy import select
from working import add_job, done, events_of, job_of, models_of

from titer.service import running, training
from titer.service.pipeline import do
from titer.service.queue import Queue
from titer.service.retention import sweep
from titer.service.running import OVER
from titer.service.tables import File, Job, LogEntry


@pytest.fixture
def faltering(service, monkeypatch):
    """Every other commit in the block fails, before it is done, or behind that."""
    dialect = service.database.engine.dialect

    @contextlib.contextmanager
    def falter(before):
        inner, count = dialect.do_commit, [0]

        def commit(connection):
            count[0] += 1
            fails = count[0] % 2
            if not (fails and before):
                inner(connection)
            if fails:
                raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patched:
            patched.setattr(dialect, "do_commit", commit)
            patched.setattr(running.time, "sleep", lambda seconds: None)
            yield

    return falter


def left_by(service, name):
    """What a job left, without what differs from job to job."""
    job = job_of(service, name)
    with service.database.reading() as session:
        actions = list(session.scalars(select(LogEntry.action).where(LogEntry.subject == name)))
        files = list(session.scalars(select(File.filename).where(File.id.in_(job.result_files))))
    messages = [event.message.partition(" created: ft:")[0] for event in events_of(service, name)]
    return job.status, job.error, messages, actions, files, [model.step for model in models_of(service, name)]


def test_each_change_is_made_once_however_its_commit_ends(service, faltering):
    """A database that goes away while it commits may have done so, or not."""
    straight = add_job(service)
    done(service, straight)
    assert job_of(service, straight).status == "succeeded"
    for before in (True, False):
        name = add_job(service)
        claim = Queue(service.database, "tester").claim()
        with faltering(before):
            assert do(service, claim) == OVER
        assert left_by(service, name) == left_by(service, straight)


def test_checkpoints_go_behind_a_training_even_when_the_store_fails_then(service, monkeypatch):
    name = add_job(service)
    inner = type(service.store).remove

    def remove(self, key):
        if key.endswith("/checkpoints"):
            raise OSError(5, "Input/output error")
        inner(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(type(service.store), "remove", remove)
        assert done(service, name) == OVER
    assert job_of(service, name).status == "succeeded"
    newest = f"jobs/{name}/checkpoints/newest"
    assert service.store.exists(newest)
    sweep(service)
    assert not service.store.exists(newest)


class Killed(BaseException):
    """A process dies here."""


@pytest.mark.parametrize("before", ["_copy", "_publish"])
def test_a_model_of_an_epoch_is_published_once_although_its_process_died_beside_its_checkpoint(
    service, monkeypatch, before
):
    def die(self, step, *words):
        raise Killed

    name = add_job(service)
    with monkeypatch.context() as patched:
        patched.setattr(training.Follow, before, die)
        with pytest.raises(Killed):
            done(service, name)
    with service.database.writing() as session:
        session.scalar(select(Job).where(Job.id == name)).status = "queued"
    assert done(service, name) == OVER
    assert [model.step for model in models_of(service, name)] == [3, 6, None]
