"""What no text of a request may hold: NUL characters and halves of characters, which not every database and file takes."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import Request

from titer.service.refusals import Refused

_SUSPICIOUS = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


async def check_texts(request: Request) -> None:
    """Raise `Refused` 400 for a request whose parameters or JSON body hold such characters; a dependency of every endpoint.

    Bodies that are read as they come look after themselves.
    """
    if "\0" in request.url.path or b"%00" in request.scope["query_string"]:
        raise _unusable("address")
    route: Any = request.scope.get("route")
    if getattr(route, "body_field", None) is None or not _SUSPICIOUS.search(body := await request.body()):
        return
    try:
        text = json.dumps(json.loads(body), ensure_ascii=False)
        text.encode()
    except ValueError:  # a lone surrogate; or no JSON, which has been said before
        raise _unusable("body") from None
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", text):
        raise _unusable("body")


def _unusable(where: str) -> Refused:
    return Refused(
        400, f"The {where} of the request holds a NUL character or half a character (a lone surrogate).",
        code="invalid_text",
    )  # fmt: skip
