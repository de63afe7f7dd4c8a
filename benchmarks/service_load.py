"""Many clients at once: how long the service's answers take while 200 of them poll, upload and chat, and whom it serves first.

A server and a worker on a small random model; the jobs table holds 10,000 jobs that are over. Each client does one thing after
another for as long as asked: half of them poll jobs, events, lists; a quarter upload and delete files; a quarter chat. Meanwhile
organisation `one` has 40 jobs waiting, and then `two` makes four: whether these wait for all of one's is said as
the number of one's jobs that end before two's last.

Examples:
    python benchmarks/service_load.py --folder load --clients 200 --seconds 60
    python benchmarks/service_load.py --folder load --database --json load.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import psutil
from postgres import Postgres
from service_world import OVER, Client, World, small_model
from sqlalchemy import create_engine, insert

from titer.jobs.provenance import environment
from titer.service.identifiers import new_id
from titer.service.tables import Job

ROWS = "".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": f"it is {i}"}]}
    )
    + "\n"
    for i in range(20)
).encode()
Times = dict[str, list[tuple[int, float]]]


async def send(client: httpx.AsyncClient, times: Times, kind: str, method: str, path: str, **more: Any) -> Any:
    """Send a request, and keep its status and how long it took; returns what is in its answer."""
    begun = time.perf_counter()
    try:
        answer = await client.request(method, path, **more)
        status, found = answer.status_code, answer
    except httpx.HTTPError as error:
        status, found = 599, None
        print(f"{kind}: {type(error).__name__} {error}", file=sys.stderr)
    times[kind].append((status, time.perf_counter() - begun))
    return found.json() if found is not None and found.status_code < 400 else None


async def poll(client: httpx.AsyncClient, times: Times, draw: random.Random, jobs: list[str]) -> None:
    """Look at a job, its events, or a list."""
    name = draw.choice(jobs)
    kind, path = draw.choice(
        (
            ("job", f"/v1/fine_tuning/jobs/{name}"),
            ("events", f"/v1/fine_tuning/jobs/{name}/events"),
            ("jobs", "/v1/fine_tuning/jobs?limit=20"),
            ("models", "/v1/models"),
            ("files", "/v1/files?limit=20"),
        )
    )
    await send(client, times, kind, "GET", path)


async def upload(client: httpx.AsyncClient, times: Times, draw: random.Random, jobs: list[str]) -> None:
    """Upload a file, read it and delete it."""
    file = await send(
        client, times, "upload", "POST", "/v1/files",
        files={"file": ("rows.jsonl", ROWS)}, data={"purpose": "fine-tune"},
    )  # fmt: skip
    if file is not None:
        await send(client, times, "content", "GET", f"/v1/files/{file['id']}/content")
        await send(client, times, "delete", "DELETE", f"/v1/files/{file['id']}")


async def chat(client: httpx.AsyncClient, times: Times, draw: random.Random, jobs: list[str]) -> None:
    """Ask the model something."""
    asked = {"model": "tiny", "messages": [{"role": "user", "content": f"what is {draw.random()}?"}], "max_tokens": 8}
    await send(client, times, "chat", "POST", "/v1/chat/completions", json=asked)


async def load(address: str, keys: list[str], clients: int, seconds: float, jobs: list[list[str]]) -> Times:
    """Let so many clients act for so long."""
    times: Times = defaultdict(list)
    end = time.monotonic() + seconds
    acts = (poll, poll, upload, chat)

    async def one(number: int) -> None:
        draw = random.Random(number)
        headers = {"Authorization": f"Bearer {keys[number % 2]}"}
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120) as client:
            await asyncio.sleep(draw.uniform(0, 2))
            while time.monotonic() < end:
                await acts[number // 2 % len(acts)](client, times, draw, jobs[number % 2])
                # A client that polls as the official one's examples do, ten times faster.
                await asyncio.sleep(draw.uniform(0.2, 1.8))

    await asyncio.gather(*(one(number) for number in range(clients)))
    return times


def old_jobs(url: str, count: int) -> list[list[str]]:
    """Put jobs that are over into the table, of two organisations; returns their ids."""
    from sqlalchemy import text

    engine = create_engine(url)
    with engine.begin() as connection:
        orgs = [row[0] for row in connection.execute(text("SELECT id FROM organisations ORDER BY name"))]
        made: list[list[str]] = [[], []]
        rows = []
        for number in range(count):
            name = new_id("job")
            made[number % 2].append(name)
            rows.append(
                {
                    "id": name, "org_id": orgs[number % 2], "model": "tiny", "file_id": new_id("file"), "status": "succeeded",
                    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}, "result_files": [],
                    "policy": {}, "finished_at": 1_700_000_000 + number, "created_at": 1_700_000_000 + number,
                }
            )  # fmt: skip
        for start in range(0, count, 500):
            connection.execute(insert(Job), rows[start : start + 500])
    engine.dispose()
    return made


def percentile(values: list[float], share: float) -> float:
    """Return a percentile of times."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Run the load and say how it was borne."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes; is emptied")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--old", type=int, default=10_000, help="jobs in the table that are over")
    parser.add_argument("--waiting", type=int, default=40, help="jobs of `one` that wait before those of `two`")
    parser.add_argument("--database", action="store_true", help="on PostgreSQL")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    args = parser.parse_args()
    folder = args.folder.absolute()
    postgres = Postgres(Path(f"/tmp/titer-load-{os.getpid()}")) if args.database else None
    world = World(
        folder, small_model(folder.with_name(f"{folder.name}-model")), postgres.new() if postgres else None, 1
    )
    try:
        world.ensure()
        world.wait()
        client = Client(world)
        url = world.database or f"sqlite:///{folder / 'data' / 'titer.db'}"
        jobs = old_jobs(url, args.old)
        process = psutil.Process(world.running["server"].pid)
        first = [client.submit(2 * number) for number in range(args.waiting)]
        second = [client.submit(2 * number + 1) for number in range(4)]
        most, over = [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                most[0] = max(most[0], process.memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        begun = time.monotonic()
        address = f"http://127.0.0.1:{world.port}"
        times = asyncio.run(load(address, client.keys, args.clients, args.seconds, jobs))
        seconds = time.monotonic() - begun
        while any(client.job(name, 1)["status"] not in OVER for name in second):
            time.sleep(1)
        before = sum(client.job(name, 0)["status"] in OVER for name in first)
        over.set()
        watching.join()
    finally:
        world.stop()
        if postgres:
            postgres.remove()
    every = [one for found in times.values() for one in found]
    result = {
        "benchmark": "service_load",
        "clients": args.clients, "seconds": seconds, "requests": len(every), "a_second": len(every) / seconds,
        "errors_5xx": sum(status >= 500 for status, _ in every), "refused_4xx": sum(400 <= status < 500 for status, _ in every),
        "memory_megabytes": most[0] / 1e6, "jobs_of_one_over_before_those_of_two": before, "waiting_of_one": args.waiting,
        "kinds": {
            kind: {
                "n": len(found),
                "median": statistics.median(seconds for _, seconds in found),
                "p95": percentile([seconds for _, seconds in found], 0.95),
                "most": max(seconds for _, seconds in found),
            }
            for kind, found in sorted(times.items())
        },
        **environment(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if not result["errors_5xx"] else 1)


if __name__ == "__main__":
    main()
