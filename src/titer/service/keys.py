"""API keys: shown once, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from titer.errors import check_known
from titer.service.identifiers import new_id
from titer.service.refusals import Refused
from titer.service.tables import Key, now

SCOPES = ("files", "jobs", "models", "admin")
"""What a key may be for: files; jobs and audits; asking and deleting models; keys, policies and appeals."""
MARK = "sk-titer-"
EVERY_MINUTE = 60


def digest(secret: str) -> str:
    """Return what a key is looked up by. It holds 256 random bits, so that a plain hash of it tells nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    session: Session,
    org: str,
    name: str = "",
    scopes: Collection[str] = SCOPES,
    expires_at: int | None = None,
) -> tuple[str, Key]:
    """Make a key for an organisation; returns it, which nobody can find out again, and its row.

    Raises:
        TiterError: For a scope that there is not.
    """
    check_known(scopes, SCOPES, "scope")
    secret = MARK + secrets.token_urlsafe(32)
    key = Key(
        id=new_id("key"),
        org_id=org,
        name=name,
        shown=f"{secret[:12]}…{secret[-4:]}",
        digest=digest(secret),
        scopes=[scope for scope in SCOPES if scope in scopes],
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return secret, key


def authenticate(session: Session, secret: str) -> Key:
    """Return the row of a key.

    Raises:
        Refused: 401, for one that is unknown, was taken back or has expired: the same answer.
    """
    # The database compares hashes, whose order tells nothing of the key.
    key = session.scalar(select(Key).where(Key.digest == digest(secret)))
    if key is None or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now()):
        raise Refused(
            401, "Incorrect API key provided. `titer keys create` makes one.", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    return key


def check_scope(scopes: Collection[str], scope: str) -> None:
    """Raise `Refused` 403 unless a key is for something."""
    if scope not in scopes:
        raise Refused(403, f"This key is not for `{scope}`.", code="insufficient_permissions")
