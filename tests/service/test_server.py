"""What `titer serve` is made of: a worker that is kept running, and connections that are not kept waiting for."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from titer.errors import TiterError
from titer.service import server
from titer.service.server import Supervisor

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


# -- the worker beside it -------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Workers that are not titer, and are started again at once."""

    def code(text):
        monkeypatch.setattr(server, "WORKER", f"import os, signal, sys, time; sys.argv.pop(1)\n{text}")

    monkeypatch.setattr(server, "BACKOFF", (0.01, 0.05))
    return code


def wait_for(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_worker_that_dies_is_started_again(quick, tmp_path):
    log = tmp_path / "log"
    quick("open(sys.argv[2], 'a').write('x'); os.kill(os.getpid(), signal.SIGKILL)")
    with server.worker(["worker", str(log)]):
        wait_for(lambda: log.exists() and len(log.read_text()) >= 3)
    count = len(log.read_text())
    time.sleep(0.2)
    assert len(log.read_text()) == count


def test_a_worker_that_does_not_end_is_killed(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "WORKER_GRACE", 0.3)
    log = tmp_path / "log"
    quick("signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[2], 'w').write('x'); time.sleep(600)")
    supervisor = Supervisor(["worker", str(log)], {})
    supervisor.start()
    wait_for(lambda: log.exists() and log.read_text())
    supervisor.end()
    assert supervisor.process.returncode == -signal.SIGKILL
    assert not supervisor.is_alive()


def test_a_password_is_not_on_the_workers_command_line(quick, tmp_path):
    log = tmp_path / "log"
    quick("open(sys.argv[2], 'w').write(os.environ['TITER_DATABASE']); time.sleep(600)")
    supervisor = Supervisor(["worker", str(log)], {"TITER_DATABASE": "postgresql://a:secret@b/c"})
    supervisor.start()
    try:
        wait_for(lambda: log.exists() and log.read_text())
        assert "secret" in log.read_text()
        assert b"secret" not in Path(f"/proc/{supervisor.process.pid}/cmdline").read_bytes()
    finally:
        supervisor.end()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux'")
def test_a_worker_ends_with_a_server_that_is_killed(tmp_path):
    log = tmp_path / "log"
    code = (
        server.WORKER.partition("sys.argv[0]")[0] + f"open({str(log)!r}, 'w').write(str(os.getpid()))\nsignal.pause()"
    )
    parent = (
        f"import time\nfrom titer.service import server\nserver.WORKER = {code!r}\n"
        "supervisor = server.Supervisor(['worker'], {})\nsupervisor.start()\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], env=ENVIRONMENT) as process:
        try:
            wait_for(lambda: log.exists() and log.read_text())
        finally:
            process.kill()
    pid = int(log.read_text())

    def gone():
        status = Path(f"/proc/{pid}/status")
        return not status.exists() or "State:\tZ" in status.read_text()

    wait_for(gone)


# -- connections ----------------------------------------------------------------------------------------------------


def test_a_request_whose_head_does_not_come_is_hung_up_on(service, monkeypatch):
    from titer.service.app import create_app

    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    bound, there = server.bind("127.0.0.1", 0), threading.Event()
    stop = {}
    start = server.Server.startup

    async def startup(self, sockets=None):
        stop["server"] = self
        await start(self, sockets)

    monkeypatch.setattr(server.Server, "startup", startup)
    monkeypatch.setattr(server, "_signals_end_quietly", contextlib.nullcontext)  # which only the main thread can
    thread = threading.Thread(target=server.run, args=(create_app(service), bound, there.set), daemon=True)
    thread.start()
    assert there.wait(20)
    port = bound.getsockname()[1]
    whole = b"GET /titer/v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    try:
        for first, then in ((b"", b""), (b"", b"GET / HTTP/1.1\r\n"), (whole, b"GET /")):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as sent:
                sent.sendall(first)
                while first and not sent.recv(65536).endswith(b"}"):
                    pass
                sent.sendall(then)
                began = time.monotonic()
                while sent.recv(65536):
                    pass
                assert time.monotonic() - began < 10
        with socket.create_connection(("127.0.0.1", port), timeout=20) as dripping:
            began = time.monotonic()
            with contextlib.suppress(OSError):
                for letter in (b"GET / HTTP/1.1\r\nX: " + b"x" * 100).decode():
                    dripping.sendall(letter.encode())
                    time.sleep(0.05)
            assert time.monotonic() - began < 5
    finally:
        stop["server"].should_exit = True
        thread.join(10)


def test_addresses():
    for host, shown in (("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")):
        try:
            bound = server.bind(host, 0)
        except TiterError:
            assert host == "::1"  # a machine without IPv6
            continue
        assert server.address_of(bound).startswith(shown)
        with pytest.raises(TiterError, match="Nobody can listen"):
            server.bind(host, bound.getsockname()[1])
        bound.close()
    with pytest.raises(TiterError, match=r"no address|Nobody can listen"):
        server.bind("192.0.2.1", 0)
