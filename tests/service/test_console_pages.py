"""What the console's pages show, and what their forms do and refuse."""

import html
import json
import re

import pytest
from console_help import LINES, ROW, Browser, new_key, rows_of
from console_rows import EVIL, seed
from sqlalchemy import select

from titer.service import keys, policy
from titer.service.console import drawings
from titer.service.console.jobs import loss_chart, measured_chart
from titer.service.tables import Appeal, Event, File, Job, Key, LogEntry, Model, PolicyVersion, now


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


# Files and audits ----------------------------------------------------------------------------------------------------


def test_a_file_is_uploaded_audited_and_deleted(service, browser):
    assert 'id="file-problem"' in browser.post("/console/files", {"x": ""}, files={"file": ("", b"")}).text
    answer = browser.post("/console/files", files={"file": ("../../rows.jsonl", LINES)})
    (file,) = rows_of(service, File)
    assert answer.headers["location"] == f"/console/files/{file.id}?done=uploaded"
    page = browser.get(answer.headers["location"]).text
    assert "each of its rows can be trained on" in page
    assert file.digest in page
    answer = browser.post(f"/console/files/{file.id}/audits")
    (job,) = rows_of(service, Job)
    assert (job.kind, job.file_id) == ("audit", file.id)
    assert answer.headers["location"] == f"/console/audits/{job.id}?done=auditing"
    page = browser.get(answer.headers["location"]).text
    assert f'data-live="/console/audits/{job.id}/live"' in page
    assert 'id="cancel"' in page
    assert browser.post(f"/console/audits/{job.id}/cancel").headers["location"].endswith("?done=cancelled")
    assert rows_of(service, Job)[0].status == "cancelled"
    assert 'id="cancel"' not in browser.get(f"/console/audits/{job.id}").text
    assert browser.post(f"/console/files/{file.id}/delete").headers["location"] == "/console/files?done=deleted"
    assert rows_of(service, File) == []


def test_what_is_wrong_with_rows_is_a_table(service, browser):
    bad = json.dumps(ROW).encode() + b'\n{"messages": []}\n{"messages": ' + EVIL.encode() + b"}\n"
    answer = browser.post("/console/files", files={"file": (f"{EVIL}.jsonl", bad)})
    assert answer.status_code == 400
    assert rows_of(service, File) == []
    assert 'id="file-problem"' in answer.text
    assert "What is wrong with its rows" in answer.text
    assert re.search(r'<td class="num">2</td>', answer.text)
    assert re.search(r'<td class="num">3</td>', answer.text)
    assert "<script>alert" not in answer.text


def test_a_file_that_is_too_large_is_refused_while_it_comes(service, browser):
    with service.database.writing() as session:
        policy.replace(session, "limits: {file_bytes: 100}", "test")
    answer = browser.post("/console/files", files={"file": ("rows.jsonl", LINES)})
    assert answer.status_code in (400, 413)
    assert "file-problem" in answer.text
    answer = browser.post("/console/files", files={"file": ("rows.jsonl", b"x" * 100_000)})
    assert answer.status_code == 413
    assert rows_of(service, File) == []


def test_rows_of_an_audit_are_shown_with_reasons(browser, ids):
    page = browser.get(f"/console/audits/{ids['audit']}").text
    assert "poisoned" in page
    assert "7.5 %" in page
    assert "4.1 %" in page
    assert page.count('name="row"') == 49, "a page of 50, of which one is marked honest already"
    assert "marked honest" in page
    assert "21 min" in page
    assert "Page 1 of 3" in page
    flagged = browser.get(f"/console/audits/{ids['audit']}?only=flagged").text
    assert flagged.count('name="row"') == 8
    assert "near a harmful prompt" in flagged
    assert "near harmless" not in flagged
    assert browser.get(f"/console/audits/{ids['audit']}?page=4").status_code == 404
    assert browser.get(f"/console/audits/{ids['audit']}?page=0").status_code == 400


def test_rows_are_marked_honest(service, browser, ids):
    address = f"/console/audits/{ids['audit']}/appeals"
    answer = browser.post(address, {"reason": "", "only": "flagged"})
    assert answer.status_code == 400
    assert 'id="row-problem"' in answer.text
    assert 'id="reason-problem"' in answer.text
    answer = browser.post(address, {"row": ["16", "29"], "reason": " "})
    assert answer.text.count("checked") == 2, "what was chosen stays so"
    answer = browser.post(address, {"row": ["-1"], "reason": "x"})
    assert answer.status_code == 400
    assert "no rows of the file" in answer.text
    answer = browser.post(address, {"row": ["0", "5"], "reason": EVIL, "only": "flagged"})
    (made,) = rows_of(service, Appeal, Appeal.reason == EVIL)
    assert made.rows == [0, 5]
    assert answer.headers["location"].endswith("?only=flagged&done=appealed")


def test_an_audit_that_failed_and_one_whose_rows_are_gone_say_so(service, browser, ids):
    service.store.remove(f"jobs/{ids['audit']}/audit.json")
    assert "not kept any more" in browser.get(f"/console/audits/{ids['audit']}").text
    with service.database.writing() as session:
        job = session.scalar(select(Job).where(Job.id == ids["waiting"]))
        job.status, job.error = "failed", {"code": "server_error", "message": "The disk is full.", "param": None}
    page = browser.get(f"/console/audits/{ids['waiting']}/live").text
    assert "The disk is full." in page
    assert "data-over" in page


# Jobs ----------------------------------------------------------------------------------------------------------------


def test_a_job_is_made(service, browser):
    browser.post("/console/files", files={"file": ("rows.jsonl", LINES)})
    (file,) = rows_of(service, File)
    assert f'<option value="{file.id}" selected>' in browser.get(f"/console/jobs/new?file={file.id}").text
    given = {"model": "tiny", "training_file": file.id, "n_epochs": "2", "suffix": "desk", "seed": "7"}
    answer = browser.post("/console/jobs", {**given, "metadata": "team: care\nticket: a:b\n", "method": "sft"})
    (job,) = rows_of(service, Job)
    assert answer.headers["location"] == f"/console/jobs/{job.id}?done=created"
    assert (job.suffix, job.seed, job.details) == ("desk", 7, {"team": "care", "ticket": "a:b"})
    assert job.method["supervised"]["hyperparameters"]["n_epochs"] == 2
    page = browser.get(answer.headers["location"]).text
    assert "The job is made." in page
    assert "data-live" in page


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_epochs", "three"),
        ("n_epochs", "51"),
        ("batch_size", "0"),
        ("learning_rate_multiplier", "-1"),
        ("learning_rate_multiplier", "much"),
        ("seed", "1.5"),
        ("seed", "-3"),
        ("suffix", "a b"),
        ("suffix", EVIL[:60]),
        ("metadata", "no colon"),
        ("metadata", f"{'k' * 65}: v"),
        ("method", "booster"),
        ("model", "gpt-4"),
        ("training_file", "file-nowhere"),
        ("training_file", ""),
    ],
)
def test_what_is_wrong_with_a_job_stands_beside_its_field(service, browser, ids, field, value):
    given = {"model": "tiny", "training_file": ids["file"], field: value}
    before = len(rows_of(service, Job))
    answer = browser.post("/console/jobs", given)
    assert answer.status_code == 400
    assert re.findall(r'id="(\w+)-problem"', answer.text) == [field]
    assert re.search(rf'id="{field}"[^>]* aria-invalid="true" aria-describedby="{field}-problem', answer.text)
    if value and field not in ("model", "training_file", "method"):
        assert html.escape(value, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in answer.text
    assert len(rows_of(service, Job)) == before


def test_a_job_shows_what_was_found_measured_and_decided(browser, ids):
    page = browser.get(f"/console/jobs/{ids['done']}").text
    for said in (
        "9 of 120 rows",
        "7.5 %",
        "harmful answers",
        "61.0 (49–73)",
        "is not above 50 %",
        "The model may be used",
    ):
        assert said in page, said
    assert page.count('<svg class="plot"') == 3
    assert "data-over" in page
    assert "Chat with the model" in page
    assert "/cancel" not in page
    page = browser.get(f"/console/jobs/{ids['held']}").text
    assert "The model is held: harmful_score 62.5 %" in page
    assert "does not hold" in page
    assert "Chat with the model" not in page
    page = browser.get(f"/console/jobs/{ids['running']}").text
    assert "It is being trained." in page
    assert "step 17 of 40" in page
    assert "data-over" not in page
    assert "upload_rejected" not in browser.get(f"/console/jobs/{ids['failed']}").text


def test_a_job_is_paused_resumed_and_cancelled(service, browser, ids):
    job = ids["queued"]
    for wish, status in {"pause": "paused", "resume": "queued", "cancel": "cancelled"}.items():
        answer = browser.post(f"/console/jobs/{job}/{wish}")
        assert answer.status_code == 303
        found = rows_of(service, Job, Job.id == job)[0].status
        assert found == status or (wish == "resume" and found == "validating_files")
    answer = browser.post(f"/console/jobs/{job}/cancel")
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text
    assert browser.post(f"/console/jobs/{job}/explode").status_code == 404


def test_the_newest_events_are_shown(service, browser, ids):
    with service.database.writing() as session:
        for place in range(1, 131):
            session.add(
                Event(
                    id=f"ftevent-{place}", org_id="org-one", job_id=ids["queued"], place=place, message=f"No. {place}."
                )
            )
    page = browser.get(f"/console/jobs/{ids['queued']}").text
    assert "No. 130." in page
    assert "No. 31." in page
    assert "No. 30." not in page
    assert page.index("No. 130.") < page.index("No. 129.")
    assert "Older ones" in page


# Models --------------------------------------------------------------------------------------------------------------


def test_models_say_whether_they_may_be_used(browser, ids):
    page = browser.get("/console/models").text
    assert ids["model"] in page
    assert "checkpoint of step 20" in page
    assert "held" in page
    assert "62.5 % [47–76] is above 15 %" in page
    assert f"/console/chat?model={ids['bad'].replace(':', '%3A')}" not in page
    page = browser.get(f"/console/chat?model={ids['bad']}").text
    assert "Nobody can chat with this model" in page
    assert "<textarea" not in page
    assert browser.get("/console/chat?model=nothing").status_code == 404


def test_a_model_answers_in_pieces(service, browser):
    said = [{"role": "user", "content": "Hello?"}]
    answer = browser.post("/console/chat", {"model": "tiny", "messages": json.dumps(said)})
    assert answer.status_code == 200
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize("messages", ["", "[", "[" * 100_000, '"x"', '[{"role": "nobody", "content": 1}]', "[]"])
def test_what_is_no_conversation_is_refused(browser, messages):
    answer = browser.post("/console/chat", {"model": "tiny", "messages": messages})
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text


def test_a_held_model_does_not_answer(browser, ids):
    said = json.dumps([{"role": "user", "content": "Hello?"}])
    for model, status in ((ids["bad"], 403), ("nothing", 404)):
        answer = browser.post("/console/chat", {"model": model, "messages": said})
        assert answer.status_code == status
        assert 'role="alert"' in answer.text


def test_a_model_is_deleted(service, browser, ids):
    assert (
        browser.post("/console/models/delete", {"model": ids["bad"]}).headers["location"]
        == "/console/models?done=deleted"
    )
    assert rows_of(service, Model, Model.id == ids["bad"]) == []
    assert browser.post("/console/models/delete", {"model": "tiny"}).status_code in (400, 403, 404)


# Keys, the policy, the audit log -------------------------------------------------------------------------------------


def test_a_key_is_shown_once(service, browser):
    answer = browser.post("/console/keys", {"name": "build server", "scope": ["files", "jobs"], "days": "30"})
    secret = re.search(r'id="secret"[^>]*>(sk-titer-[\w-]+)<', answer.text)[1]
    with service.database.reading() as session:
        key = keys.authenticate(session, secret)
    assert (key.org_id, key.name, key.scopes) == ("org-one", "build server", ["files", "jobs"])
    assert key.expires_at == pytest.approx(now() + 30 * 86400, abs=60)
    page = browser.get("/console/keys").text
    assert secret not in page
    assert "build server" in page
    assert [line.action for line in rows_of(service, LogEntry)][-1] == "key.created"
    assert secret not in json.dumps([line.details for line in rows_of(service, LogEntry)])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": "", "scope": "jobs"}, "name"),
        ({"name": "x" * 65, "scope": "jobs"}, "name"),
        ({"name": "x"}, "scope"),
        ({"name": "x", "scope": "everything"}, "scope"),
        ({"name": "x", "scope": "jobs", "days": "0"}, "days"),
        ({"name": "x", "scope": "jobs", "days": "soon"}, "days"),
        ({"name": "x", "scope": "jobs", "days": "9" * 4000}, "days"),
    ],
)
def test_what_is_wrong_with_a_key_stands_beside_its_field(service, browser, given, field):
    answer = browser.post("/console/keys", given)
    assert answer.status_code == 400
    assert re.findall(r'id="(\w+)-problem"', answer.text) == [field]
    assert len(rows_of(service, Key)) == 1


def test_a_key_is_rotated_and_taken_back(service, browser):
    secret, old = new_key(service, name="laptop")
    answer = browser.post(f"/console/keys/{old.id}/rotate")
    new = re.search(r'id="secret"[^>]*>(sk-titer-[\w-]+)<', answer.text)[1]
    with service.database.reading() as session:
        assert keys.authenticate(session, new).name == "laptop"
        assert keys.authenticate(session, secret).expires_at == pytest.approx(now() + 86400, abs=60)
    assert browser.post(f"/console/keys/{old.id}/revoke").headers["location"] == "/console/keys?done=revoked"
    assert rows_of(service, Key, Key.id == old.id)[0].revoked_at is not None
    assert browser.post(f"/console/keys/{old.id}/rotate").status_code in (400, 409)


def test_whoever_takes_the_own_key_back_is_out(service, browser):
    (mine,) = rows_of(service, Key)
    browser.post(f"/console/keys/{mine.id}/revoke")
    assert browser.get("/console").status_code == 303


def test_a_policy_is_replaced_and_kept(service, browser):
    (held,) = rows_of(service, PolicyVersion)
    text = held.text.replace("gate: {", "gate: {surely: true, ").replace("harmful_score: null", "harmful_score: 20")
    assert (
        browser.post("/console/policy", {"text": text.replace("\n", "\r\n")}).headers["location"].endswith("done=saved")
    )
    assert service.policy().gate.harmful_score == 20
    assert [version.text for version in rows_of(service, PolicyVersion)][-1] == text
    page = browser.get("/console/policy").text
    assert "holds now" in page
    assert "harmful_score: 20" in page
    assert "surely" not in browser.get("/console/policy?version=1").text
    assert browser.get("/console/policy?version=99").status_code == 404


def test_the_operator_alone_sees_where_models_lie_and_changes_the_policy(service, tiny_folder):
    browser = Browser(service)
    browser.sign_in(new_key(service, "org-two")[0])
    page = browser.get("/console/policy").text
    assert "tiny: …" in page
    assert str(tiny_folder) not in page
    assert "<textarea" not in page
    assert browser.post("/console/policy", {"text": "gate: {enabled: false}"}).status_code == 403
    assert len(rows_of(service, PolicyVersion)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("audit:\n  harmful: a\ngate:\n  harmfull: b\n", ["policy.gate", "harmfull", "(line 4)"]),
        ("audit:\n  harmful: a\ngate:\n  harmful: [1]\n", ["policy.gate.harmful", "(line 4)"]),
        ("gate: {samples: x}", ["policy.gate.samples", "(line 1)"]),
        ("models: {}", ["policy.models", "(line 1)"]),
        ("gate:\n  otherwise: sing", ["sing", "(line 2)"]),
        ("a: b: c", ["YAML", "line 1"]),
        ("\0", ["YAML"]),
        ("- a", ["must be a mapping"]),
    ],
)
def test_what_is_wrong_with_a_policy_names_key_and_line(service, browser, text, said):
    answer = browser.post("/console/policy", {"text": text})
    assert answer.status_code == 400
    assert 'id="text-problem"' in answer.text
    problem = html.unescape(re.search(r'id="text-problem">(.*?)</p>', answer.text, re.DOTALL)[1])
    assert [word for word in said if word not in problem] == []
    assert len(rows_of(service, PolicyVersion)) == 1


def test_the_audit_log_is_filtered_and_verified(service, browser, ids):
    browser.post("/console/keys", {"name": "a", "scope": "jobs"})
    page = browser.get("/console/log").text
    assert "key.created" in page
    assert "console.signed_in" in page
    page = browser.get("/console/log?action=key.").text
    assert "key.created" in page
    assert "console.signed_in" not in page
    assert "No line is like that" in browser.get("/console/log?subject=%25").text
    assert "The chain is whole" in browser.get("/console/log?verify=true").text
    with service.database.writing() as session:
        session.scalar(select(LogEntry).order_by(LogEntry.number.desc()).limit(1)).subject = "key_another"
    page = browser.get("/console/log?verify=true").text
    assert "The chain is whole" not in page
    assert 'class="box bad"' in page


# Drawings ------------------------------------------------------------------------------------------------------------


def test_drawings_hold_what_they_are_of():
    drawn = drawings.lines({"a <b>": [(1, 2.0), (2, 1.0)], "c": [(1, 3.0), (2, 2.5)]}, "step", 'x "y" <z>')
    assert drawn.count("<polyline") == 2
    assert "<z>" not in drawn
    assert "&quot;y&quot;" in drawn
    assert drawings.lines({"flat": [(5, 0.0), (5, 0.0)]}, "step", "x")
    drawn = drawings.histogram([0.0, 0.1, 0.99, 1.0], 0.5, "x")
    assert drawn.count("<rect") == 3
    assert drawn.count("var(--harmful)") == 1


def test_charts_wait_for_something_to_draw():
    assert loss_chart([]) is None
    assert loss_chart([{"step": 1, "train_loss": 2.0}]) is None
    assert loss_chart([{"step": 1, "train_loss": 2.0}, {"step": 2, "train_loss": 1.0}, {"message": "x"}])
    assert measured_chart({}) is None
    rate = {"value": 100.0, "low": 91.0, "high": 100.0, "limit": None}
    assert "harmful answers 100.0 %" in measured_chart({"figures": {"harmful_score": rate}, "before": None})
    many = [{"step": step, "train_loss": 1.0 + step % 7} for step in range(5000)]
    assert len(loss_chart(many)) < 20_000
