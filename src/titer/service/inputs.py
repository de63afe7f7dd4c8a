"""What a job works on: the rows of its file, and the model that it begins with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from titer.data import Record
from titer.models import Template, load_tokenizer, refuse_quantised, split_adapter
from titer.service import chat_rows, json_lines
from titer.service.policy import NOT_QUANTISED
from titer.service.running import JobFailed, Running
from titer.service.store import pieces
from titer.service.tables import File, Model
from titer.service.tenants import Tenant

NAMED = 10
"""Rows that a message names."""


@dataclass(frozen=True)
class Upload:
    """The rows of a file that is trained on, or audited.

    Attributes:
        places: Of each record, the row of the file that it comes from, from 0; a row may teach several answers.
        records: What is taught.
    """

    places: tuple[int, ...]
    records: tuple[Record, ...]

    @property
    def rows(self) -> int:
        """How many rows of the file teach anything."""
        return len(set(self.places))

    def without(self, rows: Sequence[int]) -> Upload:
        """Return the upload without some rows of the file."""
        out = set(rows)
        kept = [pair for pair in zip(self.places, self.records, strict=True) if pair[0] not in out]
        return Upload(tuple(place for place, _ in kept), tuple(record for _, record in kept))

    def of(self, rows: Sequence[int]) -> list[int]:
        """Return the places among the records of what comes from some rows of the file."""
        wanted = set(rows)
        return [place for place, row in enumerate(self.places) if row in wanted]


def read_upload(run: Running) -> Upload:
    """Return the rows that a job trains on.

    Raises:
        JobFailed: The file is gone, or its rows are not what can be trained on.
        Away: The store cannot be used.
    """
    return _read(run, run.job.file_id, "training_file")


def read_validation(run: Running, base: str) -> tuple[Record, ...]:
    """Return the rows that a job's loss is measured on beside those that teach; none where it names no file of such.

    Raises:
        JobFailed: The file is gone, or its rows are not what could be trained on.
        Away: The store cannot be used.
    """
    if run.job.validation_file_id is None:
        return ()
    found = _read(run, run.job.validation_file_id, "validation_file")
    count_tokens(run, found, base, "validation_file")
    return found.records


def _read(run: Running, name: str, param: str) -> Upload:
    def found(session: object) -> File | None:
        return Tenant(session, run.claim.org, run.claim.worker).find(File, name)  # type: ignore[arg-type]

    file = run.read(found)
    if file is None:
        raise JobFailed("file_not_found", f"The file {name} was deleted.", param)
    try:
        with run.storing(), run.service.store.open(file.place) as data:
            if run.claim.kind == "audit":  # the files of other jobs were checked before they were queued
                _check(chat_rows.check(_lines(data), rows=run.policy.limits.rows))
                data.seek(0)
            pairs = list(chat_rows.records(_lines(data)))
    except FileNotFoundError:
        raise JobFailed("file_not_found", f"What {file.id} holds is gone.", param) from None
    if not pairs:
        raise JobFailed(f"invalid_{param}", f"{file.id} holds nothing to be taught.", param)
    return Upload(tuple(row for row, _ in pairs), tuple(record for _, record in pairs))


def _lines(data: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file as they were checked when it came."""
    return json_lines.split(pieces(data))


def _check(found: chat_rows.Checked) -> None:
    if found.errors:
        raise JobFailed("invalid_training_file", found.message, "training_file")


def count_tokens(run: Running, upload: Upload, base: str, param: str = "training_file") -> list[int]:
    """Return how many tokens each record teaches.

    Args:
        run: The job.
        upload: The records.
        base: The base model, whose tokens they are.
        param: Which file they come from, for errors.

    Raises:
        JobFailed: Naming the rows that are longer than the policy allows.
    """
    template, most = Template(load_tokenizer(base)), run.policy.limits.row_tokens
    taught, long = [], dict[int, int]()
    for row, record in zip(upload.places, upload.records, strict=True):
        prompt, completion = template.pair_ids(record)
        taught.append(len(completion))
        if len(prompt) + len(completion) > most:
            long[row] = len(prompt) + len(completion)
    if long:
        named = ", ".join(f"line {row + 1} ({tokens} tokens)" for row, tokens in list(long.items())[:NAMED])
        more = f" and {len(long) - NAMED} more" if len(long) > NAMED else ""
        message = f"Rows may have {most} tokens; longer: {named}{more}. Shorten them."
        raise JobFailed(f"invalid_{param}", message, param)
    return taught


@dataclass(frozen=True)
class Start:
    """The model that a job begins with.

    Attributes:
        name: What the policy calls its base model.
        base: The base model: a folder, or a hub id.
        adapter: The adapter that is gone on with; `None` for a new one.
        model: Both, as a workflow takes them.
    """

    name: str
    base: str
    adapter: Path | None
    model: str


def find_start(run: Running, home: Path) -> Start:
    """Return the model that a job begins with; that of an earlier job is fetched into the folder.

    Args:
        run: The job.
        home: Where the worker was started, from which a policy's relative paths go.

    Raises:
        JobFailed: There is no such model any more.
        Away: The store cannot be used.
    """
    models = run.policy.models

    def found(session: object) -> Model | None:
        return Tenant(session, run.claim.org, run.claim.worker).find(Model, run.job.model)  # type: ignore[arg-type]

    name = run.job.model
    fetched: Path | None = None
    if name not in models:
        tuned = run.read(found)
        if tuned is None or tuned.base not in models:
            raise JobFailed("model_not_found", f"There is no model `{name}` any more.", "model")
        if tuned.held is not None:
            raise JobFailed("model_held", f"The model `{name}` is held: {tuned.held}.", "model")
        name, fetched = tuned.base, Path("start")
        with run.storing():
            run.service.store.get_folder(tuned.place, fetched)
    located = from_home(models[name], home)
    base, adapter = split_adapter(located)
    refuse_quantised(base, NOT_QUANTISED)
    if fetched is not None:
        return Start(name, base, fetched, str(fetched))
    return Start(name, base, adapter, located)


def from_home(name: str, home: Path) -> str:
    """Return a name with an absolute path in the place of one that goes from where the worker was started."""
    path = home / Path(name).expanduser()
    return str(path) if path.exists() else name
