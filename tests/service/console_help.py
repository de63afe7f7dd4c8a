"""A browser without a script, and what there is to be looked at with it."""

import json
import re

from fastapi.testclient import TestClient
from sqlalchemy import select

from titer.service import keys
from titer.service.app import create_app

ROW = {
    "messages": [{"role": "user", "content": "Where is my parcel?"}, {"role": "assistant", "content": "On its way."}]
}
LINES = (json.dumps(ROW) + "\n").encode() * 12


class Browser:
    """A browser without a script: it keeps its cookie, and sends forms with the token of the page that it was shown."""

    def __init__(self, service, address="http://127.0.0.1"):
        self.client = TestClient(create_app(service), base_url=address, follow_redirects=False)

    def get(self, path, **more):
        return self.client.get(path, **more)

    def token(self, path="/console"):
        return re.search(r'name="csrf" value="(\w+)"', self.get(path).text)[1]

    def post(self, path, data=None, shown="/console", **more):
        return self.client.post(path, data={"csrf": self.token(shown), **(data or {})}, **more)

    def sign_in(self, key, **more):
        return self.post("/console/sign-in", {"key": key, **more}, shown="/console/sign-in")


def new_key(service, org="org-one", **settings):
    with service.database.writing() as session:
        return keys.create(session, org, **settings)


def rows_of(service, table, *where):
    with service.database.reading() as session:
        return session.scalars(select(table).where(*where)).all()


def pages_of(ids):
    """Every page that is there to be looked at."""
    names = ("files", "jobs", "jobs/new", "models", "keys", "policy", "policy?version=1", "log", "log?verify=true")
    found = ["/console", *(f"/console/{name}" for name in names)]
    found += [f"/console/jobs/{ids[name]}" for name in ("done", "held", "running", "paused", "failed", "queued")]
    found += [f"/console/audits/{ids[name]}" for name in ("audit", "waiting", "done")]
    found += [f"/console/audits/{ids['audit']}?only=flagged", f"/console/files/{ids['file']}"]
    return [
        *found,
        f"/console/chat?model={ids['model']}",
        f"/console/chat?model={ids['bad']}",
        "/console/chat?model=tiny",
    ]
