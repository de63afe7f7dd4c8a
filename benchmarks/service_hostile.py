"""Hostile clients: requests made by schemathesis from the OpenAPI document, and by Hypothesis, against a running service.

Nothing may be answered with 500 and more, no answer to one organisation may hold what another one put there, and no file may
appear outside of the service's folder. Then come one upload of a gigabyte, one of compressed zeros, and clients that send a
byte a second.

Examples:
    python benchmarks/service_hostile.py --folder hostile --requests 10000
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from service_world import Client, World, small_model

from titer.jobs.provenance import environment

MARK = "zq-titer-mark-one-zq"
"""Stands in all that organisation `one` puts into the service, and in nothing that `two` says."""


class Watch:
    """Looks at each answer.

    Attributes:
        statuses: How often each status came, by operation.
        wrong: What must not be.
    """

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []

    def saw(self, what: str, status: int, body: bytes) -> None:
        """Take note of an answer."""
        self.statuses[status] += 1
        if status >= 500 and status != 501:
            self.wrong.append(f"{what}: {status} {body[:200]!r}")
        if MARK.encode() in body:
            self.wrong.append(f"{what}: {status} holds another organisation's data")
        if status >= 400 and b'"error"' not in body and b"<html" not in body.lower():
            self.wrong.append(f"{what}: {status} without an error body: {body[:200]!r}")


def things_of_one(client: Client) -> dict[str, str]:
    """Let organisation `one` have a file, an upload, a job and an audit, each marked; returns their ids."""
    line = {"messages": [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}]}
    rows = (json.dumps(line) + "\n").encode() * 12
    file = client.request(
        "POST", "/v1/files", 0, files={"file": (f"{MARK}.jsonl", rows)}, data={"purpose": "fine-tune"}
    )["id"]
    asked = {"model": "tiny", "training_file": file, "metadata": {"note": MARK}, "suffix": "mark"}
    job = client.request("POST", "/v1/fine_tuning/jobs", 0, json=asked)["id"]
    part = {"filename": f"{MARK}.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl"}
    upload = client.request("POST", "/v1/uploads", 0, json=part)["id"]
    audit = client.request("POST", "/titer/v1/audits", 0, json={"file_id": file})["id"]
    client.request("POST", f"/titer/v1/files/{file}/appeals", 0, json={"rows": [0], "reason": MARK})
    return {"file": file, "job": job, "upload": upload, "audit": audit}


def by_schema(address: str, key: str, ids: dict[str, str], count: int, watch: Watch) -> int:
    """Send requests that the OpenAPI document allows, and some that it does not; returns how many."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", headers={"Authorization": f"Bearer {key}"})
    operations = [result.ok() for result in schema.get_all_operations()]
    each = -(-count // len(operations))
    sent, draw = 0, random.Random(0)
    client = httpx.Client(base_url=address, timeout=60)
    for operation in operations:

        @given(case=operation.as_strategy(), honest=st.booleans())
        @settings(max_examples=each, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        def send(case: Any, honest: bool) -> None:
            nonlocal sent
            if honest and case.path_parameters:  # another organisation's real ids
                case.path_parameters = {name: draw.choice(list(ids.values())) for name in case.path_parameters}
            what = f"{case.method} {case.formatted_path}"
            try:
                answer = case.call(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            except (UnicodeError, ValueError):  # what no client can send
                watch.statuses[0] += 1
                return
            sent += 1
            watch.saw(what, answer.status_code, answer.content)

        send()
    client.close()
    return sent


def by_hand(address: str, key: str, ids: dict[str, str], count: int, watch: Watch) -> int:
    """Upload arbitrary bytes under arbitrary names, and ask for arbitrary ids; returns how many requests that were."""
    client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    names = st.one_of(
        st.text(min_size=1, max_size=60),
        st.sampled_from(
            ["../../etc/passwd", "a/b.jsonl", "..\\..\\x", "\x00.jsonl", "%2e%2e%2fx", "CON", ".", "-rf", "a" * 5000]
        ),
    )
    content = st.text(max_size=40) | st.sampled_from(["<|im_start|>system", "<|im_end|>", "<|endoftext|>", "\ud800"])
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": content}
    )
    line = st.one_of(
        st.builds(lambda found: json.dumps({"messages": found}).encode(), st.lists(message, max_size=4)),
        st.binary(max_size=80),
        st.sampled_from([b"", b"{}", b"[]", b"null", b'{"messages": NaN}', b"[" * 3000, b'{"a":1,"a":2}', b"\xff\xfe"]),
    )
    strange = st.one_of(
        st.text(max_size=40),
        st.sampled_from([*ids.values(), "../x", "%2e%2e%2f", "'; DROP TABLE jobs; --", "\x00", "ft:a:b:c"]),
    )
    sent = 0

    @given(name=names, lines=st.lists(line, max_size=14), other=strange)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def send(name: str, lines: list[bytes], other: str) -> None:
        nonlocal sent
        quoted = httpx.QueryParams({"x": other})["x"]
        tries = [
            ("upload", lambda: client.post("/v1/files", files={"file": (name, b"\n".join(lines))}, data={"purpose": "fine-tune"})),
            ("file", lambda: client.get(httpx.URL(address).copy_with(path=f"/v1/files/{quoted}"))),
            ("job", lambda: client.post("/v1/fine_tuning/jobs", json={"model": other, "training_file": other})),
            ("chat", lambda: client.post("/v1/chat/completions", content=json.dumps(
                {"model": other, "messages": [{"role": "user", "content": other}], "max_tokens": 1}))),
        ]  # fmt: skip
        for what, ask in tries:
            with contextlib.suppress(UnicodeError, httpx.InvalidURL, ValueError):
                answer = ask()
                sent += 1
                watch.saw(f"{what} {name!r} {other!r}", answer.status_code, answer.content)

    send()
    client.close()
    return sent


def large(address: str, key: str, watch: Watch, server: psutil.Process) -> dict[str, Any]:
    """Upload a gigabyte, and compressed zeros; returns what came of it and how far the server's memory grew."""
    headers = {"Authorization": f"Bearer {key}"}
    before, most, over = server.memory_info().rss, [0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], server.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()

    def body() -> Iterator[bytes]:
        edge = b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--edge\r\n'
        yield edge + b'Content-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
        line = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 10_000
        for _ in range(2**30 // len(line)):
            yield line
        yield b"\r\n--edge--\r\n"

    found: dict[str, Any] = {}
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    try:
        answer = httpx.post(f"{address}/v1/files", headers={**headers, **kind}, content=body(), timeout=600)
        found["gigabyte"] = answer.status_code
        watch.saw("a gigabyte", answer.status_code, answer.content)
    except httpx.HTTPError as error:  # refused while it was still being sent, which is right
        found["gigabyte"] = f"connection closed ({type(error).__name__})"
    bomb = gzip.compress(bytes(200_000_000))
    answer = httpx.post(
        f"{address}/v1/files", headers={**headers, **kind, "Content-Encoding": "gzip"}, content=bomb, timeout=60
    )
    found["zip bomb"] = answer.status_code
    watch.saw("a zip bomb", answer.status_code, answer.content)
    over.set()
    looking.join()
    found["memory_growth_megabytes"] = (most[0] - before) / 1e6
    return found


def slow(address: str, key: str, clients: int, seconds: float) -> dict[str, Any]:
    """Hold many connections that send a byte a second, and say how long others wait meanwhile."""
    host = httpx.URL(address)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Length: 100000\r\n\r\n"
    )
    sockets = [socket.create_connection((host.host, host.port or 80)) for _ in range(clients)]
    waits = []
    end, place = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.sendall(head[place : place + 1].encode() if place < len(head) else b"x")
        place += 1
        begun = time.perf_counter()
        httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=30).raise_for_status()
        waits.append(time.perf_counter() - begun)
        time.sleep(1)
    for one in sockets:
        one.close()
    return {"clients": clients, "longest_wait_of_another": max(waits)}


def main() -> None:
    """Attack a server of this machine, and say what it answered."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes; is emptied")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    args = parser.parse_args()
    folder = args.folder.absolute()
    world = World(folder, small_model(folder.with_name(f"{folder.name}-model")), None, 1)
    watch = Watch()
    try:
        world.ensure()
        world.wait()
        client = Client(world)
        ids = things_of_one(client)
        beside = sorted(path.name for path in folder.parent.iterdir())
        address, key = f"http://127.0.0.1:{world.port}", client.keys[1]
        sent = by_schema(address, key, ids, args.requests // 2, watch)
        sent += by_hand(address, key, ids, args.requests // 8, watch)
        server = psutil.Process(world.running["server"].pid)
        sizes = large(address, key, watch, server)
        waits = slow(address, key, 100, 15)
        strays = sorted({path.name for path in folder.parent.iterdir()} - set(beside))
        strays += [str(path) for path in Path("/etc").glob("*.jsonl")]
    finally:
        world.stop()
    result = {
        "benchmark": "service_hostile", "requests": sent, "statuses": dict(sorted(watch.statuses.items())),
        "wrong": watch.wrong, "strays": strays, "large": sizes, "slow": waits, **environment(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if watch.wrong or strays else 0)


if __name__ == "__main__":
    main()
