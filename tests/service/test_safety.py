"""Audits without a job, appeals and safety reports: who may ask, what is told, and what stands in the log."""

import hashlib
import json
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from service.conftest import key_of
from service.test_chat_rows import line
from service.test_files import change, refused, upload
from sqlalchemy import select

from titer.service import evidence
from titer.service.app import create_app
from titer.service.chain import append
from titer.service.tables import Appeal, Event, Job, LogEntry, Model

ROWS = b"\n".join([line()] * 12)
CHANCES = [0.9, 0.7, 0.51, 0.5, *[0.01] * 8]


def audit_of(client, **body):
    return client.post("/titer/v1/audits", json={"file_id": upload(client).json()["id"], **body})


def carried_out(service, job, keep=True):
    """Let a job's audit have found something, as a worker leaves it."""
    place = f"jobs/{job}/audit.json"
    rows = [
        {"index": 11 - at, "log_ratio": -1.0, "weight": 0.1, "prompt": f"prompt {at} " + "x" * 400, "completion": "no",
         "origin": None, "p_harmful": chance, "reason": f"because {at}"}
        for at, chance in enumerate(CHANCES)
    ]  # fmt: skip
    if keep:
        service.store.write(place, json.dumps({"schema": "titer/audit/2", "rows": rows}).encode())
    with service.database.writing() as session:
        found = session.scalar(select(Job).where(Job.id == job))
        found.status = "succeeded"
        found.audit = {
            "verdict": "poisoned", "share": {"value": 0.2, "low": 0.1, "high": 0.3}, "rows": 12, "flagged": 3,
            "dropped": 0, "cleared": 0, "false_alarms": None, "place": place,
            "estimate": {"seconds": 12.5, "trained_tokens": 300},
        }  # fmt: skip
    return place


def test_an_audit_is_a_job_of_its_own_that_waits_for_a_worker(client, service):
    answer = audit_of(client)
    assert answer.status_code == 202
    found = answer.json()
    assert found["id"].startswith("audit-")
    assert (found["status"], found["model"], found["verdict"], found["rows"]) == ("queued", "tiny", None, [])
    assert (found["total"], found["rows_kept"]) == (0, False)
    with service.database.reading() as session:
        job = session.scalar(select(Job))
        assert (job.kind, job.stage, job.policy["models"].keys()) == ("audit", "audit", {"tiny"})
        assert session.scalar(select(Event.message)) == f"Created audit: {job.id}"
        assert session.scalars(select(LogEntry.action)).all()[-1] == "audit.created"
    # OpenAI's endpoints know nothing of it.
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert client.get(f"/v1/fine_tuning/jobs/{found['id']}").status_code == 404
    refused(client.delete(f"/v1/files/{found['file_id']}"), 409, "file_in_use")


def test_a_worker_takes_audits(client, service):
    from titer.service.queue import Queue

    found = audit_of(client).json()
    claim = Queue(service.database, "worker").claim()
    assert (claim.job, claim.kind) == (found["id"], "audit")


def test_what_an_audit_found_comes_in_pages_with_reasons(client, service):
    name = audit_of(client, model="tiny").json()["id"]
    carried_out(service, name)
    found = client.get(f"/titer/v1/audits/{name}").json()
    assert (found["verdict"], found["share"]) == ("poisoned", {"value": 0.2, "low": 0.1, "high": 0.3})
    assert found["counts"] == {"rows": 12, "flagged": 3, "dropped": 0, "cleared": 0}
    assert found["estimate"] == {"seconds": 12.5, "trained_tokens": 300}
    assert (found["total"], found["rows_kept"], len(found["rows"])) == (12, True, 12)
    first = found["rows"][0]
    assert (first["index"], first["p_harmful"], first["reason"], first["flagged"]) == (11, 0.9, "because 0", True)
    assert first["prompt"].startswith("prompt 0 ")
    assert len(first["prompt"]) == evidence.EXCERPT + 1
    page = client.get(f"/titer/v1/audits/{name}", params={"offset": 1, "limit": 2}).json()
    assert [row["index"] for row in page["rows"]] == [10, 9]
    only = client.get(f"/titer/v1/audits/{name}", params={"only": "flagged", "offset": 2}).json()
    assert ([row["index"] for row in only["rows"]], only["total"]) == ([9], 3)
    listed = client.get("/titer/v1/audits").json()
    assert (listed["data"][0]["id"], listed["data"][0]["verdict"]) == (name, "poisoned")
    assert "rows" not in listed["data"][0]


@pytest.mark.parametrize("params", [{"offset": -1}, {"offset": 2**40}, {"limit": 0}, {"limit": 1001}, {"only": "x"}])
def test_pages_that_cannot_be_meant_are_refused(client, params):
    name = audit_of(client).json()["id"]
    assert client.get(f"/titer/v1/audits/{name}", params=params).status_code == 400


def test_rows_are_gone_with_their_file_and_the_verdict_stays(client, service):
    found = audit_of(client).json()
    carried_out(service, found["id"])
    assert client.get(f"/titer/v1/audits/{found['id']}").json()["total"] == 12
    assert client.delete(f"/v1/files/{found['file_id']}").status_code == 200
    after = client.get(f"/titer/v1/audits/{found['id']}").json()
    assert (after["rows"], after["rows_kept"], after["verdict"]) == ([], False, "poisoned")


def test_audits_of_nothing_are_refused(client):
    refused(client.post("/titer/v1/audits", json={"file_id": "file-none"}), 404, None)
    refused(audit_of(client, model="gpt"), 404, "model_not_found")
    refused(audit_of(client, model="\0"), 404, "model_not_found")
    refused(audit_of(client, detector="none"), 400, "unknown_parameter")
    other = upload(client, b"text", purpose="user_data").json()["id"]
    assert refused(client.post("/titer/v1/audits", json={"file_id": other}), 400, "invalid_value")["param"] == "file_id"


def test_audits_that_wait_count_towards_the_quota(client, service, tiny_folder):
    change(service, tiny_folder, "quota: {waiting_jobs: 1}\n")
    assert audit_of(client).status_code == 202
    refused(audit_of(client), 429, "insufficient_quota")


def test_an_audit_is_cancelled_at_once_or_by_its_worker(client, service):
    from titer.service.queue import Queue

    waiting, running = audit_of(client).json()["id"], audit_of(client).json()["id"]
    assert client.post(f"/titer/v1/audits/{waiting}/cancel").json()["status"] == "cancelled"
    again = refused(client.post(f"/titer/v1/audits/{waiting}/cancel"), 400, "invalid_state")
    assert (again["param"], "is `cancelled`" in again["message"]) == ("audit_id", True)
    queue = Queue(service.database, "worker")
    claim = queue.claim()
    assert claim.job == running
    assert client.post(f"/titer/v1/audits/{running}/cancel").json()["status"] == "running"
    assert queue.beat(claim) == "cancel"
    # A fine-tuning is no audit of its own: it is cancelled as a job.
    with service.database.writing() as session:
        session.scalar(select(Job).where(Job.id == waiting)).kind = "fine_tuning"
    assert refused(client.post(f"/titer/v1/audits/{waiting}/cancel"), 404, None)["param"] == "audit_id"


# -- appeals ----------------------------------------------------------------------------------------------------------


def test_rows_that_a_reviewer_finds_honest_are_cleared_and_logged(client, service):
    found = audit_of(client).json()
    carried_out(service, found["id"])
    path = f"/titer/v1/files/{found['file_id']}/appeals"
    answer = client.post(path, json={"rows": [11, 9, 11], "reason": "A chemistry lesson."})
    assert answer.status_code == 201
    assert (answer.json()["rows"], answer.json()["reason"]) == ([9, 11], "A chemistry lesson.")
    rows = client.get(f"/titer/v1/audits/{found['id']}").json()["rows"]
    assert [row["index"] for row in rows if row["cleared"]] == [11, 9]
    assert [one["id"] for one in client.get("/titer/v1/appeals").json()["data"]] == [answer.json()["id"]]
    told = client.get("/titer/v1/appeals", params={"file_id": "file-none"}).json()
    assert told["data"] == []
    with service.database.reading() as session:
        said = session.scalars(select(LogEntry).order_by(LogEntry.number.desc())).first()
        assert session.scalar(select(Appeal.reviewer)) == said.actor
    assert (said.action, said.details["rows"], said.details["reason"]) == (
        "appeal.created",
        [9, 11],
        "A chemistry lesson.",
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"rows": [], "reason": "x"}, "rows"),
        ({"rows": [12], "reason": "x"}, "rows"),
        ({"rows": [-1], "reason": "x"}, "rows"),
        ({"rows": [2**80], "reason": "x"}, "rows"),
        ({"rows": [True], "reason": "x"}, "rows.0"),
        ({"rows": [0], "reason": " "}, "reason"),
        ({"rows": [0], "reason": "a\0b"}, "reason"),
        ({"rows": [0], "reason": "x" * 2001}, "reason"),
        ({"rows": [0]}, "reason"),
        ({"rows": [0], "reason": "x", "y": 1}, "y"),
    ],
)
def test_appeals_that_cannot_be_meant_are_refused(client, service, body, param):
    name = upload(client).json()["id"]
    answer = client.post(f"/titer/v1/files/{name}/appeals", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    with service.database.reading() as session:
        assert session.scalar(select(Appeal)) is None


def test_half_a_character_in_a_body_is_refused(client):
    name = upload(client).json()["id"]
    bodies = [
        b'{"rows": [0], "reason": "\\ud800"}',
        b'{"rows": [0], "reason": "x", "\\ud800": 1}',
    ]
    for body in bodies:
        answer = client.post(
            f"/titer/v1/files/{name}/appeals", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400
    body = rb'{"rows": [0], "reason": "\\ud83d \ud83d\ude00"}'
    answer = client.post(f"/titer/v1/files/{name}/appeals", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["reason"] == "\\ud83d 😀"


@pytest.mark.parametrize(
    ("scopes", "audits", "appeals"),
    [(["jobs"], 200, 403), (["admin"], 403, 404), (["files", "models"], 403, 403)],
)
def test_what_keys_are_for_is_kept(service, scopes, audits, appeals):
    headers = {"Authorization": f"Bearer {key_of(service, scopes=scopes)}"}
    with TestClient(create_app(service), headers=headers) as client:
        assert client.get("/titer/v1/audits").status_code == audits
        assert client.get("/titer/v1/appeals").status_code == audits
        assert client.get("/titer/v1/jobs/x/safety").status_code == (404 if audits == 200 else 403)
        answer = client.post("/titer/v1/files/file-none/appeals", json={"rows": [0], "reason": "x"})
        assert answer.status_code == appeals


# -- safety reports ---------------------------------------------------------------------------------------------------


def test_a_report_holds_what_a_job_was_decided_by(client, service, tmp_path, tiny_folder):
    file = upload(client).json()["id"]
    asked = {"model": "tiny", "training_file": file}
    job = client.post("/v1/fine_tuning/jobs", json=asked).json()["id"]
    bare = client.get(f"/titer/v1/jobs/{job}/safety").json()
    assert (bare["audit"], bare["gate"], bare["held"], bare["artefacts"]) == (None, None, None, [])
    place = carried_out(service, job)
    folder = tmp_path / "gate"
    folder.mkdir()
    (folder / "gate.json").write_bytes(b"{}")
    service.store.put_folder(f"jobs/{job}/gate", folder)
    service.store.put_folder(f"models/{job}", folder)
    gate = {"decision": "hold", "reasons": ["harmful_score"], "figures": {}, "before": {}, "place": f"jobs/{job}/gate"}
    with service.database.writing() as session:
        found = session.scalar(select(Job).where(Job.id == job))
        found.gate, found.fine_tuned_model = gate, "ft:tiny:one::x"
        session.add(
            Model(id="ft:tiny:one::x", org_id="org-one", base="tiny", job_id=job, place=f"models/{job}", held="harmful")
        )
        append(session, "org-one", "worker", "gate.decided", job, {"decision": "hold"})
        append(session, "org-one", "worker", "model.created", "ft:tiny:one::x", {})
        append(session, "org-two", "worker", "gate.decided", job, {"decision": "other"})
    client.post(f"/titer/v1/files/{file}/appeals", json={"rows": [3], "reason": "Honest."})
    report = client.get(f"/titer/v1/jobs/{job}/safety").json()
    assert (report["gate"], report["held"], report["audit"]["verdict"]) == (gate, "harmful", "poisoned")
    assert report["file"]["sha256"] == hashlib.sha256(ROWS).hexdigest()
    assert report["policy"]["gate"]["samples"] == 4
    job_object = client.get(f"/v1/fine_tuning/jobs/{job}").text
    for text in (json.dumps(report), job_object, client.get(f"/v1/fine_tuning/jobs/{job}/events").text):
        assert str(tiny_folder) not in text
        assert str(service.data) not in text
    assert [one["rows"] for one in report["appeals"]] == [[3]]
    assert [one["action"] for one in report["decisions"]] == ["job.created", "gate.decided", "model.created"]
    assert report["decisions"][1]["details"] == {"decision": "hold"}
    digests = {one["place"]: one["sha256"] for one in report["artefacts"]}
    assert digests == {
        place: hashlib.sha256(service.store.read(place)).hexdigest(),
        f"jobs/{job}/gate/gate.json": hashlib.sha256(b"{}").hexdigest(),
        f"models/{job}/gate.json": hashlib.sha256(b"{}").hexdigest(),
    }
    # The audit of a fine-tuning is an audit too.
    assert client.get(f"/titer/v1/audits/{job}").json()["total"] == 12


def test_what_is_others_is_not_there(client, stranger, service):
    found = audit_of(client).json()
    carried_out(service, found["id"])
    client.post(f"/titer/v1/files/{found['file_id']}/appeals", json={"rows": [0], "reason": "x"})
    for answer in (
        stranger.get(f"/titer/v1/audits/{found['id']}"),
        stranger.get(f"/titer/v1/jobs/{found['id']}/safety"),
        stranger.post(f"/titer/v1/files/{found['file_id']}/appeals", json={"rows": [0], "reason": "x"}),
        stranger.post("/titer/v1/audits", json={"file_id": found["file_id"]}),
    ):
        assert answer.status_code == 404
    assert stranger.get("/titer/v1/audits").json()["data"] == []
    assert stranger.get("/titer/v1/appeals").json()["data"] == []
    assert stranger.get("/titer/v1/appeals", params={"file_id": found["file_id"]}).json()["data"] == []


def test_audits_and_appeals_on_both_databases(any_service):
    with TestClient(create_app(any_service), headers={"Authorization": f"Bearer {key_of(any_service)}"}) as client:
        found = audit_of(client).json()
        carried_out(any_service, found["id"])
        path = f"/titer/v1/files/{found['file_id']}/appeals"
        assert client.post(path, json={"rows": [1], "reason": "x"}).status_code == 201
        assert client.post(path, json={"rows": [1], "reason": "a\0"}).status_code == 400
        assert client.get("/titer/v1/appeals", params={"file_id": "a\0"}).status_code == 400
        assert client.get("/titer/v1/audit-log", params={"action": "a\0"}).json()["data"] == []
        assert client.get(f"/titer/v1/jobs/{found['id']}/safety").json()["audit"]["verdict"] == "poisoned"
        for name in ("a\0", "\ufffd", "\ud7ff" * 9, "x" * 5000):
            assert client.get(f"/v1/files/{quote(name)}").status_code == 404
            assert client.get("/v1/files", params={"purpose": name}).json()["data"] == []
            assert client.get("/v1/files", params={"after": name}).status_code == 404
