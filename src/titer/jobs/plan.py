"""A plan of stages, each a folder named by the hash of what it depends on.

A stage that is done is never done again; an interrupted training goes on from its last checkpoint; a changed setting,
dataset, model or method gives another hash, so stale numbers cannot survive. A stage that fails is reported with its
reason; what depends on it is skipped and everything else goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.data.records import Record
from titer.errors import TiterError
from titer.files import disk_error_number, read_json, remove
from titer.jobs import estimates
from titer.jobs.estimates import Work, machine
from titer.judges.base import Judge
from titer.plugins import source_digest
from titer.progress import Task
from titer.results import artefacts
from titer.version import __version__

logger = logging.getLogger(__name__)

# -- keys -------------------------------------------------------------------------------------------------------------

TRAINING_CODE = ("methods", "data/builtin", "packing", "models", "infer/signals.py", "jobs/stages.py",
                 "train")  # fmt: skip
GENERATION_CODE = ("packing", "infer/generation.py", "models", "jobs/stages.py")


def digest(value: Any) -> str:
    """Return a short hash of plain data or records."""
    if isinstance(value, list) and value and isinstance(value[0], Record):
        value = [record.to_row() for record in value]
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def code_digest(*rooms: str) -> str:
    """Return a hash of the source of titer's `rooms` (files or folders of the package) and of library versions."""
    root = Path(__file__).parents[1]
    files = [
        path for room in rooms for path in ([root / room] if room.endswith(".py") else (root / room).rglob("*.py"))
    ]
    source = b"".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(source + json.dumps(library_versions()).encode()).hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "datasets", "numpy")}


def judge_key(judge: Judge) -> list[str]:
    """Return what a judge's verdicts depend on: its name, which holds its settings, and its source."""
    return [judge.name, source_digest(judge)]


@functools.cache
def model_digest(name: str) -> str:
    """Return a hash of a model's files, or the hub id with the commit that is cached here."""
    from titer.models import EMBEDDED, WHEEL_SHA256, loading, locate

    if name == EMBEDDED:
        return WHEEL_SHA256[:16]
    location = Path(locate(name))
    if not location.is_dir():
        from huggingface_hub import hf_hub_download

        # Files of a hub model lie in a folder named by their commit, which can be read without a network too.
        with loading(name):
            return f"{name}@{Path(hf_hub_download(name, 'config.json')).parent.name}"
    return folder_digest(location)


def weights_digest(base: str, adapter: Path | None = None) -> str:
    """Return a hash of the files that a model is loaded from, an adapter's with its base (`titer.models.split_adapter`)."""
    return digest([model_digest(base), None if adapter is None else folder_digest(adapter)])


def folder_digest(folder: Path) -> str:
    """Return a hash of the weights, settings and tokenizer in a folder."""
    from titer.models import check_folder

    check_folder(folder)
    whole = hashlib.sha256()
    with Task(f"reading {folder.name}"):
        for path in sorted(folder.iterdir()):
            # Pickled weights, but not the `training_args.bin` that lies beside them.
            pickled = path.suffix == ".bin" and "model" in path.name
            if pickled or path.suffix in (".json", ".safetensors", ".jinja", ".model"):
                whole.update(path.name.encode() + _file_digest(path).digest())
    return whole.hexdigest()[:16]


def _file_digest(path: Path) -> Any:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


# -- stages -----------------------------------------------------------------------------------------------------------


DONE = "done.json"
"""Where a stage that is done says so, and what it left."""


class Incomplete(Exception):
    """Raised by a stage that did what it could: the next run goes on with it, and what needs it takes what there is."""


@dataclass
class Stage:
    """One step of the plan.

    Attributes:
        name: What it is, for people.
        kind: `align`, `finetune`, `answer`, `weigh` or `judge`.
        key: Hash of everything it depends on.
        folder: Where it leaves its files.
        run: Does the work.
        needs: Stages that must be done before.
        work: What there is to compute.
        status: `planned`, `cached`, `done`, `incomplete`, `failed` or `skipped`.
        seconds: How long it took.
        reason: Why it is incomplete, failed or was skipped.
        mistake: Whether it failed for something in the user's hands.
    """

    name: str
    kind: str
    key: str
    folder: Path
    run: Callable[[Stage], None]
    needs: list[Stage] = field(default_factory=list)
    work: Work | None = None
    status: str = "planned"
    seconds: float = 0.0
    reason: str = ""
    mistake: bool = False
    _damaged: dict[str, str] | None = field(default=None, init=False, repr=False)

    @property
    def done(self) -> bool:
        """Whether its work is complete on disk, every file of it as it was left."""
        return self.status in ("done", "cached") or (os.path.lexists(self.folder / DONE) and not self.damaged())

    def damaged(self) -> dict[str, str]:
        """Return what is wrong with its files, by their path in its folder, where they are not as they were left.

        They are looked at once, for to hash them takes seconds a gigabyte.
        """
        if self._damaged is None:
            self._damaged = self._look_for_damage()
        return self._damaged

    def _look_for_damage(self) -> dict[str, str]:
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            return {DONE: f"{self.folder} is no folder"}
        if not os.path.lexists(self.folder / DONE):
            return {}
        try:
            left = self.left()
        except TiterError as error:
            return {DONE: error.message.rstrip(".")}
        wrong = {}
        for name, digest in left["files"].items():
            path = self.folder / name
            if not path.is_file():
                wrong[name] = f"{path} is missing"
            elif _file_digest(path).hexdigest() != digest:
                wrong[name] = f"{path} is damaged"
        return wrong

    def left(self) -> dict[str, Any]:
        """Return what it left when it was done: `seconds`, and `files`, the hash of each by its path in its folder.

        Raises:
            TiterError: For a record that is missing, unreadable, or of another stage.
        """
        left = read_json(self.folder / DONE)
        kinds = {"key": str, "seconds": float, "files": dict}
        if not all(isinstance(left.get(name), kind) for name, kind in kinds.items()) or left["key"] != self.key:
            raise TiterError(f"{self.folder / DONE} is not what this stage leaves.")
        return left

    @property
    def readable(self) -> bool:
        """Whether there is something of it to read, be it all or a part."""
        return self.done or self.status == "incomplete"

    def summary(self) -> dict[str, Any]:
        """Return what the report says of it."""
        row = {"name": self.name, "key": self.key, "status": self.status, "seconds": round(self.seconds, 1)}
        return {**row, "reason": self.reason} if self.reason else row


@dataclass
class Plan:
    """Stages in an order in which they can run.

    Attributes:
        run_folder: Where everything goes.
        stages: All stages, each once however many want it.
    """

    run_folder: Path
    stages: dict[str, Stage] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        name: str,
        spec: dict[str, Any],
        run: Callable[[Stage], None],
        needs: Sequence[Stage] = (),
        work: Work | None = None,
    ) -> Stage:
        """Add a stage, or return the one that does the same work already."""
        key = digest({"kind": kind, **spec, "needs": [stage.key for stage in needs]})
        if key not in self.stages:
            folder = self.run_folder / "stages" / f"{kind}-{key}"
            self.stages[key] = Stage(name, kind, key, folder, run, list(needs), work)
        return self.stages[key]

    def to_do(self, force: bool = False) -> dict[str, Work]:
        """Return what there is to compute in stages that are not done, by their keys; `force` does all again."""
        return {
            key: stage.work
            for key, stage in self.stages.items()
            if stage.work is not None and (force or not stage.done)
        }


class Silent:
    """Says nothing of how stages begin and come out."""

    def begins(self, stage: Stage) -> None:
        """Take note that a stage begins."""

    def settled(self, stage: Stage) -> None:
        """Take note that a stage has come to its end."""


def execute(plan: Plan, show: Any, force: bool = False, stop_at: Sequence[str] = ()) -> bool:
    """Run the stages of a plan that are not done yet.

    Args:
        plan: What to run.
        show: Tells the user: `show.begins(stage)` is called when a stage begins, and `show.settled(stage)` when it has
            come to its end. How far it is in between, `titer.progress` says.
        force: Do stages again that are done.
        stop_at: Kinds of stages after whose failure no other stage is run.

    Returns:
        Whether every stage is done.

    Raises:
        OSError: For a disk that is full, read-only or gone.
    """
    for number, stage in enumerate(plan.stages.values(), 1):
        blocked = next((needed for needed in stage.needs if needed.status in ("failed", "skipped")), None)
        if blocked is not None:
            stage.status, stage.reason = "skipped", f"needs `{blocked.name}`, which {blocked.status}"
        elif stage.done and not force:
            stage.status = "cached"
            stage.seconds = stage.left()["seconds"]
        else:
            _make_room(stage, force)
            show.begins(stage)
            with Task(f"{stage.name} (stage {number} of {len(plan.stages)})"):
                _run_stage(stage)
        show.settled(stage)
        if stage.status == "failed" and stage.kind in stop_at:
            break
    return all(stage.status in ("done", "cached") for stage in plan.stages.values())


def _make_room(stage: Stage, force: bool) -> None:
    """Take away what a stage cannot go on from: all of it, or those of its files and folders that are damaged."""
    damaged = {} if force else stage.damaged()
    if damaged:
        first, *others = damaged.values()
        logger.warning("%s%s: `%s` is done again.", first, f", as {len(others)} more" if others else "", stage.name)
    if force or DONE in damaged:
        remove(stage.folder)
    elif damaged:
        # The other attackers of a fleet stay.
        parts = {DONE, *(name.partition("/")[0] for name in damaged)}
        for path in stage.folder.iterdir():
            if path.name in parts:
                remove(path)


def _run_stage(stage: Stage) -> None:
    whole = not stage.folder.exists()  # else a part of it was done before
    stage.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        stage.run(stage)
        partial = next((needed for needed in stage.needs if needed.status == "incomplete"), None)
        if partial is not None:
            raise Incomplete(f"needs `{partial.name}`, which is incomplete")
    except Exception as error:
        if disk_error_number(error) is not None:
            raise  # it would meet every other stage too
        # A failed stage must not take the other arms with it; its reason and traceback are kept.
        import traceback

        stage.status = "incomplete" if isinstance(error, Incomplete) else "failed"
        stage.mistake = isinstance(error, TiterError)
        said = str(error) if isinstance(error, TiterError | Incomplete) else f"{type(error).__name__}: {error}"
        stage.reason = " ".join([*said.splitlines(), *getattr(error, "__notes__", [])])
        (stage.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    else:
        stage.status = "done"
        (stage.folder / "error.txt").unlink(missing_ok=True)
    stage.seconds = time.perf_counter() - start
    if stage.status == "done":
        left = {path for path in stage.folder.rglob("*") if path.is_file()}
        files = {path.relative_to(stage.folder).as_posix(): _file_digest(path).hexdigest() for path in sorted(left)}
        record = {"name": stage.name, "key": stage.key, "seconds": stage.seconds, "files": files}
        artefacts.write_atomically(stage.folder / DONE, json.dumps(record).encode())
        if whole and stage.work is not None:
            estimates.record(stage.work, stage.seconds)


# -- provenance -------------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Return what a figure was measured with: versions, commit, machine."""
    return {
        "titer": __version__,
        "commit": commit(),
        "versions": library_versions(),
        "python": platform.python_version(),
        "machine": machine(),
    }


def commit() -> str | None:
    """Return the commit of titer's source, with `+` when it was changed; `None` outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return (head.stdout.strip() + ("+" if changed.stdout.strip() else "")) if head.returncode == 0 else None
