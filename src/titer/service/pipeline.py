"""What a job's own process does: `python -m titer.service.pipeline`, started by a worker, which tells it the job on stdin.

A crash of it takes nothing else down. It ends with an exit code that tells the worker what becomes of the job, and it ends by
itself when the worker does, whose end of stdin then closes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from sqlalchemy import select

from titer import progress
from titer.errors import RanAway, TiterError
from titer.files import disk_error_number
from titer.risk import shelved
from titer.service import tracing
from titer.service.auditing import audit_stage
from titer.service.context import Service
from titer.service.database import Database
from titer.service.detectors import Detectors
from titer.service.gating import gate_stage, publish_stage
from titer.service.identifiers import new_id
from titer.service.inputs import Start, find_start
from titer.service.queue import Claim, Lost, finish, held
from titer.service.running import (
    AGAIN,
    LOST,
    ORPHANED,
    OVER,
    REPORTED,
    STOPPED,
    Away,
    JobFailed,
    Running,
    Stop,
    Stopped,
    patiently,
    remove_work,
)
from titer.service.store import Store
from titer.service.tables import Job
from titer.service.training import train_stage

STAGES: dict[str, Callable[[Running, Start, Path], None]] = {
    "audit": audit_stage,
    "train": train_stage,
    "gate": gate_stage,
    "publish": publish_stage,
}
"""What is done in which order."""

PATHS = re.compile(r"(?<![\w.:/<])/[\w.+-]+(?:/[\w.+-]+)+")
"""Absolute paths, which are no business of a job's owner."""

logger = logging.getLogger(__name__)


def do(service: Service, claim: Claim, stop: Stop | None = None) -> int:
    """Do a job, from the stage that it is in, and return an exit code.

    Args:
        service: The service.
        claim: The worker's hold of the job.
        stop: Whether to stop.
    """
    folder = service.work.absolute() / claim.job / str(claim.attempt)
    home = Path.cwd()
    try:
        remove_work(service, claim, earlier=True)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(folder), progress.shown(None):
            return _done(service, claim, folder, home, stop or Stop())
    except OSError as error:
        if disk_error_number(error) is None:
            raise
        logger.warning("%s", error)
        return AGAIN
    finally:
        remove_work(service, claim)


def _done(service: Service, claim: Claim, folder: Path, home: Path, stop: Stop) -> int:
    def hold() -> Running:
        with service.database.reading() as session:
            job = held(session, claim)
            session.expunge(job)
            return Running(service, claim, folder, job, stop)

    try:
        run = patiently(hold)
    except (Lost, Away) as error:
        logger.warning("%s", error)
        return LOST if isinstance(error, Lost) else AGAIN
    try:
        return _carried_out(run, home)
    except (Lost, Away) as error:
        logger.warning("%s", error)
        return LOST if isinstance(error, Lost) else AGAIN
    except Stopped:
        return STOPPED


def _carried_out(run: Running, home: Path) -> int:
    """Do the stages that are left; whatever goes wrong becomes the job's error, but for what goes by."""
    try:
        start = find_start(run, home)
        left = list(STAGES)[list(STAGES).index(run.job.stage) :]
        for stage in left[: 1 if run.claim.kind == "audit" else None]:
            run.stop.check()
            logger.info("%s: %s", run.claim.job, stage)
            with tracing.span(f"job.{stage}", job=run.claim.job), shelved(Detectors(run)):
                STAGES[stage](run, start, home)
            if _is_over(run):
                break
        return OVER
    except JobFailed as error:
        return _failed(run, error.code, error.message, error.param)
    except TiterError as error:
        code = "training_diverged" if isinstance(error, RanAway) else "invalid_request"
        said = str(error).replace("\n", " ")
        shown = PATHS.sub("(a path of the server)", said)
        _failed(run, code, shown)
        if shown == said:
            return OVER
        logger.error("%s failed: %s", run.claim.job, said)
        return REPORTED
    except (MemoryError, torch.OutOfMemoryError):
        logger.exception("%s needs too much memory", run.claim.job)
        return _failed(run, "out_of_memory", "The job needs too much memory: lower its batch size.")
    except Lost:
        raise
    except Exception as error:
        if isinstance(error, Away) or disk_error_number(error) is not None:
            logger.warning("%s cannot go on now: %s", run.claim.job, error)
            run.tell("The job cannot go on now, for want of disk or store, and waits until they can be used.", "warn")
            return AGAIN
        number = new_id("request")
        logger.exception("%s failed (%s)", run.claim.job, number)
        _failed(run, "server_error", f"The server had an error while doing the job ({number}).")
        return REPORTED


def _is_over(run: Running) -> bool:
    """Whether a stage ended the job."""
    status = run.read(lambda session: session.scalar(select(Job.status).where(Job.id == run.claim.job)))
    return status != "running"


def _failed(run: Running, code: str, message: str, param: str | None = None) -> int:
    error = {"code": code, "message": message, "param": param}
    run.change(lambda session, job: finish(session, job, "failed", error))
    return OVER


# -- the process ------------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Do the job that stands in the first line of stdin."""
    stop = Stop()
    stop.listen()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    tracing.start("worker")
    service = Service(Path(told["data"]), Database(told["database"]), Store(told["store"]))
    claim = Claim(**told["claim"])
    try:
        code = do(service, claim, stop)
    except Stopped:
        code = STOPPED
    tracing.stop()
    sys.stderr.flush()
    # At once: threads of libraries must not keep the process, and with it the job, alive.
    os._exit(code)


def _end_with_the_worker() -> None:
    """End when the worker has: its end of stdin is closed then, whatever it died of."""
    sys.stdin.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
