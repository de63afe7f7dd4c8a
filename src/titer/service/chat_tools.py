"""Tools in rows of conversations: whether they are well formed. No row with tools is trained, but its faults are all told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from titer.data.records import kind_of
from titer.errors import did_you_mean
from titer.service.json_lines import Path, shown

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MOST = 128
ENOUGH = 100
FUNCTION = {"name": str, "description": str, "parameters": dict, "strict": bool | None}
CALL = {"name": str, "arguments": str}
KINDS: dict[Any, str] = {str: "text", dict: "an object", bool: "true or false", bool | None: "true, false or null"}


class Faults(list[tuple[Path, str, str]]):
    """Path, message and code of what is wrong with a row."""

    def add(self, path: Path, message: str, code: str = "invalid_row") -> None:
        """Note one more."""
        self.append((path, message, code))

    @property
    def enough(self) -> bool:
        """Whether there are so many that nobody wants to know of more: a row may have hundreds of thousands."""
        return len(self) >= ENOUGH


def check_text(
    value: Any, path: Path, faults: Faults, pattern: re.Pattern[str] | None = None, *, empty: bool = False
) -> None:
    """Check that a value is text, not empty unless it may be, and of a form if one is given."""
    name = path[-1]
    if not isinstance(value, str):
        faults.add(path, f"`{name}` is text, found {kind_of(value)}.")
    elif pattern is not None and not pattern.fullmatch(value):
        said = "up to 64 letters, digits, `_` and `-`"
        faults.add(path, f"`{name}` is {said}, found `{shown(value)}`.")
    elif not value and not empty:
        faults.add(path, f"`{name}` is empty.")


def check_tools(row: Mapping[str, Any], faults: Faults) -> Path | None:
    """Check the tools that a row offers; returns where, if it does."""
    found: Path | None = None
    for key in ("tools", "functions"):
        if row.get(key) is None:
            continue
        listed = row[key]
        found = found or (key,)
        if not isinstance(listed, list) or not 1 <= len(listed) <= MOST:
            faults.add((key,), f"`{key}` is a list of 1 to {MOST}.")
            continue
        for index, tool in enumerate(listed):
            if key == "tools":
                _check_wrapped(tool, ("tools", index), ("type", "function"), FUNCTION, faults)
            else:
                _check_fields(tool, ("functions", index), FUNCTION, ("name",), faults)
    parallel = row.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        faults.add(("parallel_tool_calls",), "`parallel_tool_calls` is true or false.")
    elif parallel is not None and row.get("tools") is None:
        faults.add(("parallel_tool_calls",), "`parallel_tool_calls` goes with `tools`.")
    return found


def check_calls(message: Mapping[str, Any], path: Path, faults: Faults) -> Path | None:
    """Check the calls that an answer makes; returns where, if it does."""
    calls, call = message.get("tool_calls"), message.get("function_call")
    if call is not None:
        _check_fields(call, (*path, "function_call"), CALL, ("name", "arguments"), faults)
    if calls is None:
        return None if call is None else (*path, "function_call")
    own = (*path, "tool_calls")
    if not isinstance(calls, list) or not calls:
        faults.add(own, "`tool_calls` is a list of at least one.")
    else:
        for index, wrapped in enumerate(calls):
            if faults.enough:
                break
            _check_wrapped(wrapped, (*own, index), ("id", "type", "function"), CALL, faults)
    return own


def _check_wrapped(value: Any, path: Path, keys: tuple[str, ...], kinds: Mapping[str, Any], faults: Faults) -> None:
    """Check a tool, or a call of one: an object of type `function`."""
    if not isinstance(value, dict):
        faults.add(path, f"an object with {', '.join(f'`{key}`' for key in keys)}, found {kind_of(value)}.")
        return
    _unknown(value, keys, path, faults)
    if "id" in keys:
        check_text(value.get("id"), (*path, "id"), faults)
    if value.get("type") != "function":
        faults.add((*path, "type"), "`type` is `function`.")
    needed = ("name", "arguments") if kinds is CALL else ("name",)
    _check_fields(value.get("function"), (*path, "function"), kinds, needed, faults)


def _check_fields(value: Any, path: Path, kinds: Mapping[str, Any], needed: tuple[str, ...], faults: Faults) -> None:
    if not isinstance(value, dict):
        faults.add(path, f"an object with `name`, found {kind_of(value)}.")
        return
    _unknown(value, tuple(kinds), path, faults)
    for key in needed:
        if key not in value:
            faults.add((*path, key), f"`{key}` is missing.")
    for key, kind in kinds.items():
        if key in value and not isinstance(value[key], kind):
            faults.add((*path, key), f"`{key}` is {KINDS[kind]}, found {kind_of(value[key])}.")
    if isinstance(value.get("name"), str):
        check_text(value["name"], (*path, "name"), faults, NAME)


def _unknown(value: Mapping[str, Any], known: tuple[str, ...], path: Path, faults: Faults) -> None:
    for key in value:
        if key not in known and not faults.enough:
            faults.add((*path, key), f"unknown: `{shown(key)}`. {did_you_mean(shown(key), known)}")
