"""Figures for Prometheus: requests as this server sees them, jobs and audits as the database does. None names a tenant."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from titer.service import retention
from titer.service.context import Service
from titer.service.headers import App, Message, Receive, Send
from titer.service.quotas import WAITING
from titer.service.tables import Job, Removal, now

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
CHAT = {
    "answers": "Answers that this server decodes.",
    "waiting": "Chats that wait for their turn.",
    "adapters": "Fine-tuned models in memory.",
    "bases": "Base models in memory.",
}
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures:
    """The figures of one server.

    Args:
        service: The service whose jobs are counted.
        chat: Says how much the chat has to do.
    """

    def __init__(self, service: Service, chat: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "titer_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "titer_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["method", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(Jobs(service))
        for name, said in CHAT.items():
            gauge = Gauge(f"titer_chat_{name}", said, registry=self.registry)
            gauge.set_function(partial(_of_load, chat, name))

    def as_text(self) -> bytes:
        """Return them in Prometheus' text format."""
        return generate_latest(self.registry)


def _of_load(chat: Callable[[], Mapping[str, int]], name: str) -> int:
    return chat().get(name, 0)


class Measured:
    """Counts the requests of an application, with how long they took.

    Args:
        app: The application.
        figures: Where they are counted.
    """

    def __init__(self, app: App, figures: Figures) -> None:
        self.app, self.figures = app, figures

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = route_of(scope)
            self.figures.requests.labels(method, route, status).inc()
            self.figures.seconds.labels(method, route).observe(time.perf_counter() - started)


def route_of(scope: MutableMapping[str, Any]) -> str:
    """Return the address of a request as the source writes it, which there are few of, whatever clients ask for."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        # What is mounted has no route of its own.
        return "/console/static" if scope["path"].startswith("/console/static/") else "unknown"
    return str(path)


class Jobs:
    """What the database says of jobs, at the moment when it is asked.

    Args:
        service: The service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Return nothing: what is named here must not ask the database before anybody wants to know."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Count."""
        with self._service.database.reading() as session:
            counted = session.execute(select(Job.kind, Job.status, func.count()).group_by(Job.kind, Job.status)).all()
            oldest, beats, tokens = session.execute(_sums()).one()
            workers = session.scalar(select(func.count(Job.worker.distinct())).where(Job.status == "running"))
            strays = session.scalar(select(func.count()).where(Removal.stray))
            verdicts = _counted(session, Job.audit["verdict"].as_string())
            decisions = _counted(session, Job.gate["decision"].as_string())
        jobs = GaugeMetricFamily("titer_jobs", "Jobs by kind and status.", labels=["kind", "status"])
        for kind, status, count in counted:
            jobs.add_metric([kind, status], count)
        yield jobs
        waiting = sum(count for _, status, count in counted if status in WAITING)
        yield GaugeMetricFamily("titer_queue_length", "Jobs that wait for a worker.", waiting)
        # The clocks of whoever made the job and of this server may differ.
        age = 0 if oldest is None else max(0, now() - oldest)
        yield GaugeMetricFamily("titer_queue_oldest_seconds", "For how long the oldest of them has waited.", age)
        yield GaugeMetricFamily("titer_workers", "Workers that hold a job.", workers or 0)
        yield CounterMetricFamily("titer_worker_beats", "Beats of workers; stands still when none is alive.", beats)
        yield CounterMetricFamily("titer_trained_tokens", "Tokens trained on.", tokens)
        yield GaugeMetricFamily(
            "titer_store_strays", "Places in the store that no row names, until they go.", strays or 0
        )
        swept = CounterMetricFamily("titer_swept", "What this server's sweeps removed, by kind.", labels=["kind"])
        for kind, count in retention.REMOVED.items():
            swept.add_metric([kind], count)
        yield swept
        audits = CounterMetricFamily("titer_audits", "Uploads audited, by verdict.", labels=["verdict"])
        gates = CounterMetricFamily("titer_gate_decisions", "Models measured, by decision.", labels=["decision"])
        for family, found in ((audits, verdicts), (gates, decisions)):
            for value, count in found:
                family.add_metric([value], count)
            yield family


def _sums() -> Any:
    oldest = select(func.min(Job.created_at)).where(Job.status.in_(WAITING)).scalar_subquery()
    return select(oldest, func.coalesce(func.sum(Job.beats), 0), func.coalesce(func.sum(Job.trained_tokens), 0))


def _counted(session: Session, value: Any) -> list[tuple[str, int]]:
    """Return how many jobs there are of each value of something within their JSON."""
    # Named first: PostgreSQL would not know the same expression again.
    found = select(value.label("value")).select_from(Job).subquery()
    query = select(found.c.value, func.count()).where(found.c.value.is_not(None)).group_by(found.c.value)
    return [(str(one), count) for one, count in session.execute(query)]
