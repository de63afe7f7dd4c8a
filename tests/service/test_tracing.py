"""Traces of requests and of the stages of jobs: sent where the environment says, and without what anybody wrote."""

import threading
from types import SimpleNamespace

import pytest
from working import add_job, done

from titer.cli import worker
from titer.errors import TiterError
from titer.service import pipeline, tracing
from titer.service.running import REPORTED


@pytest.fixture
def spans():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    assert tracing.start("server", exporter)
    yield exporter.get_finished_spans
    tracing.stop()


def test_requests_and_stages_are_traced(client, spans):
    answer = client.get("/titer/v1/keys", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
    client.get("/titer/v1/policies/current/none")
    with pytest.raises(ZeroDivisionError), tracing.span("job.train", job="ftjob-1", model=None):
        raise ZeroDivisionError("a row of somebody's")
    keys_span, unknown, train = spans()
    assert keys_span.name == "HTTP GET"
    assert dict(keys_span.attributes) == {
        "http.request.method": "GET",
        "http.route": "/titer/v1/keys",
        "http.response.status_code": 200,
        "titer.request": answer.headers["x-request-id"],
    }
    assert keys_span.context.trace_id != int("a" * 32, 16)  # which a stranger chose
    assert unknown.attributes["http.route"] == "unknown"
    assert dict(train.attributes) == {"titer.job": "ftjob-1", "error.type": "ZeroDivisionError"}
    assert "somebody" not in train.to_json()


def test_the_stages_of_a_job_are_traced(service, spans, monkeypatch):
    def fails(*words):
        raise ZeroDivisionError("a row of somebody's")

    stages = {"audit": lambda run, *words: run.change(_to_training), "train": fails}
    monkeypatch.setattr(pipeline, "STAGES", stages)
    name = add_job(service)
    assert done(service, name) == REPORTED
    assert [(one.name, dict(one.attributes)) for one in spans()] == [
        ("job.audit", {"titer.job": name}),
        ("job.train", {"titer.job": name, "error.type": "ZeroDivisionError"}),
    ]


def _to_training(session, job):
    job.stage = "train"


def test_a_worker_asks_for_what_traces_need_before_it_takes_a_job(service, monkeypatch):
    monkeypatch.setenv(tracing.ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TiterError, match=r"titer\[tracing\]"):
        worker.command(service.data)


def test_spans_are_sent_before_a_process_ends():
    sent = threading.Event()
    exporter = SimpleNamespace(export=lambda spans: None, shutdown=sent.set)
    tracing.start("worker", exporter)
    tracing.stop()
    assert sent.is_set()


def test_nothing_is_traced_unasked(client, monkeypatch):
    monkeypatch.delenv(tracing.ENDPOINT, raising=False)
    assert not tracing.start("server")
    with tracing.span("job.train") as opened:
        assert opened is None
    assert client.get("/titer/v1/health").status_code == 200


def test_traces_without_their_extra_are_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv(tracing.ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TiterError, match=r"titer\[tracing\]"):
        tracing.start("server")
