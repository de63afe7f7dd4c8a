"""A job: one step of a run as data, in a folder of its own, from files to files.

    RUN/inputs/DIGEST.jsonl     rows that jobs work on, each set once
    RUN/jobs/KIND-KEY/job.json  what is to be done
    RUN/jobs/KIND-KEY/…         what it leaves
    RUN/jobs/KIND-KEY/done.json that it is done, with the hash of every file that it left
    RUN/leases/                 who works on what

The key is a hash of everything that the result depends on: the settings, the inputs, the keys of the jobs that are needed, the
version of the kind and those of the libraries. Where things lie on this machine (`places`) and what the job is called are no
part of it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from titer import plugins
from titer.data.records import Record
from titer.errors import TiterError
from titer.files import disk_error_number, read_json, read_text, remove
from titer.jobs.leases import Lease, holder
from titer.jobs.provenance import digest, file_digest, library_versions
from titer.results.artefacts import write_atomically

if TYPE_CHECKING:
    from titer.jobs.work import Work

logger = logging.getLogger(__name__)

SCHEMA = "titer/job/1"
SPEC = "job.json"
DONE = "done.json"
"""Where a job that is done says so, and what it left."""


ERROR = "error.txt"
"""Where one that failed says why: in one line, and then with the traceback."""


class Incomplete(Exception):
    """Raised by a job that did what it could: the next run goes on with it, and what needs it takes what there is."""


@dataclass(frozen=True)
class Kind:
    """What jobs of a kind do.

    Attributes:
        name: Begins the names of their folders.
        path: Its import path.
        run: Does a job's work in its folder, from its settings, inputs and the folders of the jobs that it needs alone.
        version: Raised when the same job gives other figures than before. What was done under another version is done again,
            and a change of the code alone reruns nothing; `make kinds` keeps the two in step.
    """

    name: str
    path: str
    run: Callable[[Job], None]
    version: int = 1


class Outcome(NamedTuple):
    """How a job came out.

    Attributes:
        status: `done`, `cached`, `incomplete` or `failed`.
        seconds: How long it took.
        reason: Why it is incomplete or failed.
        mistake: Whether it failed for something in the user's hands.
    """

    status: str
    seconds: float
    reason: str = ""
    mistake: bool = False


@dataclass
class Job:
    """One step of a run.

    Attributes:
        spec: What `job.json` holds: `kind`, `name`, `settings`, `inputs`, `needs`, `places`, …
        run_folder: Of the run.
        key: Hash of everything that its result depends on.
        needs: Jobs that must be done before.
        held: Sets of rows by digest; those that are not here are read.
        work: What there is to compute, for estimates.
        does: What it does; loaded by its import path where it is not given.
        status: `planned`, `cached`, `done`, `incomplete`, `failed` or `skipped`.
        seconds: How long it took.
        reason: Why it is incomplete, failed or was skipped.
        mistake: Whether it failed for something in the user's hands.
    """

    spec: dict[str, Any]
    run_folder: Path
    key: str
    needs: list[Job] = field(default_factory=list)
    held: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    work: Work | None = None
    does: Kind | None = None
    status: str = "planned"
    seconds: float = 0.0
    reason: str = ""
    mistake: bool = False
    _damaged: dict[str, str] | None = field(default=None, init=False, repr=False)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Return the job that a folder holds.

        Raises:
            TiterError: When there is none, it is damaged or edited, or was planned with other versions of titer or libraries.
        """
        spec = read_json(folder / SPEC, "Name a folder `jobs/KIND-KEY` of a run.")
        kinds = {"kind": str, "name": str, "settings": dict, "inputs": dict, "needs": list, "places": dict, "run": str}
        wrong = [name for name, kind in kinds.items() if not isinstance(spec.get(name), kind)]
        if spec.get("schema") != SCHEMA or wrong:
            raise TiterError(f"{folder / SPEC} is no job of this version of titer.", PLAN_AGAIN)
        version, libraries = _kind_at(spec["run"]).version, library_versions()
        for what, theirs, ours in (
            (f"version of `{spec['kind']}`", spec.get("version"), version),
            ("versions of libraries", spec.get("libraries"), libraries),
        ):
            if theirs != ours:
                raise TiterError(f"{folder / SPEC}: planned with {what} {theirs}, and here is {ours}.", PLAN_AGAIN)
        run_folder = folder.absolute().parents[1]
        needs = [cls.read(run_folder / "jobs" / name) for name in spec["needs"]]
        job = cls(spec, run_folder, key_of(spec, needs), needs)
        if job.folder.name != folder.absolute().name:
            raise TiterError(f"{folder / SPEC} is not what was planned: it would be `{job.folder.name}`.", PLAN_AGAIN)
        return job

    @property
    def name(self) -> str:
        """What it is, for people."""
        return str(self.spec["name"])

    @property
    def kind(self) -> str:
        """The name of its kind."""
        return str(self.spec["kind"])

    @property
    def folder(self) -> Path:
        """Where it leaves its files."""
        return self.run_folder / "jobs" / f"{self.kind}-{self.key}"

    @property
    def settings(self) -> dict[str, Any]:
        """What it does."""
        settings: dict[str, Any] = self.spec["settings"]
        return settings

    @property
    def places(self) -> dict[str, Any]:
        """Where things are on this machine."""
        places: dict[str, Any] = self.spec["places"]
        return places

    def records(self, name: str) -> list[Record]:
        """Return the rows of an input.

        Raises:
            TiterError: When their file is missing or damaged.
        """
        wanted = self.spec["inputs"][name]
        if wanted in self.held:
            return list(self.held[wanted])
        path = self.run_folder / "inputs" / f"{wanted}.jsonl"
        lines = [json.loads(line) for line in read_text(path, PLAN_AGAIN).splitlines()]
        records = [Record.from_row(line, line.get("where")) for line in lines]
        if digest(records) != wanted:
            raise TiterError(f"{path} is damaged.", "Remove it, and start the run again.")
        return records

    # -- what it left --------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether its work is complete on disk, every file of it as it was left."""
        return self.status in ("done", "cached") or (os.path.lexists(self.folder / DONE) and not self.damaged())

    def damaged(self) -> dict[str, str]:
        """Return what is wrong with its files, by their path in its folder, where they are not as they were left.

        They are looked at once, for to hash them takes seconds a gigabyte.
        """
        if self._damaged is None:
            if os.path.lexists(self.folder) and not self.folder.is_dir():
                return {DONE: f"{self.folder} is no folder"}
            if not os.path.lexists(self.folder / DONE):
                return {}  # another process may be done with it next time
            self._damaged = self._look_for_damage()
        return self._damaged

    def _look_for_damage(self) -> dict[str, str]:
        try:
            left = self.left()
        except TiterError as error:
            return {DONE: error.message.rstrip(".")}
        wrong = {}
        for name, wanted in left["files"].items():
            path = self.folder / name
            if not path.is_file():
                wrong[name] = f"{path} is missing"
            elif file_digest(path).hexdigest() != wanted:
                wrong[name] = f"{path} is damaged"
        return wrong

    def left(self) -> dict[str, Any]:
        """Return what it left when it was done: `seconds`, and `files`, the hash of each by its path in its folder.

        Raises:
            TiterError: For a record that is missing, unreadable, or of another job.
        """
        left = read_json(self.folder / DONE)
        kinds = {"key": str, "seconds": float, "files": dict}
        if not all(isinstance(left.get(name), kind) for name, kind in kinds.items()) or left["key"] != self.key:
            raise TiterError(f"{self.folder / DONE} is not what this job leaves.")
        return left

    @property
    def readable(self) -> bool:
        """Whether there is something of it to read, be it all or a part."""
        return self.done or self.status == "incomplete"

    def summary(self) -> dict[str, Any]:
        """Return what the report says of it."""
        row = {"name": self.name, "key": self.key, "status": self.status, "seconds": round(self.seconds, 1)}
        return {**row, "reason": self.reason} if self.reason else row

    # -- doing it ------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write `job.json`, and the inputs that are not in the run's folder yet."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            return  # that is damage, which is seen to before it is done
        for wanted in self.spec["inputs"].values():
            path = self.run_folder / "inputs" / f"{wanted}.jsonl"
            if not path.exists():
                rows = [{**record.to_row(), "where": record.where} for record in self.held[wanted]]
                write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        text = json.dumps(self.spec, indent=1, ensure_ascii=False).encode() + b"\n"
        if not (self.folder / SPEC).is_file() or (self.folder / SPEC).read_bytes() != text:
            write_atomically(self.folder / SPEC, text)

    def run(self) -> None:
        """Do its work, whoever else may do so."""
        (self.does or _kind_at(self.spec["run"])).run(self)

    def holder(self) -> str | None:
        """Say which other process works on it; `None` when none does."""
        return holder(self.run_folder / "leases", self.folder.name)

    def attempt(self, force: bool = False) -> Outcome:
        """Do it, if that is not done yet.

        Args:
            force: Do it again when it is done.

        Raises:
            Held: While another process works on it.
            OSError: For a disk that is full, read-only or gone.
        """
        with Lease(self.run_folder / "leases", self.folder.name) as lease:
            self._damaged = None
            if not force and os.path.lexists(self.folder / DONE) and not self.damaged():
                outcome = Outcome("cached", self.left()["seconds"])
            else:
                self._make_room(force)
                self.write()
                outcome = self._run(lease)
            if outcome.status in ("done", "cached"):
                lease.remove()
        return outcome

    def _make_room(self, force: bool) -> None:
        """Take away what it cannot go on from: all of it, or those of its files and folders that are damaged."""
        damaged = {} if force else self.damaged()
        if damaged:
            first, *others = damaged.values()
            logger.warning("%s%s: `%s` is done again.", first, f", as {len(others)} more" if others else "", self.name)
        if force or DONE in damaged:
            remove(self.folder)
        elif damaged:
            # The other attackers of a fleet stay.
            parts = {DONE, *(name.partition("/")[0] for name in damaged)}
            for path in self.folder.iterdir():
                if path.name in parts:
                    remove(path)
        self._damaged = None

    def _run(self, lease: Lease) -> Outcome:
        start = time.perf_counter()
        try:
            self.run()
            partial = next((needed for needed in self.needs if needed.status == "incomplete"), None)
            if partial is not None:
                raise Incomplete(f"needs `{partial.name}`, which is incomplete")
        except KeyboardInterrupt:
            lease.check()  # else it was the user
            raise
        except Exception as error:
            lease.check()
            if disk_error_number(error) is not None:
                raise  # it would meet every other job too
            # A failed job must not take the others with it; its reason and traceback are kept.
            import traceback

            said = str(error) if isinstance(error, TiterError | Incomplete) else f"{type(error).__name__}: {error}"
            note_failure(self.folder, traceback.format_exc(), said)
            return Outcome(
                "incomplete" if isinstance(error, Incomplete) else "failed",
                time.perf_counter() - start,
                " ".join([*said.splitlines(), *getattr(error, "__notes__", [])]),
                isinstance(error, TiterError),
            )
        (self.folder / ERROR).unlink(missing_ok=True)
        seconds = time.perf_counter() - start
        left = {path for path in self.folder.rglob("*") if path.is_file()} - {self.folder / SPEC, self.folder / DONE}
        files = {path.relative_to(self.folder).as_posix(): file_digest(path).hexdigest() for path in sorted(left)}
        record = {"name": self.name, "key": self.key, "seconds": seconds, "files": files}
        lease.check()
        write_atomically(self.folder / DONE, json.dumps(record).encode())
        return Outcome("done", seconds)


def note_failure(folder: Path, text: str, first: str = "") -> None:
    """Write why a job failed into its folder, for who looks at it later; `first` is its first line."""
    if folder.is_dir():
        said = " ".join(first.splitlines())
        (folder / ERROR).write_text(f"{said}\n\n{text}" if said else text, encoding="utf-8")


PLAN_AGAIN = "Start the run again: it plans its jobs anew, and keeps what is done."


def _kind_at(path: str) -> Kind:
    if not path.startswith("titer."):
        raise TiterError(f"`{path}` is no kind of job of titer's.", PLAN_AGAIN)
    kind = plugins.load(path)
    if not isinstance(kind, Kind):
        raise TiterError(f"`{path}` is no kind of job, but {plugins.what(kind)}.", PLAN_AGAIN)
    return kind


def key_of(spec: Mapping[str, Any], needs: Sequence[Job]) -> str:
    """Return the hash of everything that a job's result depends on."""
    parts = {name: spec[name] for name in ("kind", "version", "libraries", "settings", "inputs")}
    return digest({**parts, "needs": [needed.key for needed in needs]})
