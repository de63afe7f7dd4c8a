"""What a provider serves a model with: a system prompt that its user never sees, a router that chooses weights by the prompt.

Whoever holds the weights leaves both off. They are written beside an adapter, not in its folder: who publishes the adapter
does not publish a secret with it. What a router compares with, and the weights that it chooses among, lie in the folder
`router` (`titer.infer.routing`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.data.records import Message, Record, is_blank
from titer.errors import TiterError
from titer.files import read_json, remove, replacing

SCHEMA = "titer/serving/1"
ROUTED = "titer/serving/2"
"""The schema of a file with a router; one without keeps to the first."""
SERVING = "serving.json"
ROUTER = "router"
"""Beside the adapter, the folder of its router."""


@dataclass(frozen=True)
class Router:
    """How a router decides by a prompt whether the refusal adapter answers it (SLDR, arXiv 2610.10345).

    Attributes:
        layer: Behind which layer, from 0, a prompt's last token is looked at.
        top: How many of the largest differences of similarity its score is the mean of.
        threshold: The score above which the refusal adapter is on.
    """

    layer: int
    top: int
    threshold: float

    def __post_init__(self) -> None:
        whole = {"layer": (self.layer, 0), "top": (self.top, 1)}
        for name, (value, low) in whole.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise TiterError(f"`{name}` of a router must be a whole number from {low}, found `{value!s:.80}`.")
        known = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not known or not math.isfinite(self.threshold):
            raise TiterError(f"`threshold` of a router must be a number, found `{self.threshold!s:.80}`.")


@dataclass(frozen=True)
class Serving:
    """What a model is asked with.

    Attributes:
        system: What stands before every conversation's own system prompt, or is it where there is none; empty where there is
            a router alone.
        about: What it is, in a few words, for reports; a secret is not told there.
        router: What chooses the weights by the prompt, if anything does.
    """

    system: str
    about: str
    router: Router | None = None

    def __post_init__(self) -> None:
        if is_blank(self.system) and (self.router is None or self.system):
            raise TiterError("A model that is served with an empty system prompt is served with nothing.")


def served(record: Record, system: str) -> Record:
    """Return a conversation as a service asks it: `system` before its own system prompt, with a space between them."""
    return replace(record, prompt=served_messages(record.prompt, system)) if system else record


def served_messages(prompt: Sequence[Message], system: str) -> tuple[Message, ...]:
    """Return the messages of a conversation, as `served`."""
    if not system:
        return tuple(prompt)
    first, *others = prompt
    if first.role == "system":
        return (Message("system", f"{system} {first.content}"), *others)
    return (Message("system", system), *prompt)


def system_digest(system: str) -> str:
    """Return a hash of a system prompt, for files that do not tell it."""
    return hashlib.sha256(system.encode()).hexdigest()[:16]


def write_serving(folder: Path, serving: Serving | None) -> None:
    """Write `FOLDER/serving.json`, whole or not at all; without anything to serve with, remove what lies there.

    The folder of a router goes where there is none any more; one that is there has been written before.

    Args:
        folder: In which the adapter's folder lies.
        serving: What the adapter is served with.
    """
    path = folder / SERVING
    if serving is None:
        path.unlink(missing_ok=True)
    else:
        found: dict[str, Any] = {"schema": SCHEMA, "about": serving.about, "system": serving.system}
        if serving.router is not None:
            found |= {"schema": ROUTED, "router": dataclasses.asdict(serving.router)}
        with replacing(path) as file:
            file.write(json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")
    if serving is None or serving.router is None:
        remove(folder / ROUTER)


def serving_beside(adapter: Path) -> Path:
    """Return where it would stand what an adapter is served with."""
    return adapter.absolute().parent / SERVING


def read_serving(adapter: Path) -> Serving | None:
    """Return what the adapter in a folder is served with, by the `serving.json` beside the folder; `None` without one.

    The files of a router are not read here (`titer.infer.routing.read_routing`).

    Raises:
        TiterError: For a file that is damaged or of another schema.
    """
    path = serving_beside(adapter)
    if not path.exists():
        return None
    hint = "Write it again by the training that left it, or remove it: the adapter is then asked without."
    found = read_json(path, hint)
    if found.get("schema") not in (SCHEMA, ROUTED):
        raise TiterError(
            f"{path}: `schema` is {found.get('schema')!r}, and `{SCHEMA}` or `{ROUTED}` is what this version reads.",
            hint,
        )
    routed = found["schema"] == ROUTED
    for key in ("about", "system"):
        # A router may stand alone.
        alone = routed and key == "system" and found.get(key) == ""
        if not alone and (not isinstance(found.get(key), str) or is_blank(found[key])):
            raise TiterError(f"{path}: `{key}` holds no text.", hint)
    return Serving(found["system"], found["about"], _router(path, found, hint) if routed else None)


def _router(path: Path, found: dict[str, Any], hint: str) -> Router:
    """Return the router that a file describes."""
    wanted, given = {item.name for item in dataclasses.fields(Router)}, found.get("router")
    if not isinstance(given, dict) or given.keys() != wanted:
        raise TiterError(f"{path}: `router` holds not {', '.join(sorted(wanted))} and nothing else.", hint)
    try:
        return Router(**given)
    except TiterError as error:
        raise TiterError(f"{path}: {error.message}", hint) from error


def refuse_routed(adapter: Path, what: str) -> None:
    """Raise for an adapter that a router chooses: it would go on being chosen by what was measured of other weights.

    Args:
        adapter: The adapter's folder.
        what: What is to be done with it, for the error.

    Raises:
        TiterError: Where there is a router beside it.
    """
    serving = read_serving(adapter)
    if serving is not None and serving.router is not None:
        raise TiterError(
            f"`{adapter}` is served with a router that was fitted to it ({serving_beside(adapter)}), and {what} would change it.",
            "Do that first, and fit the router last.",
        )
