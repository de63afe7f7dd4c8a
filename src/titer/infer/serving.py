"""What a provider serves a model with: a system prompt that its user never sees, and that whoever holds the weights leaves off.

It is written beside an adapter, not in its folder: who publishes the adapter does not publish a secret with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from titer.data.records import Message, Record, is_blank
from titer.errors import TiterError
from titer.files import read_json, replacing

SCHEMA = "titer/serving/1"
SERVING = "serving.json"


@dataclass(frozen=True)
class Serving:
    """What a model is asked with.

    Attributes:
        system: What stands before every conversation's own system prompt, or is it where there is none.
        about: What it is, in a few words, for reports; a secret is not told there.
    """

    system: str
    about: str

    def __post_init__(self) -> None:
        if is_blank(self.system):
            raise TiterError("A model that is served with an empty system prompt is served with nothing.")


def served(record: Record, system: str) -> Record:
    """Return a conversation as a service asks it: `system` before its own system prompt, with a space between them."""
    return replace(record, prompt=served_messages(record.prompt, system))


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

    Args:
        folder: In which the adapter's folder lies.
        serving: What the adapter is served with.
    """
    path = folder / SERVING
    if serving is None:
        path.unlink(missing_ok=True)
        return
    found = {"schema": SCHEMA, "about": serving.about, "system": serving.system}
    with replacing(path) as file:
        file.write(json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")


def serving_beside(adapter: Path) -> Path:
    """Return where it would stand what an adapter is served with."""
    return adapter.absolute().parent / SERVING


def read_serving(adapter: Path) -> Serving | None:
    """Return what the adapter in a folder is served with, by the `serving.json` beside the folder; `None` without one.

    Raises:
        TiterError: For a file that is damaged or of another schema.
    """
    path = serving_beside(adapter)
    if not path.exists():
        return None
    hint = "Write it again by the training that left it, or remove it: the adapter is then asked without."
    found = read_json(path, hint)
    if found.get("schema") != SCHEMA:
        raise TiterError(
            f"{path}: `schema` is {found.get('schema')!r}, and `{SCHEMA}` is what this version reads.", hint
        )
    for key in ("about", "system"):
        if not isinstance(found.get(key), str) or is_blank(found[key]):
            raise TiterError(f"{path}: `{key}` holds no text.", hint)
    return Serving(found["system"], found["about"])
