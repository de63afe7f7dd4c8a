"""How long work will take here.

    seconds = Σ (how much of each kind of computation) · (seconds that one of it takes)

How much there is follows from the data and the settings (`titer.jobs.work`). What one takes is measured with the model
itself, once for each machine and architecture, and kept in titer's cache (`titer.jobs.speed`). Every piece of work that
ends adds to that file what it took, and an estimate rests on such records of the same kind before it rests on the
measurement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from titer.jobs.speed import Speed
from titer.jobs.work import Cost, Work
from titer.progress import duration


@dataclass(frozen=True)
class Estimate:
    """How long work will take.

    Attributes:
        seconds: Most likely.
        low: By the more hopeful of records and measured speed.
        high: By the other.
        records: How many pieces of earlier work it rests on.
    """

    seconds: float = 0.0
    low: float = 0.0
    high: float = 0.0
    records: int = 0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.seconds + other.seconds, self.low + other.low, self.high + other.high, self.records + other.records
        )

    def __str__(self) -> str:
        low, high = duration(self.low), duration(self.high)
        if self.high <= AGREE * self.low or low == high:
            return duration(self.seconds)
        unit = high.rpartition(" ")[2]
        return f"{low.removesuffix(f' {unit}')} to {high}"


AGREE = 1.25
"""Estimates that are no further apart are one."""

LIKE = 5
"""Records that an estimate rests on: of those of its kind the ones nearest in size, the latest first."""

KEPT = 200
"""Records that are kept of a model."""


def estimate(work: Work, speed: Speed | None = None) -> Estimate:
    """Return how long work will take here; measures the machine's speed when nothing is known of it yet."""
    if work.cost == Cost():
        return Estimate()
    speed = speed or Speed.of(work.model)
    by_speed = speed.seconds(work)
    alike = []
    for record in reversed(speed.records):
        if (record["kind"], record["bf16"]) == (work.kind, work.bf16):
            then = speed.seconds(dataclasses.replace(work, cost=Cost(**record["cost"])))
            alike.append((abs(math.log(then / by_speed)), record["seconds"] / then * by_speed))
    nearest = sorted(alike, key=lambda pair: round(pair[0], 1))[:LIKE]
    if not nearest:
        return Estimate(by_speed, by_speed, by_speed)
    by_records = statistics.median(seconds for _, seconds in nearest)
    return Estimate(by_records, min(by_speed, by_records), max(by_speed, by_records), len(nearest))


def record(work: Work, seconds: float) -> None:
    """Note how long work took, for estimates to come."""
    if work.cost == Cost():
        return
    speed = Speed.of(work.model)
    row = {"kind": work.kind, "bf16": work.bf16, "seconds": round(seconds, 3), "date": f"{datetime.date.today()}"}
    amounts = {name: amount for name, amount in dataclasses.asdict(work.cost).items() if amount}
    speed.records = [*speed.records, {**row, "cost": amounts}][-KEPT:]
    speed.keep()


@contextlib.contextmanager
def recorded(work: Work, whole: bool = True) -> Iterator[None]:
    """Note how long the block takes when it comes to its end, unless it is not the `whole` work that is done in it."""
    start = time.perf_counter()
    yield
    if whole:
        record(work, time.perf_counter() - start)


def each(works: Sequence[Work]) -> list[Estimate]:
    """Return an estimate of each of several pieces of work."""
    speeds = {model: Speed.of(model) for model in dict.fromkeys(work.model for work in works)}
    return [estimate(work, speeds[work.model]) for work in works]


def in_words(estimates: Sequence[Estimate]) -> str:
    """Return how long work in several parts will take, and what that rests on."""
    total = sum(estimates, Estimate())
    parts = [one for one in estimates if one.seconds]
    known = sum(one.records > 0 for one in parts)
    if known == len(parts):
        basis = "by earlier work of the same kind"
    elif not known:
        basis = "by this machine's measured speed"
    else:
        basis = (
            f"{known} of {len(parts)} parts by earlier work of their kind, the others by this machine's measured speed"
        )
    return f"about {total} on this machine, {basis}"
