"""Attackers in an assay's jobs: as settings, and as the files that each leaves in a folder of its own.

`step-N.json` is what was measured after a step, `attacker.json` what the attacker spent and, where it failed, why.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer import plugins
from titer.attacks.failures import blame
from titer.attacks.threats import Attack
from titer.data import Record
from titer.errors import TiterError
from titer.files import read_json, remove
from titer.jobs.job import Job
from titer.jobs.provenance import weights_digest
from titer.models import split_adapter
from titer.results.artefacts import write_atomically

logger = logging.getLogger(__name__)


def attacker_folder(name: str, seed: int) -> str:
    """Return the name of an attacker's folder in that of its job."""
    return re.sub(r"[^\w.=,:-]+", "_", f"{name} seed {seed}")


@dataclass(frozen=True)
class Attempt:
    """An attacker as its job knows it.

    Attributes:
        name: The attack's name, with its point of the grid.
        attack: What it does.
        seed: Of its data, order and initialisation.
        rows: What it trains on, in order; none where it trains nothing, or searches what to train on.
    """

    name: str
    attack: Attack
    seed: int
    rows: Sequence[Record] = ()

    @property
    def folder(self) -> str:
        """Name of its folder in the folder of its job."""
        return attacker_folder(self.name, self.seed)


def as_settings(attacker: Any, rows: Sequence[Record]) -> dict[str, Any]:
    """Return an attacker (`name`, `attack`, `seed`) as a job's settings hold it."""
    fields = {item.name: getattr(attacker.attack, item.name) for item in dataclasses.fields(attacker.attack)}
    base = attacker.attack.base
    return {
        "name": attacker.name,
        **({"base": weights_digest(*split_adapter(base))} if base else {}),
        "attack": fields | {"summary": ""},
        "source": plugins.source_digest(attacker.attack),
        "seed": attacker.seed,
        "trains": bool(rows),
    }


def crew_of(job: Job) -> list[Attempt]:
    """Return the attackers of a job."""
    return [
        Attempt(
            own["name"],
            plugins.class_at(kind)(**own["attack"]),
            own["seed"],
            job.records(f"rows/{place}") if own["trains"] else (),
        )
        for place, (own, kind) in enumerate(zip(job.settings["attackers"], job.places["classes"], strict=True))
    ]


def flops_per_token(attack: Attack) -> float:
    """Return training FLOPs a token and parameter: 2 forward, 2 back through activations, 2 for weights that train."""
    return 6.0 if attack.lora is None else 4.0


def finish(
    folder: Path,
    error: BaseException | None,
    samples: Sequence[int] = (),
    tokens: Sequence[int] = (),
    flops: Sequence[float] = (),
    losses: Sequence[Any] = (),
    left: Mapping[str, Any] | None = None,
) -> None:
    """Write what an attacker spends by step and, when it failed, whose fault that was.

    One that was ended early says so in `left`, its last step and why; the budgets go on to the end of the attack.

    Its checkpoints are not needed any more, unless the machine failed it: then the next run goes on from them.
    """
    about = {
        "error": None if error is None else f"{blame(error)}: {type(error).__name__}: {' '.join(str(error).split())}",
        "again": error is not None and blame(error) == "machine",
        "samples": list(samples),
        "tokens": list(tokens),
        "flops": list(flops),
        "left": left,
        "losses": [loss if isinstance(loss, float) and loss == loss else None for loss in losses],
    }
    write_atomically(folder / "attacker.json", json.dumps(about).encode())
    if error is None:
        (folder / "error.txt").unlink(missing_ok=True)  # of a try that the machine failed
    if not about["again"]:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def finished(folder: Path) -> bool:
    """Whether an attacker has come to its end, or to a failure that another run would meet again."""
    path = folder / "attacker.json"
    return path.exists() and not read_json(path)["again"]


def measurements(folder: Path) -> list[dict[str, Any]]:
    """Return what was measured of an attacker, by step."""
    found = [read_json(path) for path in folder.glob("step-*.json")]
    return sorted(found, key=lambda measured: int(measured["step"]))


def remove_damaged(folder: Path) -> None:
    """Remove attackers of an interrupted job that left a file which cannot be read; they are run again.

    What a job left that was done is looked at before (`titer.jobs.job.Job.damaged`).
    """
    for attacker in [path for path in folder.iterdir() if path.is_dir()]:
        try:
            for path in attacker.glob("*.json"):
                read_json(path)
        except TiterError as error:
            logger.warning("%s: `%s` is run again.", error.message.rstrip("."), attacker.name)
            remove(attacker)
