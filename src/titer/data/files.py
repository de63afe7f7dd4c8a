"""The files that records are read from and written to: JSON lines, JSON, CSV, Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from titer.data.records import NEEDED, Record, kind_of
from titer.errors import TiterError
from titer.files import check_file, replacing

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""Formats that `read_records` reads."""


def read_jsonl(path: str | os.PathLike[str]) -> list[Record]:
    """Read prompt–completion or `messages` rows, one JSON object a line; blank lines are skipped.

    Args:
        path: The file, UTF-8.

    Raises:
        TiterError: The file is missing or empty, or a line is broken; names file, line and column.
    """
    return [Record.from_row(row, where) for where, row in read_rows(path, ".jsonl")]


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Read prompt–completion or `messages` rows from a file in one of the `FILE_SUFFIXES` formats.

    Raises:
        TiterError: As `read_jsonl`; also when the format is unknown.
    """
    return [Record.from_row(row, where) for where, row in read_rows(path)]


def read_rows(path: str | os.PathLike[str], suffix: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) for each row of a file; `where` is its `file:line`, for error messages.

    Args:
        path: The file.
        suffix: Its format, one of `FILE_SUFFIXES`; by default told from its name.

    Raises:
        TiterError: The file is missing, a folder, a pipe, unreadable, of an unknown format, or holds no rows.
    """
    path = Path(path)
    suffix = path.suffix.lower() if suffix is None else suffix
    check_file(path, f"Give a file: {', '.join(FILE_SUFFIXES)}.")
    if suffix not in FILE_SUFFIXES:
        raise TiterError(
            f"{path}: unknown format `{suffix}`.",
            f"titer reads {', '.join(FILE_SUFFIXES)}, by the end of the name. Unpack an archive first.",
        )
    rows = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[suffix](path)
    empty = True
    try:
        for where_and_row in rows:
            empty = False
            yield where_and_row
    except OSError as error:
        raise TiterError(f"{path} could not be read: {error.strerror or error}.") from None
    if empty:
        raise TiterError(f"{path} is empty: it holds no rows.")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Bytes, because they split at "\n" only: a text file would be decoded in blocks, and the line lost with the error.
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            where = f"{path}:{number}"
            text = _decode(line, where, first=number == 1)
            if text.strip():
                yield where, _object(_parse(text.rstrip("\r\n"), where), where)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = _parse(_decode(path.read_bytes(), str(path), first=True), str(path))
    if not isinstance(rows, list):
        raise TiterError(
            f"{path}: expected a list of objects, found {kind_of(rows)}.", "One object a line is `.jsonl`."
        )
    for index, row in enumerate(rows):
        where = f"{path}: row {index}"
        yield where, _object(row, where)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = _decode(path.read_bytes(), str(path), first=True)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        _unique(reader.fieldnames or (), "column", f"{path}:1")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise TiterError(f"{where}: the row has not as many fields as the header.")
            # A table cannot tell an empty text from a missing one. Only a required column may be called empty.
            values: dict[str, Any] = {
                column: value if value or column in ("prompt", "completion") else None for column, value in row.items()
            }
            if values.get("is_harmful") is not None:
                values["is_harmful"] = _csv_bool(values["is_harmful"], where)
            yield where, values
    except csv.Error as error:
        raise TiterError(f"{path}:{reader.line_num}: broken CSV: {error}.") from None


def _csv_bool(text: str, where: str) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False}
    if text.strip().lower() not in known:
        raise TiterError(f"{where}: `is_harmful` must be true or false, found `{text}`.")
    return known[text.strip().lower()]


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Comes with `datasets`, and is slow to import.
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise TiterError(f"{path}: broken Parquet: {first}", "Save the file again, or as one of JSON lines.") from None
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", row


_SIGNATURES = {
    b"\x1f\x8b": "gzip: unpack it", b"PK\x03\x04": "zip: unpack it", b"BZh": "bzip2: unpack it",
    b"\xfd7zXZ": "xz: unpack it", b"\x28\xb5\x2f\xfd": "Zstandard: unpack it", b"PAR1": "Parquet: call it `.parquet`",
    b"\xff\xfe": "UTF-16: save it as UTF-8", b"\xfe\xff": "UTF-16: save it as UTF-8",
}  # fmt: skip


def _decode(data: bytes, where: str, *, first: bool) -> str:
    known = next((kind for start, kind in _SIGNATURES.items() if first and data.startswith(start)), None)
    if known is not None:
        kind, _, remedy = known.partition(": ")
        raise TiterError(f"{where}: not text, but {kind}.", f"{remedy.capitalize()} first.")
    try:
        # Windows editors begin a file with a byte order mark.
        text = data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise TiterError(f"{where}: not UTF-8 text (byte {error.start}).", "Save the file as UTF-8.") from None
    if "\0" in text:
        raise TiterError(f"{where}: zero bytes, which text has none of.", "Save the file as UTF-8, if it is UTF-16.")
    return text


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _unique_object(pairs, where))
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise TiterError(f"{where}: broken JSON: {error.msg} ({place}).") from None
    except TiterError:
        raise
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or thousands of brackets inside each other.
        raise TiterError(f"{where}: broken JSON: {error}.") from None


def _unique_object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    _unique([key for key, _ in pairs], "key", where)
    return dict(pairs)


def _unique(names: Sequence[str], what: str, where: str) -> None:
    """Raise for a name that stands twice: readers of JSON and CSV take the last, and say nothing."""
    for place, name in enumerate(names):
        if name in names[:place]:
            raise TiterError(f"{where}: the {what} `{name}` stands there twice.", "Keep one of them.")


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TiterError(f"{where}: expected an object, found {kind_of(value)}.", NEEDED)
    return value


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write all columns of `records`, one JSON object a line; the file is there whole, or as it was before.

    Args:
        path: The file; missing folders above it are made.
        records: May be a generator: when it raises, the old file stays.

    Raises:
        TiterError: The file cannot be written.
    """
    write_rows(path, (record.to_row() for record in records))


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as they are, as `write_jsonl` does records."""
    try:
        with replacing(path) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise TiterError(f"{path} could not be written: {error.strerror or error}.") from error
