"""Who looks at the console: a cookie that stands for a key, and the token that every form carries.

The cookie is random and kept as its hash only. What may be done in a visit is what its key is for at that moment: a key that is
taken back ends all visits that were opened with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from sqlalchemy import delete, select

from titer.service import keys
from titer.service.access import Caller, admitted
from titer.service.headers import EXTRA
from titer.service.refusals import Refused
from titer.service.tables import Key, Organisation, Visit, now

COOKIE = "titer_console"
PATH = "/console"
SECONDS = 12 * 3600
"""How long a visit lasts."""


class SignIn(Exception):
    """A page that needs a visit was asked for without one."""


@dataclass(frozen=True)
class Visitor:
    """Who looks at a page.

    Attributes:
        caller: Whose key it is, as for the API's endpoints.
        cookie: What the browser holds.
        organisation: The organisation's name.
        operator: Whether it runs the server.
        limits: What differs for it from the policy's `quota`.
    """

    caller: Caller
    cookie: str
    organisation: str
    operator: bool
    limits: dict[str, Any]

    @property
    def csrf(self) -> str:
        """The token that this visit's forms carry."""
        return csrf_of(self.cookie)

    def may(self, scope: str) -> bool:
        """Whether the visit's key is for something."""
        return scope in self.caller.scopes


def csrf_of(cookie: str) -> str:
    """Return the token of the forms that are shown to a browser; other sites know neither it nor the cookie."""
    return hashlib.sha256(f"titer console form {cookie}".encode()).hexdigest()


def check_csrf(cookie: str | None, token: str | None) -> None:
    """Refuse a form that this server did not show to this browser."""
    if not cookie or not token or not hmac.compare_digest(csrf_of(cookie).encode(), token.encode()):
        raise Refused(403, "This form is out of date. Go back, load the page again and repeat it.", code="csrf")


def sign_in(request: Request, secret: str) -> str:
    """Open a visit with a key; returns the cookie. Visits of its organisation that have expired are removed.

    Raises:
        Refused: 401, for a key that is worth nothing; 429, where somebody guesses.
    """
    caller, cookie = admitted(request, secret), new_cookie()
    with caller.writing() as tenant:
        tenant.session.execute(delete(Visit).where(Visit.org_id == caller.org, Visit.expires_at <= now()))
        tenant.add(Visit(id=keys.digest(cookie), key_id=caller.key, expires_at=now() + SECONDS))
        tenant.log("console.signed_in", caller.key)
    return cookie


def sign_out(visitor: Visitor) -> None:
    """End a visit."""
    with visitor.caller.writing() as tenant:
        visit = tenant.find(Visit, keys.digest(visitor.cookie))
        if visit is not None:
            tenant.remove(visit)
            tenant.log("console.signed_out", visitor.caller.key)


def new_cookie() -> str:
    """Return a cookie that stands for nobody yet."""
    return secrets.token_urlsafe(32)


def set_cookie(request: Request, response: Response, cookie: str) -> None:
    """Hand a cookie to the browser: no script reads it, and no other site makes the browser send it."""
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=SECONDS,
        path=PATH,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def visitor_of(request: Request) -> Visitor | None:
    """Return who asks for a page; `None` for somebody who is not signed in, or whose key is worth nothing any more."""
    service, cookie = request.app.state.service, request.cookies.get(COOKIE)
    if not cookie:
        return None
    with service.database.reading() as session:
        # As with keys: before it is known whose visit it is, there is no organisation to look in.
        found = session.execute(
            select(Visit, Key, Organisation)
            .join(Key, Key.id == Visit.key_id)
            .join(Organisation, Organisation.id == Visit.org_id)
            .where(Visit.id == keys.digest(cookie))
        ).one_or_none()
    if found is None:
        return None
    visit, key, organisation = found
    if visit.expires_at <= now() or not keys.is_good(key):
        return None
    caller = Caller(service, key.id, key.org_id, tuple(key.scopes))
    return Visitor(caller, cookie, organisation.name, organisation.operator, organisation.limits)


def signed_in(scope: str | None = None) -> Any:
    """Return the dependency that gives a page its `Visitor`, whose key must be for `scope`; each is a request of that key."""

    def visitor(request: Request) -> Visitor:
        found = visitor_of(request)
        if found is None:
            raise SignIn
        request.state.visitor = found
        request.scope[EXTRA].update(request.app.state.limits.count(found.caller.key, found.limits))
        if scope is not None:
            keys.check_scope(found.caller.scopes, scope)
        return found

    return Depends(visitor)


AnyVisitor = Annotated[Visitor, signed_in()]
ForFiles = Annotated[Visitor, signed_in("files")]
ForJobs = Annotated[Visitor, signed_in("jobs")]
ForModels = Annotated[Visitor, signed_in("models")]
ForAdmin = Annotated[Visitor, signed_in("admin")]
