"""The console's pages: signing in and out, the overview, and the groups of pages in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from titer.report import words
from titer.service.console import admin, files, jobs, models
from titer.service.console.page import Form, PageRoute, go, render, word
from titer.service.console.session import (
    COOKIE,
    PATH,
    AnyVisitor,
    csrf_of,
    new_cookie,
    set_cookie,
    sign_in,
    sign_out,
    visitor_of,
)
from titer.service.refusals import Refused
from titer.service.tables import Job, Model

router = APIRouter(route_class=PageRoute, include_in_schema=False)
static = StaticFiles(directory=Path(__file__).parent / "static")
LOOKS = Path(words.__file__).parent / "templates" / "looks.css"
SHOWN = 8
"""Most rows of each table of the overview."""


@router.get(PATH)
def overview(request: Request, visitor: AnyVisitor) -> Response:
    """Show what there is and what is used of the quotas."""
    found: dict[str, Any] = {"jobs": [], "audits": [], "models": []}
    with visitor.caller.reading() as tenant:
        if visitor.may("jobs"):
            found["jobs"] = tenant.page(Job, Job.kind == "fine_tuning", limit=SHOWN).rows
            found["audits"] = tenant.page(Job, Job.kind == "audit", limit=SHOWN).rows
        if visitor.may("models"):
            found["models"] = tenant.page(Model, Model.step.is_(None), limit=SHOWN).rows
        names = jobs.file_names(tenant, [*found["jobs"], *found["audits"]]) if visitor.may("jobs") else {}
        quotas = jobs.quotas(tenant)
    return render(request, "overview.html.j2", visitor=visitor, title="Overview", quotas=quotas, names=names, **found)


# Signing in and out --------------------------------------------------------------------------------------------------


@router.get(f"{PATH}/sign-in")
def sign_in_page(request: Request) -> Response:
    """Ask for a key."""
    if visitor_of(request) is not None:
        return go(PATH)
    return _ask(request, inside(request.query_params.get("next", "")), {})


@router.post(f"{PATH}/sign-in")
def sign_in_form(request: Request, form: Form) -> Response:
    """Open a visit with a key."""
    wanted = inside(word(form, "next"))
    try:
        cookie = sign_in(request, word(form, "key"))
    except Refused as error:
        said = "That is no key of this server, or it has expired or was taken back."
        return _ask(request, wanted, {"key": said if error.status == 401 else error.message}, error.status)
    # A new cookie: one that somebody may have planted before is worth nothing.
    response = go(wanted)
    set_cookie(request, response, cookie)
    return response


@router.post(f"{PATH}/sign-out")
def sign_out_form(visitor: AnyVisitor, form: Form) -> Response:
    """End the visit."""
    sign_out(visitor)
    response = go(f"{PATH}/sign-in")
    response.delete_cookie(COOKIE, path=PATH)
    return response


def inside(path: str) -> str:
    """Return where to go after signing in, which is a page of the console whatever a link says."""
    return path if path.startswith(f"{PATH}/") and "\\" not in path and ".." not in path else PATH


def _ask(request: Request, wanted: str, problems: dict[str, str], status: int = 200) -> Response:
    cookie = request.cookies.get(COOKIE) or new_cookie()
    page = render(
        request,
        "sign_in.html.j2",
        status,
        title="Sign in",
        csrf=csrf_of(cookie),
        wanted=wanted,
        problems=problems,
    )
    set_cookie(request, page, cookie)
    return page


# What lies beside the pages ------------------------------------------------------------------------------------------


@router.get(f"{PATH}/looks.css")
def looks() -> Response:
    """Return the looks of titer's reports, which are the console's too."""
    return FileResponse(LOOKS, media_type="text/css")


for part in (files, jobs, models, admin):
    router.include_router(part.router)


@router.get(f"{PATH}/{{rest:path}}")
def nowhere(rest: str, visitor: AnyVisitor) -> Response:
    """Say of any other address that there is nothing."""
    raise Refused(404, "There is no such page.")
