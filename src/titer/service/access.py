"""Who calls: the key of a request, and the transactions in which its organisation's things are seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request

from titer.service import keys
from titer.service.context import Service
from titer.service.headers import EXTRA
from titer.service.limits import address_of
from titer.service.refusals import Refused
from titer.service.tenants import Tenant


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        service: The service.
        key: The id of the key.
        org: Its organisation.
        scopes: What the key is for.
    """

    service: Service
    key: str
    org: str
    scopes: tuple[str, ...]

    @contextmanager
    def reading(self) -> Iterator[Tenant]:
        """Open a transaction that changes nothing."""
        with self.service.database.reading() as session:
            yield Tenant(session, self.org, self.key)

    @contextmanager
    def writing(self) -> Iterator[Tenant]:
        """Open a transaction; what it changes is there when the block has ended, or not at all."""
        with self.service.database.writing() as session:
            yield Tenant(session, self.org, self.key)


def bearer(request: Request) -> str:
    """Return the key of a request."""
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise Refused(
            401, "You didn't provide an API key: send the header `Authorization: Bearer KEY`.", code="missing_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    return secret.strip()


def caller_of(service: Service, secret: str) -> Caller:
    """Return whom a key belongs to; raises `Refused` 401. Nothing is counted: what comes with a request is `admitted`."""
    with service.database.reading() as session:
        key = keys.authenticate(session, secret)
        return Caller(service, key.id, key.org_id, tuple(key.scopes))


def admitted(request: Request, secret: str) -> Caller:
    """Return whom a key belongs to that came with a request.

    Raises:
        Refused: 401 for a wrong key; 429 for one that is used too often, and for an address that guesses.
    """
    state = request.app.state
    key, headers = state.limits.admit(address_of(request), secret)
    request.scope[EXTRA].update(headers)
    return Caller(state.service, key.id, key.org_id, tuple(key.scopes))


def needs(scope: str) -> Any:
    """Return the dependency that gives an endpoint its `Caller`, whose key must be for `scope`.

    `def retrieve(caller: Caller = needs("files"))`.
    """

    def caller(request: Request) -> Caller:
        found = admitted(request, bearer(request))
        keys.check_scope(found.scopes, scope)
        return found

    return Depends(caller)
