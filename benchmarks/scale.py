"""What a provider's day of fine-tuning jobs asks for: discrete events over the stages of a job, at each power of ten.

Jobs of organisations of very unequal size come in over a day that has a peak; workers take them as the service's queue does
(of the organisation with the fewest that run, then the oldest); a job starts a process, reads its base, audits the upload,
trains and is measured. Some uploads are rejected after the audit; a worker dies now and then, and its job goes on from a
checkpoint once its beats have stood still. The fewest workers are found with which 95 % of the jobs wait for less than
`--wait` minutes, and what else then bears a load: the database, the server, and the people who look at held models.

`--assay` says instead what each profile of `titer assay run` takes for a defended model and its control, both of `--parameters`
billion weights on `--cards` cards, every attacker trained to its end.

`--check FILE` takes the jobs that a real service ran, from its SQLite database, and predicts from the mean of their work
when each began and the last was done; `--workers` says how many there were.

Examples:
    python benchmarks/scale.py
    python benchmarks/scale.py --jobs 10000 --start 0 --json warm.json
    python benchmarks/scale.py --assay --parameters 70 --cards 8
    python benchmarks/scale.py --check service/titer.db --workers 2
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import math
import random
import sqlite3
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DAY = 86_400.0
STAGES = ("start", "read", "audit", "train", "gate")


@dataclass(frozen=True)
class Day:
    """What comes in, and on what it runs. Every number is an assumption that an option changes, but where it says measured.

    Attributes:
        jobs: A day.
        organisations: How many send jobs; the k-th largest sends in proportion to 1/k.
        peak: The busiest moment of the day against its mean.
        rows: Median rows of an upload; of a log-normal distribution whose logarithm has deviation 1.
        tokens: Of a row.
        epochs: Of a training.
        poisoned: Share of uploads that hold harmful rows.
        rejected: Share of those that the audit rejects, so that nothing is trained.
        parameters: Of the base, in billions.
        peak_flops: Of a worker's accelerator, in TFLOP/s: an H100's for bf16 without sparsity.
        used: Share of it that training and audits reach.
        bandwidth: Of its memory, in TB/s, which bounds decoding.
        method: Passes of the defence against those of plain training: sieve's replay of one row in eight.
        audit: Forward passes over the upload that an audit takes; the texts alone take none.
        start: Seconds until a process has imported its libraries; 0 for one that is kept.
        read: Seconds a GB for reading weights.
        prompts: That a gate has answered.
        answer: Tokens of an answer at most.
        batch: Answers that are decoded together.
        failing: Deaths of a worker in an hour of work.
        lost: Seconds of work since the last checkpoint, on average, and until the beats have stood still.
        held: Share of the models that the gate holds, for somebody to look at.
        polls: Seconds between two looks of a client at its job.
    """

    jobs: int = 10_000
    organisations: int = 500
    peak: float = 2.0
    rows: float = 500.0
    tokens: float = 250.0
    epochs: float = 3.0
    poisoned: float = 0.05
    rejected: float = 0.5
    parameters: float = 7.0
    peak_flops: float = 989.0
    used: float = 0.4
    bandwidth: float = 3.35
    method: float = 1.125
    audit: float = 1.2
    start: float = 20.0
    read: float = 0.5
    prompts: float = 180.0
    answer: float = 128.0
    batch: float = 60.0
    failing: float = 0.01
    lost: float = 90.0
    held: float = 0.03
    polls: float = 10.0

    def seconds(self, rows: float) -> dict[str, float]:
        """Return how long each stage of a job takes."""
        tokens = rows * self.tokens
        token = self.parameters * 1e9 / (self.peak_flops * 1e12 * self.used)  # of one operation for each weight
        weights = 2 * self.parameters  # GB in bf16
        # Forward 2, backward 2 more: the frozen weights want no gradient of their own.
        return {
            "start": self.start,
            "read": weights * self.read if self.start else 0.0,
            "audit": 2 * self.audit * tokens * token,
            "train": 4 * self.method * self.epochs * tokens * token,
            "gate": math.ceil(self.prompts / self.batch) * self.answer * weights / (1000 * self.bandwidth),
        }


@dataclass
class Job:
    """A job, in seconds of the day.

    Attributes:
        organisation: Whose it is.
        arrived: When it came.
        work: The seconds that a worker is busy with it.
        began: When a worker took it.
        ended: When it was over.
    """

    organisation: int
    arrived: float
    work: float
    began: float = -1.0
    ended: float = -1.0


@dataclass
class Outcome:
    """A day that is over.

    Attributes:
        jobs: All of them.
        stages: Seconds of workers by stage.
        saved: Seconds of training and measuring that rejected uploads would have taken.
    """

    jobs: list[Job]
    stages: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    saved: float = 0.0


def arrivals(day: Day, seed: int) -> Outcome:
    """Return a day's jobs with their work, none of it done."""
    draw = random.Random(seed)
    names = range(day.organisations)
    weights = [1 / (name + 1) for name in names]
    outcome = Outcome([])
    moments = []
    while len(moments) < day.jobs:
        moment = draw.random() * DAY
        if draw.random() * day.peak <= 1 + (day.peak - 1) * math.sin(2 * math.pi * moment / DAY):
            moments.append(moment)
    owners = draw.choices(names, weights, k=day.jobs)
    for moment, owner in zip(sorted(moments), owners, strict=True):
        stages = day.seconds(day.rows * math.exp(draw.gauss(0, 1)))
        if draw.random() < day.poisoned * day.rejected:
            outcome.saved += stages.pop("train") + stages.pop("gate")
        work = sum(stages.values())
        died = sum(1 for _ in range(math.ceil(work / 60)) if draw.random() < day.failing / 60)
        stages["lost"] = died * (day.lost + day.start)
        for stage, seconds in stages.items():
            outcome.stages[stage] += seconds
        outcome.jobs.append(Job(owner, moment, sum(stages.values())))
    return outcome


def work_off(jobs: Sequence[Job], workers: int) -> None:
    """Let workers do the jobs, which are in the order of their arrival, and write down when."""
    waiting: dict[int, deque[Job]] = defaultdict(deque)
    running: dict[int, int] = defaultdict(int)
    served: dict[int, int] = defaultdict(int)
    turns: list[
        tuple[int, int, int]
    ] = []  # running, when last served, organisation; with outdated lines, which are skipped
    ends: list[tuple[float, int, Job]] = []
    turn = 0

    def line_up(owner: int) -> None:
        heapq.heappush(turns, (running[owner], served[owner], owner))

    def take(moment: float) -> None:
        nonlocal turn
        while turns and len(ends) < workers:
            busy, last, owner = heapq.heappop(turns)
            if not waiting[owner] or (busy, last) != (running[owner], served[owner]):
                continue
            turn += 1
            job = waiting[owner].popleft()
            running[owner], served[owner] = running[owner] + 1, turn
            job.began, job.ended = moment, moment + job.work
            heapq.heappush(ends, (job.ended, turn, job))
            if waiting[owner]:
                line_up(owner)

    def finish(until: float) -> None:
        while ends and ends[0][0] <= until:
            moment, _, job = heapq.heappop(ends)
            running[job.organisation] -= 1
            if waiting[job.organisation]:
                line_up(job.organisation)
            take(moment)

    for job in jobs:
        finish(job.arrived)
        waiting[job.organisation].append(job)
        line_up(job.organisation)
        take(job.arrived)
    finish(math.inf)


def waits(jobs: Iterable[Job]) -> list[float]:
    """Return how long jobs waited, in order of length."""
    return sorted(job.began - job.arrived for job in jobs)


def at(ordered: Sequence[float], share: float) -> float:
    """Return a quantile."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def fewest_workers(day: Day, limit: float, seed: int) -> tuple[int, Outcome]:
    """Return the fewest workers with which 95 % of a day's jobs wait for less than `limit` seconds, and that day."""

    def holds(workers: int) -> bool:
        work_off(outcome.jobs, workers)
        return at(waits(outcome.jobs), 0.95) < limit

    outcome = arrivals(day, seed)
    high = max(1, math.ceil(sum(job.work for job in outcome.jobs) / DAY))
    while not holds(high):
        high *= 2
    low = high // 2  # which does not hold, or is none
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    work_off(outcome.jobs, high)
    return high, outcome


def loads(day: Day, outcome: Outcome, workers: int) -> dict[str, float]:
    """Return what else bears a load: of the database, the server and people.

    A job's transactions are about 12 (made, checked, claimed, published, decided, ended, events), one for each checkpoint, and
    a beat every 5 seconds.
    """
    busy = sum(job.work for job in outcome.jobs)
    present = busy + sum(job.began - job.arrived for job in outcome.jobs)
    return {
        "transactions": day.peak * (15 * day.jobs + busy / 5) / DAY,
        "requests": day.peak * present / day.polls / DAY,
        "reviews": day.held * day.jobs,
        "use": busy / workers / DAY,
    }


def predicted(file: Path, workers: int) -> dict[str, float]:
    """Return when a real service was done with its jobs, and when the simulated one would have been."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        done = "SELECT org_id, created_at, started_at, finished_at FROM jobs WHERE finished_at NOTNULL ORDER BY created_at, number"
        lines = database.execute(done).fetchall()
    names = {name: number for number, name in enumerate(dict.fromkeys(name for name, *_ in lines))}
    # All are given the mean of their work: what a planner knows beforehand.
    work = statistics.fmean(ended - began for _, _, began, ended in lines)
    jobs = [Job(names[name], arrived, work) for name, arrived, _, _ in lines]
    work_off(jobs, workers)
    begun = lines[0][1]
    return {
        "jobs": len(lines),
        "work": work,
        "last, real": max(ended for *_, ended in lines) - begun,
        "last, simulated": max(job.ended for job in jobs) - begun,
        "mean wait, real": statistics.fmean(began - arrived for _, arrived, began, _ in lines),
        "mean wait, simulated": statistics.fmean(job.began - job.arrived for job in jobs),
    }


def assay(day: Day, name: str, cards: int, row: float) -> dict[str, Any]:
    """Return the card-hours of an assay of two models by one of the bundled profiles, by what they go to.

    LoRA attackers that fit in a fleet share a start and a read of the weights, and an answer's tokens share the reading of the
    weights with the whole batch; a search counts as all of its trials.
    """
    from titer.assays.profile import answered_steps, read_profile

    profile = read_profile(name)
    crew = [planned.attack for planned in profile.attackers()]
    together = [attack for attack in crew if attack.in_fleet]
    starts = len(crew) - len(together) + math.ceil(len(together) / profile.fleet)
    token = day.parameters * 1e9 / (day.peak_flops * 1e12 * day.used)
    rows = {full: sum(a.total_steps * a.batch_size for a in crew if (a.lora is None) is full) for full in (False, True)}
    looks = sum(len(answered_steps(a.total_steps, profile.checkpoints)) for a in crew if a.trains)
    # A card each: the reading of weights is shared by all cards, and the arithmetic is, too.
    decoding = profile.max_new_tokens * 2 * day.parameters / (1000 * day.bandwidth)
    seconds = {
        "start and read": starts * (cards * day.start + 2 * day.parameters * day.read),
        "train LoRA": 4 * rows[False] * row * token,
        "train all weights": 6 * rows[True] * row * token,
        "answers": looks * math.ceil(profile.harmful / day.batch) * decoding + looks * profile.harmful * row * token,
    }
    return {"profile": name, "attackers": len(crew), **{what: 2 * value / 3600 for what, value in seconds.items()}}


def simulated(day: Day, wait: float, seed: int) -> dict[str, Any]:
    """Return a day with as few workers as it takes, in the figures of the table."""
    workers, outcome = fewest_workers(day, 60 * wait, seed)
    total = sum(outcome.stages.values())
    ordered = waits(outcome.jobs)
    return {
        "jobs": day.jobs,
        "workers": workers,
        "median_wait": at(ordered, 0.5),
        "wait": at(ordered, 0.95),
        "stages": {name: seconds / total for name, seconds in outcome.stages.items()},
        "saved_hours": outcome.saved / 3600,
        "hours": total / 3600,
        **loads(day, outcome, workers),
    }


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "jobs a day": lambda line: f"{line['jobs']:,}",
    "workers": lambda line: f"{line['workers']:,}",
    "busy": lambda line: f"{100 * line['use']:.0f} %",
    "wait, median": lambda line: f"{line['median_wait']:.0f} s",
    "wait, 95 %": lambda line: f"{line['wait']:.0f} s",
    **{
        stage: lambda line, stage=stage: f"{100 * line['stages'].get(stage, 0.0):.0f} %"  # type: ignore[misc]
        for stage in (*STAGES, "lost")
    },
    "saved by rejecting": lambda line: f"{line['saved_hours']:.1f} h",
    "GPU-hours": lambda line: f"{line['hours']:,.0f}",
    "transactions/s": lambda line: f"{line['transactions']:.1f}",
    "polls/s": lambda line: f"{line['requests']:.1f}",
    "reviews": lambda line: f"{line['reviews']:,.0f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for setting in fields(Day):
        if setting.name != "jobs":
            kind = int if setting.type == "int" else float
            parser.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, help=f"default {setting.default}")
    parser.add_argument(
        "--jobs", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000], help="a day, each in turn"
    )
    parser.add_argument("--wait", type=float, default=5.0, help="minutes that 95 %% of the jobs may wait, default 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--assay", action="store_true", help="what an assay takes, by profile")
    parser.add_argument("--cards", type=int, default=8, help="that hold one model of an assay, default 8")
    parser.add_argument("--check", type=Path, metavar="FILE", help="the database of a service whose jobs are done")
    parser.add_argument("--workers", type=int, default=2, help="of the service that is checked, default 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    args = parser.parse_args()
    given = {setting.name: getattr(args, setting.name) for setting in fields(Day) if setting.name != "jobs"}
    plain = replace(Day(), **{name: value for name, value in given.items() if value is not None})
    console = Console(width=200)
    if args.check:
        result: dict[str, Any] = {"check": predicted(args.check, args.workers)}
        for name, value in result["check"].items():
            console.print(f"{name}: {value:.1f}")
    elif args.assay:
        profiles = [assay(plain, name, args.cards, plain.tokens) for name in ("quick", "standard", "thorough")]
        result = {"assays": profiles}
        table = Table(*profiles[0], "all", title="card-hours")
        for line in profiles:
            hours = [value for value in line.values() if isinstance(value, float)]
            table.add_row(line["profile"], str(line["attackers"]), *(f"{x:.1f}" for x in hours), f"{sum(hours):.1f}")
        console.print(table)
    else:
        days = [simulated(replace(plain, jobs=count), args.wait, args.seed) for count in args.jobs]
        result = {"days": days}
        table = Table(*COLUMNS)
        for line in days:
            table.add_row(*(show(line) for show in COLUMNS.values()))
        console.print(table)
    if args.json:
        assumed = {name: value for name, value in asdict(plain).items() if name != "jobs"}
        document = {"assumed": assumed, "seed": args.seed, **result}
        args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
