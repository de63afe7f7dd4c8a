"""Pages of keys, the policy and the audit log."""

from __future__ import annotations

import dataclasses

import yaml
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import select

from titer.service import keys, policy
from titer.service.api import operations
from titer.service.console.page import Form, PageRoute, go, render, word, words
from titer.service.console.session import PATH, ForAdmin, Visitor
from titer.service.keys import SCOPES
from titer.service.refusals import Refused
from titer.service.tables import DAY, Key, PolicyVersion, now

router = APIRouter(route_class=PageRoute, include_in_schema=False)
ON_PAGE = 100
"""Lines of the audit log on a page."""
VERSIONS = 20
"""Earlier policies that are shown."""


# Keys ----------------------------------------------------------------------------------------------------------------


@router.get(f"{PATH}/keys")
def list_keys(request: Request, visitor: ForAdmin) -> Response:
    """Show the organisation's keys."""
    return _keys(request, visitor)


def _keys(
    request: Request,
    visitor: Visitor,
    secret: str | None = None,
    problems: dict[str, str] | None = None,
    given: dict[str, str] | None = None,
    chosen: list[str] | None = None,
) -> Response:
    with visitor.caller.reading() as tenant:
        found = list(reversed(tenant.all(Key)))
    return render(
        request,
        "keys.html.j2",
        400 if problems else 200,
        visitor,
        title="Keys",
        keys=found,
        secret=secret,
        scopes=SCOPES,
        given={"name": "", "days": "", **(given or {})},
        chosen=list(SCOPES[:3]) if chosen is None else chosen,
        problems=problems or {},
        now=now(),
    )


@router.post(f"{PATH}/keys")
def create_key(request: Request, visitor: ForAdmin, form: Form) -> Response:
    """Make a key and show it, once."""
    given, chosen = {name: word(form, name) for name in ("name", "days")}, words(form, "scope")
    problems = {}
    if not given["name"]:
        problems["name"] = "Say what the key is for."
    elif len(given["name"]) > 64:
        problems["name"] = "At most 64 letters."
    days = given["days"]
    if days and not (days.isascii() and days.isdigit() and 1 <= int(days[:6]) <= 3650 and len(days) <= 4):
        problems["days"] = "From 1 to 3650 days, or nothing for a key that does not expire."
    if not chosen or not set(chosen) <= set(SCOPES):
        problems["scope"] = "Choose at least one."
    if problems:
        return _keys(request, visitor, problems=problems, given=given, chosen=chosen)
    with visitor.caller.writing() as tenant:
        expires = now() + int(days) * DAY if days else None
        secret, _ = keys.issue(tenant, given["name"], chosen, expires)
    return _keys(request, visitor, secret)


@router.post(f"{PATH}/keys/{{name}}/revoke")
def revoke_key(name: str, visitor: ForAdmin, form: Form) -> Response:
    """Take a key back."""
    with visitor.caller.writing() as tenant:
        keys.revoke(tenant, name)
    return go(f"{PATH}/keys", "revoked")


@router.post(f"{PATH}/keys/{{name}}/rotate")
def rotate_key(request: Request, name: str, visitor: ForAdmin, form: Form) -> Response:
    """Make a key that takes the place of another one, which goes on for a day, and show it once."""
    with visitor.caller.writing() as tenant:
        secret, _ = keys.rotate(tenant, name)
    return _keys(request, visitor, secret)


# The policy ----------------------------------------------------------------------------------------------------------


@router.get(f"{PATH}/policy")
def show_policy(request: Request, visitor: ForAdmin, version: int | None = Query(None, ge=1, le=10**9)) -> Response:
    """Show the policy that holds, or an earlier one to go back to."""
    return _policy(request, visitor, version)


def _policy(
    request: Request, visitor: Visitor, version: int | None = None, text: str | None = None, problem: str = ""
) -> Response:
    with visitor.caller.reading() as tenant:
        held = policy.current(tenant.session)
        newest = select(PolicyVersion).order_by(PolicyVersion.number.desc()).limit(VERSIONS)
        # Who wrote one, and where models lie on the server, is the operator's business.
        history = tenant.session.scalars(newest).all() if visitor.operator else []
        chosen = tenant.session.get(PolicyVersion, version) if version is not None and visitor.operator else None
    if version is not None and chosen is None:
        raise Refused(404, "There is no such policy.")
    if not visitor.operator:
        text = policy.as_yaml(dataclasses.replace(held, models=dict.fromkeys(held.models, "…")))
    elif text is None:
        text = chosen.text if chosen else history[0].text if history else policy.as_yaml(held)
    return render(
        request,
        "policy.html.j2",
        400 if problem else 200,
        visitor,
        title="Policy",
        text=text,
        history=history,
        chosen=version,
        problems={"text": problem} if problem else {},
    )


@router.post(f"{PATH}/policy")
def replace_policy(request: Request, visitor: ForAdmin, form: Form) -> Response:
    """Let a policy hold from now on, or show what is wrong with it."""
    given = form.get("text")
    text = given.replace("\r\n", "\n") if isinstance(given, str) else ""
    try:
        operations.replace_policy(visitor.caller, text)
    except Refused as error:
        if error.status != 400:
            raise
        return _policy(request, visitor, text=text, problem=error.message + line_of(error.message, text))
    return go(f"{PATH}/policy", "saved")


def line_of(message: str, text: str) -> str:
    """Return in which line of a policy the key stands that a message names, in words; nothing where it names none."""
    named = message.split("`")[1::2]
    if not named or named[0].split(".")[0] != "policy":
        return ""
    steps = named[0].split(".")[1:] + (named[1:2] if message.startswith("Unknown key") else [])
    node, line = yaml.compose(text, yaml.SafeLoader), None
    for step in steps:
        found = [pair for pair in getattr(node, "value", []) if isinstance(pair, tuple) and pair[0].value == step]
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return "" if line is None else f" (line {line})"


# The audit log -------------------------------------------------------------------------------------------------------


@router.get(f"{PATH}/log")
def show_log(
    request: Request,
    visitor: ForAdmin,
    action: str = "",
    subject: str = "",
    before: int | None = Query(None, ge=1, le=2**53),
    verify: bool = False,
) -> Response:
    """Show the organisation's lines of the audit log, the newest first."""
    with visitor.caller.reading() as tenant:
        page = tenant.lines(before, ON_PAGE, action or None, subject or None)
    return render(
        request,
        "log.html.j2",
        visitor=visitor,
        title="Audit log",
        lines=page.rows,
        more=page.has_more,
        action=action,
        subject=subject,
        verified=operations.verify_audit_log(visitor.caller) if verify else None,
    )
