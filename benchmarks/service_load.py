"""Many clients at once: how long the service's answers take while 200 of them poll, upload and chat, and whom it serves first.

A server and a worker on a small random model; the jobs table holds 10,000 jobs that are over. Each client does one thing after
another for as long as asked: half of them poll jobs, events, lists; a quarter upload, read and delete files; a quarter chat. Every
tenth client is organisation `two`'s, the others are `one`'s, and times are said of each. Meanwhile `one` has 40 jobs waiting, and
then `two` makes four: whether these wait for all of one's is said as the number of one's jobs that end before two's last.

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
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from postgres import Postgres
from service_world import OVER, Client, World, small_model, watched
from sqlalchemy import create_engine, insert, text

from titer.jobs.provenance import environment
from titer.service.identifiers import new_id
from titer.service.policy import parse
from titer.service.tables import Job

ROWS = "".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": f"it is {i}"}]}
    )
    + "\n"
    for i in range(20)
).encode()
SHARE = 10
"""Each so-manieth client is the second organisation's."""
UNANSWERED = 599
"""Stands for the status of a request that got no answer."""


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        kind: What it was.
        org: Whose, 0 or 1.
        status: Its status.
        seconds: From its start to the end of its answer.
    """

    kind: str
    org: int
    status: int
    seconds: float


@dataclass
class Acting:
    """A client at work.

    Attributes:
        client: Its connection.
        org: Its organisation, 0 or 1.
        draw: Draws what it does.
        jobs: Jobs of its organisation.
        answers: Where it notes what came of its requests.
    """

    client: httpx.AsyncClient
    org: int
    draw: random.Random
    jobs: list[str]
    answers: list[Answer]

    async def send(self, kind: str, method: str, path: str, **more: Any) -> httpx.Response | None:
        """Send a request and note what came of it; returns its answer where it was served."""
        begun, found = time.perf_counter(), None
        try:
            found = await self.client.request(method, path, **more)
        except httpx.HTTPError as error:
            print(f"{kind}: {type(error).__name__} {error}", file=sys.stderr)
        status = UNANSWERED if found is None else found.status_code
        self.answers.append(Answer(kind, self.org, status, time.perf_counter() - begun))
        return found if status < 400 else None

    async def poll(self) -> None:
        """Look at a job, its events, or a list."""
        name = self.draw.choice(self.jobs)
        kind, path = self.draw.choice(
            (
                ("job", f"/v1/fine_tuning/jobs/{name}"),
                ("events", f"/v1/fine_tuning/jobs/{name}/events"),
                ("jobs", "/v1/fine_tuning/jobs?limit=20"),
                ("models", "/v1/models"),
                ("files", "/v1/files?limit=20"),
            )
        )
        await self.send(kind, "GET", path)

    async def upload(self) -> None:
        """Upload a file, read it and delete it."""
        form = {"files": {"file": ("rows.jsonl", ROWS)}, "data": {"purpose": "fine-tune"}}
        answer = await self.send("upload", "POST", "/v1/files", **form)
        if answer is not None:
            place = f"/v1/files/{answer.json()['id']}"
            await self.send("content", "GET", f"{place}/content")
            await self.send("delete", "DELETE", place)

    async def chat(self) -> None:
        """Ask the model something."""
        messages = [{"role": "user", "content": f"what is {self.draw.random()}?"}]
        asked = {"model": "tiny", "messages": messages, "max_tokens": 8}
        await self.send("chat", "POST", "/v1/chat/completions", json=asked)


async def load(address: str, keys: list[str], clients: int, seconds: float, jobs: list[list[str]]) -> list[Answer]:
    """Let so many clients act for so long."""
    answers: list[Answer] = []
    end = time.monotonic() + seconds
    acts = (Acting.poll, Acting.poll, Acting.upload, Acting.chat)

    async def one(number: int) -> None:
        draw, org = random.Random(number), int(number % SHARE == SHARE - 1)
        headers = {"Authorization": f"Bearer {keys[org]}"}
        # Without TLS nothing needs its certificates, which take each client a while to read.
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, verify=False) as client:
            acting = Acting(client, org, draw, jobs[org], answers)
            await asyncio.sleep(draw.uniform(0, 2))
            while time.monotonic() < end:
                # Those of two do all three things in turn.
                await acts[(number // SHARE if org else number) % len(acts)](acting)
                # A client that polls as the official one's examples do, ten times faster.
                await asyncio.sleep(draw.uniform(0.2, 1.8))

    await asyncio.gather(*(one(number) for number in range(clients)))
    return answers


def old_jobs(url: str, count: int) -> list[list[str]]:
    """Put jobs that are over into the table, of two organisations; returns their ids."""
    engine = create_engine(url)
    with engine.begin() as connection:
        orgs = [row[0] for row in connection.execute(text("SELECT id FROM organisations ORDER BY name"))]
        policy = connection.execute(text("SELECT text FROM policies ORDER BY number DESC LIMIT 1")).scalar_one()
        rules = parse(policy).as_dict()
        made: list[list[str]] = [[], []]
        rows = []
        for number in range(count):
            name = new_id("job")
            made[number % 2].append(name)
            rows.append(
                {
                    "id": name, "org_id": orgs[number % 2], "model": "tiny", "file_id": new_id("file"), "status": "succeeded",
                    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}, "result_files": [],
                    "policy": rules, "finished_at": 1_700_000_000 + number, "created_at": 1_700_000_000 + number,
                }
            )  # fmt: skip
        for start in range(0, count, 500):
            connection.execute(insert(Job), rows[start : start + 500])
    engine.dispose()
    return made


def times(answers: Sequence[Answer]) -> dict[str, float]:
    """Return how long answers took."""
    seconds = sorted(answer.seconds for answer in answers)
    return {
        "n": len(seconds),
        "median": statistics.median(seconds),
        "p95": seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
        "most": seconds[-1],
    }


def by_kind(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Return how long each kind of request took."""
    kinds = sorted({answer.kind for answer in answers})
    return {kind: times([answer for answer in answers if answer.kind == kind]) for kind in kinds}


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
    parser.add_argument(
        "--waiting", type=int, default=40, help="jobs of `one` that wait before those of `two`; 0: no jobs"
    )
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
        jobs = old_jobs(world.database or f"sqlite:///{folder / 'data' / 'titer.db'}", args.old)
        first = [client.submit(2 * number) for number in range(args.waiting)]
        second = [client.submit(2 * number + 1) for number in range(4 if args.waiting else 0)]
        with watched(psutil.Process(world.running["server"].pid)) as use:
            begun = time.monotonic()
            answers = asyncio.run(load(client.address, client.keys, args.clients, args.seconds, jobs))
            seconds = time.monotonic() - begun
        while any(client.job(name, 1)["status"] not in OVER for name in second):
            time.sleep(1)
        before = sum(client.job(name, 0)["status"] in OVER for name in first)
    finally:
        world.stop()
        if postgres:
            postgres.remove()
    statuses = Counter(answer.status for answer in answers)
    result = {
        "benchmark": "service_load", "database": "postgresql" if args.database else "sqlite", "old": args.old,
        "clients": args.clients, "seconds": seconds, "requests": len(answers), "a_second": len(answers) / seconds,
        "statuses": dict(sorted(statuses.items())),
        "server_seconds_a_request": use.seconds / len(answers), "server_busy": use.seconds / seconds,
        "memory_megabytes": {name: getattr(use, name) / 1e6 for name in ("before", "most", "after")},
        "jobs_of_one_over_before_those_of_two": before, "waiting_of_one": args.waiting,
        "all": times(answers), "kinds": by_kind(answers),
        "organisations": {
            name: by_kind([answer for answer in answers if answer.org == org]) for org, name in enumerate(("one", "two"))
        },
        **environment(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if max(statuses) >= 500 else 0)


if __name__ == "__main__":
    main()
