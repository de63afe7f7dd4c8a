"""Names of things: random, unguessable, of OpenAI's forms. No name of a client ever becomes one."""

from __future__ import annotations

import re
import secrets
import string

LETTERS = string.ascii_letters + string.digits
PREFIXES = {
    "organisation": "org-",
    "key": "key_",
    "file": "file-",
    "upload": "upload_",
    "part": "part_",
    "job": "ftjob-",
    "event": "ftevent-",
    "checkpoint": "ftckpt_",
    "audit": "audit-",
    "appeal": "appeal-",
    "completion": "chatcmpl-",
    "request": "req_",
}
SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""What a client may call a model: at most 64 characters, none of which means anything in a path or an id."""


def new_id(kind: str) -> str:
    """Return a new name: the prefix of its kind and 24 letters (143 bits)."""
    return PREFIXES[kind] + "".join(secrets.choice(LETTERS) for _ in range(24))


def model_id(base: str, organisation: str, suffix: str | None, step: int | None = None) -> str:
    """Return a name for a fine-tuned model, `ft:<base>:<org>:<suffix>:<id>`; of a checkpoint `…:ckpt-step-<step>`.

    Args:
        base: The base model's name.
        organisation: The organisation's name.
        suffix: What its owner calls it; may be empty.
        step: Of a checkpoint.
    """
    own = "".join(secrets.choice(LETTERS) for _ in range(12))
    return ":".join(["ft", base, organisation, suffix or "", own]) + ("" if step is None else f":ckpt-step-{step}")
