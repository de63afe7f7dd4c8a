"""What comes from outside of titer: a hash of the source that a trainer, a judge or an attack runs."""

from __future__ import annotations

import builtins
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}


def source_digest(*things: Any) -> str:
    """Return a hash of which classes, functions or objects these are, and of the source of all that is not titer's.

    titer's own source and the versions of its libraries are hashed apart (`titer.plan.code_digest`). Of a class from
    elsewhere, and of those that it inherits from, count

    - the files of their modules, and of the modules that those name, short of other installed packages;
    - the code that is loaded, with the values that it closes over: a file may have been edited since it was imported, and
      of a class that is made in a notebook or by a function no file says all.

    What is imported within a function only, or read from a file, does not count. Of an object its class counts, not its
    values.
    """
    parts: list[Any] = []
    for thing in things:
        kind = thing if isinstance(thing, type | FunctionType) else type(thing)
        home = kind.__module__.partition(".")[0]
        mine = [part for part in getattr(kind, "__mro__", [kind]) if _counts(part.__module__, home) or _homeless(part)]
        parts += [f"{kind.__module__}.{kind.__qualname__}", _files((part.__module__ for part in mine), home)]
        parts += [_code(part) if isinstance(part, FunctionType) else _members(part) for part in mine]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _counts(module: str, home: str) -> bool:
    """Whether a module's source counts for a class whose top-level package is `home`."""
    top = module.partition(".")[0]
    if top == "titer" or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return top == home or file is None or _INSTALLED.isdisjoint(Path(file).parents)


def _homeless(kind: Any) -> bool:
    """Whether a class says that it is Python's own and is not: one that was made by `exec`."""
    return kind.__module__ == "builtins" and getattr(builtins, kind.__name__, None) is not kind


def _files(modules: Iterable[str], home: str) -> dict[str, str]:
    """Return a hash of the file of each module that counts, and of those that they name."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in found or module is None or not _counts(name, home):
            continue
        file = Path(getattr(module, "__file__", None) or "")
        found[name] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
        for value in vars(module).values():
            if isinstance(value, ModuleType):
                waiting.append(value.__name__)
            else:
                waiting.append((value if isinstance(value, type | FunctionType) else type(value)).__module__)
    return dict(sorted(found.items()))


def _members(kind: type) -> dict[str, Any]:
    """Return what a class itself defines, as plain data."""
    return {
        name: _code(value)
        for name, value in sorted(vars(kind).items())
        if callable(value) or not (name.startswith("__") and name.endswith("__"))
    }


def _code(value: Any, within: tuple[FunctionType, ...] = ()) -> Any:
    """Return code, or a value that it uses, as plain data that is the same in every process.

    Args:
        value: Anything; of what is neither code nor plain data the class alone is told.
        within: The functions whose code is being told, since one may call itself.
    """
    if isinstance(value, CodeType):
        constants = [_code(constant, within) for constant in value.co_consts]
        return [value.co_code.hex(), value.co_exceptiontable.hex(), value.co_names, constants]
    if isinstance(value, FunctionType) and value not in within:
        uses = _closed_over(value)
        if getattr(sys.modules.get(value.__module__), "__file__", None) is None:
            # No file tells what the names of a notebook stand for.
            uses += [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, uses)
        return [_code(part, (*within, value)) for part in parts]
    if isinstance(value, staticmethod | classmethod):
        return _code(value.__func__, within)
    if isinstance(value, property):
        return [_code(value.fget, within), _code(value.fset, within)]
    if isinstance(value, tuple | list):
        return [_code(item, within) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_code(item, within)) for item in value)
    if isinstance(value, dict):
        return [[_code(key, within), _code(item, within)] for key, item in value.items()]
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    kind = value if isinstance(value, type | FunctionType) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _closed_over(function: FunctionType) -> list[Any]:
    """Return the values that a function closes over, as far as they are there yet."""
    values = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            values.append(cell.cell_contents)
    return values
