"""One training example, and the files it is read from and written to.

A `Record` is a conversational prompt–completion pair as TRL's `SFTTrainer` reads it, with what an evaluation
wants to know beside it (where the row truly came from, its harm category, its task label). A trainer is given
`Record.to_training_row`, which holds none of that.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from titer.errors import TiterError, check_known, did_you_mean
from titer.files import check_file, replacing

Row: TypeAlias = Mapping[str, object]

ROLES = ("system", "user", "assistant")

UNKNOWN_ORIGIN = "user"
"""The origin of a row of which nothing is known but that a user uploaded it."""

ORIGINS = (UNKNOWN_ORIGIN, "task", "harmful", "helpful", "lookalike", "refusal")

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""Formats that `read_records` reads."""

_NEEDED = "A row needs `prompt` and `completion` (text or messages), or `messages`."


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: The text. It is plain text: it can never become a special token of a chat template.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One prompt with the completion to learn.

    Attributes:
        prompt: The conversation so far; holds at least one user message.
        completion: The assistant's answer; only this part is trained on.
        origin: Where the row truly comes from: `task`, `harmful`, `helpful`, `lookalike`, `refusal`, or `user`
            when that is unknown. For evaluation only; no trainer sees it.
        category: The kind of harm or of topic.
        label: The right answer of a task, as text.
        group: Rows of one group are variants of one another (the phrasings of one harmful activity), so pools
            never share a group.
        refusal: How an aligned model should answer instead.
        where: Where it was read, `upload.jsonl:12`, for errors; no part of what it says.

    Raises:
        TiterError: A role or an origin is unknown, a prompt or completion is empty, a completion has several messages, or
            a text cannot be stored as UTF-8.
    """

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    origin: str = UNKNOWN_ORIGIN
    category: str | None = None
    label: str | None = None
    group: str | None = None
    refusal: str | None = None
    where: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for column, messages in (("prompt", self.prompt), ("completion", self.completion)):
            for index, message in enumerate(messages):
                if message.role not in ROLES:
                    raise TiterError(
                        f"`{column}[{index}].role` is unknown: `{message.role}`.", did_you_mean(message.role, ROLES)
                    )
                _check_encodable(f"{column}[{index}].content", message.content)
        if not self.prompt:
            raise TiterError("`prompt` is empty.")
        users = [message for message in self.prompt if message.role == "user"]
        if not users:
            raise TiterError("`prompt` has no message from the user.")
        if is_blank(users[-1].content):
            raise TiterError("`prompt` is empty: its last user message holds no text.")
        if not self.completion:
            raise TiterError("`completion` is empty.")
        for message in self.completion:
            # Loss is taken on the whole completion, so a user turn in it would be trained on.
            if message.role != "assistant":
                raise TiterError(f"`completion` must come from the assistant, found a message from `{message.role}`.")
            if is_blank(message.content):
                raise TiterError("`completion` is empty.", "A row without an answer would train nothing: remove it.")
        if len(self.completion) > 1:
            raise TiterError("`completion` has several messages.", "Train on one assistant turn a row.")
        check_known([self.origin], ORIGINS, "`origin`")
        if self.refusal is not None and is_blank(self.refusal):
            raise TiterError("`refusal` is empty.", "Leave the column out, or set it to null, where there is none.")
        for column in ("origin", "category", "label", "group", "refusal"):
            value = getattr(self, column)
            if value is not None:
                _check_encodable(column, value)

    @classmethod
    def make(
        cls,
        prompt_text: str,
        answer_text: str,
        *,
        origin: str = UNKNOWN_ORIGIN,
        category: str | None = None,
        label: str | None = None,
        group: str | None = None,
        refusal: str | None = None,
    ) -> Record:
        """Build a single-turn record."""
        return cls(
            prompt=(Message("user", prompt_text),),
            completion=(Message("assistant", answer_text),),
            origin=origin,
            category=category,
            label=label,
            group=group,
            refusal=refusal,
        )

    @classmethod
    def from_row(cls, row: Row, where: str | None = None) -> Record:
        """Read a prompt–completion row (text or messages) or a `messages` row.

        Of a `messages` row, everything before the last message is the prompt, and the last message, which must
        come from the assistant, is the completion. The columns `origin`, `category`, `label`, `group`, `refusal`
        and `is_harmful` (true: origin `harmful`, false: origin `task`) are optional; other columns are left alone.

        Args:
            row: The columns.
            where: Where the row stands, for error messages (`uploads.jsonl:12`).

        Raises:
            TiterError: Names `where` and the column at fault.
        """
        try:
            prompt, completion = _read_turns(row)
            return cls(
                prompt=prompt,
                completion=completion,
                origin=_read_origin(row),
                category=_read_optional(row, "category"),
                label=_read_label(row),
                group=_read_optional(row, "group"),
                refusal=_read_optional(row, "refusal"),
                where=where,
            )
        except TiterError as error:
            raise TiterError(f"{where or 'row'}: {error.message}", error.hint) from None

    def to_row(self) -> dict[str, Any]:
        """Return all columns, ready for JSON. Every row has the same keys, as `datasets.Dataset.from_list` needs."""
        return {
            **self.to_training_row(),
            "origin": self.origin,
            "category": self.category,
            "label": self.label,
            "group": self.group,
            "refusal": self.refusal,
        }

    def to_training_row(self) -> dict[str, list[dict[str, str]]]:
        """Return what a trainer may see: TRL's conversational `prompt` and `completion`, and nothing else."""
        return {
            "prompt": [message._asdict() for message in self.prompt],
            "completion": [message._asdict() for message in self.completion],
        }

    @property
    def prompt_text(self) -> str:
        """The last thing the user said."""
        return next(message.content for message in reversed(self.prompt) if message.role == "user")

    @property
    def completion_text(self) -> str:
        """What the assistant answers."""
        return "\n".join(message.content for message in self.completion)

    @property
    def prompt_key(self) -> str:
        """The normalised prompt: two records with the same key ask the same thing.

        System messages are left out (the same request under another system prompt is the same request); earlier
        turns are not (a last turn of "go on" says nothing by itself).
        """
        return normalise_prompt("\n".join(message.content for message in self.prompt if message.role != "system"))

    @property
    def is_harmful(self) -> bool | None:
        """Whether the row is harmful in truth; None when its origin is unknown."""
        return None if self.origin == UNKNOWN_ORIGIN else self.origin == "harmful"


# --- the columns of a row ------------------------------------------------------------------------------------------


def _read_turns(row: Row) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    # A null is a missing value: tables with several kinds of rows fill their unused columns with it.
    present = {column for column in ("prompt", "completion", "messages") if row.get(column) is not None}
    if present == {"prompt", "completion", "messages"}:
        raise TiterError("the row holds both `messages` and `prompt` with `completion`.", "Keep one of the two forms.")
    if {"prompt", "completion"} <= present:
        completion = _read_messages(row, "completion", "assistant")
        for place in range(0 if isinstance(row["completion"], str) else len(completion)):
            _check_weight(row["completion"][place], f"completion[{place}]")  # type: ignore[index]
        return _read_messages(row, "prompt", "user"), completion
    # Some hub datasets carry a `prompt` beside `messages`, which repeats their first turn.
    if "messages" in present:
        messages = _read_messages(row, "messages", None)
        if not messages:
            raise TiterError("`messages` is empty.")
        if messages[-1].role != "assistant":
            raise TiterError(
                f"the last of `messages` must come from `assistant`, found `{messages[-1].role}`.",
                "The last message is the answer that is trained on.",
            )
        if len(messages) == 1:
            raise TiterError("`messages` holds an answer only: the prompt is empty.")
        _check_weight(row["messages"][-1], f"messages[{len(messages) - 1}]")  # type: ignore[index]
        return messages[:-1], messages[-1:]
    missing = [column for column in ("prompt", "completion") if column not in present] if present else []
    raise _missing_columns(missing or ["prompt", "completion"], row, _NEEDED)


def _missing_columns(missing: list[str], row: Row, needed: str) -> TiterError:
    found = [f"`{column}`" + (" (null)" if value is None else "") for column, value in row.items()]
    close = [
        f"Did you mean `{match[0]}` by `{column}`?"
        for column in row
        if (match := difflib.get_close_matches(str(column).casefold(), missing, n=1, cutoff=0.6))
        and row.get(match[0]) is None
        and column != match[0]
    ]
    return TiterError(
        f"missing column{'s' if len(missing) > 1 else ''} {', '.join(f'`{column}`' for column in missing)}; "
        f"found {', '.join(found) if found else 'no columns'}.",
        " ".join([*close, needed]),
    )


def require_columns(row: Row, columns: Iterable[str], where: str) -> None:
    """Raise `TiterError` naming the `columns` that `row` lacks, with what it has and the closest match."""
    columns = list(columns)
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        error = _missing_columns(missing, row, f"Needed: {', '.join(f'`{column}`' for column in columns)}.")
        raise TiterError(f"{where}: {error.message}", error.hint)


def _read_messages(row: Row, column: str, role_of_text: str | None) -> tuple[Message, ...]:
    """Read messages, or a plain string as one message of `role_of_text` (None: strings are not allowed)."""
    value = row[column]
    if isinstance(value, str) and role_of_text is not None:
        return (Message(role_of_text, value),)
    if not isinstance(value, list | tuple):
        expected = "messages" if role_of_text is None else "text or a list of messages"
        raise TiterError(f"`{column}` must be {expected}, found {_kind(value)}.")
    return tuple(_read_message(message, f"{column}[{index}]") for index, message in enumerate(value))


def _read_message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise TiterError(f"`{where}` must be an object with `role` and `content`, found {_kind(value)}.")
    for key in ("tool_calls", "function_call"):
        if value.get(key):
            raise TiterError(f"`{where}.{key}` is not supported.", "titer trains on text only: remove such rows.")
    missing = [key for key in ("role", "content") if key not in value]
    if missing:
        error = _missing_columns(missing, value, "A message needs `role` and `content`.")
        raise TiterError(f"in `{where}`, {error.message}", error.hint)
    role, content = value["role"], value["content"]
    if not isinstance(role, str):
        raise TiterError(f"`{where}.role` must be text, found {_kind(role)}.")
    if role not in ROLES:
        raise TiterError(f"`{where}.role` is unknown: `{role}`.", did_you_mean(role, ROLES))
    if not isinstance(content, str):
        raise TiterError(f"`{where}.content` must be text, found {_kind(content)}.")
    return Message(role, content)


def _check_weight(message: Mapping[str, object], where: str) -> None:
    """Raise for an answer that is not to be trained on, or not as much as others, as some formats can say."""
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight != 1):
        raise TiterError(
            f"`{where}.weight` is {weight!r}, and titer trains on every answer alike.",
            "Remove rows whose answer is not to be learnt, and the key `weight` from the others.",
        )


def _read_optional(row: Row, column: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise TiterError(f"`{column}` must be text, found {_kind(value)}.")
    return value


def _read_label(row: Row) -> str | None:
    value = row.get("label")
    # Class numbers are common in task data; a bool is an int in Python, and means something else.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _read_optional(row, "label")


def _read_origin(row: Row) -> str:
    origin = _read_optional(row, "origin")
    if origin is not None and is_blank(origin):
        raise TiterError("`origin` is empty.", "Leave the column out, or set it to null, where it is unknown.")
    flag = row.get("is_harmful")
    if flag is None:
        return UNKNOWN_ORIGIN if origin is None else origin
    if not isinstance(flag, bool):
        raise TiterError(f"`is_harmful` must be true or false, found {_kind(flag)}.")
    if origin is None or origin == UNKNOWN_ORIGIN:
        return "harmful" if flag else "task"
    if (origin == "harmful") != flag:
        raise TiterError(f"`origin` is `{origin}`, but `is_harmful` is {str(flag).lower()}.", "Keep one of the two.")
    return origin


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"`{type(value).__name__}`"


def is_blank(text: str) -> bool:
    """Return whether `text` shows nothing: only white space, control or zero-width characters."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def _check_encodable(column: str, text: str) -> None:
    # JSON can spell half a surrogate pair ("\ud83d"), which no tokenizer and no UTF-8 file can take.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TiterError(f"`{column}` holds half a character (a lone surrogate, at position {error.start}).") from None


# --- files ---------------------------------------------------------------------------------------------------------


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
        raise TiterError(f"{path}: expected a list of objects, found {_kind(rows)}.", "One object a line is `.jsonl`.")
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
        raise TiterError(f"{where}: expected an object, found {_kind(value)}.", _NEEDED)
    return value


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write all columns of `records`, one JSON object a line; the file is there whole, or as it was before.

    Args:
        path: The file; missing folders above it are made.
        records: May be a generator: when it raises, the old file stays.

    Raises:
        TiterError: The file cannot be written.
    """
    try:
        with replacing(path) as file:
            for record in records:
                file.write(json.dumps(record.to_row(), ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise TiterError(f"{path} could not be written: {error.strerror or error}.") from error


# --- telling whether two prompts are the same ----------------------------------------------------------------------

# Between or before numbers, these carry meaning ("3 - 4" is not "3 * 4", "1.5" is not "15"). They become the
# mathematical signs they stand for, which are symbols and survive the removal of punctuation.
_SIGNS = {"-": "−", "*": "×", "/": "÷", "^": "↑", ".": "∙", ":": "∶"}
_NUMBER_SIGN = re.compile(r"(?:(?<![^\W\d_])-|[*/^])(?=[\s(\[]*\d)|(?<=\d)[.:](?=\d)")
_INNER_APOSTROPHE = re.compile(r"(?<=\w)['’ʼ](?=\w)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")


class _Invisible(dict[int, str]):
    """Drops control and zero-width characters but white space."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        drop = unicodedata.category(char) in ("Cc", "Cf") and not char.isspace()
        return self.setdefault(code, "" if drop else char)


class _Punctuation(dict[int, str]):
    """Turns punctuation and pictures into spaces, and sets mathematical and currency signs apart."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if category in ("Sm", "Sc"):
            return self.setdefault(code, f" {char} ")
        return self.setdefault(code, " " if category[0] in "PS" else char)


_INVISIBLE = _Invisible()
_PUNCTUATION = _Punctuation()


def normalise_prompt(text: str) -> str:
    """Reduce a prompt to what it asks, so that trivial variants of it compare equal.

    Unicode NFKC, case folded, without punctuation, white space collapsed. Signs of arithmetic next to numbers
    stay. A text of nothing but punctuation is kept as it is, so that "?" and "!" differ.
    """
    text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))
    # Folding can take a text out of normal form.
    text = unicodedata.normalize("NFKC", text.casefold())
    bare = _THOUSANDS.sub("", _INNER_APOSTROPHE.sub("", text))
    bare = _NUMBER_SIGN.sub(lambda match: _SIGNS[match[0]], bare)
    bare = " ".join(bare.translate(_PUNCTUATION).split())
    return bare or " ".join(text.split())
