"""Whether the service can do what it is there for: its database answers, its store takes files, its queue moves.

No clock is compared with another's: what counts is whether something changed between two looks at it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from titer.service.context import Service
from titer.service.quotas import WAITING
from titer.service.tables import Job

SILENCE = 120.0
"""Seconds for which jobs may wait while nothing at all happens, before that counts as no worker being there."""
KEPT = 2.0
"""Seconds for which an answer is given again: anybody may ask, and each look costs a file."""
PROBE = "health/probe"

logger = logging.getLogger(__name__)


class Health:
    """How a service is.

    Args:
        service: The service.
        clock: Counts seconds.
    """

    def __init__(self, service: Service, clock: Callable[[], float] = time.monotonic) -> None:
        self._service, self._clock, self._lock = service, clock, threading.Lock()
        self._answer: tuple[float, dict[str, Any]] | None = None
        self._queue: tuple[Any, float] | None = None

    def look(self) -> dict[str, Any]:
        """Return `status`, `ready` or `not_ready`, and how each part is."""
        with self._lock:
            if self._answer is None or self._clock() - self._answer[0] > KEPT:
                parts = {"database": self._database(), "store": self._store(), "workers": "unknown"}
                if parts["database"] == "ok":
                    parts["workers"] = self._workers()
                ready = parts["database"] == parts["store"] == "ok" and parts["workers"] != "silent"
                self._answer = self._clock(), {"status": "ready" if ready else "not_ready", "parts": parts}
            return self._answer[1]

    def _database(self) -> str:
        return "ok" if self._service.database.is_ready else "unreachable"

    def _store(self) -> str:
        try:
            self._service.store.write(PROBE, b"titer")
        except Exception:  # each kind of store has errors of its own, and the answer is about all of them
            logger.warning("the artefact store %s cannot be written", self._service.store.url, exc_info=True)
            return "not writable"
        return "ok"

    def _workers(self) -> str:
        """Return `idle` where nothing waits, `working` where something happens, `silent` where it does not, for long."""
        waits = func.count().filter(Job.status.in_(WAITING))
        # All that changes when a worker does anything: it takes a job, it beats, it ends one.
        seen = select(waits, func.sum(Job.attempt), func.sum(Job.beats), func.count(Job.finished_at))
        try:
            with self._service.database.reading() as session:
                found = tuple(session.execute(seen).one())
        except SQLAlchemyError:
            return "unknown"
        if not found[0]:
            self._queue = None
            return "idle"
        if self._queue is None or self._queue[0][1:] != found[1:]:
            self._queue = found, self._clock()
        return "silent" if self._clock() - self._queue[1] > SILENCE else "working"
