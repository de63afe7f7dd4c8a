"""JSON over HTTP, asked again where that may help. By the standard library's client: titer declares no other.

A redirect is not followed, since the key would go with it.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from titer.errors import TiterError

LONGEST_WAIT = 60.0
"""Most seconds before a request is sent again, whatever the server asks for."""

AGAIN = (408, 409, 425, 429)
"""Answers below 500 after which asking again may help."""


class Unanswered(Exception):
    """Why nothing usable came of a request.

    Args:
        reason: In words.
        status: The HTTP status; `None` where there was none, or it was none of an error.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class Client:
    """Asks one server.

    Args:
        url: What every path begins with.
        keys: Environment variables of the key, of which the first that is set counts.
        timeout: Seconds to wait for an answer.
        retries: Times to ask again after 408, 409, 425, 429, 5xx, or no connection.
        wait: Seconds before the first of these, doubled each time.
        called: What the server is, for reasons.
    """

    def __init__(
        self, url: str, keys: Sequence[str], timeout: float, retries: int, wait: float, called: str = "endpoint"
    ) -> None:
        self.url, self.called, self._keys = url.rstrip("/"), called, keys
        self.timeout, self.retries, self.wait = timeout, retries, wait
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._away = False

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    def json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return what a JSON answer holds.

        Args:
            path: Behind the address.
            body: What is posted; without it the path is got.

        Raises:
            Unanswered: When nothing usable came.
        """
        content = self.text(path, body)
        try:
            return json.loads(content)
        except ValueError as error:
            raise Unanswered(f"the {self.called}'s answer is not JSON: {self.short(content)}") from error

    def text(self, path: str, body: Mapping[str, Any] | None = None) -> str:
        """Return an answer as it is; otherwise as `json`."""
        asked_for, why, status = 0.0, "", None
        # Where nobody was there a moment ago, each further request is sent once: minutes of waiting would tell no more.
        for attempt in range(1 if self._away else self.retries + 1):
            if attempt:
                time.sleep(min(max(self.wait * 2 ** (attempt - 1), asked_for), LONGEST_WAIT))
            asked_for, status = 0.0, None
            try:
                with self._open(self._request(path, body), timeout=self.timeout) as answer:
                    content: bytes = answer.read()
            except urllib.error.HTTPError as error:
                status = error.code
                why = f"{error.code} {error.reason}: {self._told(error)}"
                if error.code < 500 and error.code not in AGAIN:
                    raise Unanswered(f"the {self.called} refuses: {why}", status) from error
                asked_for = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                why = str(getattr(error, "reason", error)) or type(error).__name__
            else:
                self._away = False
                return content.decode(errors="replace")
        self._away = status is None
        raise Unanswered(f"no answer from {self.host}: {why}", status)

    def short(self, text: str) -> str:
        """Return the beginning of a text in one line; a key that it repeats is not told."""
        key = self._key()
        return " ".join((text.replace(key, "…") if key else text).split())[:200]

    def _request(self, path: str, body: Mapping[str, Any] | None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "User-Agent": "titer"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(self.url + path, data, headers)

    def _key(self) -> str:
        """Return the key; empty where there is none."""
        found = ((name, value) for name in self._keys if (value := os.environ.get(name, "").strip()))
        name, key = next(found, ("", ""))
        if not (key.isascii() and key.isprintable()):
            raise TiterError(f"The key in {name} holds what no key does: a line break, or a letter that is not ASCII.")
        return key

    def _told(self, error: urllib.error.HTTPError) -> str:
        """Return the beginning of what a server says about an error."""
        try:
            return self.short(error.read(2_000).decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            return "(no more)"


def check_address(who: str, url: str, named: str, keys: Sequence[str], example: str) -> None:
    """Raise `TiterError` for what is no address, or holds what belongs in no name.

    Args:
        who: Whose address it is, for the error.
        url: The address.
        named: What it is called.
        keys: Environment variables of the key.
        example: Of how to write it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TiterError(f"{who}: `{url}` is no address of an endpoint.", f"For example {example}.")
    if parts.username or parts.password or parts.query:
        raise TiterError(f"{who}: a key does not belong in {named}.", f"Set the environment variable {keys[0]} to it.")


def _seconds(text: str | None) -> float:
    """Return the seconds of a `Retry-After`; 0 where it names a date, or nothing."""
    return float(text) if text is not None and text.strip().isdecimal() else 0.0
