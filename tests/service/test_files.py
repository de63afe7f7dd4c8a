"""Files over HTTP: OpenAI's shapes, bounds that hold while bytes come, and nothing left of what was refused."""

import hashlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from service.conftest import POLICY, key_of
from service.test_chat_rows import line
from sqlalchemy import select

from titer.service import headers, policy, retention
from titer.service.access import Caller
from titer.service.api import files
from titer.service.app import create_app
from titer.service.refusals import Refused
from titer.service.store import MARK
from titer.service.tables import DAY, File, Job, LogEntry, Organisation, Removal

ROWS = b"\n".join([line()] * 12)


def upload(client, data=ROWS, name="rows.jsonl", purpose="fine-tune", **fields):
    return client.post("/v1/files", files={"file": (name, data)}, data={"purpose": purpose, **fields})


def stored(service):
    """Whatever is in the store."""
    return [path for path in (service.data / "store").rglob("*") if path.is_file() and path.name != MARK]


def change(service, tiny_folder, extra):
    with service.database.writing() as session:
        policy.replace(session, POLICY.format(model=tiny_folder) + extra, "test")


def refused(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code, answer.text
    return answer.json()["error"]


# -- with OpenAI's client ---------------------------------------------------------------------------------------------


def test_openai_client_uploads_lists_reads_and_deletes(openai_client, service, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    file = openai_client.files.create(
        file=path, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.id.startswith("file-")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(ROWS), "rows.jsonl", "fine-tune", "processed")
    assert file.expires_at == pytest.approx(file.created_at + 3600, abs=1)
    other = openai_client.files.create(file=("a.bin", b"\0\xff"), purpose="user_data")
    assert other.expires_at is None
    again = openai_client.files.create(file=path, purpose="fine-tune")
    assert again.id != file.id
    assert [one.id for one in openai_client.files.list()] == [again.id, other.id, file.id]
    assert [one.id for one in openai_client.files.list(order="asc", limit=1)] == [file.id, other.id, again.id]
    assert [one.id for one in openai_client.files.list(purpose="user_data")] == [other.id]
    assert openai_client.files.list(after=again.id, limit=1).data[0].id == other.id
    assert openai_client.files.retrieve(file.id) == file
    assert openai_client.files.content(file.id).read() == ROWS
    assert openai_client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        openai_client.files.retrieve(file.id)
    assert len(stored(service)) == 2


def test_all_errors_of_a_file_come_with_line_and_column(openai_client, service):
    bad = (
        ROWS + b'\n{"messages": [{"role": "user", "content": NaN}]}\n' + line({"role": "user", "content": "x", "y": 1})
    )
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.files.create(file=("bad.jsonl", bad), purpose="fine-tune")
    assert error.value.code == "invalid_file"
    assert error.value.param == "file"
    found = error.value.body["errors"]
    assert [(one["line"], one["column"], one["path"]) for one in found] == [
        (13, 43, "messages[0].content"),
        (14, 53, "messages[0].y"),
    ]
    assert "line 13, column 43" in error.value.message
    assert not stored(service)
    assert openai_client.files.list().data == []


def test_many_files_at_once(openai_client):
    data = [line(*[{"role": "user", "content": str(n)}, {"role": "assistant", "content": "x"}]) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: openai_client.files.create(file=("a", one), purpose="fine-tune"), data))
    assert [openai_client.files.content(one.id).read() for one in found] == data


# -- forms ------------------------------------------------------------------------------------------------------------


def test_fields_may_come_in_any_order(client):
    def body(*parts):
        said = b"".join(b"--X\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
        return client.post(
            "/v1/files", content=said + b"--X--\r\n", headers={"Content-Type": "multipart/form-data; boundary=X"}
        )

    file = b'name="file"; filename="a"\r\nContent-Type: text/plain\r\n\r\n'
    purpose = b'name="purpose"\r\n\r\n'
    assert body(file + ROWS, purpose + b"fine-tune").status_code == 200
    assert body(file + b"no rows\0", purpose + b"user_data").status_code == 200
    refused(body(file + b"no rows", purpose + b"fine-tune"), 400, "invalid_file")
    refused(body(purpose + b"user_data", purpose + b"fine-tune", file + ROWS), 400, "invalid_value")
    refused(body(file + ROWS, file + ROWS), 400, "invalid_value")
    refused(body(file + ROWS), 400, "missing_required_parameter")
    refused(body(purpose + b"fine-tune"), 400, "missing_required_parameter")
    refused(body(b'name="file"\r\n\r\n' + ROWS, purpose + b"fine-tune"), 400, "invalid_value")
    refused(body(purpose + b"\xff", file + ROWS), 400, "invalid_body")
    refused(body(purpose + b"x" * 5000, file + ROWS), 400, "invalid_value")
    refused(body(b'filename="a"\r\n\r\n' + ROWS), 400, "invalid_body")
    refused(body(*[purpose + b"fine-tune"] * 30), 400, "invalid_value")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3.6e3"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"}, "expires_after.seconds"),
        ({"priority": "1"}, "priority"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(client, service, fields, param):
    answer = upload(client, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not stored(service)


def test_other_purposes_are_told_what_this_server_does(client):
    assert "fine-tunes models" in upload(client, purpose="batch").json()["error"]["message"]


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\tb", "\u202ecod.exe", "a\x1bb"])
def test_names_that_do_not_show_as_what_they_are_are_refused(service, name):
    caller = Caller(service, key="key_x", org="org-one", scopes=("files",))
    with pytest.raises(Refused, match="file name"):
        files.store_file(caller, [ROWS], name, "fine-tune")
    assert not stored(service)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "C:\\x\\y.jsonl", 'a"; filename=b', "файл 👩‍🚀.jsonl", "a;b='c'%41"]
)
def test_names_are_only_shown(client, service, name):
    caller = Caller(service, key="key_x", org="org-one", scopes=("files",))
    file = files.store_file(caller, [ROWS], name, "fine-tune")
    assert client.get(f"/v1/files/{file.id}").json()["filename"] == name
    assert file.place == f"files/org-one/{file.id}"
    answer = client.get(f"/v1/files/{file.id}/content")
    assert answer.content == ROWS
    said = answer.headers["content-disposition"]
    assert said.isascii()
    assert said.count('"') == 2
    assert "/" not in said
    assert "\\" not in said
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"", 415),
        (f"multipart/form-data; boundary={'x' * 1000}", b"", 400),
        ("multipart/form-data; boundary=X", b"", 400),
        ("multipart/form-data; boundary=X", b"nonsense" * 100, 400),
        ("multipart/form-data; boundary=X", b"--X\r\nno header\r\n\r\n", 400),
        ("multipart/form-data; boundary=X", b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx', 400),
        ("multipart/form-data; boundary=X", b"--X\r\n" + b"A: b\r\n" * 5000, 400),
        ("multipart/form-data; boundary=X", b"--X\r\nA: " + b"b" * 100_000, 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_form_are_refused(client, service, content_type, body, status):
    answer = client.post("/v1/files", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == status, answer.text
    assert not stored(service)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "x"])
def test_compressed_bodies_are_refused(client, coding):
    answer = client.post(
        "/v1/files", files={"file": ("a", ROWS)}, data={"purpose": "fine-tune"}, headers={"Content-Encoding": coding}
    )
    refused(answer, 415, "unsupported_media_type")


# -- bounds -----------------------------------------------------------------------------------------------------------


def _endless(data=b"x" * 65536, pieces=10**6):
    yield b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    yield b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for _ in range(pieces):
        yield data


FORM = {"Content-Type": "multipart/form-data; boundary=X"}


def test_a_file_that_is_too_large_is_refused_while_it_comes(server, service, tiny_folder):
    change(service, tiny_folder, "limits: {file_bytes: 1000000}\n")
    headers = {"Authorization": f"Bearer {key_of(service)}", **FORM}
    # In pieces of unknown number, and with a length that tells at once.
    for content in (_endless(pieces=400), b"".join(_endless(pieces=40))):
        refused(httpx.post(f"{server}/v1/files", content=content, headers=headers), 413, "file_too_large")
    assert not stored(service)
    assert not list((service.data / "store").rglob("*.tmp"))


def test_a_file_of_the_largest_size_is_taken(client, service, tiny_folder):
    change(service, tiny_folder, f"limits: {{file_bytes: {len(ROWS)}}}\n")
    assert upload(client).status_code == 200
    refused(upload(client, ROWS + b"\n"), 413, "file_too_large")


def test_more_rows_than_the_policy_allows_are_refused(client, service, tiny_folder):
    change(service, tiny_folder, "limits: {rows: 11}\n")
    assert "more than 11" in refused(upload(client), 400, "invalid_file")["message"]


def test_an_organisation_has_a_quota_of_storage(client, stranger, service, tiny_folder):
    change(service, tiny_folder, f"quota: {{storage_bytes: {2 * len(ROWS)}}}\n")
    first = upload(client).json()["id"]
    upload(client)
    assert refused(upload(client), 429, "insufficient_quota")["type"] == "insufficient_quota"
    assert len(stored(service)) == 2
    assert upload(stranger).status_code == 200
    client.delete(f"/v1/files/{first}")
    assert upload(client).status_code == 200
    with service.database.writing() as session:
        session.get_one(Organisation, "org-one").limits = {"storage_bytes": 10**9}
    assert upload(client).status_code == 200


def test_uploads_at_once_cannot_pass_the_quota_together(any_service, tiny_folder):
    change(any_service, tiny_folder, f"quota: {{storage_bytes: {3 * len(ROWS)}}}\n")
    caller = Caller(any_service, key="key_x", org="org-one", scopes=("files",))
    ready = threading.Barrier(8)

    def chunks():
        yield ROWS[:10]
        ready.wait(10)
        yield ROWS[10:]

    def one(_):
        try:
            return files.store_file(caller, chunks(), "a", "fine-tune")
        except Refused as error:
            return error.status

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8)))
    assert found.count(429) == 5
    assert len(stored(any_service)) == 3


def test_a_client_that_stops_sending_is_not_waited_for(server, service, monkeypatch):
    monkeypatch.setattr(headers, "STILL", 0.3)
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key_of(service)}\r\n"
        head += "Content-Type: multipart/form-data; boundary=X\r\nContent-Length: 100000\r\n\r\n"
        connection.sendall(head.encode() + b"".join(_endless(pieces=0)))
        assert b" 408 " in connection.recv(4096)
    assert not stored(service)


def test_nothing_is_kept_of_a_client_that_goes_away(server, service):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key_of(service)}\r\n"
        head += "Content-Type: multipart/form-data; boundary=X\r\nContent-Length: 10000000\r\n\r\n"
        connection.sendall(head.encode() + b"".join(_endless(pieces=8)))
    for _ in range(100):
        time.sleep(0.05)
        if not list((service.data / "store").rglob("*.tmp")):
            break
    assert not stored(service)


# -- deletion, expiry, whose they are ---------------------------------------------------------------------------------


def test_little_is_held_of_a_file_for_a_client_that_does_not_read(service):
    """What a client is sent of a large file while it takes nothing: a piece, which 800 of them may have at a time."""
    app, sent = create_app(service), []
    with TestClient(app, headers={"Authorization": f"Bearer {key_of(service)}"}) as client:
        file = client.post("/v1/files", files={"file": ("a", bytes(1 << 20))}, data={"purpose": "user_data"}).json()

        async def receive():
            await anyio.sleep_forever()

        async def send(message):
            sent.append(len(message.get("body", b"")))
            if sent[-1]:
                await anyio.sleep_forever()

        async def ask():
            headers = [(b"host", b"127.0.0.1"), (b"authorization", client.headers["authorization"].encode())]
            path = f"/v1/files/{file['id']}/content"
            scope = {
                "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
                "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http",
                "http_version": "1.1", "root_path": "",
            }  # fmt: skip
            with anyio.move_on_after(1):
                await app(scope, receive, send)

        anyio.run(ask)
    assert 0 < sum(sent) <= 1 << 18


@pytest.mark.parametrize("role", ["file_id", "validation_file_id"])
def test_a_file_that_a_job_needs_cannot_be_deleted(client, service, role):
    first, second = (upload(client).json()["id"] for _ in range(2))
    used = {"file_id": first, "validation_file_id": second}[role]
    with service.database.writing() as session:
        job = Job(id="ftjob-x", org_id="org-one", model="tiny", file_id=first, validation_file_id=second)
        session.add(job)
    for status in ("validating_files", "queued", "running", "paused"):
        with service.database.writing() as session:
            session.scalar(select(Job)).status = status
        error = refused(client.delete(f"/v1/files/{used}"), 409, "file_in_use")
        assert error["job"] == "ftjob-x"
        assert "ftjob-x" in error["message"]
    with service.database.writing() as session:
        session.scalar(select(Job)).status = "failed"
    assert client.delete(f"/v1/files/{used}").json() == {"id": used, "object": "file", "deleted": True}
    assert len(stored(service)) == 1


def test_deletion_takes_what_audits_quote_and_leaves_a_line_in_the_log(client, service):
    name = upload(client).json()["id"]
    with service.database.writing() as session:
        session.add(Job(id="audit-x", kind="audit", org_id="org-one", model="tiny", file_id=name, status="succeeded"))
    service.store.write("jobs/audit-x/audit.json", ROWS)
    client.delete(f"/v1/files/{name}")
    assert not stored(service)
    with service.database.reading() as session:
        last = session.scalars(select(LogEntry).order_by(LogEntry.number.desc())).first()
    assert (last.action, last.subject) == ("file.deleted", name)
    assert last.details["sha256"] == hashlib.sha256(ROWS).hexdigest()


def test_a_file_that_has_expired_is_not_there(client, service):
    name = upload(client, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}).json()["id"]
    with service.database.writing() as session:
        session.scalar(select(File)).expires_at = int(time.time())
    assert client.get("/v1/files").json()["data"] == []
    for answer in (client.get(f"/v1/files/{name}"), client.delete(f"/v1/files/{name}")):
        assert answer.status_code == 404


def test_files_of_others_are_not_there(client, stranger):
    name = upload(client).json()["id"]
    for method, path in [("GET", ""), ("GET", "/content"), ("DELETE", "")]:
        theirs = stranger.request(method, f"/v1/files/{name}{path}")
        none = stranger.request(method, f"/v1/files/file-none{path}")
        assert theirs.status_code == none.status_code == 404
        assert theirs.text.replace(name, "") == none.text.replace("file-none", "")
    assert stranger.get("/v1/files").json()["data"] == []
    assert stranger.get("/v1/files", params={"after": name}).status_code == 404
    assert client.get(f"/v1/files/{name}").status_code == 200


def test_keys_need_the_scope(service):
    with TestClient(
        create_app(service), headers={"Authorization": f"Bearer {key_of(service, scopes=['jobs'])}"}
    ) as other:
        refused(other.get("/v1/files"), 403, "insufficient_permissions")
        refused(upload(other), 403, "insufficient_permissions")
    assert not stored(service)


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"limit": "x"}])
def test_pages_that_cannot_be_meant_are_refused(client, params):
    assert client.get("/v1/files", params=params).status_code == 400


# -- as others of the service call it ---------------------------------------------------------------------------------


def test_pieces_that_are_awaited_are_taken_too(service):
    caller = Caller(service, key="key_x", org="org-one", scopes=("files",))

    async def pieces():
        for start in range(0, len(ROWS), 100):
            await anyio.sleep(0)
            yield ROWS[start : start + 100]

    async def run():
        return await anyio.to_thread.run_sync(files.store_file, caller, pieces(), "a", "fine-tune")

    assert service.store.read(anyio.run(run).place) == ROWS


def test_what_jobs_leave_is_a_file_too(service, openai_client):
    caller = Caller(service, key="worker", org="org-one", scopes=())
    name = files.store_file(caller, [b"step,loss\n"], "step_metrics.csv", "fine-tune-results").id
    assert openai_client.files.retrieve(name).purpose == "fine-tune-results"
    assert openai_client.files.content(name).text == "step,loss\n"


def test_nothing_is_left_when_the_database_fails(service):
    caller = Caller(service, key="key_x", org="org-one", scopes=("files",))

    def fail(tenant, file):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.store_file(caller, [ROWS], "a", "fine-tune", also=fail)
    assert not stored(service)
    with service.database.reading() as session:
        assert session.scalar(select(File)) is None


def test_a_crash_between_bytes_and_row_leaves_nothing_for_ever(service, monkeypatch):
    caller = Caller(service, key="key_x", org="org-one", scopes=("files",))

    def dies(*words, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(retention, "empty", dies)
        with pytest.raises(KeyboardInterrupt):
            files.store_file(caller, [ROWS], "a", "fine-tune", also=dies)
    assert len(stored(service)) == 1
    retention.sweep(service)
    assert len(stored(service)) == 1  # it may be on its way
    monkeypatch.setattr(retention, "now", lambda: int(time.time()) + 2 * DAY)
    retention.sweep(service)
    assert not stored(service)


def test_what_is_kept_is_announced_no_more(client, service):
    upload(client)
    with service.database.reading() as session:
        assert session.scalars(select(Removal)).all() == []


def test_the_document_of_the_api_tells_what_an_upload_is(client):
    content = client.get("/openapi.json").json()["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    assert json.dumps(content).count("fine-tune") == 1
