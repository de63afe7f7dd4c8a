"""What another organisation may see: nothing; every route is asked, whatever is in the application."""

import re
from typing import Annotated

import pytest
from conftest import key_of
from console_help import Browser
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.testclient import TestClient
from sqlalchemy import select

from titer.service import policy
from titer.service.access import Caller, needs
from titer.service.app import create_app
from titer.service.refusals import Refused
from titer.service.tables import (
    Appeal,
    Event,
    File,
    Job,
    Key,
    Model,
    Organisation,
    Part,
    Upload,
    now,
)
from titer.service.tenants import Tenant

HYPERPARAMETERS = {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0}
METHOD = {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}}
KINDS = {
    "file": lambda: File(
        id="file-Q7", filename="f.jsonl", purpose="fine-tune", bytes=1, digest="d", place="files/org-one/file-Q7"
    ),
    "upload": lambda: Upload(
        id="upload_Q7", filename="f", purpose="fine-tune", mime_type="text/jsonl", bytes=1, expires_at=now() + 1000
    ),
    "part": lambda: Part(id="part_Q7", upload_id="upload_Q7", bytes=1, digest="d", place="parts/org-one/part_Q7"),
    "job": lambda: Job(id="ftjob-Q7", model="tiny", file_id="file-Q7", status="running", audit={"verdict": "clean"}),
    "done": lambda: Job(id="ftjob-Q8", model="tiny", file_id="file-Q7", status="succeeded", fine_tuned_model="ft:Q7"),
    "audit": lambda: Job(
        id="audit-Q7", model="tiny", file_id="file-Q7", kind="audit", status="succeeded", audit={"verdict": "clean"}
    ),
    "event": lambda: Event(id="ftevent-Q7", job_id="ftjob-Q7", place=1, message="Q7"),
    "model": lambda: Model(id="ft:tiny:one::Q7", base="tiny", job_id="ftjob-Q7", place="models/ftjob-Q7"),
    "appeal": lambda: Appeal(id="appeal-Q7", file_id="file-Q7", rows=[0], reason="Q7", reviewer="key_1"),
    "key": lambda: Key(id="key_Q7", name="Q7", shown="Q7", digest="0" * 64, scopes=["files"]),
}
"""One thing of each kind, with `Q7` or `Q8` in whatever shows."""
Reader = Annotated[Caller, needs("files")]
SHOWN = re.compile("Q[78]")
NOBODYS = "NotThere"
PUBLIC = {"/openapi.json", "/docs", "/redoc"}
BODIES = ({}, {"rows": [0], "reason": "x"}, {"part_ids": ["part_Q7"]}, {"file_id": "file-Q7"})
"""What may have to be sent for a request to come as far as looking the thing up."""


NAMED = (
    ("/v1/fine_tuning/jobs", '{"model": "tiny", "training_file": "ID"}'),
    ("/v1/fine_tuning/jobs", '{"model": "ID", "training_file": "file-none"}'),
    ("/v1/chat/completions", '{"model": "ID", "messages": [{"role": "user", "content": "x"}]}'),
    ("/titer/v1/audits", '{"file_id": "ID"}'),
)
"""Requests that name a thing in their body."""


@pytest.fixture
def things(service):
    """Things of organisation `one`, by kind."""
    with service.database.writing() as session:
        tenant = Tenant(session, "org-one", "test")
        for make in KINDS.values():
            thing = tenant.add(make())
            if isinstance(thing, Job):
                thing.method, thing.policy = METHOD, policy.current(session).as_dict()
        tenant.log("job.created", "ftjob-Q7", why="Q7")
    service.store.write("files/org-one/file-Q7", b"Q7")
    return {kind: make().id for kind, make in KINDS.items()}


def routes(app, pages=False):
    """Every route of an application, or every page of its console: (path, its parameters, methods)."""
    found = [one for one in iter_route_contexts(app.routes) if isinstance(one.original_route, APIRoute)]
    return [
        (one.path, re.findall(r"{(\w+)(?::\w+)?}", one.path), sorted(one.methods))
        for one in found
        if one.path.startswith("/console") is pages
    ]


def filled(path, parameters, values):
    for name, value in zip(parameters, values):
        path = re.sub(rf"{{{name}(:\w+)?}}", value, path)
    return path


def crossings(app, service, things):
    """Ask for organisation one's things with a key of two's; returns every answer that gives something away."""
    wrong = []
    with service.database.writing() as session:
        session.get(Organisation, "org-two").limits = {"requests_a_minute": None}
    headers = {"Authorization": f"Bearer {key_of(service, 'two')}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as two:

        def ask(method, path, **sent):
            answer = two.request(method, path, **sent)
            return answer.status_code, answer.text

        for path, parameters, methods in routes(app):
            for method in methods:
                if not parameters:
                    if method == "GET" and SHOWN.search(ask(method, path)[1]):
                        wrong.append(f"{method} {path} shows what is another's")
                    continue
                bodies = [{"json": body} for body in BODIES] if method in ("POST", "PUT", "PATCH") else [{}]
                bodies += [{"files": {"data": b"x"}}] if method == "POST" else []
                seen = set()
                for name in things.values():
                    other = name[: -len("Q7")] + NOBODYS
                    for body in bodies:
                        status, text = ask(method, filled(path, parameters, [name] * len(parameters)), **body)
                        nobodys = ask(method, filled(path, parameters, [other] * len(parameters)), **body)
                        if status not in (400, 404) or (status, text.replace(name, other)) != nobodys:
                            wrong.append(f"{method} {path} for {name} with {body}: {status} {text}, not {nobodys}")
                        seen.add(status)
                if 404 not in seen:
                    wrong.append(f"{method} {path}: no request came as far as looking for the thing")
        for path, body in NAMED:
            for name in things.values():
                other = name[: -len("Q7")] + NOBODYS
                status, text = ask("POST", path, content=body.replace("ID", name))
                if (status, text.replace(name, other)) != ask("POST", path, content=body.replace("ID", other)):
                    wrong.append(f"POST {path} with {body} for {name}: {status} {text}")
    return wrong


def test_another_organisations_things_are_not_there(service, things):
    app = create_app(service)
    assert [path for path, parameters, _ in routes(app) if parameters]
    assert crossings(app, service, things) == []


def test_nothing_of_it_was_changed(service, things):
    def everything():
        with service.database.reading() as session:
            return {
                row.id: {name: value for name, value in vars(row).items() if name[0] != "_"}
                for kind in (File, Upload, Part, Job, Event, Model, Appeal)
                for row in session.scalars(select(kind).where(kind.org_id == "org-one"))
            }

    before = everything()
    crossings(create_app(service), service, things)
    assert everything() == before


def test_things_of_ones_own_are_there(client, things):
    """Or the attack above would not have come as far as the things."""
    for path, parameters, methods in routes(client.app):
        if parameters and "GET" in methods:
            answers = [client.get(filled(path, parameters, [name] * len(parameters))) for name in things.values()]
            assert 200 in [answer.status_code for answer in answers], path
    assert client.delete(f"/titer/v1/keys/{things['key']}").status_code == 200


def test_the_attack_finds_a_route_that_forgets_the_filter(service, things):
    app = create_app(service)

    @app.get("/v1/wrong/{name}")
    def wrong(name: str, caller: Reader):
        with caller.reading() as tenant:
            found = tenant.session.scalar(select(File).where(File.id == name))
            return {"found": found is not None and found.filename}

    @app.get("/v1/telling/{name}")
    def telling(name: str, caller: Reader):
        with caller.reading() as tenant:
            there = tenant.session.scalar(select(File).where(File.id == name)) is not None
        raise Refused(403 if there else 404, "no")

    @app.get("/v1/listing")
    def listing(caller: Reader):
        with caller.reading() as tenant:
            return [file.id for file in tenant.session.scalars(select(File))]

    found = crossings(app, service, things)
    for path in ("/v1/wrong", "/v1/telling", "/v1/listing"):
        assert any(path in one for one in found), path


FORMS = ({}, {"row": "0", "reason": "x"}, {"model": "ID"}, {"model": "tiny", "training_file": "ID"})
"""What may have to be sent for a form to come as far as looking the thing up."""
TALK = {"model": "ID", "messages": '[{"role": "user", "content": "x"}]'}


def page_crossings(service, things):
    """Look with two's key at every page of one's things, and send every form; returns what gives something away."""
    wrong = []
    with service.database.writing() as session:
        session.get(Organisation, "org-two").limits = {"requests_a_minute": None}
    browser = Browser(service)
    browser.sign_in(key_of(service, "two"))
    token = browser.token()

    def ask(method, path, name, form):
        sent = {field: value.replace("ID", name) for field, value in form.items()}
        more = {} if method == "GET" else {"data": {"csrf": token, **sent}}
        answer = browser.client.request(method, path, **more)
        return answer.status_code, answer.text.replace(name, "NAME")

    for path, parameters, methods in routes(browser.client.app, pages=True):
        if path.endswith(("/sign-in", "/sign-out")):
            continue
        for method in methods:
            seen = set()
            for name in things.values():
                other = name[: -len("Q7")] + NOBODYS
                for form in [{}] if method == "GET" else [*FORMS, TALK]:
                    mine, nobodys = (
                        ask(method, filled(path, parameters, [one] * len(parameters)), one, form)
                        for one in (name, other)
                    )
                    seen.add(nobodys[0])
                    if mine != nobodys or (parameters and mine[0] not in (303, 400, 404)):
                        wrong.append(f"{method} {path} for {name} with {form}: {mine[0]}, not {nobodys[0]}")
                    if SHOWN.search(mine[1]):
                        wrong.append(f"{method} {path} for {name} shows what is another's")
            if parameters and 404 not in seen:
                wrong.append(f"{method} {path}: no request came as far as looking for the thing")
    return wrong


def test_another_organisations_things_are_on_no_page(service, things):
    found = {path for path, _, _ in routes(create_app(service), pages=True)}
    assert {
        "/console/jobs/{name}",
        "/console/audits/{name}/appeals",
        "/console/chat",
    } <= found  # also of routers within routers
    assert page_crossings(service, things) == []


def test_every_page_asks_for_a_visit(service, things):
    nobody = Browser(service)
    for path, parameters, methods in routes(nobody.client.app, pages=True):
        for method in methods:
            if path in ("/console/sign-in", "/console/static", "/console/looks.css"):
                continue
            address = filled(path, parameters, ["file-Q7"] * len(parameters))
            answer = nobody.client.request(method, address)
            signs_in = answer.status_code == 303 and "/console/sign-in" in answer.headers["location"]
            assert signs_in, (method, path, answer.status_code)


def test_every_route_asks_for_a_key(service, things):
    """Except for those that say only whether the server is there."""
    with TestClient(create_app(service), raise_server_exceptions=False) as nobody:
        for path, parameters, methods in routes(nobody.app):
            for method in methods:
                if path in ("/titer/v1/health", "/titer/v1/ready") or path in PUBLIC:
                    continue
                address = filled(path, parameters, ["file-Q7"] * len(parameters))
                answer = nobody.request(method, address, json={} if method == "POST" else None)
                assert answer.status_code == 401, (method, path, answer.text)
