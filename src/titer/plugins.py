"""What comes from outside of titer: finding it by its import path, and a hash of the source that it runs."""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from titer.errors import TiterError, check_known, did_you_mean

_PATH = re.compile(r"(?P<module>[^\s:@][^:@]*):(?P<name>[A-Za-z_]\w*)")

_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}


def is_path(name: str) -> bool:
    """Whether a name is an import path: `package.module:NAME` or `file.py:NAME`."""
    return _PATH.fullmatch(name) is not None


def absolute(name: str) -> str:
    """Return a name that leads to the same thing from every folder: the file of an import path by its whole path."""
    found = _PATH.fullmatch(name)
    if found is None or not found["module"].endswith(".py"):
        return name
    return f"{Path(found['module']).resolve()}:{found['name']}"


def find(name: str, table: Mapping[str, Any], kind: str) -> Any:
    """Return what a table of titer's has under a name, or what an import path names.

    Args:
        name: A name, or `package.module:NAME`, or `file.py:NAME` (from the folder that the command runs in).
        table: Objects, or the import paths of those to be loaded when they are wanted, by name.
        kind: What they are, for errors (`align method`).

    Raises:
        TiterError: For an unknown name, with a suggestion; for a path that leads nowhere, or to code that fails.
    """
    if name not in table and is_path(name):
        return load(name)
    check_known([name], table, kind)
    entry = table[name]
    return load(entry) if isinstance(entry, str) else entry


def load(path: str) -> Any:
    """Import what `package.module:NAME` or `file.py:NAME` names. This runs the module's code.

    Raises:
        TiterError: When there is no such module or name in it, or its code fails.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        raise TiterError(f"`{path}` is no import path.", "Write `package.module:NAME`, or `file.py:NAME`.")
    module = _file(found["module"]) if found["module"].endswith(".py") else _module(found["module"])
    if not hasattr(module, found["name"]):
        mine = [
            name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)
        ]
        raise TiterError(f"`{found['module']}` has no `{found['name']}`.", did_you_mean(found["name"], mine))
    return getattr(module, found["name"])


_classes: dict[str, type] = {}
_from_files: dict[str, Path] = {}
"""Names of modules that were imported from a file by its path."""


def class_path(kind: type) -> str:
    """Return the import path of a class, with which `class_at` finds it again: in this process, or in any where it has one."""
    # What was imported from a file by its path has a name that only this process knows.
    own = kind.__module__ in _from_files
    path = f"{_from_files[kind.__module__] if own else kind.__module__}:{kind.__qualname__}"
    _classes[path] = kind
    return path


def class_at(path: str) -> Any:
    """Return the class of an import path.

    Raises:
        TiterError: When there is none, or it was made where another process cannot find it: in a notebook, or by a function.
    """
    if path in _classes:
        return _classes[path]
    if "<locals>" in path or path.startswith("__main__:"):
        raise TiterError(f"`{path}` cannot be imported by another process.", "Define the class in a file.")
    return load(path)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise failed(name, error) from error
        raise TiterError(
            f"There is no module `{name}`.", "Install it, or name a file: `file.py:NAME`, from the folder you are in."
        ) from error
    except Exception as error:
        raise failed(name, error) from error


def _file(name: str) -> ModuleType:
    """Import a file as a module; what lies beside it can be imported from it, as if it were a script."""
    path = Path(name).resolve()
    if not path.is_file():
        raise TiterError(f"There is no file `{name}`.", f"Looked for {path}.")
    # By its place, so that files of the same name are two modules, and a file that is named twice is one.
    alias = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None
    assert spec.loader is not None
    _from_files[alias] = path
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[alias]
        raise failed(name, error) from error
    return module


def failed(name: str, error: Exception, how: str = "cannot be imported") -> TiterError:
    """Return the error that says where somebody's code failed."""
    if isinstance(error, TiterError):
        return error
    if isinstance(error, SyntaxError):
        return TiterError(f"`{name}` is not Python: {error}.")
    last = traceback.extract_tb(error.__traceback__)[-1]
    return TiterError(f"`{name}` {how}: {type(error).__name__}: {error}.", f"At {last.filename}:{last.lineno}.")


def made(maker: Any, name: str, **settings: Any) -> Any:
    """Call what the import path `name` named, with settings if there are any.

    Raises:
        TiterError: When it cannot be called, has no such setting, or fails; names it.
    """
    if not callable(maker):
        raise TiterError(f"`{name}` cannot be called: it is {what(maker)}.")
    if settings:
        taken = inspect.signature(maker).parameters.values()
        named = [one.name for one in taken if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        if not any(one.kind is one.VAR_KEYWORD for one in taken):
            check_known(list(settings), named, f"setting of `{name}`")
    try:
        return maker(**settings)
    except TiterError:
        raise
    except Exception as error:
        raise failed(name, error, "fails") from error


def what(thing: Any) -> str:
    """Return what kind of thing something is, for errors."""
    return f"the class `{thing.__name__}`" if isinstance(thing, type) else f"a `{type(thing).__name__}`"


def source_digest(*things: Any) -> str:
    """Return a hash of which classes, functions or objects these are, and of the source of all that is not titer's.

    Of titer's own source the versions of kinds of jobs count instead (`titer.jobs.job.Kind`). Of a class from
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
            # Code in a notebook has no file to hash, so what its names refer to is hashed instead.
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
