"""How requests fail: what happened stands in the log, and the client is told its number."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from titer.service.chat.pieces import Ticket
from titer.service.identifiers import new_id
from titer.service.refusals import Refused

logger = logging.getLogger(__name__)


def fail(tickets: Iterable[Ticket], error: Exception) -> None:
    """Let requests fail. A `Refused` is told as it is; of anything else the client learns the number under which it is logged."""
    number = new_id("request")
    if not isinstance(error, Refused):
        logger.error("A chat failed (%s).", number, exc_info=error)
        error = Refused(500, f"The model could not answer ({number}).", code="engine_error")
    for ticket in tickets:
        ticket.fail(error)


def overloaded() -> Refused:
    """Return what one is told when too many wait."""
    message = "Too many chats wait for an answer at the moment: try again in a few seconds."
    return Refused(429, message, code="engine_overloaded", headers={"Retry-After": "2"})


def closing() -> Refused:
    """Return what one is told when the server stops."""
    return Refused(503, "The server is shutting down.", code="server_shutdown")
