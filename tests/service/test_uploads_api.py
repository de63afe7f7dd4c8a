"""Uploads in parts: put together in the order that is asked for, whole or not at all."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fastapi.testclient import TestClient
from service.conftest import key_of
from service.test_chat_rows import line
from service.test_files import change, refused, stored
from sqlalchemy import select

from titer.service.app import create_app
from titer.service.tables import File, Part, Upload

ROWS = b"\n".join([line()] * 12)


WHOLE = len(ROWS)


def begin(client, size=WHOLE, **others):
    body = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": size, "mime_type": "text/jsonl", **others}
    return client.post("/v1/uploads", json=body)


def add(client, upload, data):
    return client.post(f"/v1/uploads/{upload}/parts", files={"data": ("part", data)})


def halves(client, data=ROWS):
    """An upload with its data in two parts; their ids."""
    upload = begin(client, len(data)).json()["id"]
    middle = len(data) // 2
    return upload, [add(client, upload, one).json()["id"] for one in (data[:middle], data[middle:])]


def complete(client, upload, parts, **others):
    return client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts, **others})


def test_openai_client_uploads_in_parts(openai_client, service):
    upload = openai_client.uploads.create(
        filename="rows.jsonl", purpose="fine-tune", bytes=len(ROWS), mime_type="text/jsonl",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )  # fmt: skip
    assert (upload.status, upload.expires_at - upload.created_at) == ("pending", 3600)
    last = openai_client.uploads.parts.create(upload.id, data=ROWS[100:])
    first = openai_client.uploads.parts.create(upload.id, data=ROWS[:100])
    assert first.upload_id == upload.id
    done = openai_client.uploads.complete(
        upload.id, part_ids=[first.id, last.id], md5=hashlib.md5(ROWS).hexdigest().upper()
    )
    assert (done.status, done.file.filename, done.file.bytes) == ("completed", "rows.jsonl", len(ROWS))
    assert done.file.expires_at == pytest.approx(done.file.created_at + 7200, abs=1)
    assert openai_client.files.content(done.file.id).read() == ROWS
    assert len(stored(service)) == 1


def test_openai_client_cuts_a_file_into_parts_by_itself(openai_client, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    done = openai_client.uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=500
    )
    assert openai_client.files.content(done.file.id).read() == ROWS


def test_rows_are_checked_when_the_parts_are_put_together(openai_client, service):
    bad = b'{"messages": 1}\n' + ROWS
    upload = openai_client.uploads.create(filename="a", purpose="fine-tune", bytes=len(bad), mime_type="text/jsonl")
    parts = [openai_client.uploads.parts.create(upload.id, data=one).id for one in (bad[:5], bad[5:])]
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.uploads.complete(upload.id, part_ids=parts)
    assert error.value.code == "invalid_file"
    assert [(one["line"], one["column"]) for one in error.value.body["errors"]] == [(1, 14)]
    assert openai_client.files.list().data == []
    assert len(stored(service)) == 2  # the parts, which may still be put together in another way


@pytest.mark.parametrize(
    ("others", "status", "param"),
    [
        ({"size": 0}, 400, "bytes"),
        ({"size": -5}, 400, "bytes"),
        ({"size": "5"}, 400, "bytes"),
        ({"size": 10**12}, 413, "file"),
        ({"purpose": "batch"}, 400, "purpose"),
        ({"mime_type": "text"}, 400, "mime_type"),
        ({"mime_type": "a/b\n"}, 400, "mime_type"),
        ({"filename": "\0"}, 400, "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "expires_after.seconds"),
        ({"expires_after": {"anchor": "x", "seconds": 3600}}, 400, "expires_after.anchor"),
        ({"x": 1}, 400, "x"),
    ],
)
def test_uploads_that_cannot_be_meant_are_refused(client, others, status, param):
    answer = begin(client, **others)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_parts_must_be_those_of_the_upload_each_once_and_hold_its_bytes(client, service):
    upload, (first, second) = halves(client)
    _, (other, _) = halves(client)
    for parts, param in [
        ([first, other], "part_ids[1]"),
        ([first, first], "part_ids"),
        ([first], "part_ids"),
        ([], "part_ids"),
    ]:
        answer = complete(client, upload, parts)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    for md5 in ("0" * 32, "x"):
        assert refused(complete(client, upload, [first, second], md5=md5), 400, "invalid_value")["param"] == "md5"
    with service.database.reading() as session:
        assert session.scalar(select(File)) is None
    assert len(stored(service)) == 4
    assert complete(client, upload, [first, second]).status_code == 200
    assert len(stored(service)) == 3


def test_an_upload_is_completed_once(client):
    upload, parts = halves(client)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: complete(client, upload, parts).status_code, range(4)))
    assert sorted(found) == [200, 400, 400, 400]
    assert len(client.get("/v1/files").json()["data"]) == 1
    refused(complete(client, upload, parts), 400, "upload_completed")
    refused(add(client, upload, b"x"), 400, "upload_completed")
    refused(client.post(f"/v1/uploads/{upload}/cancel"), 400, "upload_completed")


def test_completing_and_cancelling_at_once_leaves_one_of_them(any_service):
    headers = {"Authorization": f"Bearer {key_of(any_service)}"}
    with TestClient(create_app(any_service), headers=headers) as client:
        for _ in range(5):
            upload, parts = halves(client)
            ready = threading.Barrier(2)

            def cancel(ready=ready, upload=upload):
                ready.wait()
                return client.post(f"/v1/uploads/{upload}/cancel")

            def finish(ready=ready, upload=upload, parts=parts):
                ready.wait()
                return complete(client, upload, parts)

            with ThreadPoolExecutor(2) as pool:
                both = [one.result() for one in [pool.submit(cancel), pool.submit(finish)]]
            assert sorted(one.status_code for one in both) == [200, 400], [one.text for one in both]
    with any_service.database.reading() as session:
        files = len(session.scalars(select(File)).all())
        assert session.scalars(select(Part)).all() == []
    assert len(stored(any_service)) == files


def test_an_upload_that_is_cancelled_leaves_nothing(openai_client, service):
    upload = openai_client.uploads.create(filename="a", purpose="user_data", bytes=5, mime_type="text/plain")
    openai_client.uploads.parts.create(upload.id, data=b"12345")
    assert openai_client.uploads.cancel(upload.id).status == "cancelled"
    assert not stored(service)
    with service.database.reading() as session:
        assert session.scalar(select(Part)) is None


def test_an_upload_expires(client, service):
    upload, parts = halves(client)
    with service.database.writing() as session:
        session.scalar(select(Upload)).expires_at = int(time.time())
    for answer in (
        add(client, upload, b"x"),
        complete(client, upload, parts),
        client.post(f"/v1/uploads/{upload}/cancel"),
    ):
        refused(answer, 400, "upload_expired")


def test_parts_are_bounded(client, service, tiny_folder):
    upload = begin(client, 10).json()["id"]
    refused(add(client, upload, b"x" * 11), 413, "file_too_large")
    for _ in range(2):
        assert add(client, upload, b"x" * 10).status_code == 200
    refused(add(client, upload, b"x"), 400, "invalid_value")
    change(service, tiny_folder, "quota: {storage_bytes: 25}\n")
    refused(begin(client, 10), 429, "insufficient_quota")
    other = begin(client, 5).json()["id"]
    assert add(client, other, b"x" * 5).status_code == 200
    refused(add(client, other, b"x"), 429, "insufficient_quota")
    assert len(stored(service)) == 3


def test_parts_are_forms_of_one_file_that_is_not_compressed(client, service):
    upload = begin(client).json()["id"]
    path = f"/v1/uploads/{upload}/parts"
    assert client.post(path, content=b"x").status_code == 415
    refused(client.post(path, files={"file": ("a", b"x")}), 400, "unknown_parameter")
    refused(client.post(path, files={"data": ("a", b"x")}, data={"purpose": "x"}), 400, "unknown_parameter")
    answer = client.post(path, files={"data": ("a", b"x")}, headers={"Content-Encoding": "gzip"})
    refused(answer, 415, "unsupported_media_type")
    assert not stored(service)


def test_uploads_of_others_are_not_there(client, stranger):
    upload, parts = halves(client)
    for answer in (
        add(stranger, upload, b"x"),
        complete(stranger, upload, parts),
        stranger.post(f"/v1/uploads/{upload}/cancel"),
    ):
        assert answer.status_code == 404
    own = begin(stranger).json()["id"]
    assert complete(stranger, own, parts).json()["error"]["param"] == "part_ids[0]"
    assert complete(client, upload, parts).status_code == 200
