"""The one place where what an organisation may see is chosen: every query for its things goes through a `Tenant`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from titer.service.refusals import Refused, invalid, not_found
from titer.service.tables import LogEntry, Organisation, Owned

T = TypeVar("T", bound=Owned)
MOST = 100
"""Most things on a page."""


@dataclass(frozen=True)
class Page:
    """Some of a list.

    Attributes:
        rows: In their order.
        has_more: Whether there are others behind them.
    """

    rows: Sequence[Any]
    has_more: bool

    def as_list(self, objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return it as OpenAI's list of `objects`, which are the rows as clients see them."""
        ends = {"first_id": objects[0]["id"], "last_id": objects[-1]["id"]} if objects else {}
        empty = {"first_id": None, "last_id": None}
        return {"object": "list", "data": list(objects), "has_more": self.has_more, **(ends or empty)}


class Tenant:
    """All that belongs to one organisation, inside of a transaction. Things of others are not there.

    Args:
        session: The transaction.
        org: The organisation's id.
        actor: Who acts, for the audit log: a key's id, or a worker.
    """

    def __init__(self, session: Session, org: str, actor: str) -> None:
        self.session, self.org, self.actor = session, org, actor

    def select(self, kind: type[T], *where: ColumnElement[bool]) -> Select[T]:
        """Return the query for all things of a kind."""
        return select(kind).where(kind.org_id == self.org, *where)

    def all(self, kind: type[T], *where: ColumnElement[bool]) -> Sequence[T]:
        """Return all things of a kind, the oldest first."""
        return self.session.scalars(self.select(kind, *where).order_by(kind.number)).all()

    def count(self, kind: type[T], *where: ColumnElement[bool]) -> int:
        """Return how many there are."""
        return self.session.scalar(select(func.count()).select_from(self.select(kind, *where).subquery())) or 0

    def find(self, kind: type[T], name: str, *where: ColumnElement[bool], lock: bool = False) -> T | None:
        """Return a thing by its id, or `None`.

        Args:
            kind: Its table.
            name: Its id.
            where: What else must hold.
            lock: Keep others from changing it until the transaction ends.
        """
        if "\0" in name:  # PostgreSQL takes no such text, not even to look for it.
            return None
        query = self.select(kind, kind.id == name, *where)
        return self.session.scalar(query.with_for_update() if lock else query)

    def get(
        self, kind: type[T], name: str, what: str, *where: ColumnElement[bool], param: str = "id", lock: bool = False
    ) -> T:
        """Return a thing by its id.

        Raises:
            Refused: 404, for one that is not there as for another organisation's.
        """
        found = self.find(kind, name, *where, lock=lock)
        if found is None:
            raise not_found(what, name, param)
        return found

    def add(self, thing: T) -> T:
        """Add a thing, which is this organisation's from now on."""
        thing.org_id = self.org
        self.session.add(thing)
        self.session.flush()
        return thing

    def remove(self, thing: Owned) -> None:
        """Remove a thing."""
        if thing.org_id != self.org:
            raise Refused(404, "No such thing.")
        self.session.delete(thing)

    def page(
        self,
        kind: type[T],
        *where: ColumnElement[bool],
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: str = "desc",
        most: int = MOST,
    ) -> Page:
        """Return a page of the things of a kind.

        Args:
            kind: Their table.
            where: What must hold of them.
            after: The id of the last thing on the page before.
            before: The id of the first thing on the page behind.
            limit: Most things on it.
            order: `desc`, the newest first, or `asc`.
            most: The largest `limit` that there is.

        Raises:
            Refused: For a limit or an order that there is not, or a cursor that is no such thing's id.
        """
        if not 1 <= limit <= most:
            raise invalid("limit", f"`limit` is {limit}; it goes from 1 to {most}.")
        if order not in ("asc", "desc"):
            raise invalid("order", f"`order` is {order!r}; it is `asc` or `desc`.")
        query = self.select(kind, *where)
        newest = order == "desc"
        for name, param, behind in ((after, "after", True), (before, "before", False)):
            if name is not None:
                number = self.get(kind, name, "cursor", param=param).number
                query = query.where(kind.number < number if newest is behind else kind.number > number)
        query = query.order_by(kind.number.desc() if newest else kind.number)
        rows = self.session.scalars(query.limit(limit + 1)).all()
        return Page(rows[:limit], len(rows) > limit)

    @property
    def is_operator(self) -> bool:
        """Whether the organisation runs the server."""
        found = self.session.get(Organisation, self.org)
        return found is not None and found.operator

    def lines(
        self, before: int | None = None, limit: int = 20, action: str | None = None, subject: str | None = None
    ) -> Page:
        """Return lines of the audit log about this organisation, the newest first; operators see the server's own too.

        Args:
            before: The number of the last line on the page before.
            limit: Most lines.
            action: What was done: `key.created`, or all of a kind: `key.`.
            subject: Part of the name of what it was done to.

        Raises:
            Refused: For a limit that there is not.
        """
        if not 1 <= limit <= MOST:
            raise invalid("limit", f"`limit` is {limit}; it goes from 1 to {MOST}.")
        if "\0" in f"{action}{subject}":  # as in `find`
            return Page([], False)
        own = LogEntry.org_id == self.org
        query = select(LogEntry).where(own | LogEntry.org_id.is_(None) if self.is_operator else own)
        if before is not None:
            query = query.where(LogEntry.number < before)
        if action is not None:
            query = query.where(LogEntry.action.startswith(action, autoescape=True))
        if subject is not None:
            query = query.where(LogEntry.subject.contains(subject, autoescape=True))
        rows = self.session.scalars(query.order_by(LogEntry.number.desc()).limit(limit + 1)).all()
        return Page(rows[:limit], len(rows) > limit)

    def said_of(self, subjects: Sequence[str]) -> Sequence[LogEntry]:
        """Return the lines of the audit log about some things, the oldest first."""
        own = select(LogEntry).where(LogEntry.org_id == self.org, LogEntry.subject.in_(subjects))
        return self.session.scalars(own.order_by(LogEntry.number)).all()

    def log(self, action: str, subject: str, **details: Any) -> None:
        """Write a line into the audit log, with the transaction or not at all."""
        from titer.service.chain import append

        append(self.session, self.org, self.actor, action, subject, details)
