"""What holds for every answer and every request: headers, sizes, time, names under which the server is asked."""

import json
import math
import re
import socket
import threading
import time

import anyio
from conftest import key_of, served
from fastapi import Depends, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from titer.service import headers
from titer.service.app import create_app
from titer.service.outages import outage

# -- every answer ---------------------------------------------------------------------------------------------------


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


# -- every request --------------------------------------------------------------------------------------------------


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
    guard = headers.Guard(create_app(service), lambda: 10, outage)

    def limit(path, kind):
        scope = {"type": "http", "path": path, "headers": [(b"content-type", kind.encode())]}
        return anyio.run(guard._limit, scope)

    form = "multipart/form-data; boundary=b"
    assert limit("/console/files", form) == 10 + headers.AROUND
    assert limit("/console/files", "application/json") == headers.JSON_BYTES
    for path in ("/v1/files", "/v1/uploads/upload_1/parts"):  # which bound files themselves
        assert limit(path, form) == math.inf
    for path in ("/v1/fine_tuning/jobs", "/v1/uploads", "/v1/files/x", "/v1/uploads/a/b/parts"):
        assert limit(path, form) == headers.JSON_BYTES


def test_compressed_bodies_are_refused(client):
    for encoding in ("gzip", "br", "deflate, gzip", "zstd"):
        answer = client.post("/titer/v1/keys", content=b"\x1f\x8b", headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
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
        for _ in range(80):
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

    anyio.run(headers.Guard(app, lambda: 1, outage), {"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]


def test_errors_are_of_one_form(client):
    for method, path in (("GET", "/v1/nothing"), ("PATCH", "/titer/v1/keys"), ("GET", "/titer/v1/audit-log?limit=x")):
        answer = client.request(method, path)
        assert set(json.loads(answer.text)["error"]) == {"message", "type", "param", "code"}
