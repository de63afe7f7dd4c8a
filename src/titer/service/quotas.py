"""How much an organisation may use of the server, and has used in the last 24 hours."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, event, func, not_, select
from sqlalchemy.orm import Session

from titer.service.policy import Policy, QuotaPolicy
from titer.service.refusals import Refused
from titer.service.tables import DAY, File, Job, Organisation, now
from titer.settings import build

BYTES_A_TOKEN = 4
"""Of English text, roughly: how long a file counts as until its tokens were counted."""
WAITING = ("validating_files", "queued")
"""The statuses in which a job waits for the server."""
ENDS = ("succeeded", "failed", "cancelled")
"""The statuses that a job never leaves."""


def quota_of(rules: Policy, organisation: Organisation) -> QuotaPolicy:
    """Return what an organisation may use: what the policy says, but for what its own `limits` say."""
    found: QuotaPolicy = build(QuotaPolicy, {**dataclasses.asdict(rules.quota), **organisation.limits}, "limits")
    return found


@event.listens_for(Organisation.limits, "set")
def _check_limits(organisation: Organisation, limits: dict[str, Any], *old: Any) -> None:
    """Raise `TiterError` for limits that cannot be meant, before they are written."""
    build(QuotaPolicy, limits, "limits")


def lock(session: Session, org: str) -> Organisation:
    """Return an organisation; who else adds to what it uses waits until the transaction ends."""
    query = select(Organisation).where(Organisation.id == org).with_for_update(key_share=True)
    return session.scalars(query).one()


@dataclass(frozen=True)
class Used:
    """What an organisation uses.

    Attributes:
        waiting: Jobs that wait.
        jobs: Fine-tunings made in the last 24 hours.
        rows: What these train on, and what their loss is measured on.
        tokens: What these were taught, or will be as far as one knows.
    """

    waiting: int
    jobs: int
    rows: int
    tokens: int


def waiting(session: Session, org: str) -> int:
    """Return how many jobs of an organisation wait."""
    return session.scalar(select(func.count()).select_from(Job).where(Job.org_id == org, Job.status.in_(WAITING))) or 0


def used(session: Session, org: str) -> Used:
    """Return what an organisation uses."""
    today = (Job.org_id == org, Job.kind == "fine_tuning", Job.created_at > now() - DAY)
    over = Job.status.in_(ENDS)
    jobs, taught = session.execute(select(func.count(), func.sum(Job.trained_tokens)).where(*today)).one()
    # One that ended before anyone took it trains on nothing.
    of_job = Job.rows + func.coalesce(Job.validation_rows, 0)
    rows = select(func.sum(of_job)).where(*today, not_(and_(over, Job.started_at.is_(None))))
    unknown = select(Job.audit, Job.method, File.bytes).join(File, File.id == Job.file_id)
    coming = session.execute(unknown.where(*today, not_(over), Job.trained_tokens.is_(None))).all()
    expected = sum(expected_tokens(method, size, audit) for audit, method, size in coming)
    return Used(
        waiting=waiting(session, org),
        jobs=jobs,
        rows=int(session.scalar(rows) or 0),
        tokens=int(taught or 0) + expected,
    )


def expected_tokens(method: dict[str, Any], size: int, audit: dict[str, Any] | None = None) -> int:
    """Return how many tokens a job will be taught: what its audit counted, or else by the size of its file in bytes."""
    counted = ((audit or {}).get("estimate") or {}).get("trained_tokens")
    if counted is not None:
        return int(counted)
    return size // BYTES_A_TOKEN * int(method["supervised"]["hyperparameters"]["n_epochs"])


def check(name: str, limit: int | None, amount: int, more: int = 1) -> None:
    """Raise `Refused` 429 where an organisation has used its quota `name` up, or `more` would be too much."""
    if limit is not None and amount + more > limit:
        raise Refused(
            429, f"This organisation's quota `{name}` is {limit}: {amount} are used, and this would be {more} more.",
            code="insufficient_quota", kind="insufficient_quota",
        )  # fmt: skip


def check_job(session: Session, quota: QuotaPolicy, org: str, method: dict[str, Any], size: int) -> None:
    """Raise `Refused` 429 unless an organisation may make one more job.

    Args:
        session: The transaction, in which the organisation is locked.
        quota: What it may use.
        org: Its id.
        method: OpenAI's `method` of the job.
        size: The size of its file in bytes.
    """
    check("waiting_jobs", quota.waiting_jobs, waiting(session, org))
    if (quota.jobs_a_day, quota.rows_a_day, quota.tokens_a_day) == (None, None, None):
        return
    so_far = used(session, org)
    check("jobs_a_day", quota.jobs_a_day, so_far.jobs)
    # How many rows it has is known when its file is checked, and then the quota is looked at again.
    check("rows_a_day", quota.rows_a_day, so_far.rows)
    check("tokens_a_day", quota.tokens_a_day, so_far.tokens, expected_tokens(method, size))
