"""What strangers may not do: see others' things, change the past, send without end, reach the server through a browser."""

import json
import re
import socket
import threading
import time
from typing import Annotated

import anyio
import pytest
from conftest import key_of, served
from fastapi import Depends, Request
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.testclient import TestClient
from sqlalchemy import select

from titer.errors import TiterError
from titer.service import chain, headers, policy
from titer.service.access import Caller, needs
from titer.service.app import create_app
from titer.service.chain import Broken, Head
from titer.service.refusals import Refused
from titer.service.tables import (
    Appeal,
    Event,
    File,
    Job,
    Key,
    LogEntry,
    LogHead,
    Model,
    Organisation,
    Part,
    Upload,
    now,
)
from titer.service.tenants import Tenant

# -- tenants ----------------------------------------------------------------------------------------------------------

HYPERPARAMETERS = {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0}
METHOD = {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}}
KINDS = {
    "file": lambda: File(
        id="file-Q7", filename="f.jsonl", purpose="fine-tune", bytes=1, digest="d", place="files/org-one/file-Q7"
    ),
    "upload": lambda: Upload(
        id="upload_Q7", filename="f", purpose="fine-tune", mime_type="text/jsonl", bytes=1, expires_at=now() + 1000
    ),
    "part": lambda: Part(id="part_Q7", upload_id="upload_Q7", bytes=1, digest="d", place="parts/org-one/part_Q7"),
    "job": lambda: Job(id="ftjob-Q7", model="tiny", file_id="file-Q7", status="running", audit={"verdict": "clean"}),
    "done": lambda: Job(id="ftjob-Q8", model="tiny", file_id="file-Q7", status="succeeded", fine_tuned_model="ft:Q7"),
    "audit": lambda: Job(
        id="audit-Q7", model="tiny", file_id="file-Q7", kind="audit", status="succeeded", audit={"verdict": "clean"}
    ),
    "event": lambda: Event(id="ftevent-Q7", job_id="ftjob-Q7", place=1, message="Q7"),
    "model": lambda: Model(id="ft:tiny:one::Q7", base="tiny", job_id="ftjob-Q7", place="models/ftjob-Q7"),
    "appeal": lambda: Appeal(id="appeal-Q7", file_id="file-Q7", rows=[0], reason="Q7", reviewer="key_1"),
    "key": lambda: Key(id="key_Q7", name="Q7", shown="Q7", digest="0" * 64, scopes=["files"]),
}
"""One thing of each kind, with `Q7` or `Q8` in whatever shows."""
Reader = Annotated[Caller, needs("files")]
SHOWN = re.compile("Q[78]")
NOBODYS = "NotThere"
PUBLIC = {"/openapi.json", "/docs", "/redoc"}
BODIES = ({}, {"rows": [0], "reason": "x"}, {"part_ids": ["part_Q7"]}, {"file_id": "file-Q7"})
"""What may have to be sent for a request to come as far as looking the thing up."""


NAMED = (
    ("/v1/fine_tuning/jobs", '{"model": "tiny", "training_file": "ID"}'),
    ("/v1/fine_tuning/jobs", '{"model": "ID", "training_file": "file-none"}'),
    ("/v1/chat/completions", '{"model": "ID", "messages": [{"role": "user", "content": "x"}]}'),
    ("/titer/v1/audits", '{"file_id": "ID"}'),
)
"""Requests that name a thing in their body."""


@pytest.fixture
def things(service):
    """Things of organisation `one`, by kind."""
    with service.database.writing() as session:
        tenant = Tenant(session, "org-one", "test")
        for make in KINDS.values():
            thing = tenant.add(make())
            if isinstance(thing, Job):
                thing.method, thing.policy = METHOD, policy.current(session).as_dict()
        tenant.log("job.created", "ftjob-Q7", why="Q7")
    service.store.write("files/org-one/file-Q7", b"Q7")
    return {kind: make().id for kind, make in KINDS.items()}


def routes(app):
    """Every route of an application: (path, its parameters, methods). Pages have a sign-in and tests of their own."""
    found = [one for one in iter_route_contexts(app.routes) if isinstance(one.original_route, APIRoute)]
    return [
        (one.path, re.findall(r"{(\w+)(?::\w+)?}", one.path), sorted(one.methods))
        for one in found
        if not one.path.startswith("/console")
    ]


def filled(path, parameters, values):
    for name, value in zip(parameters, values):
        path = re.sub(rf"{{{name}(:\w+)?}}", value, path)
    return path


def crossings(app, service, things):
    """Ask for organisation one's things with a key of two's; returns every answer that gives something away."""
    wrong = []
    with service.database.writing() as session:
        session.get(Organisation, "org-two").limits = {"requests_a_minute": None}
    headers = {"Authorization": f"Bearer {key_of(service, 'two')}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as two:

        def ask(method, path, **sent):
            answer = two.request(method, path, **sent)
            return answer.status_code, answer.text

        for path, parameters, methods in routes(app):
            for method in methods:
                if not parameters:
                    if method == "GET" and SHOWN.search(ask(method, path)[1]):
                        wrong.append(f"{method} {path} shows what is another's")
                    continue
                bodies = [{"json": body} for body in BODIES] if method in ("POST", "PUT", "PATCH") else [{}]
                bodies += [{"files": {"data": b"x"}}] if method == "POST" else []
                seen = set()
                for name in things.values():
                    other = name[: -len("Q7")] + NOBODYS
                    for body in bodies:
                        status, text = ask(method, filled(path, parameters, [name] * len(parameters)), **body)
                        nobodys = ask(method, filled(path, parameters, [other] * len(parameters)), **body)
                        if status not in (400, 404) or (status, text.replace(name, other)) != nobodys:
                            wrong.append(f"{method} {path} for {name} with {body}: {status} {text}, not {nobodys}")
                        seen.add(status)
                if 404 not in seen:
                    wrong.append(f"{method} {path}: no request came as far as looking for the thing")
        for path, body in NAMED:
            for name in things.values():
                other = name[: -len("Q7")] + NOBODYS
                status, text = ask("POST", path, content=body.replace("ID", name))
                if (status, text.replace(name, other)) != ask("POST", path, content=body.replace("ID", other)):
                    wrong.append(f"POST {path} with {body} for {name}: {status} {text}")
    return wrong


def test_another_organisations_things_are_not_there(service, things):
    app = create_app(service)
    assert [path for path, parameters, _ in routes(app) if parameters]
    assert crossings(app, service, things) == []


def test_nothing_of_it_was_changed(service, things):
    def everything():
        with service.database.reading() as session:
            return {
                row.id: {name: value for name, value in vars(row).items() if name[0] != "_"}
                for kind in (File, Upload, Part, Job, Event, Model, Appeal)
                for row in session.scalars(select(kind).where(kind.org_id == "org-one"))
            }

    before = everything()
    crossings(create_app(service), service, things)
    assert everything() == before


def test_things_of_ones_own_are_there(client, things):
    """Or the attack above would not have come as far as the things."""
    for path, parameters, methods in routes(client.app):
        if parameters and "GET" in methods:
            answers = [client.get(filled(path, parameters, [name] * len(parameters))) for name in things.values()]
            assert 200 in [answer.status_code for answer in answers], path
    assert client.delete(f"/titer/v1/keys/{things['key']}").status_code == 200


def test_the_attack_finds_a_route_that_forgets_the_filter(service, things):
    app = create_app(service)

    @app.get("/v1/wrong/{name}")
    def wrong(name: str, caller: Reader):
        with caller.reading() as tenant:
            found = tenant.session.scalar(select(File).where(File.id == name))
            return {"found": found is not None and found.filename}

    @app.get("/v1/telling/{name}")
    def telling(name: str, caller: Reader):
        with caller.reading() as tenant:
            there = tenant.session.scalar(select(File).where(File.id == name)) is not None
        raise Refused(403 if there else 404, "no")

    @app.get("/v1/listing")
    def listing(caller: Reader):
        with caller.reading() as tenant:
            return [file.id for file in tenant.session.scalars(select(File))]

    found = crossings(app, service, things)
    for path in ("/v1/wrong", "/v1/telling", "/v1/listing"):
        assert any(path in one for one in found), path


def test_every_route_asks_for_a_key(service, things):
    """Except for those that say only whether the server is there."""
    with TestClient(create_app(service), raise_server_exceptions=False) as nobody:
        for path, parameters, methods in routes(nobody.app):
            for method in methods:
                if path in ("/titer/v1/health", "/titer/v1/ready") or path in PUBLIC:
                    continue
                address = filled(path, parameters, ["file-Q7"] * len(parameters))
                answer = nobody.request(method, address, json={} if method == "POST" else None)
                assert answer.status_code == 401, (method, path, answer.text)


# -- the audit log ----------------------------------------------------------------------------------------------------


@pytest.fixture
def logged(any_service):
    """A service whose log has seven lines, the first of which the fixture's policy wrote."""
    with any_service.database.writing() as session:
        for number in range(6):
            chain.append(session, "org-one", "key_1", "job.created", f"ftjob-{number}", {"rows": (1, 2), 3: "é\u2028"})
    return any_service


def broken(service, change, known=None):
    """Change the log behind its back; returns what is found."""
    with service.database.writing() as session:
        change(session)
    with service.database.reading() as session, pytest.raises(Broken) as found:
        chain.verify(session, known)
    return found.value.number, found.value.reason


def line(session, number):
    return session.get(LogEntry, number)


def head_of(service):
    with service.database.reading() as session:
        return chain.verify(session)


def test_a_log_that_nobody_changed_is_intact(logged):
    head = head_of(logged)
    assert head.number == 7
    assert Head.parse(str(head)) == head
    with logged.database.writing() as session:
        chain.append(session, None, "server", "policy.replaced", "policy")
    with logged.database.reading() as session:
        assert chain.verify(session, head).number == 8


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at", 1), ("org_id", None), ("org_id", "org-two"), ("actor", "key_2"), ("action", "job.deleted"),
        ("subject", "x"), ("details", {"rows": [1, 3], "3": "é\u2028"}), ("digest", "0" * 64),
    ],
)  # fmt: skip
def test_a_changed_line_is_found(logged, column, value):
    assert broken(logged, lambda session: setattr(line(session, 4), column, value))[0] == 4


def test_a_removed_line_is_found(logged):
    assert broken(logged, lambda session: session.delete(line(session, 1)))[0] == 1


def test_a_removed_line_whose_place_another_takes_is_found(logged):
    def change(session):
        session.delete(line(session, 4))
        session.flush()
        for number in range(5, 8):
            line(session, number).number -= 1
            session.flush()

    assert broken(logged, change)[0] == 4


def test_lines_in_another_order_are_found(logged):
    def change(session):
        one, other = line(session, 3), line(session, 5)
        for moved, number in ((one, 100), (other, 3), (one, 5)):
            moved.number = number
            session.flush()

    assert broken(logged, change)[0] == 3


def test_an_added_line_is_found(logged):
    def change(session):
        entry = LogEntry(number=8, actor="a", action="b", subject="c", details={}, before=line(session, 7).digest)
        entry.digest = "0" * 64
        entry.at = now()
        entry.digest = chain.digest(entry)
        session.add(entry)

    assert broken(logged, change) == (8, "it was added behind the end of the log")


def test_an_end_that_is_cut_off_is_found(logged):
    def change(session):
        for number in (6, 7):
            session.delete(line(session, number))

    number, reason = broken(logged, change)
    assert number == 6
    assert "up to line 7" in reason


def test_a_log_whose_end_is_forgotten_is_found(logged):
    assert broken(logged, lambda session: session.delete(session.scalar(select(LogHead))))[0] == 1


def test_what_is_written_anew_as_a_whole_is_found_by_an_end_that_was_kept(logged):
    known = head_of(logged)

    def change(session):
        session.query(LogEntry).delete()
        session.query(LogHead).delete()
        session.expire_all()
        for number in range(9):
            chain.append(session, "org-one", "key_1", "job.created", f"other-{number}")

    number, reason = broken(logged, change, known)
    assert number == 7
    assert "was kept" in reason
    head_of(logged)  # by itself it seems intact

    def shorter(session):
        session.query(LogEntry).delete()
        session.query(LogHead).delete()

    assert broken(logged, shorter, known)[0] == 1


def test_what_is_no_end_of_a_log_is_refused():
    for text in ("", "7", "7:abc", f"x:{'0' * 64}", f"-1:{'0' * 64}"):
        with pytest.raises(TiterError, match="no end"):
            Head.parse(text)


def test_what_no_json_holds_is_not_logged(service):
    with service.database.writing() as session, pytest.raises(ValueError, match="JSON"):
        chain.append(session, None, "a", "b", "c", {"x": float("nan")})


def test_many_write_the_log_at_once(any_service):
    """Also the very first line, for which there is no end yet that could be locked."""
    with any_service.database.writing() as session:
        session.query(LogEntry).delete()
        session.query(LogHead).delete()
    errors = []
    barrier = threading.Barrier(8)

    def write(name):
        barrier.wait()
        try:
            for number in range(10):
                with any_service.database.writing() as session:
                    chain.append(session, "org-one", name, "test", str(number))
        except Exception as error:
            errors.append(error)

    def watch():
        barrier.wait()
        for _ in range(10):
            with any_service.database.reading() as session:
                try:
                    chain.verify(session)
                except Exception as error:
                    errors.append(error)

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(7)]
    threads.append(threading.Thread(target=watch))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert head_of(any_service).number == 70


# -- every answer -----------------------------------------------------------------------------------------------------


def test_headers_of_every_answer(client, service):
    app = client.app

    @app.get("/v1/fault")
    def fault():
        raise ZeroDivisionError

    with TestClient(app, raise_server_exceptions=False) as anybody:
        answers = [
            anybody.get(path) for path in ("/titer/v1/health", "/v1/keys", "/nowhere", "/v1/fault", "/console/x")
        ]
        answers.append(anybody.post("/titer/v1/keys", content=b"x" * (headers.JSON_BYTES + 1)))
    assert [answer.status_code for answer in answers][2:4] == [404, 500]
    for answer in answers:
        assert re.fullmatch(r"req_\w{24}", answer.headers["x-request-id"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        allowed = answer.headers["content-security-policy"]
        assert "default-src 'none'" in allowed
        assert "frame-ancestors 'none'" in allowed
        assert "unsafe" not in allowed
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    # What the client is told is what stands in the server's log.
    assert answers[3].headers["x-request-id"] in answers[3].json()["error"]["message"]
    assert "script-src 'self'" in answers[4].headers["content-security-policy"]


def test_streams_stay_streams(service):
    """Each piece is there before the next one is made."""
    app, step = create_app(service), threading.Event()

    @app.get("/v1/stream")
    def stream():
        def pieces():
            yield b"first"
            assert step.wait(20)
            yield b"second"

        return StreamingResponse(pieces())

    with served(service, app) as address, connect(address) as sent:
        sent.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        got = until(sent, b"first")
        assert b"second" not in got
        step.set()
        until(sent, b"second")


# -- every request ----------------------------------------------------------------------------------------------------


def connect(address):
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def until(sent, wanted):
    got = b""
    while wanted not in got:
        piece = sent.recv(65536)
        assert piece, got
        got += piece
    return got


def answer_to(address, *pieces):
    """Send bytes; returns the status, or 0 where the server hung up."""
    with connect(address) as sent:
        for piece in pieces:
            try:
                sent.sendall(piece)
            except OSError:
                break
        got = sent.recv(65536)
        return int(got.split(b" ")[1]) if got else 0


def request(method, path, *more, host="127.0.0.1", key="x"):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {key}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_name_that_leads_here_is_refused(server):
    for host in ("127.0.0.1", "localhost:80", "[::1]:80", "LOCALHOST"):
        assert answer_to(server, request("GET", "/titer/v1/health", host=host)) == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1].evil.example"):
        assert answer_to(server, request("GET", "/titer/v1/health", host=host)) in (400, 421), host


def test_a_proxys_name_can_be_allowed(service):
    app = create_app(service, hosts=["Titer.example.org"])
    with served(service, app) as address:
        assert answer_to(address, request("GET", "/titer/v1/health", host="titer.example.org")) == 200
        assert answer_to(address, request("GET", "/titer/v1/health", host="other.example.org")) == 421


def test_bodies_are_bounded(server, service):
    key, path = key_of(service), "/titer/v1/keys"
    large = b"x" * 65536
    many = headers.JSON_BYTES // len(large) + 1

    def post(*more, pieces=()):
        return answer_to(server, request("POST", path, *more, key=key), *pieces)

    assert post(f"Content-Length: {headers.JSON_BYTES + 1}") == 413
    chunk = b"10000\r\n" + large + b"\r\n"
    assert post("Transfer-Encoding: chunked", pieces=[chunk] * many + [b"0\r\n\r\n"]) == 413
    # A form is larger only where files are taken.
    form = "Content-Type: multipart/form-data; boundary=b"
    assert post(form, f"Content-Length: {headers.JSON_BYTES + 1}") == 413


def test_files_may_be_as_large_as_the_policy_says(service):
    guard = headers.Guard(create_app(service), lambda: 10)

    def limit(path, kind):
        scope = {"type": "http", "path": path, "headers": [(b"content-type", kind.encode())]}
        return anyio.run(guard._limit, scope)

    form = "multipart/form-data; boundary=b"
    for path in ("/v1/files", "/v1/uploads/upload_1/parts", "/console/files"):
        assert limit(path, form) == 10 + headers.AROUND
        assert limit(path, "application/json") == headers.JSON_BYTES
    for path in ("/v1/fine_tuning/jobs", "/v1/uploads", "/v1/files/x", "/v1/uploads/a/b/parts"):
        assert limit(path, form) == headers.JSON_BYTES


def test_compressed_bodies_are_refused(client):
    for encoding in ("gzip", "br", "deflate, gzip", "zstd"):
        answer = client.post("/titer/v1/keys", content=b"\x1f\x8b", headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert client.post("/titer/v1/keys", json={}, headers={"Content-Encoding": "identity"}).status_code == 200


def test_deep_and_odd_json_is_refused(client):
    for body in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"days": 1e999}', b'{"days": NaN}', b"null", b"[]"):
        answer = client.post("/titer/v1/keys", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body[:20]
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_stops_coming_ends_the_request(server, service, monkeypatch):
    monkeypatch.setattr(headers, "STILL", 0.3)
    began = time.monotonic()
    begun = request("POST", "/titer/v1/keys", "Content-Length: 100", key=key_of(service))
    assert answer_to(server, begun, b"{") == 408
    assert time.monotonic() - began < 10


def test_a_body_that_drips_ends_too(server, service, monkeypatch):
    """Each byte comes in time, and all of them would take a day."""
    monkeypatch.setattr(headers, "STILL", 0.5)
    with connect(server) as sent:
        sent.sendall(request("POST", "/titer/v1/keys", "Content-Length: 100000", key=key_of(service)))
        for _ in range(40):
            try:
                sent.sendall(b"x")
            except OSError:
                break
            time.sleep(0.1)
        assert b" 408 " in sent.recv(65536)


def test_an_endpoint_cannot_hide_that_a_body_was_too_large(service):
    app = create_app(service)

    async def read(request: Request):
        try:
            return await request.body()
        except Exception:
            return b""

    @app.post("/v1/hides")
    def hides(body: bytes = Depends(read)):
        return {"bytes": len(body)}

    def endless():
        for _ in range(40):
            yield b"x" * 65536

    with TestClient(app) as anybody:
        assert anybody.post("/v1/hides", content=b"abc").json() == {"bytes": 3}
        answer = anybody.post("/v1/hides", content=endless())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_the_guard_lets_other_things_pass():
    """Such as the application's start and end."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    anyio.run(headers.Guard(app, lambda: 1), {"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]


def test_errors_are_of_one_form(client):
    for method, path in (("GET", "/v1/nothing"), ("PATCH", "/titer/v1/keys"), ("GET", "/titer/v1/audit-log?limit=x")):
        answer = client.request(method, path)
        assert set(json.loads(answer.text)["error"]) == {"message", "type", "param", "code"}
