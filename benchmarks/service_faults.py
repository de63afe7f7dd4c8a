"""What is left of the service's work when its processes are killed and what it rests on goes away.

A server and two workers on a small random model are given jobs of two organisations, and while these run, faults come at random
moments. `kill` is SIGKILL of the server, a worker, or a job's process. The others begin and end by themselves, while kills go on
(`service_outages.py`): `time.time` of all processes jumps by up to ten years; a process stands still (SIGSTOP) for up to a minute;
the store's disk fails (EIO) every other time; with `--disk` (root) the disk of the store or of the data folder is full, that of
the store read-only or not mounted; with `--database` PostgreSQL restarts as after a power failure, closes all connections,
refuses new ones, or stands still; with `--s3` the store is a bucket on moto's server that refuses connections, answers 500, or
breaks off in the middle of answers. At the end every job must have succeeded, once, with its events in order, its adapters byte
for byte those of the same job undisturbed, whatever a row names whole in the store, and no request refused as if it were wrong.
What lies in the store and belongs to no row is counted.

Examples:
    python benchmarks/service_faults.py --folder faults --jobs 30 --kills 100
    python benchmarks/service_faults.py --folder faults --database --kills 20 --others 6 --json faults.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
from postgres import Postgres
from service_outages import Bucket, Disk, Outages
from service_world import CONFIGURATIONS, OVER, Client, World, small_model
from sqlalchemy import select
from sqlalchemy.orm import Session

from titer.jobs.provenance import environment
from titer.service import chain
from titer.service.database import Database
from titer.service.health import PROBE
from titer.service.store import LIST, MARK, Store
from titer.service.tables import Event, File, Job, LogEntry, Model, Part, Removal

Adapters = dict[int, dict[int | None, dict[str, str]]]
"""Hashes of the files of adapters, by configuration and step; `None` for the last."""


@dataclass
class Found:
    """What came of the jobs of one run.

    Attributes:
        jobs: How many.
        faults: How many came, by kind.
        lost: Jobs that are not over, or did not succeed, with what they say.
        twice: Jobs with more than one end, or model.
        disordered: Jobs whose events are out of order, run back in time, or are not those of the steps, each once.
        differing: Jobs of whose adapters one is not that of the undisturbed run.
        half: What a row names and is not whole in the store; a log that is not whole; what was written where no disk was.
        refused: Answers of 400 to 499, to requests of which none is wrong.
        orphans: Files in the store that belong to no row, by kind; no fault, but bytes.
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
    refused: list[str] = field(default_factory=list)
    orphans: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.twice or self.disordered or self.differing or self.half or self.refused)


# -- what came of it --------------------------------------------------------------------------------------------------


def examine(world: World, jobs: dict[str, int], wanted: Adapters | None, found: Found) -> Adapters:
    """Look at all jobs after their end, into `found`; returns hashes of adapters, by configuration and step."""
    database = Database(world.database or f"sqlite:///{world.folder / 'data' / 'titer.db'}")
    store = Store(world.url)
    adapters: Adapters = {}
    with database.reading() as session:
        try:
            chain.verify(session)
        except chain.Broken as error:
            found.half.append(f"audit log: {error}")
    with database.reading() as session:
        for name, number in jobs.items():
            job = session.scalars(select(Job).where(Job.id == name)).one()
            found.attempts[job.attempt] += 1
            if job.status != "succeeded":
                found.lost.append(f"{name}: {job.status} {job.error}")
                continue
            events = session.scalars(select(Event).where(Event.job_id == name).order_by(Event.number)).all()
            if not in_order(events):
                found.disordered.append(name)
            models = session.scalars(select(Model).where(Model.job_id == name)).all()
            ended = (LogEntry.subject == name, LogEntry.action == "job.succeeded")
            ends = len(session.scalars(select(LogEntry.number).where(*ended)).all())
            steps = sorted(model.step for model in models if model.step is not None)
            finals = len(models) - len(steps)
            if (finals, ends) != (1, 1) or len(set(steps)) != len(steps):
                found.twice.append(f"{name}: {finals} models, {ends} ends, checkpoints of steps {steps}")
            left: dict[int | None, dict[str, str]] = {}
            for model in models:
                listed = json.loads(store.read(f"{model.place}/{LIST}")) if store.has_folder(model.place) else {}
                left[model.step] = {file: digest for file, digest in listed.items() if file.startswith("adapter_")}
            if left != (wanted or adapters).setdefault(number % CONFIGURATIONS, left):
                found.differing.append(f"{name}: adapters of steps {list(left)}")
        look_into(session, store, found)
    database.close()
    return adapters


def in_order(events: Sequence[Event]) -> bool:
    """Whether events, as they came to be, are numbered without a gap, do not run back in time, and tell of each step once."""
    times = [event.created_at for event in events]
    steps = [event.data["step"] for event in events if event.kind == "metrics" and event.data]
    numbered = [event.place for event in events] == list(range(1, len(events) + 1))
    return numbered and times == sorted(times) and steps == list(range(1, len(steps) + 1))


def look_into(session: Session, store: Store, found: Found) -> None:
    """Compare what rows name with what is in the store."""
    named = {MARK, PROBE}
    for row in [*session.scalars(select(File)), *session.scalars(select(Part))]:
        named.add(row.place)
        data = store.read(row.place) if store.exists(row.place) else b""
        if hashlib.sha256(data).hexdigest() != row.digest:
            found.half.append(f"{row.place}: {len(data)} of {row.bytes} bytes")
    jobs = session.scalars(select(Job)).all()
    places = [model.place for model in session.scalars(select(Model))]
    for folder in [*places, *(job.gate["place"] for job in jobs if job.gate)]:
        listed = json.loads(store.read(f"{folder}/{LIST}")) if store.has_folder(folder) else {"(its list)": ""}
        named |= {f"{folder}/{LIST}", *(f"{folder}/{name}" for name in listed)}
        for name, digest in listed.items():
            data = store.read(f"{folder}/{name}") if store.exists(f"{folder}/{name}") else b""
            if hashlib.sha256(data).hexdigest() != digest:
                found.half.append(f"{folder}/{name}")
    named |= {f"jobs/{job.id}/{name}" for job in jobs for name in ("audit.json", "rows.json", "sample_weights.jsonl")}
    going = tuple(session.scalars(select(Removal.place)))
    system, root = fsspec.core.url_to_fs(store.url)
    for path in system.find(root):
        key = path.removeprefix(root).lstrip("/")
        if key not in named and not key.startswith((*going, "gates/")):
            found.orphans[kind_of(key)] += 1
            print(f"of no row: {key}", file=sys.stderr)


def kind_of(key: str) -> str:
    """Return a key with the parts that differ from job to job left out."""
    if key.endswith((".tmp", ".part")):
        return f"{key.partition('/')[0]}: unfinished"
    return "/".join("*" if "-" in part else part for part in key.split("/")[:-1]) + "/…"


def run(
    world: World, count: int, draw: random.Random, left: list[str], outages: Outages | None = None, pace: float = 0.0
) -> tuple[dict[str, int], Found]:
    """Give a world its jobs, disturb it, and wait for their end.

    Args:
        world: The world.
        count: How many jobs.
        draw: Draws all that is by chance.
        left: The faults, in turn: `kill`, or one of the `outages`.
        outages: The others.
        pace: Most seconds from one to the next.

    Returns:
        The jobs with their numbers, and what came of them so far.
    """
    found, begun = Found(jobs=count), time.monotonic()
    world.ensure()
    world.wait()
    client = Client(world, patient=True)
    jobs: dict[str, int] = {}
    waiting = list(range(count))
    said = begun
    open_jobs: set[str] = set()
    while waiting or open_jobs:
        if waiting:
            name = client.submit(number := waiting.pop(0))
            jobs[name] = number
            open_jobs.add(name)
        if left:
            time.sleep(draw.uniform(0.0, pace))
            happened = world.kill(draw) if left[-1] == "kill" or outages is None else outages.one()
            if happened is not None:  # or everything is out of order already
                left.pop()
                found.faults[happened] += 1
                print(f"{time.monotonic() - begun:.0f} s: {happened}", file=sys.stderr, flush=True)
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
            over, faults = len(jobs) - len(open_jobs), len(left)
            print(f"{over} of {count} jobs over, {faults} faults left", file=sys.stderr, flush=True)
    if outages is not None:
        outages.end()
    found.jobs, found.refused, found.seconds = len(jobs), client.refused, time.monotonic() - begun
    return jobs, found


@dataclass
class Ground:
    """What the worlds of one call rest on.

    Attributes:
        folder: Where everything is.
        postgres: The database's server, unless it is SQLite.
        bucket: The store's server, unless it is a folder.
        disks: File systems of the disturbed world.
    """

    folder: Path
    postgres: Postgres | None = None
    bucket: Bucket | None = None
    disks: dict[str, Disk] = field(default_factory=dict)

    def world(self, name: str, model: Path) -> World:
        """Return a new world on it."""
        return World(
            self.folder / name,
            model,
            self.postgres.new() if self.postgres else None,
            store=f"s3://titer/{name}" if self.bucket else None,
            more=self.bucket.environment() if self.bucket else None,
        )

    def add_disks(self, world: World) -> None:
        """Give a world disks of its own."""
        for name in ("store", "data"):
            self.disks[name] = Disk(self.folder / "disks" / name, world.folder / name)

    def remove(self) -> None:
        """End it."""
        for disk in self.disks.values():
            disk.remove()
        for each in filter(None, (self.postgres, self.bucket)):
            each.remove()


def carry_out(ground: Ground, args: argparse.Namespace, worlds: list[World]) -> Found:
    """Run jobs undisturbed, and others disturbed, and say what differs."""
    draw, model = random.Random(args.seed), small_model(ground.folder / "model")
    if args.undisturbed is not None and args.undisturbed.exists():
        wanted = read(args.undisturbed)
    else:
        worlds.append(calm := ground.world("calm", model))
        jobs, found = run(calm, CONFIGURATIONS, draw, [])
        calm.stop()
        wanted = examine(calm, jobs, None, found)
        if not found.clean:
            raise SystemExit(f"undisturbed: {found}")
        print(f"undisturbed: {found.jobs} jobs in {found.seconds:.0f} s", file=sys.stderr)
        if args.undisturbed is not None:
            lines = [[number, step, files] for number, left in wanted.items() for step, files in left.items()]
            args.undisturbed.write_text(json.dumps(lines) + "\n")
    worlds.append(world := ground.world("world", model))
    if args.disk:
        ground.add_disks(world)
    outages = Outages(world, draw, args.longest, ground.postgres, ground.disks, ground.bucket)
    left = ["kill"] * args.kills + ["other"] * args.others
    draw.shuffle(left)
    jobs, found = run(world, args.jobs, draw, left, outages, args.pace)
    world.stop()
    examine(world, jobs, wanted, found)
    if "store" in ground.disks:
        ground.disks["store"].go()
        found.half += [f"beneath the store: {path}" for path in world.store.rglob("*") if path.is_file()]
    return found


def read(path: Path) -> Adapters:
    """Return what an earlier call wrote of an undisturbed run."""
    found: Adapters = {}
    for number, step, files in json.loads(path.read_text()):
        found.setdefault(number, {})[step] = files
    return found


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
    parser.add_argument("--pace", type=float, default=6.0, help="most seconds from one fault to the next")
    parser.add_argument("--longest", type=float, default=20.0, help="most seconds of one of these")
    parser.add_argument("--database", action="store_true", help="on PostgreSQL, whose faults are among the others")
    parser.add_argument("--disk", action="store_true", help="disks of their own, whose faults are among them (root)")
    parser.add_argument("--s3", action="store_true", help="a bucket for a store, whose faults are among them")
    told = "adapters of an undisturbed run in the same --folder: read, or written by this one"
    parser.add_argument("--undisturbed", type=Path, metavar="FILE", help=told)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    args = parser.parse_args()
    if args.disk and args.s3:
        parser.error("the store is either on a disk of its own or in a bucket")
    ground = Ground(args.folder.absolute())
    shutil.rmtree(ground.folder, ignore_errors=True)
    ground.folder.mkdir(parents=True)
    worlds: list[World] = []
    try:
        if args.database:
            ground.postgres = Postgres(Path(f"/tmp/titer-faults-{os.getpid()}"))
        if args.s3:
            ground.bucket = Bucket(ground.folder / "moto.log")
            os.environ |= ground.bucket.environment(direct=True)
        found = carry_out(ground, args, worlds)
    finally:
        for each in worlds:
            each.stop()
        ground.remove()
    result = {"benchmark": "service_faults", **vars(found), **environment()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if found.clean else 1)


if __name__ == "__main__":
    main()
