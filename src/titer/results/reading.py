"""Plain JSON to the objects that wrote it, and back: one reader and one writer for every result that titer keeps.

What a class says of its fields is what a file must hold: names, types, which may be missing (those with a default). A field
whose name Python has taken says the file's name in its metadata, `field(metadata={"key": "in"})`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

from titer.errors import TiterError, check_known

T = TypeVar("T")


def typed(kind: type[T], value: Any, place: str, numbers: bool = False) -> T:
    """Return what a JSON value says, as `kind`: a dataclass, a named tuple, a plain type, or lists and mappings of these.

    Args:
        kind: The class.
        value: What `json.loads` gave.
        place: Where it stands, for errors: `scorecard.json: resistance`.
        numbers: Whether `null` may stand for a number that JSON has no word for: infinite where it is the upper end of an
            interval (`high`), no number (NaN) elsewhere.

    Raises:
        TiterError: Naming place and key, for an unknown or missing key or a value of another type.
    """
    made: T = _reader(typing.cast(typing.Hashable, kind))(value, place, numbers)
    return made


Reader = Callable[[Any, str, bool], Any]


@cache
def _reader(kind: Any) -> Reader:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda value, place, numbers: value
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _object(kind)
    if origin in (types.UnionType, typing.Union):
        return _union(inner)
    if origin is typing.Literal:
        return _literal(inner)
    if origin in (list, tuple):
        return _several(origin, _reader(inner[0]))
    if origin is dict:
        one = _reader(inner[1])
        return lambda value, place, numbers: {
            key: one(item, f"{place}.{key}", numbers) for key, item in _want(dict, value, place).items()
        }
    if kind is float:
        return _number
    if getattr(origin, "__name__", "") == "ndarray":
        return _array(typing.get_args(inner[1])[0])
    return lambda value, place, numbers: _want(kind, value, place)


def _literal(known: tuple[Any, ...]) -> Reader:
    def read(value: Any, place: str, numbers: bool) -> Any:
        check_known([_want(str, value, place)], known, f"value of {place}")
        return value

    return read


def _array(scalar: Any) -> Reader:
    import numpy as np

    read = _several(list, _number)
    return lambda value, place, numbers: np.array(read(value, place, numbers), dtype=scalar)


def _want(kind: type, value: Any, place: str) -> Any:
    # A bool is an int in Python, and none in JSON.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TiterError(f"{place}: expected {_NAMES.get(kind, kind.__name__)}, got {_short(value)}.")
    return value


_NAMES = {dict: "a JSON object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}


def _short(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _number(value: Any, place: str, numbers: bool) -> float:
    if value is None and numbers:
        return math.inf if place.endswith(".high") else math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TiterError(f"{place}: expected a number, got {_short(value)}.")
    return float(value) if isinstance(value, int) else value


def _several(kind: Any, one: Reader) -> Reader:
    return lambda value, place, numbers: kind(
        one(item, f"{place}[{number}]", numbers) for number, item in enumerate(_want(list, value, place))
    )


def _union(kinds: tuple[Any, ...]) -> Reader:
    readers = [_reader(kind) for kind in kinds if kind is not types.NoneType]
    optional = types.NoneType in kinds

    def read(value: Any, place: str, numbers: bool) -> Any:
        if value is None and optional:
            return None
        for reader in readers[:-1]:
            try:
                return reader(value, place, numbers)
            except TiterError:
                continue
        return readers[-1](value, place, numbers)

    return read


def _object(kind: Any) -> Reader:
    hints = typing.get_type_hints(kind)
    known = {key: (name, required, _reader(hints[name])) for name, key, required in _fields(kind)}

    def read(value: Any, place: str, numbers: bool) -> Any:
        found = _want(dict, value, place)
        check_known(found, known, f"key in {place}")
        made = {}
        for key, (name, required, one) in known.items():
            if key in found:
                made[name] = one(found[key], f"{place}.{key}", numbers)
            elif required:
                raise TiterError(f"{place}: the key `{key}` is missing.")
        try:
            return kind(**made)
        except TiterError as error:
            raise TiterError(f"{place}: {error.message}", error.hint) from None

    return read


def _fields(kind: Any) -> Iterator[tuple[str, str, bool]]:
    """Each field's name, its key in a file, and whether it must be there."""
    if hasattr(kind, "_fields"):
        yield from ((name, name, name not in kind._field_defaults) for name in kind._fields)
        return
    for item in dataclasses.fields(kind):
        required = item.default is item.default_factory is dataclasses.MISSING
        yield item.name, item.metadata.get("key", item.name), required


def plain(value: Any) -> Any:
    """Return dataclasses, named tuples and arrays as plain JSON data; numbers that JSON has no word for become null."""
    if (dataclasses.is_dataclass(value) and not isinstance(value, type)) or hasattr(value, "_fields"):
        return {key: plain(getattr(value, name)) for name, key, _ in _fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
