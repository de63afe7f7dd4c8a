"""The worker: takes jobs from the queue and has each done by a process of its own, which may crash without harm.

The worker itself imports no torch. It beats for its jobs, passes on what their owners wish, and gives them back when it is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from titer.service.context import Service
from titer.service.identifiers import new_id
from titer.service.queue import SECONDS, Claim, Lost, Queue, finish, held, let_go, say
from titer.service.running import AGAIN, LOST, OVER, REPORTED, STOPPED, Away, is_away, reaching, remove_work
from titer.service.tables import Event, Job
from titer.text import say as write
from titer.text import visible

T = TypeVar("T")
GRACE = 20.0
"""Seconds in which a process that is to stop may come to a checkpoint."""
TRIES = 3
"""How often a job's process may crash without having come further."""
IDLE, LONGEST = 0.5, 2.0
"""Seconds between looks at the queue: at first, and when nothing came for a while."""
REST = 15.0
"""Seconds in which a worker takes no job after one could not go on for want of its disk or store."""
TAIL = 500
"""Letters of a crashed process's log that are told of a job that failed by it."""


@dataclass
class Child:
    """A job's process.

    Attributes:
        claim: The worker's hold of the job.
        process: The process. It ends when its stdin is closed.
        log: Where its stderr goes.
        beat: When to beat next.
        wish: What the job's owner wants: `cancel` or `pause`; `stop` where the worker itself is to end.
        deadline: When a process that was asked to stop is killed.
        lost: Whether the job is another worker's, so that nothing more is to be said about it.
    """

    claim: Claim
    process: subprocess.Popen[bytes]
    log: Path
    beat: float
    wish: str | None = None
    deadline: float | None = None
    lost: bool = False


@dataclass
class Worker:
    """A worker.

    Attributes:
        service: The service.
        jobs: How many jobs it does at a time.
        seconds: After how long without a beat another worker may take its jobs.
        tries: How often a job's process may crash without having come further.
        grace: Seconds in which a process that is to stop may come to a checkpoint.
        environment: What its processes find in their environment beside its own.
        name: What it is called in the database: machine, process and a random part.
    """

    service: Service
    jobs: int = 1
    seconds: float = SECONDS
    tries: int = TRIES
    grace: float = GRACE
    environment: dict[str, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        self.queue = Queue(self.service.database, self.name, self.seconds)
        self.children: list[Child] = []
        self._ending = threading.Event()
        self._look_at = 0.0
        self._pause = IDLE
        self._unsettled: list[tuple[str, Callable[[], Any]]] = []

    # -- its life -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until it is told to end."""
        checks = threading.Thread(target=self._check_files, daemon=True)
        checks.start()
        self.tell(f"worker {self.name} at {self.service.database}, {self.jobs} job{'s' * (self.jobs > 1)} at a time")
        while not self._ending.wait(IDLE / 5):
            self.step()
        self._give_all_back()
        checks.join(5)
        self.tell(f"worker {self.name} has ended")

    def end(self, *signal_and_frame: Any) -> None:
        """Let it end: its jobs are given back. A signal handler too."""
        self._ending.set()

    def step(self) -> None:
        """Look after its jobs once, and take another one where there is room and it is time to look."""
        self._settle_what_is_left()
        for child in list(self.children):
            self._look_after(child)
        if len(self.children) >= self.jobs or time.monotonic() < self._look_at:
            return
        claim = self._reach(self.queue.claim)
        if claim is None:
            self._look_at = max(self._look_at, time.monotonic() + self._pause)
            self._pause = min(self._pause * 1.3, LONGEST)
            return
        self._pause = IDLE
        self._start(claim)

    def _give_all_back(self) -> None:
        """Stop all processes, at a checkpoint where one comes soon enough, and let others have their jobs."""
        for child in self.children:
            if child.wish is None:
                child.wish = "stop"
                self._ask_to_stop(child)
        while self.children:
            for child in list(self.children):
                self._look_after(child)
            time.sleep(IDLE / 10)
        until = time.monotonic() + self.grace / 2
        while self._unsettled and time.monotonic() < until:
            self._settle_what_is_left()
            time.sleep(IDLE)

    def tell(self, text: str) -> None:
        """Say on stderr what happens."""
        write(f"{time.strftime('%H:%M:%S')} {text}", sys.stderr)

    def _reach(self, attempt: Callable[[], T]) -> T | None:
        """Return what an attempt returns; `None`, said once in a while, where the database is away: it is made again later."""
        try:
            return attempt()
        except DBAPIError as error:
            if not is_away(error):
                raise
            self.tell(f"the database cannot be reached: {error.orig}")
            self._look_at = time.monotonic() + LONGEST
            return None

    def _check_files(self) -> None:
        """Check the files of jobs that come in. A large one takes longer than a beat may wait, so it has a thread of its own."""
        queue, pause = Queue(self.service.database, self.name, self.seconds), IDLE
        while not self._ending.wait(pause):
            try:
                with reaching():
                    settled = queue.validate(self.service.store)
                pause = IDLE / 5 if settled else min(2 * pause, LONGEST)
            except Exception as error:
                # Whatever it is, the files of other jobs are looked at again in a while.
                away = isinstance(error, Away) or (isinstance(error, DBAPIError) and is_away(error))
                self.tell(f"files cannot be checked: {error}" if away else traceback.format_exc())
                pause = 5.0

    # -- a job's process ----------------------------------------------------------------------------------------------

    def _start(self, claim: Claim) -> None:
        log = self.service.data.absolute() / "logs" / f"{claim.job}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as errors:
                process = self._process(errors)
        except OSError as error:
            self.tell(f"{claim.job}: no process can be started: {error}")
            self._look_at = time.monotonic() + REST
            self._settle(claim, lambda: self.queue.give_back(claim))
            return
        told = {
            "data": str(self.service.data.absolute()),
            "database": self.service.database.url.render_as_string(hide_password=False),
            "store": self.service.store.url,
            "claim": vars(claim),
        }
        child = Child(claim, process, log, time.monotonic() + self.seconds / 6)
        self.children.append(child)
        # Not as arguments, which everybody on the machine can see: the database's address may hold a password. A process that
        # is dead already is found out when it is looked after.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(told).encode() + b"\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        self.tell(f"{claim.job}: attempt {claim.attempt}, process {process.pid}")

    def _process(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        home = str(Path(__file__).parents[2])  # where this titer is
        paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-m", "titer.service.pipeline"],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            env={**os.environ, **self.environment, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C in a terminal is for the worker, which passes it on
        )

    def _look_after(self, child: Child) -> None:
        code = child.process.poll()
        if code is not None:
            self._ended(child, code)
            return
        moment = time.monotonic()
        if child.deadline is not None and moment > child.deadline:
            child.process.kill()
        if moment >= child.beat and not child.lost:
            child.beat = moment + self.seconds / 6
            self._beat(child)

    def _beat(self, child: Child) -> None:
        try:
            wish = self._reach(lambda: self.queue.beat(child.claim))
        except Lost:
            # Over, with its process about to end; or another worker's, and the process would find out only later.
            child.lost = True
            child.deadline = child.deadline or time.monotonic() + self.seconds / 6
            return
        if wish == "cancel" and child.wish != "cancel":
            child.wish = wish
            child.process.kill()
        elif wish == "pause" and child.wish is None:
            child.wish = wish
            self._ask_to_stop(child)

    def _ask_to_stop(self, child: Child) -> None:
        child.deadline = time.monotonic() + self.grace
        child.process.send_signal(signal.SIGINT)

    def _ended(self, child: Child, code: int) -> None:
        """Do what is to be done about a job whose process has ended."""
        self.children.remove(child)
        if child.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # of what it did not live to read
                child.process.stdin.close()
        claim = child.claim
        remove_work(self.service, claim)  # of a process that was killed
        if code == OVER:
            self.tell(f"{claim.job}: over")
            child.log.unlink(missing_ok=True)  # it tells nothing that the job's events do not
        elif code == LOST or child.lost:
            self.tell(f"{claim.job}: not this worker's any more")
        elif code == REPORTED:
            self.tell(f"{claim.job}: failed by an error of the server, see {child.log}")
        elif child.wish == "cancel":
            self.tell(f"{claim.job}: cancelled")
            self._settle(claim, self._changing(claim, lambda session, job: finish(session, job, "cancelled")))
        elif child.wish is not None or code == STOPPED:
            status = "paused" if child.wish == "pause" else "queued"
            self.tell(f"{claim.job}: {status}")
            self._settle(claim, lambda: self.queue.give_back(claim, status))
        elif code == AGAIN:
            self.tell(f"{claim.job}: cannot go on now, see {child.log}")
            self._look_at = time.monotonic() + REST
            self._settle(claim, lambda: self.queue.give_back(claim))
        else:
            self._crashed(child, code)

    def _crashed(self, child: Child, code: int) -> None:
        """Let a job whose process died be tried again, unless it dies at the same place again and again."""
        claim, number = child.claim, new_id("request")
        self.tell(f"{claim.job}: its process died ({_death(code)}), see {child.log}")

        def change(session: Session, job: Job) -> None:
            place, crashes = _place(session, job), _crashes(session, job)
            if job.wish is None and crashes + 1 < self.tries:
                data = {"crashes": crashes + 1, "place": place}
                say(session, job, f"The job's process died ({_death(code)}); it is tried again.", "warn", data=data)
            if job.wish is not None or crashes + 1 < self.tries:
                let_go(session, job)
                return
            message = f"The job's process died {crashes + 1} times at the same place ({_death(code)})."
            message += f" Whoever runs the server finds its last words in the log of the worker ({number})."
            # To whoever runs the server alone: they may name its folders.
            self.tell(f"{claim.job} has failed ({number}), its process's last words: {_tail(child.log)}")
            finish(session, job, "failed", {"code": "worker_crashed", "message": message, "param": None})

        self._settle(claim, self._changing(claim, change))

    # -- what it writes -----------------------------------------------------------------------------------------------

    def _changing(self, claim: Claim, what: Callable[[Session, Job], T]) -> Callable[[], T]:
        def changed() -> T:
            with self.service.database.writing() as session:
                return what(session, held(session, claim))

        return changed

    def _settle(self, claim: Claim, what: Callable[[], Any]) -> None:
        """Write down what becomes of a job; later, where the database is away now."""
        self._unsettled.append((claim.job, what))
        self._settle_what_is_left()

    def _settle_what_is_left(self) -> None:
        left, self._unsettled = self._unsettled, []
        for job, what in left:
            try:
                what()
            except Lost as error:
                self.tell(f"{job}: {error}")
            except DBAPIError as error:
                if not is_away(error):
                    raise
                self.tell(f"{job}: the database cannot be reached: {error.orig}")
                self._unsettled.append((job, what))


def _place(session: Session, job: Job) -> list[Any]:
    """Return how far a job has come: its stage, and the last step of its training that was told."""
    newest = select(Event.data).where(Event.job_id == job.id, Event.kind == "metrics").order_by(Event.place.desc())
    data = session.scalar(newest.limit(1))
    return [job.stage, (data or {}).get("step")]


def _crashes(session: Session, job: Job) -> int:
    """Return how often its process died where the job stands now."""
    warnings = select(Event.data).where(Event.job_id == job.id, Event.level == "warn").order_by(Event.place.desc())
    for data in session.scalars(warnings):
        if data and "crashes" in data:
            return int(data["crashes"]) if data.get("place") == _place(session, job) else 0
    return 0


def _death(code: int) -> str:
    """Return what a process died of."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _tail(log: Path) -> str:
    """Return the end of a log on one line."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return visible(" ".join(text[-TAIL:].split()))
