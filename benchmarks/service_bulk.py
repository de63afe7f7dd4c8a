"""What `service_hostile` does in bulk: uploads of a gigabyte, compressed zeros, and clients that send or read next to nothing."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
from service_world import Client, World, watched

Saw = Callable[[str, int, bytes], None]
EDGE = "edge"
KIND = {"Content-Type": f"multipart/form-data; boundary={EDGE}"}
LINE = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
READERS = 50
EACH = 100
"""Slow clients of each kind."""


def _form(purpose: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a form with a file."""
    head = f'--{EDGE}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n--{EDGE}\r\n'
    yield head.encode() + b'Content-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
    yield from pieces
    yield f"\r\n--{EDGE}--\r\n".encode()


def _repeated(piece: bytes, size: int) -> Iterator[bytes]:
    for _ in range(size // len(piece)):
        yield piece


def large(client: Client, world: World, size: int, saw: Saw) -> dict[str, Any]:
    """Upload much, and what would become much; returns what came of it and how far the server's memory grew."""
    server = psutil.Process(world.running["server"].pid)
    found: dict[str, Any] = {}
    rows, line = LINE * 10_000, b"a" * 1_000_000

    def send(what: str, path: str, content: Any, **headers: str) -> httpx.Response | None:
        """Send a body as `two`, and note what came of it."""
        begun, answer = time.perf_counter(), None
        headers = {"Authorization": f"Bearer {client.keys[1]}", **KIND, **headers}
        with watched(server) as use:
            try:
                answer = httpx.post(f"{client.address}{path}", headers=headers, content=content, timeout=600)
                saw(what, answer.status_code, answer.content)
            except httpx.HTTPError as error:
                saw(what, 599, repr(error).encode())
        status = None if answer is None else answer.status_code
        found[what] = {"status": status, "seconds": time.perf_counter() - begun, "grown_megabytes": use.grown / 1e6}
        return answer

    send("larger than files may be", "/v1/files", _form("fine-tune", _repeated(rows, size)))
    zeros = bytes(200_000_000)
    for coding, bomb in (("gzip", gzip.compress(zeros)), ("deflate", zlib.compress(zeros)), ("br", b"\x00" * 1000)):
        for path in ("/v1/files", "/v1/chat/completions", "/v1/uploads"):
            send(f"{coding} to {path}", path, bomb, **{"Content-Encoding": coding})

    text = (world.folder / "policy.yaml").read_text() + f"limits: {{file_bytes: {2 * size}}}\n"
    client.request("PUT", "/titer/v1/policies", 0, content=text.encode())
    time.sleep(3)  # the policy that holds is looked up every two seconds
    send("one line", "/v1/files", _form("fine-tune", _repeated(line, size)))
    send("more rows than files may have", "/v1/files", _form("fine-tune", _repeated(rows, size)))
    answer = send("kept", "/v1/files", _form("user_data", _repeated(rows, size)))
    if answer is not None and answer.status_code == 200:
        path = f"/v1/files/{answer.json()['id']}"
        with watched(server) as use:
            found["kept"]["read_back"] = (
                _digest(client, path) == hashlib.sha256(b"".join(_repeated(rows, size))).digest()
            )
            found["kept"]["readers"] = _do_not_read(client, f"{path}/content")
        found["kept"]["reading_grown_megabytes"] = use.grown / 1e6
        client.request("DELETE", path, 1)
    return found


def _digest(client: Client, path: str) -> bytes:
    """Return the SHA-256 of a file, read as it comes."""
    digest = hashlib.sha256()
    headers = {"Authorization": f"Bearer {client.keys[1]}"}
    with httpx.stream("GET", f"{client.address}{path}/content", headers=headers, timeout=600) as answer:
        for piece in answer.iter_bytes():
            digest.update(piece)
    return digest.digest()


def _connect(client: Client) -> socket.socket:
    host = httpx.URL(client.address)
    return socket.create_connection((host.host, host.port or 80), timeout=10)


def _asks(client: Client) -> float:
    """Return how long another client waits."""
    begun = time.perf_counter()
    headers = {"Authorization": f"Bearer {client.keys[1]}"}
    httpx.get(f"{client.address}/v1/models", headers=headers, timeout=60).raise_for_status()
    return time.perf_counter() - begun


def _do_not_read(client: Client, path: str) -> dict[str, Any]:
    """Let many clients ask for a large file and read nothing of it, for a while."""
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {client.keys[1]}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(READERS):
            stack.enter_context(_connect(client)).sendall(head)
        waits = []
        for _ in range(10):
            waits.append(_asks(client))
            time.sleep(1)
    return {"clients": READERS, "longest_wait_of_another": max(waits)}


def slow(client: Client, seconds: float, check: Callable[[bool, str], None]) -> dict[str, Any]:
    """Hold connections that send a byte a second of a head, or of a body, and say when the last of them was closed.

    Heads have 20 s, and bodies 60 s and then as long as they bring a kilobyte a second.
    """
    head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {client.keys[1]}\r\n"
    whole = f"{head}Content-Type: {KIND['Content-Type']}\r\nContent-Length: 100000\r\n\r\n--{EDGE}\r\n".encode()
    heads, bodies = ([_connect(client) for _ in range(EACH)] for _ in range(2))
    for one in bodies:
        one.sendall(whole)
    closed: dict[str, float] = {}
    begun, waits, place = time.monotonic(), [], 0
    while (now := time.monotonic() - begun) < seconds:
        for one in heads:
            _drip(one, head[place % len(head)].encode())
        for one in bodies:
            _drip(one, b"-")
        place += 1
        waits.append(_asks(client))
        for kind, sockets in (("heads", heads), ("bodies", bodies)):
            sockets[:] = [one for one in sockets if not _is_closed(one)]
            if not sockets:
                closed.setdefault(kind, now)
        time.sleep(max(0.0, begun + now + 1 - time.monotonic()))
    for kind, sockets in (("heads", heads), ("bodies", bodies)):
        check(not sockets, f"{len(sockets)} {kind} that drip are not closed after {seconds:.0f} s")
        for one in sockets:
            one.close()
    return {"clients": 2 * EACH, "closed_after_seconds": closed, "longest_wait_of_another": max(waits)}


def _drip(one: socket.socket, byte: bytes) -> None:
    with contextlib.suppress(OSError):
        one.sendall(byte)


def _is_closed(one: socket.socket) -> bool:
    """Whether the other side has closed a connection; what it says before is read."""
    one.setblocking(False)
    try:
        while one.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    finally:
        one.settimeout(10)
    one.close()
    return True
