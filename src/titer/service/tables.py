"""What the database holds. Every table of an organisation's own things has `org_id`, which `tenants.Tenant` filters by.

Times are whole seconds since 1970, UTC, as in OpenAI's responses. They are shown and sorted by; nothing is decided by comparing
the clocks of two machines (`queue`).
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DAY = 86400
"""Seconds."""


def now() -> int:
    """Return the time in seconds since 1970."""
    return int(time.time())


# SQLite counts rows up by itself only in a column whose type is INTEGER.
Number = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, list[str]: JSON, list[int]: JSON}  # noqa: RUF012


class Organisation(Base):
    """Who uses the service.

    Attributes:
        id: Its name in ids.
        name: What its administrator calls it; unique, shown, never a part of a path.
        priority: Jobs of a higher one are taken first.
        limits: What differs for it from the policy's `quota`.
        served: Counts up over all organisations with each job that a worker takes; the lowest was served longest ago.
        operator: Whether it runs the server: its `admin` keys may change the policy, which holds for all.
    """

    __tablename__ = "organisations"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    priority: Mapped[int] = mapped_column(default=0)
    limits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    served: Mapped[int] = mapped_column(BigInteger, default=0)
    operator: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[int] = mapped_column(default=now)


class Owned:
    """What belongs to one organisation.

    Attributes:
        number: In which order rows came to be; pages go by it.
        id: Its name for clients.
        org_id: Whose it is.
        created_at: When it came to be.
    """

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(256), unique=True)
    org_id: Mapped[str] = mapped_column(ForeignKey("organisations.id"), index=True)
    created_at: Mapped[int] = mapped_column(default=now)


class Key(Owned, Base):
    """A key to the API.

    Attributes:
        name: What its owner calls it.
        shown: Its first and last letters, to tell keys apart.
        digest: SHA-256 of the key, which itself is kept nowhere.
        scopes: What it may be used for: `files`, `jobs`, `models`, `admin`.
        expires_at: From when it is worth nothing; `None` for never.
        revoked_at: When it was taken back.
        used_at: When it was used last, to the minute.
    """

    __tablename__ = "keys"
    name: Mapped[str] = mapped_column(String(64))
    shown: Mapped[str] = mapped_column(String(32))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    expires_at: Mapped[int | None]
    revoked_at: Mapped[int | None]
    used_at: Mapped[int | None]


class Visit(Owned, Base):
    """Someone signed in to the console; `id` is the SHA-256 of the cookie, which itself is kept nowhere.

    Attributes:
        key_id: The key that it was opened with; without it the visit is over.
        expires_at: From when it is worth nothing.
    """

    __tablename__ = "visits"
    key_id: Mapped[str] = mapped_column(String(64), index=True)
    expires_at: Mapped[int]


class File(Owned, Base):
    """A file that was uploaded, or left by a job.

    Attributes:
        filename: What its owner calls it; shown, never a path.
        purpose: OpenAI's: `fine-tune`, `fine-tune-results`, …
        bytes: Its size.
        digest: SHA-256 of its bytes.
        place: Its key in the artefact store.
        status: `uploaded`, `processed` or `error`.
        expires_at: From when it is deleted; `None` for never.
    """

    __tablename__ = "files"
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(String(64))
    place: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16), default="processed")
    expires_at: Mapped[int | None]


class Upload(Owned, Base):
    """A file that comes in parts.

    Attributes:
        bytes: How many it will have in the end.
        status: `pending`, `completed`, `cancelled` or `expired`.
        file_id: What it became.
    """

    __tablename__ = "uploads"
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    mime_type: Mapped[str] = mapped_column(String(128))
    bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16), default="pending")
    expires_at: Mapped[int]
    file_expires_after: Mapped[int | None]
    file_id: Mapped[str | None] = mapped_column(String(64))


class Part(Owned, Base):
    """A part of an upload."""

    __tablename__ = "parts"
    upload_id: Mapped[str] = mapped_column(String(64), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(String(64))
    place: Mapped[str] = mapped_column(String(200))


class Job(Owned, Base):
    """A fine-tuning, or an audit of a file alone. This table is the queue (`queue`).

    Attributes:
        kind: `fine_tuning` or `audit`.
        model: The base model's name, or the fine-tuned model's that it goes on from.
        file_id: What is trained on, or audited.
        validation_file_id: What the loss is measured on beside it.
        method: OpenAI's `method` as given, with what was filled in.
        suffix: What its owner calls the model.
        seed: Seeds everything.
        details: OpenAI's `metadata`.
        status: OpenAI's: `validating_files`, `queued`, `running`, `succeeded`, `failed`, `cancelled`, `paused`.
        stage: What is being done while it runs: `audit`, `train`, `gate`, `publish`; of one that will be taken up again, what
            comes next.
        wish: What its owner wants that the worker has not done yet: `cancel` or `pause`.
        policy: The policy that it goes by, whole, as it was when the job was made.
        priority: Its organisation's when it was made; higher ones are taken first.
        worker: Who works on it; `None` for nobody.
        attempt: How often it was taken. A worker writes only while this is what it was when it took the job.
        beats: Counts up while a worker is alive. Who sees it stand still long enough by a clock of its own may take the job.
        error: OpenAI's `error`: code, message, param.
        audit: What the audit found: verdict, share, how many rows were dropped; where its rows are.
        gate: What was measured of the model and what was decided.
        result_files: Ids of files that it left.
        fine_tuned_model: The model, once it may be used or is held.
        trained_tokens: How many tokens taught.
        estimated_finish: When it will be done, as far as one knows.
        rows: How many examples are trained on, once its file was checked.
        validation_rows: How many the loss is measured on beside them, likewise; of jobs of older versions unknown.
        idempotency: The client's `Idempotency-Key`: a request that comes again makes no second job.
        tidied: Whether what it needed on the way is gone (`retention`).
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("queue", "status", "org_id", "priority", "number"),
        UniqueConstraint("org_id", "idempotency"),
    )
    kind: Mapped[str] = mapped_column(String(16), default="fine_tuning")
    model: Mapped[str] = mapped_column(String(256))
    file_id: Mapped[str] = mapped_column(String(64), index=True)
    validation_file_id: Mapped[str | None] = mapped_column(String(64))
    method: Mapped[dict[str, Any]] = mapped_column(default=dict)
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(default=0)
    details: Mapped[dict[str, Any] | None]
    status: Mapped[str] = mapped_column(String(20), default="validating_files")
    stage: Mapped[str] = mapped_column(String(16), default="audit")
    wish: Mapped[str | None] = mapped_column(String(8))
    policy: Mapped[dict[str, Any]] = mapped_column(default=dict)
    priority: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(String(128))
    attempt: Mapped[int] = mapped_column(default=0)
    beats: Mapped[int] = mapped_column(default=0)
    started_at: Mapped[int | None]
    finished_at: Mapped[int | None]
    error: Mapped[dict[str, Any] | None]
    audit: Mapped[dict[str, Any] | None]
    gate: Mapped[dict[str, Any] | None]
    result_files: Mapped[list[str]] = mapped_column(default=list)
    fine_tuned_model: Mapped[str | None] = mapped_column(String(256))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    estimated_finish: Mapped[int | None]
    rows: Mapped[int | None]
    validation_rows: Mapped[int | None]
    idempotency: Mapped[str | None] = mapped_column(String(255))
    tidied: Mapped[bool] = mapped_column(default=False)


class Event(Owned, Base):
    """What happened to a job.

    Attributes:
        place: 1, 2, … within its job: events of a job are in this order, and `created_at` never runs back in it.
        level: `info`, `warn` or `error`.
        kind: OpenAI's `type`: `message` or `metrics`.
        data: What a metric holds: step, loss, …
    """

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("job_id", "place"),)
    job_id: Mapped[str] = mapped_column(String(64))
    place: Mapped[int]
    level: Mapped[str] = mapped_column(String(8), default="info")
    kind: Mapped[str] = mapped_column(String(8), default="message")
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]


class Model(Owned, Base):
    """A fine-tuned model; `id` is the name that it is asked for by.

    Attributes:
        base: The base model's name.
        job_id: The job that made it.
        place: Where its adapter lies in the artefact store, a folder.
        step: Of a checkpoint; `None` for the job's result.
        held: Why it cannot be used: what the gate decided; `None` for one that is deployed.
        metrics: Of a checkpoint, OpenAI's: step, train_loss, …
        bytes: How large its adapter is, for quotas.
    """

    __tablename__ = "models"
    base: Mapped[str] = mapped_column(String(128))
    job_id: Mapped[str] = mapped_column(String(64), index=True)
    place: Mapped[str] = mapped_column(String(200))
    step: Mapped[int | None]
    held: Mapped[str | None] = mapped_column(Text)
    metrics: Mapped[dict[str, Any] | None]
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)


class Appeal(Owned, Base):
    """Rows of a file that a reviewer found honest: they teach after all.

    Attributes:
        file_id: The file.
        rows: Their numbers in it, from 0.
        reason: What the reviewer says.
        reviewer: The key that it came with.
    """

    __tablename__ = "appeals"
    file_id: Mapped[str] = mapped_column(String(64), index=True)
    rows: Mapped[list[int]]
    reason: Mapped[str] = mapped_column(Text)
    reviewer: Mapped[str] = mapped_column(String(64))


class Removal(Base):
    """What is to be removed from the artefact store, since the rows that named it are gone; gone itself once that is done.

    Attributes:
        created_at: From when it may go.
        place: Its key in the store: a file or a folder.
        stray: Whether it was found without a row (`strays`): it stays if one names it then.
    """

    __tablename__ = "removals"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    created_at: Mapped[int] = mapped_column(default=now)
    place: Mapped[str] = mapped_column(String(200))
    stray: Mapped[bool] = mapped_column(default=False)


class PolicyVersion(Base):
    """A policy file as it was from some time on; the newest one holds for new jobs."""

    __tablename__ = "policies"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    created_at: Mapped[int] = mapped_column(default=now)
    text: Mapped[str] = mapped_column(Text)
    author: Mapped[str] = mapped_column(String(64))


class LogEntry(Base):
    """A line of the audit log, which only grows.

    Attributes:
        number: 1, 2, … without a gap.
        org_id: Whose things it is about; `None` for the server's own.
        actor: The key, the worker or `server`.
        action: `file.created`, `job.cancelled`, `gate.decided`.
        subject: What it was done to.
        details: What else is to be known.
        before: The hash of the line before.
        digest: SHA-256 of this line with `before`.
    """

    __tablename__ = "log"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(default=now)
    org_id: Mapped[str | None] = mapped_column(String(64), index=True)
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(256))
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    before: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))


class LogHead(Base):
    """The last line of the audit log; locked by whoever adds one."""

    __tablename__ = "log_head"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Number)
    digest: Mapped[str] = mapped_column(String(64))
