"""What a job's own process does: `python -m titer.service.pipeline`, started by a worker, which tells it the job on stdin.

A crash of it takes nothing else down. It ends with an exit code that tells the worker what becomes of the job, and it ends by
itself when the worker does, whose end of stdin then closes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from titer import progress
from titer.errors import RanAway, TiterError
from titer.files import disk_error_number
from titer.service.auditing import audit_stage
from titer.service.context import Service
from titer.service.database import Database
from titer.service.gating import gate_stage, publish_stage
from titer.service.identifiers import new_id
from titer.service.inputs import Start, find_start
from titer.service.queue import Claim, Lost, finish, held
from titer.service.running import Away, JobFailed, Running, Stop, Stopped, patiently
from titer.service.store import Store
from titer.service.training import train_stage

DONE, GONE, AGAIN, STOPPED = 0, 76, 75, 130
"""Exit codes: the job is over; it is another worker's; it cannot go on now; it was stopped, and can go on."""
ORPHANED = 77
"""Exit code of a process whose worker has died."""

STAGES: dict[str, Callable[[Running, Start, Path], None]] = {
    "audit": audit_stage,
    "train": train_stage,
    "gate": gate_stage,
    "publish": publish_stage,
}
"""What is done in which order."""

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
        # What an earlier attempt left here counts no more: the state that does is in the store.
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        with contextlib.chdir(folder), progress.shown(None):
            return _done(service, claim, folder, home, stop or Stop())
    except OSError as error:
        if disk_error_number(error) is None:
            raise
        logger.warning("%s", error)
        return AGAIN
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


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
        return GONE if isinstance(error, Lost) else AGAIN
    try:
        return _carried_out(run, home)
    except (Lost, Away) as error:
        logger.warning("%s", error)
        return GONE if isinstance(error, Lost) else AGAIN
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
            STAGES[stage](run, start, home)
            if _is_over(run):
                break
        return DONE
    except JobFailed as error:
        return _failed(run, error.error)
    except TiterError as error:
        kind = "training_diverged" if isinstance(error, RanAway) else "invalid_request"
        return _failed(run, {"code": kind, "message": str(error).replace("\n", " "), "param": None})
    except (MemoryError, torch.OutOfMemoryError):
        logger.exception("%s needs too much memory", run.claim.job)
        return _failed(
            run,
            {"code": "out_of_memory", "message": "The job needs too much memory: lower its batch size.", "param": None},
        )
    except Lost:
        raise
    except Exception as error:
        if isinstance(error, Away) or disk_error_number(error) is not None:
            logger.warning("%s cannot go on now: %s", run.claim.job, error)
            run.tell(
                "The job cannot go on now, for want of its disk or its store, and waits until they can be used.", "warn"
            )
            return AGAIN
        number = new_id("request")
        logger.exception("%s failed (%s)", run.claim.job, number)
        return _failed(
            run,
            {
                "code": "server_error",
                "message": f"The server had an error while doing the job ({number}).",
                "param": None,
            },
        )


def _is_over(run: Running) -> bool:
    """Whether a stage ended the job."""
    from sqlalchemy import select

    from titer.service.tables import Job

    status = run.read(lambda session: session.scalar(select(Job.status).where(Job.id == run.claim.job)))
    return status != "running"


def _failed(run: Running, error: dict[str, Any]) -> int:
    run.change(lambda session, job: finish(session, job, "failed", error))
    return DONE


# -- the process ------------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Do the job that stands in the first line of stdin."""
    stop = Stop()
    stop.listen()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    service = Service(Path(told["data"]), Database(told["database"]), Store(told["store"]))
    claim = Claim(**told["claim"])
    try:
        code = do(service, claim, stop)
    except Stopped:
        code = STOPPED
    sys.stderr.flush()
    # At once: threads of libraries must not keep the process, and with it the job, alive.
    os._exit(code)


def _end_with_the_worker() -> None:
    """End when the worker has: its end of stdin is closed then, whatever it died of."""
    sys.stdin.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
