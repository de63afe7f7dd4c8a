"""Files on their way into the store: counted, bounded while they come, their rows checked as they pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

import anyio.from_thread
from sqlalchemy.exc import SQLAlchemyError

from titer.service import quotas, retention
from titer.service.access import Caller
from titer.service.chat_rows import Checked, Checker
from titer.service.forms import check_filename, too_large
from titer.service.identifiers import new_id
from titer.service.json_lines import Lines
from titer.service.policy import Policy, current
from titer.service.refusals import Refused, invalid
from titer.service.store import Store, pieces
from titer.service.tables import File, Organisation, now
from titer.service.tenants import Tenant

PURPOSES = ("fine-tune", "user_data")
"""What clients may upload files for."""
RESULTS = "fine-tune-results"
EXPIRES = (3600, 2592000)
"""Least and most seconds after which a file may expire."""
SENT = 1 << 17
"""Bytes of a file that are sent at a time: so many, and as many again, are held for each client that does not read them."""


def check_purpose(purpose: str | None) -> str:
    """Return what a file is for; raises `Refused` for what this server does nothing with."""
    if purpose is None:
        raise Refused(400, "`purpose` is missing.", "purpose", "missing_required_parameter")
    if purpose not in PURPOSES:
        raise invalid(
            "purpose",
            "This server fine-tunes models: files are for `fine-tune`, or for `user_data`, which is kept unread.",
        )
    return purpose


def check_seconds(seconds: int | None) -> int | None:
    """Return after how many seconds a file expires; raises `Refused` for one that OpenAI does not take."""
    if seconds is not None and not EXPIRES[0] <= seconds <= EXPIRES[1]:
        raise invalid("expires_after.seconds", f"`seconds` goes from {EXPIRES[0]} to {EXPIRES[1]}, found {seconds}.")
    return seconds


def storage(tenant: Tenant, policy: Policy) -> int | None:
    """Return how many bytes an organisation may have in the store; `None` for as many as it likes."""
    return quotas.quota_of(policy, tenant.session.get_one(Organisation, tenant.org)).storage_bytes


def check_storage(tenant: Tenant, policy: Policy, more: int) -> None:
    """Raise `Refused` 429 where there is no room for `more` bytes."""
    most = storage(tenant, policy)
    if most is not None and retention.used_bytes(tenant) + more > most:
        raise _no_room(most)


def _no_room(most: int) -> Refused:
    return Refused(
        429, f"Your organisation may keep {most:,} bytes here, and this would be more: delete files.", "file",
        "insufficient_quota", "insufficient_quota",
    )  # fmt: skip


class Incoming:
    """Bytes on their way to a place in the store. They are there when `done` was called, and not when the block was left before.

    Args:
        caller: Whose they are.
        place: The key in the store.
        most: Most bytes of it; by default the policy's of a file.
        rows: Check them as rows of conversations too.

    Attributes:
        place: As given.
        bytes: How many came so far.
        policy: The policy that holds.
    """

    def __init__(self, caller: Caller, place: str, most: int | None = None, *, rows: bool = False) -> None:
        with caller.reading() as tenant:
            self.policy = current(tenant.session)
            self._quota = storage(tenant, self.policy)
            self._room = None if self._quota is None else self._quota - retention.used_bytes(tenant)
        self.caller, self.place = caller, place
        self.most = self.policy.limits.file_bytes if most is None else most
        self.bytes = 0
        self._lines = Lines()
        self._checker = Checker(rows=self.policy.limits.rows) if rows else None
        self._writing: Any = caller.service.store.writing(place)
        self._open = False

    def __enter__(self) -> Self:
        self._file = self._writing.__enter__()
        self._open = True
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._open:
            error = error or _GivenUp()
            self._open = False
            self._writing.__exit__(type(error), error, trace)

    def write(self, data: bytes) -> None:
        """Take some more.

        Raises:
            Refused: 413 when it is too large, 429 when it is more than its organisation may have.
        """
        self.bytes += len(data)
        if self.bytes > self.most:
            raise too_large(self.most)
        if self._room is not None and self.bytes > self._room:
            raise _no_room(self._quota or 0)
        self._file.write(data)
        if self._checker is not None and not self._checker.over:
            for line in self._lines.feed(data):
                self._checker.line(line)

    def unread(self) -> None:
        """Do not look at its rows, since it is not for `fine-tune`."""
        self._checker = None

    def checked(self) -> Checked:
        """Return what its rows were found to be; nothing comes after that."""
        if self._checker is None:
            raise RuntimeError("its rows were not looked at")
        for line in self._lines.end():
            self._checker.line(line)
        return self._checker.end()

    @property
    def digest(self) -> str:
        """The SHA-256 of what came."""
        digest: str = self._file.digest
        return digest

    def done(self, record: Callable[[Tenant], None]) -> None:
        """Put it into its place, and write down in one transaction that it is there; without that it is not."""
        service = self.caller.service
        with service.database.writing() as session:
            retention.announce(session, self.place)
        self._open = False
        self._writing.__exit__(None, None, None)
        try:
            with self.caller.writing() as tenant:
                record(tenant)
                retention.kept(tenant.session, self.place)
        except BaseException:
            # Where the database is away a sweep finds the note later.
            with suppress(SQLAlchemyError):
                retention.empty(service, places=[self.place])
            raise


class _GivenUp(Exception):
    """What the store is told of bytes that nobody wanted to keep."""


class IncomingFile(Incoming):
    """A file on its way. What it is for may become known when its bytes have come, as forms have their fields in any order.

    Args:
        caller: Whose it is.
        rows: Check its rows, so that it can be one for `fine-tune`.
    """

    def __init__(self, caller: Caller, *, rows: bool = True) -> None:
        self.id = new_id("file")
        super().__init__(caller, f"files/{caller.org}/{self.id}", rows=rows)

    def keep(
        self,
        filename: str,
        purpose: str,
        expires_after: int | None = None,
        also: Callable[[Tenant, File], None] | None = None,
    ) -> File:
        """Keep the file, whose bytes have all come.

        Args:
            filename: What its owner calls it.
            purpose: What it is for; its rows must be right when it is for `fine-tune`.
            expires_after: After how many seconds it is deleted.
            also: What else is to be done in the transaction that makes it visible.

        Raises:
            Refused: For rows that are not right, with all that is wrong; nothing is kept then.
        """
        file = File(
            id=self.id, filename=check_filename(filename), purpose=purpose, bytes=self.bytes, digest=self.digest,
            place=self.place, expires_at=None if expires_after is None else now() + expires_after,
        )  # fmt: skip
        if purpose == "fine-tune":
            check_rows(self.checked())

        def record(tenant: Tenant) -> None:
            # The log's lock makes those that come at a time be counted one after the other.
            tenant.log("file.created", file.id, purpose=purpose, bytes=file.bytes, sha256=file.digest)
            check_storage(tenant, self.policy, file.bytes)
            tenant.add(file)
            if also is not None:
                also(tenant, file)

        self.done(record)
        return file


def check_rows(checked: Checked) -> None:
    """Raise `Refused` 400 with all that is wrong in a file's rows."""
    if not checked.errors:
        return
    raise Refused(
        400, f"The file cannot be trained on. {checked.message}", "file", "invalid_file",
        errors=[error.as_dict() for error in checked.errors], more_errors=checked.more,
    )  # fmt: skip


def store_file(
    caller: Caller,
    chunks: Iterable[bytes] | AsyncIterator[bytes],
    filename: str,
    purpose: str,
    expires_after: int | None = None,
    also: Callable[[Tenant, File], None] | None = None,
) -> File:
    """Keep a file that comes in pieces.

    Args:
        caller: Whose it is.
        chunks: The pieces; where they are awaited, this runs in a thread of the event loop's.
        filename: What its owner calls it.
        purpose: What it is for: one of `PURPOSES`, or `RESULTS` for what a job leaves.
        expires_after: After how many seconds it is deleted.
        also: As of `IncomingFile.keep`.

    Raises:
        Refused: For what cannot be kept; nothing of it is.
    """
    if purpose != RESULTS:
        check_purpose(purpose)
    check_seconds(expires_after)
    with IncomingFile(caller, rows=purpose == "fine-tune") as incoming:
        for chunk in _pulled(chunks):
            incoming.write(chunk)
        return incoming.keep(filename, purpose, expires_after, also)


def _pulled(chunks: Iterable[bytes] | AsyncIterator[bytes]) -> Iterator[bytes]:
    if not isinstance(chunks, AsyncIterator):
        yield from chunks
        return
    while True:
        try:
            yield anyio.from_thread.run(_next, chunks)
        except StopAsyncIteration:
            return


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)


def read_chunks(store: Store, place: str) -> Iterator[bytes]:
    """Return what a file of the store holds, piece by piece; raises `FileNotFoundError` at once."""
    file = store.open(place)

    def chunks() -> Iterator[bytes]:
        with file:
            yield from pieces(file, SENT)

    return chunks()
