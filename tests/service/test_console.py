"""The console: who gets in, what it takes from whom, that nothing a client wrote is ever markup."""

import re

import pytest
from console_help import Browser, new_key, pages_of, rows_of
from console_rows import EVIL, seed
from sqlalchemy import select

from titer.service import keys, policy
from titer.service.console import admin, files, jobs, models, pages
from titer.service.console.pages import inside
from titer.service.console.session import COOKIE
from titer.service.tables import Appeal, File, Job, Key, LogEntry, Model, Organisation, PolicyVersion, Visit, now


@pytest.fixture
def browser(service):
    """A browser that is signed in for organisation `one`."""
    found = Browser(service)
    found.sign_in(new_key(service)[0])
    return found


@pytest.fixture
def ids(service):
    """What organisation `one` has."""
    return seed(service)


# Signing in and out --------------------------------------------------------------------------------------------------


def test_a_visit_begins_with_a_key_and_ends_when_one_signs_out(service):
    browser = Browser(service)
    key, row = new_key(service)
    assert browser.get("/console").headers["location"] == "/console/sign-in"
    answer = browser.sign_in(key)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/console", "max-age=43200"))
    assert "secure" not in cookie
    assert "Overview" in browser.get("/console").text
    held = browser.client.cookies[COOKIE]
    assert key not in held
    assert [visit.key_id for visit in rows_of(service, Visit)] == [row.id]
    assert held not in {visit.id for visit in rows_of(service, Visit)}
    assert browser.post("/console/sign-out").status_code == 303
    assert rows_of(service, Visit) == []
    # The cookie itself is worth nothing any more.
    browser.client.cookies.set(COOKIE, held, path="/console")
    assert browser.get("/console").status_code == 303
    said = [line.action for line in rows_of(service, LogEntry)]
    assert said[-2:] == ["console.signed_in", "console.signed_out"]


def test_over_https_the_cookie_never_leaves_it(service):
    browser = Browser(service, "https://titer.example")
    assert "secure" in browser.sign_in(new_key(service)[0]).headers["set-cookie"].lower()


def test_a_wrong_key_is_refused_beside_its_field(service):
    answer = Browser(service).sign_in("sk-titer-nonsense")
    assert answer.status_code == 401
    assert 'id="key-problem"' in answer.text
    assert 'aria-invalid="true"' in answer.text
    assert "nonsense" not in answer.text


def test_one_comes_to_the_page_that_was_wanted(service):
    browser = Browser(service)
    assert browser.get("/console/jobs").headers["location"] == "/console/sign-in?next=%2Fconsole%2Fjobs"
    assert browser.sign_in(new_key(service)[0], next="/console/jobs").headers["location"] == "/console/jobs"


@pytest.mark.parametrize(
    "path", ["https://evil.example", "//evil.example", "/console/../v1", "/console/\\evil", "", "/x"]
)
def test_no_link_leads_out_of_the_console(path):
    assert inside(path) == "/console"


def test_a_cookie_from_before_is_worth_nothing_after(service):
    """Who plants a cookie does not get into the visit of whoever signs in with it."""
    browser = Browser(service)
    browser.get("/console/sign-in")
    planted = browser.client.cookies[COOKIE]
    browser.sign_in(new_key(service)[0])
    assert browser.client.cookies[COOKIE] != planted
    other = Browser(service)
    other.client.cookies.set(COOKIE, planted, path="/console")
    assert other.get("/console").status_code == 303


def test_a_key_that_is_taken_back_or_expires_ends_its_visits(service, browser):
    (row,) = rows_of(service, Key)
    with service.database.writing() as session:
        session.get(Key, row.number).expires_at = now()
    assert browser.get("/console").status_code == 303
    with service.database.writing() as session:
        found = session.get(Key, row.number)
        found.expires_at, found.revoked_at = None, now()
    assert browser.get("/console/jobs").status_code == 303


def test_a_visit_expires(service, browser):
    with service.database.writing() as session:
        session.scalar(select(Visit)).expires_at = now()
    assert browser.get("/console").status_code == 303
    browser.sign_in(new_key(service)[0])
    assert len(rows_of(service, Visit)) == 1, "what has expired is removed"


def test_every_page_needs_a_visit(service, ids):
    browser = Browser(service)
    for path in pages_of(ids):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"][:16]) == (303, "/console/sign-in"), path
    part = browser.get(f"/console/jobs/{ids['running']}/live", headers={"x-titer-part": "1"})
    assert part.status_code == 401


def test_a_key_sees_what_it_is_for(service, ids):
    browser = Browser(service)
    browser.sign_in(new_key(service, scopes=["jobs"])[0])
    page = browser.get("/console").text
    assert "/console/jobs" in page
    assert "/console/keys" not in page
    assert "/console/models" not in page
    assert browser.get(f"/console/jobs/{ids['done']}").status_code == 200
    for path in ("files", "models", "keys", "policy", "log", f"chat?model={ids['model']}"):
        answer = browser.get(f"/console/{path}")
        assert (answer.status_code, "This key is not for" in answer.text) == (403, True), path
    answer = browser.post(f"/console/audits/{ids['audit']}/appeals", {"row": "1", "reason": "x"})
    assert answer.status_code == 403


def forms():
    """The addresses of all forms that change something, with what their paths name left as it is."""
    found = [route for module in (pages, files, jobs, models, admin) for route in module.router.routes]
    return [route.path for route in found if "POST" in (getattr(route, "methods", None) or ())]


def test_no_form_is_taken_without_its_token(service, browser, ids):
    before = [len(rows_of(service, table)) for table in (Job, File, Key, Visit, PolicyVersion, LogEntry, Appeal, Model)]
    paths = forms()
    assert len(paths) >= 13
    for path in paths:
        address = path.replace("{name}", ids["paused"]).replace("{wish}", "cancel")
        for data in ({"x": "y"}, {"csrf": "0" * 64}, {"csrf": "é"}):
            answer = browser.client.post(address, data=data)
            assert answer.status_code == 403, (path, data)
            assert "out of date" in answer.text
        assert browser.client.post(address, json={"csrf": browser.token()}).status_code == 415
    # Another visit's token is no better.
    other = Browser(service)
    other.sign_in(new_key(service, "org-two")[0])
    assert browser.client.post("/console/keys", data={"csrf": other.token(), "name": "x"}).status_code == 403
    after = [len(rows_of(service, table)) for table in (Job, File, Key, Visit, PolicyVersion, LogEntry, Appeal, Model)]
    # One key and one visit are the other organisation's.
    assert [b - a for a, b in zip(before, after)] == [0, 0, 1, 1, 0, 1, 0, 0]


def test_a_form_is_bounded(browser):
    answer = browser.post("/console/policy", {"text": "x" * (1 << 20)})
    assert answer.status_code == 413
    assert "larger than" in answer.text or "1.0 MB" in answer.text
    chunked = browser.client.post(
        "/console/keys",
        content=iter([b"x" * 65536] * 40),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert chunked.status_code == 413


def test_a_visit_counts_as_requests_of_its_key(service):
    secret, _ = new_key(service)
    browser = Browser(service)
    browser.sign_in(secret)
    with service.database.writing() as session:
        session.get(Organisation, "org-one").limits = {"requests_a_minute": 3}
    answers = [browser.get("/console/files") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert int(answers[3].headers["retry-after"]) > 0
    assert "used 3 times a minute" in answers[3].text
    asked = browser.client.get("/titer/v1/keys", headers={"Authorization": f"Bearer {secret}"})
    assert asked.status_code == 429  # the bucket is one
    assert browser.get("/console/static/console.css").status_code == 200


# Tenants, and what clients write -------------------------------------------------------------------------------------


def test_strangers_things_are_not_there(service, ids):
    browser = Browser(service)
    browser.sign_in(new_key(service, "org-two")[0])
    for path in pages_of(ids):
        answer, whose = browser.get(path), any(word in path for word in ("ft", "file-", "audit-", "version"))
        assert answer.status_code == (404 if whose else 403 if "verify" in path else 200), path
        assert "support" not in answer.text.replace(ids["model"], ""), path
    key = next(row.id for row in rows_of(service, Key, Key.org_id == "org-two"))
    assert Browser(service).get("/console").status_code == 303
    mine = Browser(service)
    mine.sign_in(new_key(service)[0])
    for what in ("revoke", "rotate"):
        assert mine.post(f"/console/keys/{key}/{what}").status_code == 404
    assert rows_of(service, Key, Key.id == key)[0].revoked_at is None
    for address in (f"jobs/{ids['paused']}/cancel", f"audits/{ids['audit']}/appeals", f"files/{ids['file']}/audits"):
        answer = browser.post(f"/console/{address}", {"row": "1", "reason": "mine"})
        assert answer.status_code == 404, address
    assert browser.post(f"/console/files/{ids['file']}/delete").status_code == 404
    assert browser.post("/console/models/delete", {"model": ids["model"]}).status_code == 404


def test_nothing_that_a_client_wrote_is_markup(service):
    ids = seed(service, word=EVIL)
    with service.database.writing() as session:
        keys.create(session, "org-one", name=EVIL[:64])
        session.scalar(select(Job).where(Job.id == ids["queued"])).suffix = EVIL[:64]
        policy.replace(session, f"models: {{tiny: '{EVIL.replace(chr(39), '')}'}}", EVIL[:64])
    browser = Browser(service)
    browser.sign_in(new_key(service)[0])
    shown = 0
    for path in [*pages_of(ids), f"/console/jobs/{ids['done']}/live", f"/console/log?action={EVIL}&subject={EVIL}"]:
        text = browser.get(path).text
        assert not re.search("<script>alert|<img", text), path
        shown += "&lt;script&gt;alert" in text
    assert shown >= 12


def test_pages_hold_no_script_and_no_style_of_their_own(service, browser, ids):
    """What a content policy without `unsafe-inline` would not let through; and nothing from elsewhere."""
    for path in [*pages_of(ids), "/console/nothing"]:
        text = browser.get(path).text
        assert not re.search(r"\sstyle=|<style|\son\w+=|javascript:", text), path
        assert re.findall(r"<script\b[^>]*>", text) == re.findall(
            r'<script src="/console/static/console.js[^>]*>', text
        )
        assert not [
            url for url in re.findall(r'(?:src|href|action)="([^"]*)"', text) if not re.match(r"/console|\?|#", url)
        ]
        assert "no-store" in browser.get(path).headers["cache-control"]


def test_what_lies_beside_the_pages_is_there(browser):
    for path, kind in {"static/console.js": "javascript", "static/console.css": "css", "looks.css": "css"}.items():
        answer = browser.get(f"/console/{path}")
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
    assert browser.get("/console/static/../../service/tables.py").status_code == 404
    assert browser.get("/console/nothing").status_code == 404
