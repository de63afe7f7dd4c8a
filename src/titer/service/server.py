"""Runs the application under uvicorn, with one worker beside it, until it is told to end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from titer.errors import TiterError

HEAD_SECONDS = 20.0
"""How long the head of a request may take to come."""
CONNECTIONS = 800
"""Most connections at a time; more are answered 503. Most systems let a process have 1024 files."""
GRACE = 5
"""Seconds that requests have to end once the server is told to."""
WORKER_GRACE = 10.0
"""Seconds that a worker has to reach a checkpoint; what it did since the last one is done again."""
BACKOFF = (1.0, 60.0)
"""Seconds before a worker that died is started again: at first, and after it died many times."""
STEADY = 60.0
"""A worker that has lived for so many seconds counts as one that starts."""
WORKER = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: told to end when the server is killed
    if os.getppid() != int(sys.argv.pop(1)):
        sys.exit()
else:
    sys.argv.pop(1)
sys.argv[0] = "titer"
from titer.cli import main
main()
"""

logger = logging.getLogger(__name__)


class Impatient(H11Protocol):
    """A connection that is closed when the head of a request does not come in time, which uvicorn alone would wait for."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._patience: asyncio.TimerHandle | None = None
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what came; what is no whole head does not prolong the time."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        elif self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End the waiting."""
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn, which says when it answers.

    Args:
        config: Of uvicorn.
        ready: Called once requests are answered.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address; port 0 takes any that is free.

    Raises:
        TiterError: Where nobody can listen.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise TiterError(
            f"`{host}` is no address of this machine: {error}.", "Leave out --host for this machine."
        ) from None
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen()  # or another one that is only bound would share the port, unnoticed
    except (OSError, OverflowError) as error:
        found.close()
        raise TiterError(
            f"Nobody can listen on {host}:{port}: {error}.", "Choose another --port; 0 takes any."
        ) from None
    return found


def address_of(bound: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"http://{host}:{port}"


def run(app: Any, bound: socket.socket, ready: Callable[[], None], proxies: Sequence[str] = ()) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        app: The application.
        bound: Where.
        ready: As of `Server`.
        proxies: Addresses of proxies whose word on who asks is taken.
    """
    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=GRACE,
    )
    server = Server(config, ready)
    with _signals_end_quietly():
        server.run(sockets=[bound])
    if not server.started:
        raise TiterError("The server could not be started.", "What is wrong stands above.")


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Let uvicorn's raising of the signal again, after it has shut down, not end this process before its worker."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


@contextmanager
def worker(words: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[None]:
    """Keep a worker running while the block is at work; one that dies is started again, later each time.

    Args:
        words: What follows `titer` on its command line. URLs go by `environment`, since everybody sees command lines.
        environment: What it finds in its environment besides what this process does.
    """
    supervisor = Supervisor(words, environment or {})
    supervisor.start()
    try:
        yield
    finally:
        supervisor.end()


class Supervisor(threading.Thread):
    """A thread that keeps a process running. The process is told to end when the thread does, also when it is killed."""

    def __init__(self, words: Sequence[str], environment: dict[str, str]) -> None:
        super().__init__(name="worker", daemon=True)
        self._command = [sys.executable, "-c", WORKER, str(os.getpid()), *words]
        self._environment = {**os.environ, **environment}
        self._end, self._lock = threading.Event(), threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Start it again and again."""
        wait = BACKOFF[0]
        while not self._end.is_set():
            with self._lock:
                if self._end.is_set():
                    return
                # Its own group: Ctrl-C reaches the server alone, which then tells the worker.
                self.process = subprocess.Popen(self._command, env=self._environment, process_group=0)
            started = time.monotonic()
            code = self.process.wait()
            if self._end.is_set():
                return
            wait = BACKOFF[0] if time.monotonic() - started > STEADY else wait
            logger.warning("the worker ended with code %d; another one starts in %.0f s", code, wait)
            self._end.wait(wait)
            wait = min(2 * wait, BACKOFF[1])

    def end(self) -> None:
        """Tell the process to end, and wait for it; one that does not is killed."""
        self._end.set()
        with self._lock:
            process = self.process
        if process is not None:
            process.terminate()
            try:
                process.wait(WORKER_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.join()
