"""A service on the tiny model: its database (SQLite, or PostgreSQL), a server on a free port, keys of two organisations."""

import contextlib
import functools
import os
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path
from unittest import mock

import pytest
import uvicorn
from fastapi.testclient import TestClient
from postgres import Postgres, programs
from sqlalchemy import event

from titer.service import database as databases
from titer.service import keys, policy
from titer.service.app import create_app
from titer.service.context import open_service
from titer.service.store import Store
from titer.service.tables import Organisation

as_one_writer = databases._as_one_writer


def as_one_writer_who_waits_for_no_disk(engine):
    """As `os.fsync` in the other conftest: no test pulls the plug."""
    as_one_writer(engine)
    event.listen(engine, "connect", lambda connection, record: connection.execute("PRAGMA synchronous=OFF").close())


databases._as_one_writer = as_one_writer_who_waits_for_no_disk


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server that runs as long as the tests do."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    found = Postgres(Path(f"/tmp/titer-postgres-{uuid.uuid4().hex[:8]}"), safe=False)
    yield found
    found.remove()


@pytest.fixture
def new_database(postgres):
    """The URL of an empty PostgreSQL database."""
    return postgres.new()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request):
    """The URL of an empty database, of each kind; `None` for SQLite in the data folder."""
    return None if request.param == "sqlite" else request.getfixturevalue("new_database")


@pytest.fixture(scope="session")
def bucket():
    """The URL of a bucket on a server of this machine."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "two",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("titer")
        yield "s3://titer/here"
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    """An artefact store of each kind."""
    in_folder = request.param == "folder"
    url = str(tmp_path / "store") if in_folder else f"{request.getfixturevalue('bucket')}/{os.urandom(4).hex()}"
    found = Store(url)
    found.mark()
    return found


POLICY = """
models: {{tiny: {model}}}
audit: {{detector: none}}
training: {{method: sft, learning_rate: 1e-3, n_epochs: 1}}
gate: {{samples: 4, max_new_tokens: 4, harmful_score: null, over_refusal: null, broken: null}}
"""
"""A policy under which a job on the tiny model takes seconds, and every model is deployed."""


@functools.cache
def empty_tables():
    """A file of SQLite with all tables and nothing in them: to make them anew takes half of the time of a short test."""
    with tempfile.TemporaryDirectory() as folder:
        open_service(Path(folder)).close()
        return (Path(folder) / "titer.db").read_bytes()


def opened_anew(data, database):
    """A service on an empty database."""
    if database is not None or (data / "titer.db").exists():
        return open_service(data, database)
    data.mkdir(parents=True, exist_ok=True)
    (data / "titer.db").write_bytes(empty_tables())
    with mock.patch.object(databases.Database, "migrate"):
        return open_service(data)


@contextlib.contextmanager
def opened(data, model, database=None, text=POLICY):
    """A service with two organisations, `one` and `two`, and the policy above."""
    service = opened_anew(Path(data), database)
    with service.database.writing() as session:
        policy.replace(session, text.format(model=model), "test")
        for name in ("one", "two"):
            session.add(Organisation(id=f"org-{name}", name=name, operator=name == "one"))
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def service(tmp_path, tiny_folder):
    """A service on SQLite."""
    with opened(tmp_path / "data", tiny_folder) as found:
        yield found


@pytest.fixture
def any_service(tmp_path, tiny_folder, database_url):
    """A service on each kind of database."""
    with opened(tmp_path / "data", tiny_folder, database_url) as found:
        yield found


def key_of(service, org="one", **settings):
    """A new key of an organisation."""
    with service.database.writing() as session:
        return keys.create(session, f"org-{org}", **settings)[0]


@pytest.fixture
def client(service):
    """A client of the application, without a socket, with a key of organisation `one` for everything."""
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {key_of(service)}"}) as found:
        yield found


@pytest.fixture
def stranger(service):
    """As `client`, with a key of organisation `two`."""
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {key_of(service, 'two')}"}) as found:
        yield found


@contextlib.contextmanager
def served(service, app=None):
    """Run the application of a service, or another one, on a free port of this machine; gives its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(app or create_app(service), log_level="warning", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture
def server(service):
    """The address of a running server."""
    with served(service) as address:
        yield address


@pytest.fixture
def openai_client(server, service):
    """OpenAI's own client of that server, with a key of organisation `one`."""
    from openai import OpenAI

    with OpenAI(base_url=f"{server}/v1", api_key=key_of(service), max_retries=0) as found:
        yield found
