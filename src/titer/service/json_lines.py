"""Lines of JSON from strangers: cut without being held whole, read strictly, and every fault with the column it stands at.

Python's reader takes what JSON is not (`NaN`, a key twice, half a character); what it takes in that way is found afterwards.
Columns count characters from 1. Where a value stands is looked up only for those with a fault, so that right rows cost no more
than being read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from json.decoder import JSONDecoder
from typing import Any, NamedTuple, TypeAlias

from titer.text import one_line

LINE = 1 << 20
"""Most bytes of a line; of a longer one no more are held."""
DEPTH = 64
"""How deep lists and objects may lie in each other."""
BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
DIGITS = 32
"""Most characters of a number."""
SPACE = " \t\r\n"

Path: TypeAlias = tuple[str | int, ...]


class Fault(NamedTuple):
    """What is wrong in a line.

    Attributes:
        column: Where, in characters from 1.
        path: In which value.
        message: What.
    """

    column: int
    path: Path
    message: str


class Wrong:
    """Stands in what was read for a value that JSON, or this server, does not take."""

    def __init__(self, message: str) -> None:
        self.message = message


class Lines:
    """Cuts what comes in pieces into lines, without their ends; of one that is too long, only the first `most` + 1 bytes."""

    def __init__(self, most: int = LINE) -> None:
        self._most, self._held, self._begun = most, bytearray(), False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Return the lines that end in a piece."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._add(data, start, end)
            yield bytes(self._held)
            self._held.clear()
            self._begun = False
            start = end + 1
        self._add(data, start, len(data))

    def end(self) -> Iterator[bytes]:
        """Return the last line, where something stands behind the last end of line."""
        if self._begun:
            self._begun = False
            yield bytes(self._held)

    def _add(self, data: bytes, start: int, end: int) -> None:
        self._begun = self._begun or end > start
        self._held += data[start : min(end, start + self._most + 1 - len(self._held))]


def split(chunks: Iterable[bytes], most: int = LINE) -> Iterator[bytes]:
    """Return the lines of a file that comes in pieces, as `Lines`."""
    lines = Lines(most)
    for chunk in chunks:
        yield from lines.feed(chunk)
    yield from lines.end()


def decode(line: bytes) -> str | Fault:
    """Return the text of a line, or what keeps it from being one."""
    if len(line) > LINE:
        return Fault(1, (), f"the line is longer than {LINE:,} bytes.")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        before = len(line[: error.start].decode())
        return Fault(before + 1, (), f"not UTF-8: the byte 0x{line[error.start]:02x}. Save the file as UTF-8.")
    if "\0" in text:
        return Fault(text.index("\0") + 1, (), "a NUL byte; JSON is text.")
    return text


def parse(text: str) -> tuple[Any, list[Fault]]:
    """Read a line.

    Returns:
        What it holds, and what is wrong with it as JSON. Where a fault is no matter of one value, there is nothing else.
    """
    too_deep = _too_deep(text)
    if too_deep is not None:
        return None, [Fault(too_deep + 1, (), f"lists and objects lie more than {DEPTH} deep in each other.")]
    marks: list[Wrong] = []

    def wrong(message: str) -> Wrong:
        marks.append(Wrong(message))
        return marks[-1]

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    found[key] = wrong(f"the key `{shown(key)}` stands here twice.")
                seen.add(key)
        return found

    def integer(digits: str) -> Any:
        return int(digits) if len(digits) <= DIGITS else wrong(f"a number of {len(digits):,} digits.")

    def real(digits: str) -> Any:
        value = float(digits) if len(digits) <= DIGITS else math.inf
        return value if math.isfinite(value) else wrong(f"the number {shown(digits)} is too long or too large.")

    try:
        value = json.loads(
            text, object_pairs_hook=unique, parse_int=integer, parse_float=real,
            parse_constant=lambda name: wrong(f"`{name}` is no JSON."),
        )  # fmt: skip
    except json.JSONDecodeError as error:
        return None, [Fault(error.pos + 1, (), f"not JSON: {error.msg}.")]
    if not marks and not _SURROGATE.search(text):
        return value, []
    return value, [Fault(column(text, path), path, message) for path, message in _strange(value)]


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(_STRING.pattern + r"|[\[{]|[\]}]", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _too_deep(text: str) -> int | None:
    """Return where a line nests deeper than `DEPTH`, so that nothing that reads it runs out of stack."""
    if text.count("[") + text.count("{") <= DEPTH:
        return None
    # Taking out the innermost ones again and again is fast also where there are very many.
    left = _STRING.sub("", text).encode().translate(None, _NO_BRACKETS)
    for _ in range(DEPTH):
        if not left:
            return None
        left = left.replace(b"[]", b"").replace(b"{}", b"")
    depth = 0
    for found in _BRACKETS.finditer(text) if left else ():
        first = found[0][0]
        depth += 1 if first in "[{" else -1 if first in "]}" else 0
        if depth > DEPTH:
            return found.start()
    return None


def _strange(value: Any) -> Iterator[tuple[Path, str]]:
    """Return what was read in spite of not being JSON, or holds half a character."""
    waiting: list[tuple[Path, Any]] = [((), value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Wrong):
            yield path, value.message
        elif isinstance(value, str) and not _whole(value):
            yield path, "half a character (a lone surrogate)."
        elif isinstance(value, dict):
            halves = [key for key in value if not _whole(key)]
            if halves:
                yield path, f"the key `{shown(halves[0])}` holds half a character (a lone surrogate)."
            waiting += [((*path, key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [((*path, index), inner) for index, inner in reversed(list(enumerate(value)))]


def _whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- where a value stands -------------------------------------------------------------------------------------------------

_SKIP = JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)


def column(text: str, path: Path) -> int:
    """Return the column of a value of a line that can be read; of one that is not there, that of what should hold it."""
    at = _next(text, 0)
    for step in path:
        found = _within(text, at, step)
        if found is None:
            break
        at = found
    return at + 1


def _within(text: str, at: int, step: str | int) -> int | None:
    """Return where a value of the list or object that begins at a place begins; of a key that stands twice, the first."""
    is_object = text[at] == "{"
    index = 0
    at = _next(text, at + 1)
    while text[at] not in "]}":
        key: str | int = index
        if is_object:
            key, at = _SKIP.raw_decode(text, at)
            at = _next(text, _next(text, at) + 1)  # behind the colon
        if key == step:
            return at
        at = _next(text, _SKIP.raw_decode(text, at)[1])
        if text[at] == ",":
            at = _next(text, at + 1)
        index += 1
    return None


def _next(text: str, at: int) -> int:
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


# -- for people -----------------------------------------------------------------------------------------------------------


def shown(text: str, width: int = 40) -> str:
    """Return a stranger's text for a message: on one line, and short."""
    text = one_line(text[: 4 * width])
    return text if len(text) <= width else f"{text[:width]}…"


def spell(path: Path) -> str:
    """Return a path as people write it: `messages[2].content`."""
    words = [f"[{step}]" if isinstance(step, int) else f".{shown(step)}" for step in path]
    return "".join(words).removeprefix(".")
