"""What all pages are made with: templates that escape whatever they are given, forms that are checked, errors as pages."""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from titer.errors import TiterError
from titer.report.words import compact, count_text, duration_text
from titer.service.console.session import COOKIE, SignIn, Visitor, check_csrf
from titer.service.refusals import Refused
from titer.text import visible
from titer.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

FORM_BYTES = 1 << 20
"""Most bytes of a form without a file."""
PART = "x-titer-part"
"""The header with which the console's script asks for a part of a page."""
NOTICES = {
    "uploaded": "The file is uploaded; each of its rows can be trained on.",
    "deleted": "It is deleted.",
    "auditing": "The audit waits for a worker.",
    "appealed": "The rows are marked honest: they teach in every job that is made from now on.",
    "created": "The job is made.",
    "cancelled": "It is cancelled, or will be as soon as its worker has heard of it.",
    "paused": "The job is paused, or will be as soon as its worker has heard of it.",
    "resumed": "The job goes on.",
    "revoked": "The key is taken back: nothing accepts it any more.",
    "saved": "The policy holds for jobs that are made from now on.",
}
"""What is said once something was done; the address of the page names it."""


# Pages ---------------------------------------------------------------------------------------------------------------


def render(
    request: Request, template: str, status: int = 200, visitor: Visitor | None = None, **context: Any
) -> HTMLResponse:
    """Return a page.

    Args:
        request: What it answers.
        template: In the folder of templates.
        status: The HTTP status.
        visitor: Who looks at it, if anybody is signed in.
        context: What it is rendered with.
    """
    about: dict[str, Any] = {
        "visitor": visitor,
        "csrf": visitor.csrf if visitor else "",
        "path": request.url.path,
        "notice": NOTICES.get(request.query_params.get("done", "")),
        "version": __version__,
    }
    # A field that nothing is wrong with has no problem, and templates ask for that of each.
    wrong = defaultdict(str, context.pop("problems", {}))
    text = visible(environment().get_template(template).render({**about, **context, "problems": wrong}))
    # Pages hold an organisation's things: no cache keeps them.
    return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})


def go(path: str, done: str | None = None, **query: str) -> Response:
    """Return the way to a page, once a form was taken."""
    asked = urlencode({**query, **({} if done is None else {"done": done})})
    return RedirectResponse(path + (f"?{asked}" if asked else ""), 303)


@cache
def environment() -> Environment:
    """Return the environment of the templates."""
    from titer.report.parts import escaping

    made = escaping(Path(__file__).parent / "templates")
    made.filters |= {
        "when": when,
        "size": size,
        "percent": lambda share: f"{100 * share:.1f} %",
        "counted": count_text,
        "compact": compact,
        "duration": duration_text,
        "said": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        "quoted": lambda text: quote(str(text), safe=""),
    }
    return made


def when(seconds: int | None) -> str:
    """Return a moment for people, in UTC."""
    if seconds is None:
        return "–"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def size(amount: int) -> str:
    """Return a number of bytes for people."""
    for unit, power in (("GB", 30), ("MB", 20), ("kB", 10)):
        if amount >= 1 << power:
            return f"{amount / (1 << power):.1f} {unit}"
    return f"{amount} B"


# Errors --------------------------------------------------------------------------------------------------------------


def problems_of(error: Refused | TiterError, fields: Mapping[str, str], otherwise: str) -> dict[str, str]:
    """Return what is wrong with a form, by the field that it is shown beside.

    Args:
        error: What the service said.
        fields: The parameter that it names, or the last part of it, → the form's field.
        otherwise: The field for what names none.
    """
    if isinstance(error, TiterError):
        return {otherwise: str(error)}
    if error.status not in (400, 404, 409, 413, 415, 422, 429):
        raise error
    param = error.param or ""
    return {fields.get(param) or fields.get(param.rpartition(".")[2]) or otherwise: error.message}


class PageRoute(APIRoute):
    """A route whose refusals are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers requests."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except SignIn:
                return _to_sign_in(request)
            except Refused as error:
                return _error(request, error)
            except RequestValidationError as error:
                first = error.errors()[0]
                name = ".".join(str(part) for part in first["loc"][1:])
                return _error(request, Refused(400, f"{name}: {first['msg']}.", name))
            except TiterError as error:
                return _error(request, Refused(400, str(error)))

        return answer


def _to_sign_in(request: Request) -> Response:
    if request.headers.get(PART):
        # The script loads the whole page then, which leads to where one signs in.
        return HTMLResponse("Sign in again.", 401)
    wanted = request.url.path if request.method == "GET" else "/console"
    return go("/console/sign-in", **({} if wanted == "/console" else {"next": wanted}))


def _error(request: Request, error: Refused) -> Response:
    visitor = getattr(request.state, "visitor", None)
    titles = {403: "Not allowed", 404: "Nothing here", 413: "Too large", 429: "Too much"}
    title = titles.get(error.status, "That did not work")
    page = render(request, "error.html.j2", error.status, visitor, title=title, message=error.message)
    page.headers.update(error.headers)
    return page


# Forms ---------------------------------------------------------------------------------------------------------------


async def read_form(request: Request, most: int) -> FormData:
    """Return a form that this browser was shown.

    Args:
        request: The request, whose cookie the form's token must belong to.
        most: Most bytes that it may have.

    Raises:
        Refused: For one that is too large or malformed, or whose token is another browser's.
    """
    kind = request.headers.get("content-type", "").partition(";")[0]
    parser: Any = {"multipart/form-data": MultiPartParser, "application/x-www-form-urlencoded": FormParser}.get(kind)
    if parser is None:
        raise Refused(415, "A form is expected.")
    try:
        form: FormData = await parser(request.headers, _bounded(request, most)).parse()
    except MultiPartException as error:
        raise Refused(400, f"The form cannot be read: {error.message}") from error
    check_csrf(request.cookies.get(COOKIE), word(form, "csrf"))
    return form


async def _bounded(request: Request, most: int) -> AsyncIterator[bytes]:
    got = 0
    async for chunk in request.stream():
        got += len(chunk)
        if got > most:
            raise Refused(413, f"That is more than {size(most)}.")
        yield chunk


async def _small_form(request: Request) -> FormData:
    return await read_form(request, FORM_BYTES)


Form = Annotated[FormData, Depends(_small_form)]


def word(form: FormData, name: str) -> str:
    """Return a field of a form without blanks around it; empty where it was left out."""
    found = form.get(name)
    return found.strip() if isinstance(found, str) else ""


def words(form: FormData, name: str) -> list[str]:
    """Return all values of a field that may be there several times."""
    return [found for found in form.getlist(name) if isinstance(found, str)]
