"""Settings files: YAML becomes frozen dataclasses, and what does not fit is an error that names the key."""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from titer.errors import MOST, TiterError, check_known, did_you_mean
from titer.files import read_text
from titer.ranges import check_range, numbers, range_of


class _Loader(yaml.SafeLoader):
    """Reads YAML in which no key stands twice, and in which `1e-4` is a number, as it is in YAML 1.2.

    By itself the library takes the last of two keys and says nothing, and reads as text what has no point or no sign.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping as plain data."""
        seen: list[str] = []
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key `{key.value}` stands there twice", key.start_mark
                    )
                seen.append(key.value)
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def build(kind: Any, values: Any, where: str) -> Any:
    """Build a settings class from plain data; unknown keys and wrong types are errors that name the key."""
    if not isinstance(values, dict):
        raise TiterError(f"`{where}` must be a mapping, found {type(values).__name__}.")
    hints = typing.get_type_hints(kind)
    listing = f"titer settings {kind.__name__.lower()}" if len(hints) > MOST else None
    check_known(values, hints, f"key in `{where}`", listing)
    for item in dataclasses.fields(kind):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in values:
            raise TiterError(f"`{where}` lacks the key `{item.name}`.")
    made = {name: _value(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    for name, optional in numbers(kind).items():
        if name in made and not (optional and made[name] is None):
            check_range(name, made[name], f"{where}.{name}", range_of(kind, name))
    return kind(**made)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin is list:
        (inner,) = typing.get_args(hint)
        if isinstance(value, str) and inner is str:
            value = [value]
        if not isinstance(value, list):
            raise TiterError(f"`{where}` must be a list, found `{value}`.", f"Write [{value}].")
        return [_value(inner, item, f"{where}[{place}]") for place, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise TiterError(f"`{where}` must be a mapping, found `{value}`.")
        _, inner = typing.get_args(hint)
        return {str(key): _value(inner, item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
        return _value(hint, value, where)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        if hint is str:
            raise TiterError(
                f"`{where}` must be text, found `{value}`.", "Put text that reads as something else in quotes."
            )
        raise TiterError(f"`{where}` must be {hint.__name__}, found `{value}`.")
    return value


def bundled(folder: str) -> dict[str, Path]:
    """Return the settings files that come with titer in `folder` (`experiments`, `profiles`), by name."""
    installed = Path(__file__).parent / folder
    found = installed if installed.is_dir() else Path(__file__).parents[2] / folder
    return {path.stem: path for path in sorted(found.glob("*.yaml"))}


def read(
    kind: Any,
    path: str | Path,
    known: str | Mapping[str, Path],
    what: str,
    check: Callable[[Any], None],
    overrides: Sequence[str] = (),
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Any:
    """Read a settings file.

    Args:
        kind: The dataclass it becomes.
        path: A YAML file, or the name of a bundled one.
        known: The bundled ones by name, or the folder where they are.
        what: What the file describes, for errors (`experiment`).
        check: Raises for what no single value of it shows.
        overrides: `key=value` pairs such as `finetune.training.max_steps=40`; values are YAML.
        change: What is made of the file's values before these.

    Raises:
        TiterError: For a missing or broken file, an unknown key (with a suggestion) or a wrong value.
    """
    known = bundled(known) if isinstance(known, str) else known
    if not os.path.isfile(path) and str(path) in known:
        path = known[str(path)]
    elif not os.path.lexists(path):
        raise TiterError(f"No {what} at `{path}`.", did_you_mean(str(path), known))
    text = read_text(path, "Name a YAML file, in UTF-8.")
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise TiterError(f"{path}: expected a mapping.", f"Start from a bundled one: {', '.join(known)}.")
    changes = parse_settings(overrides)
    try:
        values = change(values) if change else values
    except TiterError as error:
        raise TiterError(f"{path}: {error.message}", error.hint) from None
    for key, value in changes.items():
        _override(values, key, value)
    try:
        made = build(kind, values, what)
        check(made)
        return made
    except TiterError as error:
        raise TiterError(f"{path}: {error.message}", error.hint) from None


def parse_yaml(text: str, where: str) -> Any:
    """Return the plain data of a YAML document; `where` it stands, for errors.

    Raises:
        TiterError: Naming the line, where it is not valid.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise TiterError(f"{where}:{line}: not valid YAML: {error.problem}.") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # odd characters, dates that are none, endless nesting
        raise TiterError(f"{where}: not valid YAML: {' '.join(str(error).split())}.") from error


def parse_settings(texts: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Return settings that were given as `key=value`, by key; one that is given twice is an error.

    Args:
        texts: As `parse_setting` takes them.
        option: What they were given with.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, value = parse_setting(text, option)
        for other in found:
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise TiterError(
                    f"`{option} {key}` is given twice."
                    if key == other
                    else f"`{option} {key}` and `{option} {other}` set the same.",
                    "Give it once.",
                )
        found[key] = value
    return found


def parse_setting(text: str, option: str = "--set") -> tuple[str, Any]:
    """Return key and value of `key=value`, as `--set` takes it; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise TiterError(
            f"`{option} {text}` must look like key=value.", "For example --set learning_rate=1e-4 or seeds='[0, 1]'."
        )
    try:
        return key, yaml.load(value, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise TiterError(f"`{option} {text}`: {error.problem}.") from None
    except yaml.YAMLError:
        raise TiterError(f"`{option} {text}`: `{value}` is not YAML.", "Quote a text: key='\"…\"'.") from None


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    target = values
    *parents, last = key.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise TiterError(f"`--set {key}`: `{parent}` is not a mapping.")
    target[last] = value
