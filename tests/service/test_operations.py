"""What operators use: health, readiness, metrics, policies, keys and the audit log over HTTP, and traces."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import key_of, served
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from titer.service import chain, health, policy
from titer.service.app import create_app
from titer.service.health import Health
from titer.service.tables import Job, LogEntry, Organisation, now


def add_job(service, number, org="one", **columns):
    with service.database.writing() as session:
        given = {"model": "tiny", "file_id": "file-1", **columns}
        session.add(Job(id=f"ftjob-{number}", org_id=f"org-{org}", **given))


def change_job(service, number, **columns):
    with service.database.writing() as session:
        job = session.query(Job).filter_by(id=f"ftjob-{number}").one()
        for name, value in columns.items():
            setattr(job, name, value)


def code_of(response):
    return response.status_code, response.json()["error"]["code"]


# -- health -----------------------------------------------------------------------------------------------------------


def test_a_server_with_all_its_threads_at_work_is_healthy(service):
    """Whoever watches it would end it for an answer that does not come, and with it what it works on."""
    app, ready, end = create_app(service), threading.Semaphore(0), threading.Event()
    threads = 40  # of anyio's, for all endpoints that may wait

    def busy():
        ready.release()
        end.wait(20)

    app.add_api_route("/busy", busy)
    with served(service, app) as address, ThreadPoolExecutor(threads) as pool:
        try:
            asked = [pool.submit(httpx.get, f"{address}/busy", timeout=30) for _ in range(threads)]
            assert all(ready.acquire(timeout=10) for _ in asked)
            assert httpx.get(f"{address}/titer/v1/health", timeout=5).json()["status"] == "ok"
        finally:
            end.set()


def test_health_and_readiness_need_no_key(service):
    with TestClient(create_app(service)) as anybody:
        assert anybody.get("/titer/v1/health").json()["status"] == "ok"
        found = anybody.get("/titer/v1/ready")
        assert found.status_code == 200
        assert found.json() == {
            "status": "ready", "parts": {"database": "ok", "store": "ok", "workers": "idle"},
        }  # fmt: skip


def test_not_ready_without_a_store(service, monkeypatch):
    def full(key, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(service.store), "write", lambda self, key, data: full(key, data))
    with TestClient(create_app(service)) as anybody:
        found = anybody.get("/titer/v1/ready")
    assert found.status_code == 503
    assert found.json()["parts"]["store"] == "not writable"
    assert "No space" not in found.text  # strangers learn nothing of the machine


def test_not_ready_without_a_database(service, monkeypatch):
    monkeypatch.setattr(type(service.database), "is_ready", False)
    assert Health(service).look() == {
        "status": "not_ready", "parts": {"database": "unreachable", "store": "ok", "workers": "unknown"},
    }  # fmt: skip


def test_jobs_that_nobody_takes_are_noticed(any_service):
    at = [0.0]
    found = Health(any_service, lambda: at[0])

    def workers(after):
        at[0] += after
        return found.look()["parts"]["workers"]

    assert workers(1) == "idle"
    add_job(any_service, 1, status="queued")
    assert workers(10) == "working"
    assert workers(health.SILENCE) == "working"
    assert workers(10) == "silent"
    assert found.look()["status"] == "not_ready"
    add_job(any_service, 2, status="running", worker="w", attempt=1)
    assert workers(10) == "working"
    for beats in range(1, 5):  # it works for long while the other one waits
        change_job(any_service, 2, beats=beats)
        assert workers(health.SILENCE - 1) == "working"
    assert workers(health.SILENCE + 1) == "silent"
    change_job(any_service, 1, status="succeeded", finished_at=now())
    change_job(any_service, 2, status="succeeded", finished_at=now())
    assert workers(10) == "idle"


# -- metrics ----------------------------------------------------------------------------------------------------------


def figures(text):
    families = text_string_to_metric_families(text)
    return {(one.name, *sorted(one.labels.items())): one.value for each in families for one in each.samples}


def test_metrics(any_service):
    add_job(any_service, 1, status="queued", created_at=now() - 100)
    add_job(any_service, 2, "two", status="running", worker="a", beats=7)
    for number, verdict in enumerate(("clean", "poisoned", "poisoned", None), 3):
        add_job(
            any_service, number, status="succeeded", audit={"verdict": verdict}, trained_tokens=1000,
            gate={"decision": "deploy"}, beats=1,
        )  # fmt: skip
    with TestClient(create_app(any_service), headers={"Authorization": f"Bearer {key_of(any_service)}"}) as client:
        client.get("/titer/v1/keys")
        client.delete("/titer/v1/keys/key_nothing")
        client.get("/titer/v1/keys/x/y/z")
        client.request("BREW", "/coffee/1")
        text = client.get("/metrics").text
    found = figures(text)
    assert {found[(f"titer_chat_{name}",)] for name in ("answers", "waiting", "adapters", "bases")} == {0}
    assert found["titer_jobs", ("kind", "fine_tuning"), ("status", "succeeded")] == 4
    assert found[("titer_queue_length",)] == 1
    assert 100 <= found[("titer_queue_oldest_seconds",)] < 200
    assert found[("titer_worker_beats_total",)] == 11
    assert found[("titer_workers",)] == 1
    assert found[("titer_trained_tokens_total",)] == 4000
    assert found["titer_audits_total", ("verdict", "poisoned")] == 2
    assert found["titer_audits_total", ("verdict", "clean")] == 1
    assert found["titer_gate_decisions_total", ("decision", "deploy")] == 4

    def requests(method, route, status):
        return found["titer_requests_total", ("method", method), ("route", route), ("status", status)]

    assert requests("GET", "/titer/v1/keys", "200") == 1
    assert requests("DELETE", "/titer/v1/keys/{key_id}", "404") == 1
    assert requests("GET", "unknown", "404") == 1
    assert requests("other", "unknown", "404") == 1
    assert "org-" not in text
    assert "key_nothing" not in text


def test_metrics_of_nothing(service):
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {key_of(service)}"}) as client:
        assert figures(client.get("/metrics").text)[("titer_trained_tokens_total",)] == 0


def test_metrics_are_for_this_machine_and_its_operators(service):
    app = create_app(service)
    with TestClient(app, client=("127.0.0.1", 1)) as here:
        assert here.get("/metrics").status_code == 200
        assert here.get("/metrics", headers={"X-Forwarded-For": "198.51.100.1"}).status_code == 401
    with TestClient(app, client=("198.51.100.1", 1)) as elsewhere:

        def ask(secret):
            return elsewhere.get("/metrics", headers={"Authorization": f"Bearer {secret}"})

        assert elsewhere.get("/metrics").status_code == 401
        assert code_of(ask(key_of(service, scopes=["jobs"]))) == (403, "insufficient_permissions")
        assert code_of(ask(key_of(service, "two"))) == (403, "not_operator")
        assert ask(key_of(service)).status_code == 200


# -- policies ---------------------------------------------------------------------------------------------------------


def changed(service, **parts):
    """The policy that holds with some of it replaced, as JSON."""
    return json.dumps({**service.policy().as_dict(), **parts})


def test_a_policy_is_read_and_replaced(client, service):
    before = client.get("/titer/v1/policies/current").json()
    assert before["policy"] == service.policy().as_dict()
    text = before["text"].replace("samples: 4", "samples: 9")
    after = client.put("/titer/v1/policies", content=text, headers={"Content-Type": "application/yaml"})
    assert after.status_code == 200
    assert after.json()["policy"]["gate"]["samples"] == 9
    assert after.json()["author"].startswith("key_")
    assert service.policy().gate.samples == 9
    history = client.get("/titer/v1/policies").json()["data"]
    assert [one["number"] for one in history] == [after.json()["number"], before["number"]]
    assert client.put("/titer/v1/policies", content=changed(service, quota={"jobs_a_day": 5})).status_code == 200
    assert service.policy().quota.jobs_a_day == 5
    lines = client.get("/titer/v1/audit-log?action=policy.").json()["data"]
    assert len(lines) == 3
    assert lines[0]["details"]["policy"]["quota"]["jobs_a_day"] == 5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gate: {harmful_skore: 3}", "harmful_skore"),
        ("gate: {harmful_score: 300}", "policy.gate.harmful_score"),
        ("models: {}", "policy.models"),
        ("models: [a]", "policy.models"),
        ("gate: {", "not valid YAML"),
        ("[" * 10_000, "policy"),
        ("x: &a [1]\ny: *a", "refers to parts of itself"),
        ("models: {mine: /etc}", "policy.models.mine"),
        ("training: {method: '/tmp/evil.py:METHOD'}", "evil"),
        ("training: {allowed: ['os:system']}", "os:system"),
        ("gate: {judge: 'evil.py:JUDGE'}", "evil"),
        ("audit: {harmful: ../../secret.jsonl}", "secret"),
        ("training: {settings: {template: /etc/passwd}}", "passwd"),
    ],
)  # fmt: skip
def test_what_is_no_policy_or_reaches_for_the_machine_is_refused(client, service, text, named):
    before = service.policy()
    if not text.startswith(("models", "[", "x:")) and "YAML" not in named:
        text = f"{text}\nmodels: {{tiny: {before.models['tiny']}}}"
    answer = client.put("/titer/v1/policies", content=text)
    assert code_of(answer) == (400, "invalid_policy")
    assert named in answer.json()["error"]["message"]
    assert service.policy() == before


def test_bytes_that_are_no_text_are_no_policy(client):
    assert code_of(client.put("/titer/v1/policies", content=b"\xff\xfe")) == (400, "invalid_policy")


def test_what_a_policy_of_the_server_names_may_stay_in_it(service, tiny_folder, tmp_path):
    file = tmp_path / "prompts.jsonl"
    text = f"models: {{tiny: {tiny_folder}}}\ngate: {{harmful: {file}}}\n"
    with service.database.writing() as session:
        policy.replace(session, text, "server")
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {key_of(service)}"}) as client:
        assert client.put("/titer/v1/policies", content=text + "quota: {jobs_a_day: 3}\n").status_code == 200


def test_policies_are_the_operators(client, stranger, service):
    text = changed(service, quota={"jobs_a_day": 5})
    assert code_of(stranger.put("/titer/v1/policies", content=text)) == (403, "not_operator")
    assert code_of(stranger.get("/titer/v1/policies")) == (403, "not_operator")
    seen = stranger.get("/titer/v1/policies/current").json()
    assert seen["policy"]["models"] == {"tiny": None}
    assert "text" not in seen
    unprivileged = {"Authorization": f"Bearer {key_of(service, scopes=['files', 'jobs', 'models'])}"}
    answer = client.put("/titer/v1/policies", content=text, headers=unprivileged)
    assert code_of(answer) == (403, "insufficient_permissions")


# -- keys -------------------------------------------------------------------------------------------------------------


def test_keys_over_http(client, service):
    made = client.post("/titer/v1/keys", json={"name": "ci", "scopes": ["files"], "days": 7}).json()
    assert made["scopes"] == ["files"]
    assert made["expires_at"] - made["created_at"] == pytest.approx(7 * 86400, abs=2)
    own = {"Authorization": f"Bearer {made['key']}"}
    assert code_of(client.get("/titer/v1/keys", headers=own)) == (403, "insufficient_permissions")
    listed = client.get("/titer/v1/keys").json()["data"]
    assert listed[0]["id"] == made["id"]
    assert made["key"] not in json.dumps(listed)
    heir = client.post(f"/titer/v1/keys/{made['id']}/rotate", json={"grace_hours": 0}).json()
    assert code_of(client.get("/titer/v1/keys", headers=own)) == (401, "invalid_api_key")
    assert client.delete(f"/titer/v1/keys/{heir['id']}").json()["revoked_at"]
    with pytest.raises(KeyError):
        client.get("/titer/v1/keys").json()["data"][0]["key"]
    actions = [line["action"] for line in client.get("/titer/v1/audit-log?action=key.").json()["data"]]
    assert actions == ["key.revoked", "key.rotated", "key.created", "key.created"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"scopes": ["root"]}, "invalid_type", "scopes.0"),
        ({"scopes": []}, "invalid_type", "scopes"),
        ({"days": 0}, "invalid_type", "days"),
        ({"name": "x" * 65}, "invalid_type", "name"),
        ({"org": "two"}, "unknown_parameter", "org"),
    ],
)
def test_keys_that_cannot_be_made(client, body, code, param):
    answer = client.post("/titer/v1/keys", json=body)
    assert code_of(answer) == (400, code)
    assert answer.json()["error"]["param"] == param


# -- the audit log ----------------------------------------------------------------------------------------------------


def test_the_audit_log_shows_ones_own(client, stranger, service):
    client.post("/titer/v1/keys", json={"name": "a"})
    stranger.post("/titer/v1/keys", json={"name": "b"})
    assert [line["details"]["name"] for line in stranger.get("/titer/v1/audit-log").json()["data"]] == ["b"]
    own = client.get("/titer/v1/audit-log").json()["data"]
    assert [line["action"] for line in own] == ["key.created", "policy.replaced"]  # the server's own too
    page = client.get("/titer/v1/audit-log", params={"limit": 1}).json()
    assert page["has_more"]
    rest = client.get("/titer/v1/audit-log", params={"before": page["data"][-1]["number"]}).json()
    assert [line["action"] for line in rest["data"]] == ["policy.replaced"]
    assert code_of(client.get("/titer/v1/audit-log?limit=0")) == (400, "invalid_value")


def test_the_audit_log_is_verified_for_operators(client, stranger, service):
    found = client.get("/titer/v1/audit-log/verification").json()
    assert found["intact"]
    assert chain.Head.parse(found["head"]).number == 1
    assert code_of(stranger.get("/titer/v1/audit-log/verification")) == (403, "not_operator")
    with service.database.writing() as session:
        session.query(LogEntry).update({"actor": "somebody else"})
    found = client.get("/titer/v1/audit-log/verification").json()
    assert (found["intact"], found["line"]) == (False, 1)


def test_who_does_not_run_the_server_any_more_may_not_change_it(client, service):
    with service.database.writing() as session:
        session.get(Organisation, "org-one").operator = False
    assert code_of(client.put("/titer/v1/policies", content="x")) == (403, "not_operator")
