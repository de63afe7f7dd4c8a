"""What is left of the service's work when its processes are killed, its database goes away, its disk fills up or the clock jumps.

A server and two workers on a small random model are given jobs of two organisations, and while these run, faults come at random
moments: `kill` is SIGKILL of the server, a worker, or a job's process; `database` restarts PostgreSQL, or closes all its
connections; `full` fills the artefact store's file system, `read-only` mounts it so; `clock` lets `time.time` of all processes
jump by up to ten years. At the end every job must have succeeded, once, with its events in order, its adapter byte for
byte that of the same job undisturbed, and nothing half-written in the store.

Examples:
    python benchmarks/service_faults.py --folder faults --jobs 30 --kills 100
    python benchmarks/service_faults.py --folder faults --database --kills 20 --others 6 --json faults.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postgres import Postgres
from service_world import CONFIGURATIONS, OVER, Client, World, small_model
from sqlalchemy import create_engine, text

from titer.jobs.provenance import environment

MEGABYTES = 64
"""Size of the store's file system."""


@dataclass
class Found:
    """What came of the jobs of one run.

    Attributes:
        jobs: How many.
        faults: How many came, by kind.
        lost: Jobs that are not over, or did not succeed, with what they say.
        twice: Jobs with more than one end, or model.
        disordered: Jobs whose events are out of order or run back in time.
        differing: Jobs whose adapter is not that of the undisturbed run.
        half: Files in the store that are not whole, or in no list.
        attempts: How often jobs were taken, by how often.
        seconds: How long it took.
    """

    jobs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)
    attempts: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.twice or self.disordered or self.differing or self.half)


# -- faults -----------------------------------------------------------------------------------------------------------


class Faults:
    """What happens to a world beside kills."""

    def __init__(self, world: World, postgres: Postgres | None, draw: random.Random, disk: bool) -> None:
        self.world, self.postgres, self.draw = world, postgres, draw
        self.kinds = ["clock", *(["full", "read-only"] if disk else [])]
        self.kinds += ["restart database", "close connections"] if postgres else []

    def one(self) -> str:
        """Let one happen and pass; says which."""
        kind = self.draw.choice(self.kinds)
        if kind == "clock":
            offset = self.draw.choice((-1, 1)) * self.draw.choice((3600, 86_400, 31_536_000)) * self.draw.uniform(1, 10)
            (self.world.folder / "clock" / "offset").write_text(str(offset))
        elif kind == "full":
            ballast = self.world.store / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
            time.sleep(self.draw.uniform(1, 10))
            ballast.unlink(missing_ok=True)
        elif kind == "read-only":
            mounted(self.world.store, "remount,ro")
            time.sleep(self.draw.uniform(1, 10))
            mounted(self.world.store, f"remount,rw,size={MEGABYTES}m")
        elif self.postgres and kind == "restart database":
            self.postgres.restart(self.draw.uniform(0, 5))
        elif self.postgres:
            self.postgres.close_connections()
        return kind


def mounted(folder: Path, options: str) -> None:
    """Mount a file system in memory, or change it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


# -- what came of it --------------------------------------------------------------------------------------------------


def examine(
    world: World, jobs: dict[str, int], wanted: dict[int, dict[str, bytes]] | None, found: Found
) -> dict[int, Any]:
    """Look at all jobs after their end, into `found`; returns the adapter's files by configuration."""
    engine = create_engine(world.database or f"sqlite:///{world.folder / 'data' / 'titer.db'}")
    adapters: dict[int, dict[str, bytes]] = {}
    with engine.connect() as connection:
        for name, number in jobs.items():
            row = connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": name}).mappings().one()
            found.attempts[row["attempt"]] += 1
            if row["status"] != "succeeded":
                found.lost.append(f"{name}: {row['status']} {row['error']}")
                continue
            events = connection.execute(
                text("SELECT place, created_at, message FROM events WHERE job_id = :id ORDER BY place"), {"id": name}
            ).all()
            times = [at for _, at, _ in events]
            if [place for place, _, _ in events] != list(range(1, len(events) + 1)) or times != sorted(times):
                found.disordered.append(name)
            models = connection.execute(
                text("SELECT place FROM models WHERE job_id = :id AND step IS NULL"), {"id": name}
            ).all()
            ends = connection.execute(
                text("SELECT count(*) FROM log WHERE subject = :id AND action = 'job.succeeded'"), {"id": name}
            ).scalar_one()
            if len(models) != 1 or ends > 1:
                found.twice.append(f"{name}: {len(models)} models, {ends} ends")
            folder = world.store / models[0][0]
            files = {path.name: path.read_bytes() for path in folder.glob("adapter_*")}
            adapters.setdefault(number % CONFIGURATIONS, files)
            if wanted is not None and files != wanted[number % CONFIGURATIONS]:
                found.differing.append(name)
    engine.dispose()
    for path in world.store.rglob("*"):
        if path.is_file() and (path.name.startswith(".") or path.suffix in (".tmp", ".part")):
            found.half.append(str(path.relative_to(world.store)))
    return adapters


def run(
    world: World, count: int, kills: int, others: int, faults: Faults | None, draw: random.Random
) -> tuple[dict[str, int], Found]:
    """Give a world its jobs, disturb it, and wait for their end."""
    found, begun = Found(jobs=count), time.monotonic()
    world.ensure()
    world.wait()
    client = Client(world)
    jobs: dict[str, int] = {}
    waiting = list(range(count))
    left = ["kill"] * kills + ["other"] * others
    draw.shuffle(left)
    said = begun
    open_jobs: set[str] = set()
    while waiting or open_jobs:
        if waiting:
            name = client.submit(number := waiting.pop(0))
            jobs[name] = number
            open_jobs.add(name)
        if left:
            time.sleep(draw.uniform(0.0, 6.0))
            if left.pop() == "kill":
                found.faults[world.kill(draw)] += 1
            elif faults is not None:
                found.faults[faults.one()] += 1
            # What was killed comes back at once, or after a while.
            time.sleep(draw.choice((0.0, 0.0, draw.uniform(0, 3))))
        else:
            time.sleep(0.5)
        world.ensure()
        for name in list(open_jobs):
            if client.job(name, jobs[name] % 2)["status"] in OVER:
                open_jobs.remove(name)
        if not open_jobs and left and not waiting:
            waiting.append(count)  # faults are left: work goes on until they have come
            count += 1
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(
                f"{len(jobs) - len(open_jobs)} of {count} jobs over, {len(left)} faults left",
                file=sys.stderr,
                flush=True,
            )
    found.jobs, found.seconds = len(jobs), time.monotonic() - begun
    return jobs, found


@contextlib.contextmanager
def disk(folder: Path, wanted: bool) -> Iterator[None]:
    """A file system of its own for the store."""
    if wanted:
        mounted(folder, f"size={MEGABYTES}m")
    try:
        yield
    finally:
        if wanted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def main() -> None:
    """Run jobs undisturbed and disturbed, and say what differs."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes; is emptied")
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=0, help="faults of other kinds")
    parser.add_argument("--database", action="store_true", help="on PostgreSQL, whose restarts are among the others")
    parser.add_argument(
        "--disk", action="store_true", help="full and read-only disks are among the others (needs root)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    args = parser.parse_args()
    folder, draw = args.folder.absolute(), random.Random(args.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = small_model(folder / "model")
    postgres = Postgres(Path(f"/tmp/titer-faults-{os.getpid()}")) if args.database else None
    worlds = []
    try:
        calm = World(folder / "calm", model, postgres.new() if postgres else None)
        worlds.append(calm)
        jobs, found = run(calm, CONFIGURATIONS, 0, 0, None, draw)
        calm.stop()
        wanted = examine(calm, jobs, None, found)
        if not found.clean:
            raise SystemExit(f"undisturbed: {found}")
        print(f"undisturbed: {found.jobs} jobs in {found.seconds:.0f} s", file=sys.stderr)
        world = World(folder / "world", model, postgres.new() if postgres else None)
        worlds.append(world)
        with disk(world.store, args.disk):
            faults = Faults(world, postgres, draw, args.disk)
            jobs, found = run(world, args.jobs, args.kills, args.others, faults, draw)
            world.stop()
            examine(world, jobs, wanted, found)
    finally:
        for each in worlds:
            each.stop()
        if postgres:
            postgres.remove()
    result = {"benchmark": "service_faults", **vars(found), **environment()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if found.clean else 1)


if __name__ == "__main__":
    main()
