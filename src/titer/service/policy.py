"""What an operator decides: which models may be fine-tuned, what happens to harmful uploads, when a model may be used.

A policy is a YAML file (`titer settings policy` prints the default one). The newest that was given is kept in the database,
and a job goes by the one that held when it was made.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from titer.errors import TiterError, check_known
from titer.models.quantised import refuse_quantised
from titer.ranges import COUNT, POSITIVE, SHARE, Range
from titer.service.identifiers import SUFFIX
from titer.service.tables import PolicyVersion
from titer.settings import build, parse_yaml
from titer.workflows.gate import GatePolicy

DETECTORS = ("texts", "states", "none")
HIDDEN = "(the operator's)"
"""What stands for a path or an address of the server's."""
SERVED = ("bea", "ptst")
"""titer's methods that do nothing without a system prompt; asking the methods themselves would load torch."""
AMOUNT = Range(1, 10**15, whole=True)


@dataclass(frozen=True)
class AuditPolicy:
    """What is made of an upload before it is trained on.

    Attributes:
        detector: What looks for harm, as of `titer audit`: texts, states or none.
        harmful: The defender's harmful prompts.
        helpful: The defender's harmless prompts.
        reject_over: Fail a job where surely more than this part of its rows is harmful; null never does.
        drop_over: Leave out rows whose P(harmful) is above this; null leaves out none.
    """

    RANGES: ClassVar[dict[str, Range]] = {"reject_over": SHARE, "drop_over": SHARE}

    detector: str = "texts"
    harmful: str = "builtin:harmful"
    helpful: list[str] = field(default_factory=lambda: ["builtin:general", "builtin:lookalikes", "builtin:topics"])
    reject_over: float | None = None
    drop_over: float | None = None


@dataclass(frozen=True)
class TrainingPolicy:
    """How jobs train.

    Attributes:
        method: A name of `titer methods list`.
        allowed: What clients may choose instead, by `metadata.titer_method`.
        settings: Settings of the method.
        learning_rate: What a client's `learning_rate_multiplier` multiplies.
        n_epochs: Where a client says `auto`.
        batch_size: Where a client says `auto`.
        checkpoint_epochs: Keep a checkpoint that can be used after each epoch, as OpenAI does.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "learning_rate": POSITIVE,
        "n_epochs": Range(1, 50, whole=True),
        "batch_size": Range(1, 256, whole=True),
    }

    method: str = "sieve"
    allowed: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    n_epochs: int = 3
    batch_size: int = 8
    checkpoint_epochs: bool = True


@dataclass(frozen=True)
class LimitPolicy:
    """How large one thing may be.

    Attributes:
        file_bytes: Of a file.
        rows: Of a file that is trained on.
        row_tokens: Of one row; longer ones are an error, not cut.
        chat_tokens: Of one answer.
    """

    RANGES: ClassVar[dict[str, Range]] = dict.fromkeys(("file_bytes", "rows", "row_tokens", "chat_tokens"), AMOUNT)

    file_bytes: int = 512 * 1024 * 1024
    rows: int = 50_000
    row_tokens: int = 4096
    chat_tokens: int = 1024


@dataclass(frozen=True)
class QuotaPolicy:
    """How much an organisation may use; null for as much as it likes.

    Attributes:
        running_jobs: At a time; others wait.
        waiting_jobs: That wait; more are refused.
        jobs_a_day: Made in 24 hours.
        rows_a_day: Trained on, and validated on, of jobs made in 24 hours.
        tokens_a_day: Trained on, likewise.
        storage_bytes: Of files and adapters.
        requests_a_minute: Of one key.
    """

    RANGES: ClassVar[dict[str, Range]] = dict.fromkeys(
        (
            "running_jobs",
            "waiting_jobs",
            "jobs_a_day",
            "rows_a_day",
            "tokens_a_day",
            "storage_bytes",
            "requests_a_minute",
        ),
        AMOUNT,
    )

    running_jobs: int | None = None
    waiting_jobs: int | None = 100
    jobs_a_day: int | None = None
    rows_a_day: int | None = None
    tokens_a_day: int | None = None
    storage_bytes: int | None = None
    requests_a_minute: int | None = 1200


@dataclass(frozen=True)
class RetentionPolicy:
    """For how many days things are kept after they were made, or a job's end; null for ever.

    Attributes:
        files: Uploaded files.
        models: Fine-tuned models.
        work: What a finished job needed on the way: checkpoints of its training, rows of its audit.
    """

    RANGES: ClassVar[dict[str, Range]] = dict.fromkeys(("files", "models", "work"), COUNT)

    files: int | None = None
    models: int | None = None
    work: int | None = 30


@dataclass(frozen=True)
class ChatPolicy:
    """How models are chatted with.

    Attributes:
        answers: Most answers that are decoded at a time.
        waiting: Most requests that wait for their turn; more are refused.
        adapters: Most fine-tuned models in memory.
        bases: Most base models in memory; when another is asked for, one that is idle makes room.
        forward: Let a vLLM or SGLang server that loads adapters at run time answer instead: its address, `http://HOST:PORT`.
        forward_folder: A folder that this server writes adapters into and that one reads them from, under the same path.
    """

    RANGES: ClassVar[dict[str, Range]] = dict.fromkeys(
        ("answers", "waiting", "adapters", "bases"), Range(1, 10**4, True)
    )

    answers: int = 16
    waiting: int = 64
    adapters: int = 16
    bases: int = 1
    forward: str | None = None
    forward_folder: str | None = None

    def __post_init__(self) -> None:
        if self.forward is not None and not re.fullmatch(r"https?://[^/?#]+/?", self.forward):
            raise TiterError(f"`chat.forward` is `{self.forward}`.", "Write the server's address: http://HOST:PORT.")
        if self.forward is not None and self.forward_folder is None:
            raise TiterError("`chat.forward` needs `chat.forward_folder`, where adapters are handed over.")


@dataclass(frozen=True)
class Policy:
    """A policy.

    Attributes:
        models: The models that may be fine-tuned and asked, by the name that clients know them by: each a folder, a hub id, or
            the embedded model.
    """

    models: dict[str, str] = field(default_factory=lambda: {"smollm2-135m-instruct": "smollm2-135m-instruct"})
    audit: AuditPolicy = field(default_factory=AuditPolicy)
    training: TrainingPolicy = field(default_factory=TrainingPolicy)
    gate: GatePolicy = field(default_factory=GatePolicy)
    limits: LimitPolicy = field(default_factory=LimitPolicy)
    quota: QuotaPolicy = field(default_factory=QuotaPolicy)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    chat: ChatPolicy = field(default_factory=ChatPolicy)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dataclasses.asdict(self)


def shown(values: Any) -> Any:
    """Return plain data of a policy for whom the server is not: without paths, addresses and where models are."""
    if isinstance(values, dict):
        return {
            name: dict.fromkeys(value) if name == "models" and isinstance(value, dict) else shown(value)
            for name, value in values.items()
        }
    if isinstance(values, list):
        return [shown(value) for value in values]
    return HIDDEN if isinstance(values, str) and re.search(r"[/\\~]", values) else values


def parse(text: str, where: str = "policy") -> Policy:
    """Read a policy.

    Raises:
        TiterError: Naming the key that is unknown, or whose value cannot be meant.
    """
    policy = from_dict(parse_yaml(text, where) or {}, where)
    for name in (policy.training.method, *policy.training.allowed):
        if name in SERVED:
            raise TiterError(
                f"`{where}.training` names `{name}`, which acts by a system prompt that this server does not add to chats.",
                "Choose another method.",
            )
    return policy


NOT_QUANTISED = "the service is not made for that"
"""Why its models are no bases in few bits: many adapters share a base there, in layers of titer's own."""


def from_dict(values: Any, where: str = "policy") -> Policy:
    """Make a policy of plain data, as `parse`."""
    policy: Policy = build(Policy, values, where)
    for name, place in policy.models.items():
        refuse_quantised(place, NOT_QUANTISED)
        if not SUFFIX.fullmatch(name):
            raise TiterError(
                f"`{where}.models` names a model `{name!s:.80}`, which could not stand in the id of a fine-tuned one.",
                "Up to 64 letters, digits, `-`, `_` and `.`, none of these three first.",
            )
    check_known([policy.audit.detector], DETECTORS, f"value of `{where}.audit.detector`")
    policy.gate.check(f"{where}.gate")
    if not policy.models:
        raise TiterError(f"`{where}.models` is empty.", "Name at least one model.")
    return policy


def current(session: Session) -> Policy:
    """Return the policy that holds now."""
    newest = session.scalar(select(PolicyVersion).order_by(PolicyVersion.number.desc()).limit(1))
    return Policy() if newest is None else _read(newest.text)


# Each request of a client asks for it, and reading YAML takes a while.
_read = functools.lru_cache(maxsize=4)(parse)


def replace(session: Session, text: str, author: str) -> Policy:
    """Let a policy hold from now on, unless it does already."""
    from titer.service.chain import append

    policy = parse(text)
    newest = session.scalar(select(PolicyVersion).order_by(PolicyVersion.number.desc()).limit(1))
    if newest is None or newest.text != text:
        session.add(PolicyVersion(text=text, author=author))
        session.flush()
        append(session, None, author, "policy.replaced", "policy", {"policy": policy.as_dict()})
    return policy


def as_yaml(policy: Policy) -> str:
    """Return a policy as a file."""
    return yaml.safe_dump(policy.as_dict(), sort_keys=False, allow_unicode=True)
