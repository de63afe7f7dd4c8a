"""Bodies of requests that hold files: read as they come, bounded, and handed on piece by piece."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import anyio
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from titer.service.json_lines import shown
from titer.service.refusals import Refused, compressed, invalid
from titer.text import visible

PIECE = 1 << 18
"""How much of a body is gathered before it is looked at, so that a client that sends single bytes costs no more than others."""
LINGER = 30.0
"""Seconds for which the rest of a refused body is read and thrown away: a client that still sends would not read why."""
OVERHEAD = 1 << 16
"""Bytes of a body beside its file."""
FIELD = 4096
PARTS = 16
FILENAME = 255


def too_large(most: int, what: str = "file") -> Refused:
    """Return the answer about a file that is too large."""
    return Refused(413, f"The {what} is larger than {most:,} bytes.", "file", "file_too_large")


def check_filename(name: str) -> str:
    """Return what a client calls a file, which is only ever shown.

    Raises:
        Refused: For one that is empty, too long, or does not show as what it is.
    """
    if not 1 <= len(name) <= FILENAME or visible(name) != name or "\n" in name or "\t" in name:
        raise invalid("filename", f"A file name has 1 to {FILENAME} characters, all of which can be seen.")
    return name


class Form:
    """A `multipart/form-data` body that comes in pieces, and holds one file.

    Args:
        content_type: The request's header.
        file: The name of the field that holds the file.
        fields: Names of the other fields that there may be.
        take: Is given the file's bytes as they come.

    Attributes:
        values: The other fields.
        filename: What the client calls the file; `None` as long as there was none.

    Raises:
        Refused: For a body that is no form.
    """

    def __init__(
        self, content_type: str | None, file: str, fields: Collection[str], take: Callable[[bytes], None]
    ) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refused(415, "Send `multipart/form-data` with a boundary.", "Content-Type", "unsupported_media_type")
        self._file, self._fields, self._take = file, tuple(fields), take
        self.values: dict[str, str] = {}
        self.filename: str | None = None
        self._parts, self._name, self._ended = 0, "", False
        self._key, self._value, self._disposition = bytearray(), bytearray(), ""
        said = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "part_end")
        callbacks: Any = {f"on_{name}": getattr(self, f"_{name}") for name in (*said, "end")}
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError as error:
            raise invalid("Content-Type", f"{error}.") from None

    def feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            Refused: For what is no form, or not this one.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Refused(400, f"The body is no multipart form: {error}.", code="invalid_body") from None

    def end(self) -> None:
        """Say that the body is over.

        Raises:
            Refused: For one that was cut off, or held no file.
        """
        if not self._ended:
            raise Refused(400, "The body ends before its last boundary.", code="invalid_body")
        if self.filename is None:
            raise Refused(400, f"`{self._file}` is missing.", self._file, "missing_required_parameter")

    # -- what the parser says -----------------------------------------------------------------------------------------

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise Refused(400, f"The form has more than {PARTS} parts.", code="invalid_body")
        self._disposition = ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._key.lower() == b"content-disposition":
            self._disposition = self._value.decode("latin-1")
        self._key.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise Refused(400, "A part of the form has no name.", code="invalid_body")
        self._name = _utf8(options[b"name"])
        if self._name != self._file and self._name not in self._fields:
            said = shown(self._name)
            raise Refused(400, f"Unrecognized request argument supplied: {said}", said, "unknown_parameter")
        if self._name in self.values or (self._name == self._file and self.filename is not None):
            raise invalid(self._name, f"`{self._name}` stands in the form twice.")
        if self._name == self._file:
            if b"filename" not in options:
                raise invalid(self._file, f"`{self._file}` is no file: its part of the form has no filename.")
            self.filename = check_filename(_utf8(options[b"filename"]))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._file:
            self._take(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > FIELD:
            raise invalid(self._name, f"`{self._name}` is longer than {FIELD} bytes.")

    def _part_end(self) -> None:
        if self._name != self._file:
            self.values[self._name] = _utf8(bytes(self._value))
        self._value.clear()

    def _end(self) -> None:
        self._ended = True


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(400, "A name or field of the form is not UTF-8.", code="invalid_body") from None


# -- from the socket ------------------------------------------------------------------------------------------------------


async def pour(request: Request, take: Callable[[bytes], None], most: int) -> None:
    """Hand the body of a request on as it comes, in a thread; of what is refused, the rest is read for a while all the same.

    Args:
        request: The request.
        take: Is given the pieces.
        most: Most bytes of the file in it.

    Raises:
        Refused: What `take` raises; 413 for a body that is too large, 415 for one that is compressed, and 400 for a client that
            went away. One that sends too slowly is seen to by `headers.Guard`.
    """
    body = _Body(request)
    try:
        _check_headers(request, most)
        total, held = 0, bytearray()
        async for chunk in body.pieces():
            total += len(chunk)
            if total > most + OVERHEAD:
                raise too_large(most)
            held += chunk
            if len(held) >= PIECE:
                await run_in_threadpool(take, bytes(held))
                held.clear()
        await run_in_threadpool(take, bytes(held))
    except Refused:
        await body.let_end()
        raise


def _check_headers(request: Request, most: int) -> None:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        # What is small while it is compressed may be of any size.
        raise compressed(shown(coding))
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > most + OVERHEAD:
        raise too_large(most)


class _Body:
    """A body as it comes from the socket, and whether it has ended: whoever asks for more then waits for the client to go."""

    def __init__(self, request: Request) -> None:
        self._receive, self._ended = request.receive, False

    async def pieces(self) -> AsyncIterator[bytes]:
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._ended = True
                raise Refused(400, "The client went away.", code="invalid_body")
            self._ended = not message.get("more_body", False)
            yield message.get("body", b"")

    async def let_end(self) -> None:
        """Read the rest and throw it away, for a while."""
        with anyio.move_on_after(LINGER), contextlib.suppress(Refused):
            async for _ in self.pieces():
                pass
