"""API keys: shown once, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from titer.errors import TiterError, check_known
from titer.service.chain import append
from titer.service.database import Database
from titer.service.identifiers import SUFFIX, new_id
from titer.service.refusals import Refused
from titer.service.tables import DAY, Key, Organisation, now
from titer.service.tenants import Tenant

SCOPES = ("files", "jobs", "models", "admin")
"""What a key may be for: files; jobs and audits; asking and deleting models; keys, policies and appeals."""
MARK = "sk-titer-"
EVERY_MINUTE = 60
HOUR = 3600


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
    if key is None or not is_good(key):
        raise Refused(
            401, "Incorrect API key provided. `titer keys create` makes one.", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    return key


def is_good(key: Key) -> bool:
    """Whether a key still opens anything."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now())


def check_scope(scopes: Collection[str], scope: str) -> None:
    """Raise `Refused` 403 unless a key is for something."""
    if scope not in scopes:
        raise Refused(403, f"This key is not for `{scope}`.", code="insufficient_permissions")


# -- what administrators do with them ---------------------------------------------------------------------------------


def organisation(session: Session, name: str, actor: str, operator: bool = False) -> Organisation:
    """Return an organisation by its name; a new one is made. The first one of all runs the server.

    Raises:
        TiterError: For a name that could not stand in the id of a model.
    """
    if not SUFFIX.fullmatch(name):
        raise TiterError(
            f"`{name}` is no name of an organisation.",
            "Up to 64 letters, digits, `-`, `_` and `.`, none of these three first.",
        )
    found = session.scalar(select(Organisation).where(Organisation.name == name))
    if found is None:
        first = session.scalar(select(func.count()).select_from(Organisation)) == 0
        found = Organisation(id=new_id("organisation"), name=name, operator=operator or first)
        session.add(found)
        session.flush()
        append(session, found.id, actor, "organisation.created", found.id, {"name": name, "operator": found.operator})
    elif operator and not found.operator:
        found.operator = True
        append(session, found.id, actor, "organisation.operator", found.id)
    return found


def issue(
    tenant: Tenant, name: str = "", scopes: Collection[str] = SCOPES, expires_at: int | None = None
) -> tuple[str, Key]:
    """Make a key and log it, as `create`."""
    secret, key = create(tenant.session, tenant.org, name, scopes, expires_at)
    tenant.log("key.created", key.id, name=name, scopes=key.scopes, expires_at=expires_at)
    return secret, key


def revoke(tenant: Tenant, name: str) -> Key:
    """Take a key back, at once and for good; one that was taken back before stays so.

    Raises:
        Refused: 404, where there is none of that id.
    """
    key = tenant.get(Key, name, "key", lock=True)
    if key.revoked_at is None:
        key.revoked_at = now()
        tenant.log("key.revoked", key.id)
    return key


def rotate(tenant: Tenant, name: str, grace: int = DAY) -> tuple[str, Key]:
    """Make a key like another one, which ends after a while; one that would have ended gives as long a time to its heir.

    Args:
        tenant: Whose it is.
        name: The id of the key.
        grace: For how many seconds both are good.

    Raises:
        Refused: 404, where there is none of that id; 400 for one that is worth nothing any more.
    """
    old = tenant.get(Key, name, "key", lock=True)
    if not is_good(old):
        raise Refused(400, f"The key {name!r} was taken back or has expired. Create a new one.", "id", "invalid_state")
    ends = None if old.expires_at is None else now() + old.expires_at - old.created_at
    secret, key = issue(tenant, old.name, old.scopes, ends)
    until = now() + grace
    old.expires_at = until if old.expires_at is None else min(old.expires_at, until)
    tenant.log("key.rotated", old.id, heir=key.id, expires_at=old.expires_at)
    return secret, key


def shown(key: Key, secret: str | None = None) -> dict[str, Any]:
    """Return a key as clients see it; with the secret itself only where it was just made."""
    about = {
        "id": key.id,
        "object": "titer.key",
        "name": key.name,
        "shown": key.shown,
        "scopes": key.scopes,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "used_at": key.used_at,
        "good": is_good(key),
    }
    return about if secret is None else {**about, "key": secret}


def stamp(database: Database, name: str) -> bool:
    """Note that a key was used, at most once a minute; returns whether it is noted.

    No request fails because of it: one that finds the database busy leaves it to the next.
    """
    late = or_(Key.used_at.is_(None), Key.used_at <= now() - EVERY_MINUTE, Key.used_at > now())
    try:
        with database.writing() as session:
            session.execute(update(Key).where(Key.id == name, late).values(used_at=now()))
    except OperationalError:
        return False
    return True


def everyones(session: Session) -> list[dict[str, Any]]:
    """Return all keys as they are shown, each with its organisation, for whoever has the database."""
    query = select(Key, Organisation.name).join(Organisation, Organisation.id == Key.org_id).order_by(Key.number)
    return [{**shown(key), "organisation": name} for key, name in session.execute(query)]


def owner(session: Session, name: str) -> str | None:
    """Return the organisation whose key it is, for whoever has the database; `None` where there is no such key."""
    return session.scalar(select(Key.org_id).where(Key.id == name))
