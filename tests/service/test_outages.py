"""What jobs leave, and what clients are answered, where the database or the store goes away at one moment or another."""

import contextlib
import logging
import sqlite3

import pytest
from botocore.exceptions import EndpointConnectionError
from fastapi.testclient import TestClient
from service.conftest import key_of
from sqlalchemy import select
from working import add_job, done, events_of, job_of, models_of

from titer.service import outages, running, training
from titer.service.app import create_app
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


# -- requests ---------------------------------------------------------------------------------------------------------


def not_mounted(service, monkeypatch):
    """The store's folder is an empty one, as where a disk is to be mounted."""
    away = service.data / "elsewhere"
    away.mkdir()
    monkeypatch.setattr(service.store, "_root", str(away))


def bucket_away(service, monkeypatch):
    def refuses(*words, **more):
        raise EndpointConnectionError(endpoint_url="http://s3.internal")

    monkeypatch.setattr(type(service.store), "open", refuses)
    monkeypatch.setattr(type(service.store), "writing", refuses)


def database_away(service, monkeypatch):
    def refuses(*words, **more):
        raise sqlite3.OperationalError("unable to open database file")

    service.database.engine.dispose()
    monkeypatch.setattr(service.database.engine.dialect, "connect", refuses)


@pytest.mark.parametrize("go_away", [not_mounted, bucket_away, database_away])
def test_requests_meet_503_with_one_line_in_the_log_while_something_is_away(
    service, client, monkeypatch, caplog, go_away
):
    data = {"purpose": "user_data"}
    path = f"/v1/files/{client.post('/v1/files', files={'file': ('a', b'abc')}, data=data).json()['id']}/content"
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        go_away(service, patched)
        for ask in (
            lambda: client.get(path),
            lambda: client.post("/v1/files", files={"file": ("b", b"abc")}, data=data),
        ):
            caplog.clear()
            answer = ask()
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, outages.AGAIN)
            assert answer.json()["error"]["code"] == "service_unavailable"
            assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
            assert not {"s3.internal", "unable", "elsewhere"} & set(answer.text.replace("/", " ").split())
            (line,) = caplog.records
            assert answer.headers["x-request-id"] in line.getMessage()
            assert line.exc_info is None
    assert client.get(path).content == b"abc"
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_a_form_whose_bounds_are_in_the_database_meets_503_too(service, client, monkeypatch):
    database_away(service, monkeypatch)
    answer = client.post("/console/files", files={"file": ("a", b"abc")})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, outages.AGAIN)


def test_a_fault_of_its_own_is_no_outage(service, monkeypatch, caplog):
    def fails(*words):
        raise ZeroDivisionError

    monkeypatch.setattr(type(service.store), "open", fails)
    headers = {"Authorization": f"Bearer {key_of(service)}"}
    with TestClient(create_app(service), raise_server_exceptions=False, headers=headers) as client:
        file = client.post("/v1/files", files={"file": ("a", b"abc")}, data={"purpose": "user_data"}).json()
        answer = client.get(f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer.headers.get("Retry-After")) == (500, None)
    assert any(line.exc_info for line in caplog.records)


def test_the_official_client_asks_again_by_itself(service, openai_client, monkeypatch):
    file = openai_client.files.create(file=("a", b"abc"), purpose="user_data")
    real, asked = type(service.store).open, []

    def open_(self, key):
        asked.append(key)
        if len(asked) == 1:
            raise OSError(5, "Input/output error")
        return real(self, key)

    monkeypatch.setattr(outages, "AGAIN", "1")
    monkeypatch.setattr(type(service.store), "open", open_)
    assert openai_client.with_options(max_retries=1).files.content(file.id).read() == b"abc"
    assert len(asked) == 2
