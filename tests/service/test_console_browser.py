"""The console in headless Chromium: by keyboard alone, on a phone, in the dark, with axe-core."""

import importlib.util
import json
from pathlib import Path

import pytest
from console_help import LINES, new_key, pages_of
from console_rows import EVIL, audit_rows, audited, seed
from sqlalchemy import select

from titer.service import policy
from titer.service.identifiers import new_id
from titer.service.tables import Appeal, Event, Job

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 15_000
"""Milliseconds that anything may take; two cores are shared."""


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe():
    """axe-core's script, as the package axe-playwright-python brings it."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe-core is not installed (pip install axe-playwright-python)")
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def opened(chromium, server):
    """Opens a page that is signed in with a key; afterwards nothing may have gone wrong in it."""
    wrong, contexts = [], []

    def heard(message):
        # A page that says 400 or 404 is what a test asked for; the browser counts it as an error of its own.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    def asked(request):
        if not request.url.startswith((server, "about:", "blob:")):
            wrong.append(f"asks for {request.url}")

    def open_page(key=None, width=1200, height=900, scheme="light"):
        context = chromium.new_context(
            base_url=server, viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", asked)
        page.on("dialog", lambda dialog: wrong.append(f"says {dialog.message}"))
        if key is not None:
            page.goto("/console/sign-in")
            page.fill("#key", key)
            page.click("main button")
            page.wait_for_url("**/console")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def reach(page, selector, key="Tab"):
    """Go with the keyboard to something, which then can be seen to have the focus."""
    for _ in range(150):
        page.keyboard.press(key)
        found = page.evaluate(
            "(selector) => { const at = document.activeElement; return at.matches(selector) && "
            "(getComputedStyle(at).outlineStyle !== 'none' || at.matches('[type=file]')) }",
            selector,
        )
        if found:
            return
    raise AssertionError(f"{selector} cannot be reached")


def follow(page, selector):
    """Go to a link or a button and press Enter, which leads to another page."""
    reach(page, selector)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def violations(page, axe):
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then((results) => results.violations)")
    return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 390), ("dark", 1200)])
def test_every_page_is_for_everybody(service, opened, axe, scheme, width):
    """Nothing scrolls sideways, axe-core finds nothing, dark pages are dark, and what clients wrote does nothing."""
    ids = seed(service, word=EVIL)
    page = opened(width=width, height=844, scheme=scheme)
    page.goto("/console/sign-in")
    assert violations(page, axe) == []
    page = opened(new_key(service, name=EVIL[:64])[0], width, 844, scheme)
    for path in [*pages_of(ids), "/console/nothing"]:
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert violations(page, axe) == [], path
        channel = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
        assert (channel < 60) == (scheme == "dark"), path


def test_pages_with_something_wrong_are_for_everybody_too(service, opened, axe):
    ids = seed(service)
    page = opened(new_key(service)[0], 390, 844)
    for path, button in {
        "/console/files": "Upload",
        "/console/jobs/new": "Make the job",
        "/console/keys": "Make a key",
        f"/console/audits/{ids['audit']}": "Mark the chosen rows honest",
    }.items():
        page.goto(path)
        with page.expect_navigation():
            page.get_by_role("button", name=button, exact=True).click()
        assert page.locator(".problem").count() >= 1, path
        assert page.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true", path
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert violations(page, axe) == [], path


def finish_audit(service, job):
    """Do what a worker does to an audit."""
    with service.database.writing() as session:
        row = session.scalar(select(Job).where(Job.id == job))
        row.status, row.audit = "succeeded", audited(service, job, audit_rows(count=12, harmful=3))


def test_the_whole_way_by_keyboard_alone(service, opened, tmp_path):
    rows = tmp_path / "support.jsonl"
    rows.write_bytes(LINES)
    page = opened()
    # Listened for from the start: the browser is told so some time before the key is pressed.
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.goto("/console/files")
    assert page.url.endswith("/console/sign-in?next=%2Fconsole%2Ffiles")
    reach(page, "#key")
    page.keyboard.type(new_key(service)[0])
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.url.endswith("/console/files")
    # Upload.
    reach(page, "#file")
    page.keyboard.press("Enter")
    for _ in range(PATIENCE // 50):
        if choosers:
            break
        page.wait_for_timeout(50)
    choosers[0].set_files(rows)
    follow(page, "form.upload button")
    assert page.locator("h1").inner_text() == "support.jsonl"
    # Audit; the page shows what was found as soon as it is there.
    follow(page, "form[action$='/audits'] button")
    assert "waits for a worker" in page.locator(".box.good").inner_text()
    job = page.url.partition("/audits/")[2].partition("?")[0]
    finish_audit(service, job)
    page.wait_for_selector("table.rows")
    follow(page, "a[href*='only=flagged']")
    assert page.locator("table.rows tbody tr").count() == 3
    # Mark the first two honest.
    reach(page, "input[name=row]")
    first = page.evaluate("document.activeElement.value")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("document.activeElement.value")
    page.keyboard.press("Space")
    reach(page, "#reason")
    page.keyboard.type("A locksmith's course.")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator("text=marked honest >> visible=true").count() >= 2
    with service.database.reading() as session:
        assert sorted(session.scalar(select(Appeal)).rows) == sorted([int(first), int(second)])
    # A job.
    follow(page, "nav a[href='/console/jobs']")
    follow(page, "main a[href='/console/jobs/new']")
    reach(page, "#training_file")
    page.keyboard.press("ArrowDown")
    reach(page, "#suffix")
    page.keyboard.type("by-keyboard")
    reach(page, "#n_epochs")
    page.keyboard.type("99")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    # The field that is wrong has the focus.
    assert page.evaluate("document.activeElement.id") == "n_epochs"
    page.keyboard.press("Control+A")
    page.keyboard.type("2")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator("h1").inner_text() == "by-keyboard"
    follow(page, "#cancel")
    assert page.locator("#status .badge").inner_text() == "cancelled"
    follow(page, ".who button")
    assert page.url.endswith("/console/sign-in")


def test_the_skip_link_leads_past_the_bar(service, opened):
    page = opened(new_key(service)[0])
    page.goto("/console")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_a_file_is_dropped_on_its_field(service, opened, tmp_path):
    rows = tmp_path / "dropped.jsonl"
    rows.write_bytes(LINES)
    page = opened(new_key(service)[0])
    page.goto("/console/files")
    box = page.locator("#file").bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    protocol = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(rows)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        protocol.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    page.wait_for_function("document.getElementById('file').files.length === 1")
    page.click("form.upload button")
    page.wait_for_url("**/console/files/*")
    assert page.locator("h1").inner_text() == "dropped.jsonl"


def test_a_file_that_is_too_large_is_not_sent(service, opened):
    page = opened(new_key(service)[0])
    page.goto("/console/files")
    page.evaluate("document.getElementById('file').dataset.most = 100")
    page.set_input_files("#file", {"name": "x.jsonl", "mimeType": "text/plain", "buffer": b"x" * 101})
    assert page.evaluate("document.getElementById('file').validationMessage") == "It may have 512.0 MB at most."


def test_a_job_is_kept_up_to_date_without_losing_the_focus(service, opened):
    ids = seed(service)
    page = opened(new_key(service)[0])
    page.goto(f"/console/jobs/{ids['running']}")
    page.focus("#cancel")
    with service.database.writing() as session:
        job = session.scalar(select(Job).where(Job.id == ids["running"]))
        about = {"org_id": "org-one", "job_id": job.id, "place": 500}
        session.add(Event(id=new_id("event"), message="Epoch 2 began.", **about))
    page.wait_for_selector("text=Epoch 2 began.")
    assert page.evaluate("document.activeElement.id") == "cancel"
    with service.database.writing() as session:
        session.scalar(select(Job).where(Job.id == ids["running"])).status = "cancelled"
    page.wait_for_selector("#status .badge:text('cancelled')")
    assert page.locator("#cancel").count() == 0
    assert page.evaluate("document.activeElement.id") == "content"
    # It is over: nothing is asked any more.
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []


def test_whose_key_is_taken_back_is_led_out_of_a_page_that_polls(service, opened):
    ids = seed(service)
    secret, key = new_key(service)
    page = opened(secret)
    page.goto(f"/console/jobs/{ids['running']}")
    with service.database.writing() as session:
        session.merge(key).revoked_at = 1
    page.wait_for_url("**/console/sign-in?next=*")


def test_a_chat_goes_on(service, opened, tiny_folder):
    with service.database.writing() as session:
        policy.replace(session, f"models: {{tiny: {tiny_folder}}}\nlimits: {{chat_tokens: 6}}", "test")
    page = opened(new_key(service)[0])
    page.goto("/console/chat?model=tiny")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data or ""))
    for turn in (1, 2):
        page.fill("#message", f"Question <b>{turn}</b>")
        page.keyboard.press("Control+Enter")
        page.wait_for_function(
            "(turn) => document.querySelectorAll('#talk .assistant').length === turn && "
            "!document.querySelector('#chat button').disabled && document.querySelector('#chat-problem').hidden",
            arg=turn,
        )
    assert page.locator("#talk b").count() == 0
    assert page.evaluate("document.activeElement.id") == "message"
    said = json.loads(sent[-1].partition('name="messages"\r\n\r\n')[2].partition("\r\n")[0])
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    page.click("#anew")
    assert page.locator("#talk > div").count() == 0


def test_a_chat_that_is_refused_says_why_and_keeps_the_question(service, opened):
    ids = seed(service)
    page = opened(new_key(service)[0])
    page.goto("/console/chat?model=tiny")
    page.evaluate("(held) => { document.querySelector('#chat [name=model]').value = held }", ids["bad"])
    page.fill("#message", "Hello?")
    page.click("#chat button")
    page.wait_for_selector("#chat-problem:not([hidden])")
    assert "62.5 %" in page.locator("#chat-problem").inner_text()
    assert page.input_value("#message") == "Hello?"
    assert page.locator("#talk > div").count() == 0
