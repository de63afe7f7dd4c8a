"""Halves of characters in requests: JSON can spell them (`\\ud83d` alone), and no database, file or answer can hold them."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import Request

from titer.service.refusals import Refused

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


async def check_texts(request: Request) -> None:
    """Raise `Refused` 400 for a JSON body that holds half a character; a dependency of every endpoint.

    Bodies that an endpoint reads as they come are for it to look after.
    """
    route: Any = request.scope.get("route")
    if getattr(route, "body_field", None) is None or not _HALF.search(body := await request.body()):
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except ValueError:  # also for what is no JSON, which has been refused before
        raise Refused(
            400, "The body holds half a character (a lone surrogate), which is no text.", code="invalid_text"
        ) from None
