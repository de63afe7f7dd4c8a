"""For operators: health, metrics, policies, keys and the audit log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

import yaml
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from titer.errors import TiterError
from titer.service import chain, keys, policy
from titer.service.access import Caller, admitted, bearer, needs
from titer.service.headers import is_loopback
from titer.service.policy import Policy
from titer.service.refusals import Refused, invalid
from titer.service.tables import DAY, Key, LogEntry, PolicyVersion, now
from titer.service.tenants import Tenant
from titer.version import __version__

router = APIRouter()
Admin = Annotated[Caller, needs("admin")]
Scope = Literal["files", "jobs", "models", "admin"]
LONGEST_DAYS = 3650
VERSIONS = 100
"""How many policies of the past are listed."""
PLAIN = re.compile(r"(builtin:)?[A-Za-z0-9_-]*")
"""Names of methods, judges and datasets that come with titer; whatever else a policy holds may be a file or code."""

# -- how it is --------------------------------------------------------------------------------------------------------


@router.get("/titer/v1/health")
async def health() -> dict[str, str]:
    """Whether the server answers; nothing else is looked at, and no thread is waited for."""
    return {"status": "ok", "version": __version__}


@router.get("/titer/v1/ready")
def ready(request: Request) -> Response:
    """Whether jobs can be taken and carried out: 503 where they cannot."""
    found = request.app.state.health.look()
    return JSONResponse(found, 200 if found["status"] == "ready" else 503)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Figures for Prometheus: to this machine, or with an `admin` key of who runs the server."""
    if not _from_here(request):
        caller = admitted(request, bearer(request))
        keys.check_scope(caller.scopes, "admin")
        with caller.reading() as tenant:
            _check_operator(tenant)
    return Response(request.app.state.figures.as_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _from_here(request: Request) -> bool:
    """Whether a request comes from this machine, and not through a proxy on it."""
    passed_on = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
    return request.client is not None and is_loopback(request.client.host) and not passed_on


def _check_operator(tenant: Tenant) -> None:
    """Raise `Refused` 403 for whom the server is not."""
    if not tenant.is_operator:
        raise Refused(403, "This is for the organisation that runs the server.", code="not_operator")


# -- policies ---------------------------------------------------------------------------------------------------------


@router.get("/titer/v1/policies/current")
def current_policy(caller: Admin) -> dict[str, Any]:
    """The policy that holds for new jobs; where its models lie on the server only operators see."""
    with caller.reading() as tenant:
        newest = tenant.session.scalar(_versions().limit(1))
        about = _policy_object(newest, policy.current(tenant.session))
        if not tenant.is_operator:
            about["policy"] = policy.shown(about["policy"])
            del about["text"]
        return about


@router.get("/titer/v1/policies")
def policies(caller: Admin) -> dict[str, Any]:
    """The policies that held, the newest first; for operators."""
    with caller.reading() as tenant:
        _check_operator(tenant)
        found = tenant.session.scalars(_versions().limit(VERSIONS + 1)).all()
        listed = [_policy_object(one, policy.parse(one.text)) for one in found[:VERSIONS]]
        return {"object": "list", "data": listed, "has_more": len(found) > VERSIONS}


async def _text(request: Request) -> str:
    """Return the body of a request."""
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError as error:
        raise invalid("policy", f"The policy is no UTF-8: {error}.", "invalid_policy") from None


@router.put(
    "/titer/v1/policies",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "application/yaml": {"schema": {"type": "string"}},
            },
        }
    },
)
def put_policy(caller: Admin, text: Annotated[str, Depends(_text)]) -> dict[str, Any]:
    """Let another policy hold for new jobs: the whole of it, as YAML or JSON; for operators."""
    return replace_policy(caller, text)


def replace_policy(caller: Caller, text: str) -> dict[str, Any]:
    """Let another policy hold; what a file of the server or code is in it must have been in the one before.

    A key opens the API, not the machine. `titer serve --policy FILE` and `--model` may name anything.

    Raises:
        Refused: 403 for whom the server is not, 400 for what is no policy, naming the key.
    """
    with caller.writing() as tenant:
        _check_operator(tenant)
        try:
            wanted = _parsed(text)
            _check_from_afar(wanted, policy.current(tenant.session))
            found = policy.replace(tenant.session, text, caller.key)
        except TiterError as error:
            raise invalid("policy", str(error), "invalid_policy") from None
        return _policy_object(tenant.session.scalar(_versions().limit(1)), found)


def _parsed(text: str) -> Policy:
    """Read a policy that a stranger may have written: small texts must not become large, nor deep."""
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise TiterError("The policy refers to parts of itself (`*name`).", "Write them out.")
        return policy.parse(text)
    except RecursionError:
        raise TiterError("The policy is nested too deeply.") from None
    except yaml.YAMLError as error:
        raise TiterError(f"The policy is no YAML: {error}.") from None


def _check_from_afar(wanted: Policy, held: Policy) -> None:
    """Raise `TiterError` for a file, a model or code that the policy before did not name."""
    known = set(_texts(held.as_dict()))
    for name, place in wanted.models.items():
        if place not in known:
            raise TiterError(
                f"`policy.models.{name}` is new, and over the network no models are added.",
                "Where the server runs: titer serve --model NAME=PATH",
            )
    for text in _texts({key: value for key, value in wanted.as_dict().items() if key != "models"}):
        if text not in known and not PLAIN.fullmatch(text):
            raise TiterError(
                f"`{text[:100]}` may be a file or code, which over the network no policy may name anew.",
                "Where the server runs: titer serve --policy FILE",
            )


def _texts(values: Any) -> Iterator[str]:
    """Yield every text in plain data."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value)


def _versions() -> Any:
    return select(PolicyVersion).order_by(PolicyVersion.number.desc())


def _policy_object(version: PolicyVersion | None, found: Policy) -> dict[str, Any]:
    return {
        "object": "titer.policy",
        "number": 0 if version is None else version.number,
        "created_at": None if version is None else version.created_at,
        "author": None if version is None else version.author,
        "text": policy.as_yaml(found) if version is None else version.text,
        "policy": found.as_dict(),
    }


# -- keys -------------------------------------------------------------------------------------------------------------


class NewKey(BaseModel):
    """A key that is asked for."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=64)] = ""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)] = list(get_args(Scope))
    days: Annotated[int | None, Field(ge=1, le=LONGEST_DAYS)] = None


class Rotation(BaseModel):
    """How long the key before is good beside its heir."""

    model_config = ConfigDict(extra="forbid")
    grace_hours: Annotated[int, Field(ge=0, le=24 * LONGEST_DAYS)] = 24


@router.get("/titer/v1/keys")
def list_keys(caller: Admin, after: str | None = None, limit: int = 20, order: str = "desc") -> dict[str, Any]:
    """The organisation's keys, also those that were taken back; never the secrets."""
    with caller.reading() as tenant:
        page = tenant.page(Key, after=after, limit=limit, order=order)
        return page.as_list([keys.shown(key) for key in page.rows])


@router.post("/titer/v1/keys")
def create_key(caller: Admin, wanted: NewKey) -> dict[str, Any]:
    """Make a key. Its `key` is in this answer and nowhere else."""
    ends = None if wanted.days is None else now() + wanted.days * DAY
    with caller.writing() as tenant:
        secret, key = keys.issue(tenant, wanted.name, wanted.scopes, ends)
        return keys.shown(key, secret)


@router.post("/titer/v1/keys/{key_id}/rotate")
def rotate_key(caller: Admin, key_id: str, wanted: Rotation | None = None) -> dict[str, Any]:
    """Make a key like another one, which is good for some hours more."""
    hours = (wanted or Rotation()).grace_hours
    with caller.writing() as tenant:
        secret, key = keys.rotate(tenant, key_id, hours * keys.HOUR)
        return keys.shown(key, secret)


@router.delete("/titer/v1/keys/{key_id}")
def revoke_key(caller: Admin, key_id: str) -> dict[str, Any]:
    """Take a key back, at once."""
    with caller.writing() as tenant:
        return keys.shown(keys.revoke(tenant, key_id))


# -- the audit log ----------------------------------------------------------------------------------------------------


@router.get("/titer/v1/audit-log")
def audit_log(
    caller: Admin,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    limit: int = 20,
    action: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """What was done to the organisation's things, the newest first; operators see what was done to the server too."""
    with caller.reading() as tenant:
        page = tenant.lines(before, limit, action)
        return {"object": "list", "data": [line_object(line) for line in page.rows], "has_more": page.has_more}


@router.get("/titer/v1/audit-log/verification")
def verify_audit_log(caller: Admin) -> dict[str, Any]:
    """Whether the whole log is as it was written; for operators, since it is read from its first line on."""
    with caller.reading() as tenant:
        _check_operator(tenant)
    with caller.reading() as tenant:
        try:
            head = chain.verify(tenant.session)
        except chain.Broken as error:
            return {"intact": False, "line": error.number, "reason": error.reason, "head": None}
    return {"intact": True, "line": None, "reason": None, "head": str(head)}


def line_object(line: LogEntry) -> dict[str, Any]:
    """Return a line of the audit log as clients see it."""
    return {
        "object": "titer.log_line",
        "number": line.number,
        "at": line.at,
        "actor": line.actor,
        "action": line.action,
        "subject": line.subject,
        "details": line.details,
        "digest": line.digest,
    }
