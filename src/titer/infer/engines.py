"""Which engine answers prompts: this process by default, or a server of vLLM or SGLang."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from titer.errors import TiterError, check_known
from titer.infer.servers import Server, survey
from titer.ranges import Range
from titer.web import Client, check_address

KEYS = ("TITER_ENGINE_KEY",)
"""Environment variable of the server's key."""

PART = "answers.part.jsonl"
"""Holds the answers that there are, until all are."""

CHECKS = ("likelihood", "names")
EXAMPLE = "openai:http://localhost:8000"
_RANGES = {
    "requests": Range(1, 1024, whole=True),
    "timeout": Range(0, 86_400, above=True),
    "retries": Range(0, 100, whole=True),
    "wait": Range(0, 3_600),
}


@dataclass(frozen=True)
class Engine:
    """A server, and how it is asked.

    Attributes:
        url: Its address, without `/v1`.
        requests: Most at a time.
        timeout: Seconds to wait for one answer.
        retries: Times to ask again after 429, 5xx, or no connection.
        wait: Seconds before the first of these, doubled each time.
        check: How it is made sure that it serves the same weights: `likelihood` (what it thinks of a few texts is what the weights
            here do) or `names` (the base that it names is the same folder, files or hub id; nothing is loaded here).
    """

    url: str
    requests: int = 32
    timeout: float = 300.0
    retries: int = 5
    wait: float = 1.0
    check: str = "likelihood"

    @classmethod
    def read(cls, text: str) -> Engine:
        """Read `openai:URL`, with settings behind it: `openai:http://localhost:8000 requests=64 check=names`.

        Raises:
            TiterError: For another engine, no address, or a setting that is unknown or out of range.
        """
        try:
            first, *rest = shlex.split(text) or [""]
        except ValueError as error:
            raise TiterError(f"The engine `{text}` cannot be read: {error}.", f"For example `{EXAMPLE}`.") from error
        kind, _, url = first.partition(":")
        check_known([kind], ["openai"], "engine")
        url = url.rstrip("/").removesuffix("/v1")
        check_address(f"Engine `{first}`", url, "an address", KEYS, EXAMPLE)
        return cls(url, **_settings(text, rest))  # type: ignore[arg-type]

    def server(self) -> Server:
        """Ask the server what it is, and return it.

        Raises:
            TiterError: As `titer.infer.servers.survey`.
        """
        client = Client(self.url, KEYS, self.timeout, self.retries, self.wait, "engine")
        return Server(client, survey(client))


def _settings(text: str, pieces: list[str]) -> Mapping[str, int | float | str]:
    found: dict[str, int | float | str] = {}
    for piece in pieces:
        name, _, value = piece.partition("=")
        check_known([name], [*_RANGES, "check"], f"setting of the engine `{text}`")
        if name in found:
            raise TiterError(f"`{name}` of the engine is given twice.", "Give it once.")
        if name == "check":
            check_known([value], CHECKS, "check of the engine")
            found[name] = value
            continue
        try:
            number = int(value) if _RANGES[name].whole else float(value)
        except ValueError:
            number = float("nan")
        if not _RANGES[name].holds(number):
            raise TiterError(f"`{name}` of the engine must be {_RANGES[name]}, found `{value:.80}`.")
        found[name] = number
    return found
