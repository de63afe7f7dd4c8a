"""What is answered while the database, the artefact store or a disk is away: 503, and when to ask again; the log has one line of it."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from titer.errors import first_line
from titer.service.headers import REQUEST, App, Message, Receive, Send, answer
from titer.service.refusals import Refused
from titer.service.running import is_away, is_of_the_store

AGAIN = "2"
"""Seconds after which to ask again: a database restarts in a few, and clients that ask in vain wait longer each time."""

logger = logging.getLogger(__name__)


def outage(scope: MutableMapping[str, Any], error: Exception) -> Refused | None:
    """Return the answer to a request that met an outage, which is noted in the log; `None` for any other error."""
    if isinstance(error, NoConnectionLeft) or (isinstance(error, DBAPIError) and is_away(error)):
        what = "database"
    elif is_of_the_store(error):
        what = "store of files"
    else:
        return None
    said = first_line(error)
    logger.warning("%s %s: the %s is away: %s (%s)", scope["method"], scope["path"], what, said, scope[REQUEST])
    return Refused(
        503, f"The server's {what} cannot be reached. Try again in {AGAIN} s ({scope[REQUEST]}).",
        code="service_unavailable", headers={"Retry-After": AGAIN},
    )  # fmt: skip


class Outages:
    """Answers requests that met an outage, unless their answer has begun: that one breaks off."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:  # whatever an endpoint did not expect; all but outages are raised again
            refused = None if begun or scope["type"] != "http" else outage(scope, error)
            if refused is None:
                raise
            await answer(send, refused)
