"""Fine-tuning jobs over HTTP, with OpenAI's own client: made, listed, cancelled, paused and resumed."""

import contextlib
import threading

import openai
import pytest
from fastapi.testclient import TestClient
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from service.conftest import key_of
from sqlalchemy import select

from titer.service import policy
from titer.service.access import caller_of
from titer.service.api.job_requests import JobRequest
from titer.service.api.jobs import create_job
from titer.service.app import create_app
from titer.service.identifiers import model_id, new_id
from titer.service.queue import Queue, finish, held, say
from titer.service.tables import Event, File, Job, LogEntry, Model, Organisation, now

JOBS = "/v1/fine_tuning/jobs"


def file_of(service, org="one", purpose="fine-tune", size=4000):
    """A file in the table; returns its id."""
    name = new_id("file")
    with service.database.writing() as session:
        place = f"files/org-{org}/{name}"
        settings = {"filename": "a.jsonl", "purpose": purpose, "bytes": size, "digest": "", "place": place}
        session.add(File(id=name, org_id=f"org-{org}", **settings))
    return name


def model_of(service, job="ftjob-x", org="one", base="tiny", **settings):
    """A fine-tuned model in the table; returns its id."""
    name = model_id(base, org, "mine", settings.get("step"))
    with service.database.writing() as session:
        settings = {"place": f"models/{job}", **settings}
        session.add(Model(id=name, org_id=f"org-{org}", base=base, job_id=job, **settings))
    return name


def change(service, job, **values):
    with service.database.writing() as session:
        found = session.scalars(select(Job).where(Job.id == job)).one()
        for name, value in values.items():
            setattr(found, name, value)


def limit(service, **limits):
    with service.database.writing() as session:
        session.get(Organisation, "org-one").limits = limits


def checked(found):
    """What OpenAI's client gave, validated by its own type, which it does not do by itself."""
    type(found).model_validate(found.to_dict())
    return found


def made(client, service, **body):
    """A job made over HTTP: its response."""
    return client.post(JOBS, json={"model": "tiny", "training_file": file_of(service), **body})


def error_of(response, status, code):
    """The error of a response."""
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    return error


@pytest.fixture
def any_client(any_service):
    """A client of organisation `one`, on each kind of database."""
    headers = {"Authorization": f"Bearer {key_of(any_service)}"}
    with TestClient(create_app(any_service), headers=headers) as found:
        yield found


# -- with OpenAI's client ---------------------------------------------------------------------------------------------


def test_openais_client_makes_a_job_and_reads_all_of_it(openai_client, service):
    file, other = file_of(service), file_of(service)
    job = openai_client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file,
        validation_file=other,
        suffix="my-model",
        seed=7,
        metadata={"team": "blue"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
    )
    assert isinstance(checked(job), FineTuningJob)
    assert job.id.startswith("ftjob-")
    assert (job.status, job.model, job.training_file, job.validation_file) == ("validating_files", "tiny", file, other)
    assert (job.seed, job.metadata, job.organization_id) == (7, {"team": "blue"}, "org-one")
    assert job.method.supervised.hyperparameters.to_dict() == {
        "n_epochs": 2,
        "batch_size": 8,
        "learning_rate_multiplier": 1.0,
    }
    assert job.hyperparameters.n_epochs == 2
    assert (job.error, job.fine_tuned_model, job.finished_at, job.trained_tokens) == (None, None, None, None)
    assert job.user_provided_suffix == "my-model"
    assert checked(openai_client.fine_tuning.jobs.retrieve(job.id)) == job
    messages = [checked(one).message for one in openai_client.fine_tuning.jobs.list_events(job.id)]
    assert messages == [f"Validating training file: {file}", f"Created fine-tuning job: {job.id}"]


def test_a_file_that_openais_client_uploaded_is_checked_and_its_job_is_queued(openai_client, service):
    row = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
    many, few = (openai_client.files.create(file=("a.jsonl", row * n), purpose="fine-tune") for n in (10, 9))
    jobs = openai_client.fine_tuning.jobs
    right, wrong = (jobs.create(model="tiny", training_file=file.id).id for file in (many, few))
    assert Queue(service.database, "a").validate(service.store) == 2
    assert jobs.retrieve(right).status == "queued"
    failed = checked(jobs.retrieve(wrong))
    assert (failed.status, failed.error.code, failed.error.param) == (
        "failed",
        "invalid_training_file",
        "training_file",
    )
    assert jobs.list_events(wrong).data[0].level == "error"
    with pytest.raises(openai.ConflictError, match=right):
        openai_client.files.delete(many.id)
    assert openai_client.files.delete(few.id).deleted


def test_openais_client_cancels_pauses_and_resumes(openai_client, service):
    jobs = openai_client.fine_tuning.jobs
    job = jobs.create(model="tiny", training_file=file_of(service))
    change(service, job.id, status="queued", rows=12)
    assert jobs.pause(job.id).status == "paused"
    assert jobs.resume(job.id).status == "queued"
    done = checked(jobs.cancel(job.id))
    assert done.status == "cancelled"
    assert done.finished_at is not None
    with pytest.raises(openai.BadRequestError, match="is `cancelled`") as caught:
        jobs.cancel(job.id)
    assert caught.value.code == "invalid_state"


def test_openais_client_walks_over_250_jobs(openai_client, service):
    file = file_of(service)
    with service.database.writing() as session:
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
        same = {"org_id": "org-one", "model": "tiny", "file_id": file, "method": method, "status": "succeeded"}
        names = [new_id("job") for _ in range(250)]
        for place, name in enumerate(names):
            session.add(Job(id=name, details={"third": "yes" if place % 3 == 0 else "no"}, **same))
            session.flush()
        session.add(Job(id="audit-1", kind="audit", **same))
    jobs = openai_client.fine_tuning.jobs
    assert [job.id for job in jobs.list()] == names[::-1]
    assert [job.id for job in jobs.list(limit=100)] == names[::-1]
    page = jobs.list(limit=7, after=names[100])
    assert [job.id for job in page.data] == names[93:100][::-1]
    assert page.has_more is True
    third = [job.id for job in jobs.list(limit=30, metadata={"third": "yes"})]
    assert third == names[::3][::-1]


def test_openais_client_walks_over_the_events_of_a_job(openai_client, service):
    job = openai_client.fine_tuning.jobs.create(model="tiny", training_file=file_of(service))
    with service.database.writing() as session:
        found = session.scalars(select(Job).where(Job.id == job.id)).one()
        for step in range(120):
            say(session, found, f"Step {step}", kind="metrics", data={"step": step, "train_loss": 1.5})
    events = [checked(one) for one in openai_client.fine_tuning.jobs.list_events(job.id, limit=50)]
    assert isinstance(events[0], FineTuningJobEvent)
    assert len(events) == 122
    assert [event.data["step"] for event in events[:120]] == list(range(119, -1, -1))
    assert (events[0].type, events[-1].type, events[-1].level) == ("metrics", "message", "info")


def test_openais_client_walks_over_checkpoints(openai_client, service):
    job = openai_client.fine_tuning.jobs.create(model="tiny", training_file=file_of(service))
    model_of(service, job.id)
    for step in range(10, 260, 10):
        model_of(service, job.id, step=step, metrics={"train_loss": 1 / step, "other": "not OpenAI's"})
    found = [checked(one) for one in openai_client.fine_tuning.jobs.checkpoints.list(job.id)]
    assert isinstance(found[0], FineTuningJobCheckpoint)
    assert [one.step_number for one in found] == list(range(250, 0, -10))
    assert len({one.id for one in found}) == 25
    assert found[0].id.startswith("ftckpt_")
    assert found[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-250")
    assert (found[0].metrics.step, found[0].metrics.train_loss) == (250, 1 / 250)
    with pytest.raises(openai.NotFoundError):
        openai_client.fine_tuning.jobs.checkpoints.list(job.id, after="ftckpt_none")


def test_a_failed_job_says_why(openai_client, service):
    job = openai_client.fine_tuning.jobs.create(model="tiny", training_file=file_of(service))
    with service.database.writing() as session:
        found = session.scalars(select(Job).where(Job.id == job.id)).one()
        finish(session, found, "failed", {"code": "safety_gate", "message": "harmful_score 40 % is above 15 %"})
    failed = checked(openai_client.fine_tuning.jobs.retrieve(job.id))
    assert (failed.status, failed.error.code) == ("failed", "safety_gate")
    assert failed.error.message == "harmful_score 40 % is above 15 %"


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED = [
    ({"n_epochs": 3}, "n_epochs", "unknown_parameter"),
    ({"hyperparameters": {"epochs": 3}}, "hyperparameters.epochs", "unknown_parameter"),
    ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"n_epochs": 10**400}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "invalid_value"),
    ({"hyperparameters": {"batch_size": 1.5}}, "hyperparameters.batch_size", "invalid_value"),
    ({"hyperparameters": {"batch_size": {}}}, "hyperparameters.batch_size", "invalid_value"),
    ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier", "invalid_value"),
    (
        {"hyperparameters": {"learning_rate_multiplier": 10**400}},
        "hyperparameters.learning_rate_multiplier",
        "invalid_value",
    ),
    (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 99}}}},
        "method.supervised.hyperparameters.n_epochs",
        "invalid_value",
    ),
    (
        {"hyperparameters": {}, "method": {"type": "supervised", "supervised": {"hyperparameters": {}}}},
        "hyperparameters",
        "invalid_value",
    ),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {}}}}, "method", "unsupported_method"),
    ({"method": {"type": "reinforcement"}}, "method", "unsupported_method"),
    ({"method": {"type": "supervised", "dpo": {}}}, "method", "unsupported_method"),
    ({"method": {}}, "method.type", "missing_required_parameter"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations", "unsupported_integration"),
    ({"suffix": "x" * 65}, "suffix", "invalid_value"),
    ({"suffix": "a:b"}, "suffix", "invalid_value"),
    ({"suffix": "../x"}, "suffix", "invalid_value"),
    ({"suffix": "x\n"}, "suffix", "invalid_value"),
    ({"suffix": ""}, "suffix", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_type"),
    ({"seed": 2**31}, "seed", "invalid_type"),
    ({"seed": "7"}, "seed", "invalid_type"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata", "invalid_value"),
    ({"metadata": {"x" * 65: "x"}}, "metadata", "invalid_value"),
    ({"metadata": {"x": "x" * 513}}, "metadata", "invalid_value"),
    ({"metadata": {"x": "a\0b"}}, "metadata", "invalid_value"),
    ({"metadata": {"x": 1}}, "metadata.x", "invalid_type"),
    ({"metadata": {"titer_metod": "sft"}}, "metadata.titer_metod", "invalid_value"),
    ({"metadata": {"titer_method": "booster"}}, "metadata.titer_method", "invalid_value"),
]


@pytest.mark.parametrize(("body", "param", "code"), REFUSED, ids=[str(body)[:60] for body, _, _ in REFUSED])
def test_what_cannot_be_meant_is_refused_by_its_name(client, service, body, param, code):
    assert error_of(made(client, service, **body), 400, code)["param"] == param


def test_what_is_missing_is_named(client):
    assert error_of(client.post(JOBS, json={}), 400, "missing_required_parameter")["param"] == "model"
    assert client.post(JOBS, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400


def test_a_model_or_file_that_is_not_there_is_404(any_client, any_service):
    for name in ("gpt-4o-mini", "ti\0ny", "x" * 1000):
        assert error_of(made(any_client, any_service, model=name), 404, "model_not_found")["param"] == "model"
    for name in ("file-none", "file-\0", file_of(any_service, "two")):
        response = any_client.post(JOBS, json={"model": "tiny", "training_file": name})
        assert error_of(response, 404, None)["param"] == "training_file"
        assert error_of(made(any_client, any_service, validation_file=name), 404, None)["param"] == "validation_file"


def test_a_file_for_something_else_is_refused(client, service):
    other = file_of(service, purpose="user_data")
    error = error_of(made(client, service, training_file=other), 400, "invalid_file")
    assert "user_data" in error["message"]


def test_the_operator_chooses_which_methods_clients_may_choose(client, service):
    text = "models: {tiny: x}\ntraining: {method: sieve, allowed: [sft, lisa]}\n"
    with service.database.writing() as session:
        policy.replace(session, text, "test")
    for method in ("sieve", "sft", "lisa"):
        job = made(client, service, metadata={"titer_method": method}).json()
        assert job["metadata"] == {"titer_method": method}
    error = error_of(made(client, service, metadata={"titer_method": "booster"}), 400, "invalid_value")
    assert all(f"`{name}`" in error["message"] for name in ("sieve", "sft", "lisa"))


def test_numbers_that_are_auto_are_the_policys(client, service):
    with service.database.writing() as session:
        policy.replace(session, "models: {tiny: x}\ntraining: {n_epochs: 5, batch_size: 4}\n", "test")
    job = made(client, service, hyperparameters={"n_epochs": "auto", "learning_rate_multiplier": 0.5}).json()
    assert job["hyperparameters"] == {"n_epochs": 5, "batch_size": 4, "learning_rate_multiplier": 0.5}
    with service.database.reading() as session:
        found = session.scalars(select(Job).where(Job.id == job["id"])).one()
        assert found.policy == policy.current(session).as_dict()


def test_a_job_goes_on_from_a_fine_tuned_model_of_its_organisation(client, service):
    mine = model_of(service)
    assert made(client, service, model=mine).json()["model"] == mine
    error_of(made(client, service, model=model_of(service, org="two")), 404, "model_not_found")
    error_of(made(client, service, model=model_of(service, base="gone")), 404, "model_not_found")
    error = error_of(made(client, service, model=model_of(service, held="harmful_score 40 %")), 403, "model_held")
    assert "harmful_score 40 %" in error["message"]


# -- quotas -----------------------------------------------------------------------------------------------------------


def test_quotas_refuse_one_more_job(any_client, any_service):
    limit(any_service, waiting_jobs=2)
    assert [made(any_client, any_service).status_code for _ in range(2)] == [200, 200]
    error = error_of(made(any_client, any_service), 429, "insufficient_quota")
    assert "`waiting_jobs` is 2" in error["message"]
    limit(any_service, jobs_a_day=2)
    error_of(made(any_client, any_service), 429, "insufficient_quota")
    limit(any_service, jobs_a_day=3)
    assert made(any_client, any_service).status_code == 200


def test_quotas_of_rows_and_tokens_count_what_jobs_of_today_have_and_will_have(any_client, any_service):
    # Two epochs over 4,000 bytes: 2,000 tokens, until somebody counts them.
    def more():
        return made(any_client, any_service, hyperparameters={"n_epochs": 2})

    limit(any_service, tokens_a_day=5000)
    first, second = more().json()["id"], more().json()["id"]
    error_of(more(), 429, "insufficient_quota")
    change(any_service, first, audit={"estimate": {"seconds": 1.0, "trained_tokens": 100}})
    third = more().json()["id"]
    error_of(more(), 429, "insufficient_quota")
    change(any_service, second, status="succeeded", trained_tokens=500)
    assert more().status_code == 200
    limit(any_service, rows_a_day=30)
    change(any_service, third, rows=30)
    error_of(more(), 429, "insufficient_quota")
    change(any_service, third, status="cancelled")
    assert more().status_code == 200
    limit(any_service, tokens_a_day=10)
    for job in any_client.get(JOBS).json()["data"]:
        change(any_service, job["id"], created_at=1)
    assert made(any_client, any_service, training_file=file_of(any_service, size=40)).status_code == 200


def test_quotas_hold_when_many_ask_at_once(any_service):
    limit(any_service, waiting_jobs=3)
    caller = caller_of(any_service, key_of(any_service))
    file, outcomes, barrier = file_of(any_service), [], threading.Barrier(6)

    def ask():
        barrier.wait()
        with contextlib.suppress(Exception):
            outcomes.append(create_job(caller, JobRequest(model="tiny", training_file=file)).id)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3


# -- requests that come again -----------------------------------------------------------------------------------------


def test_a_repeated_request_gives_the_first_job(any_client, any_service):
    body = {"model": "tiny", "training_file": file_of(any_service), "metadata": {"a": "b"}}

    def post(key="once", **more):
        return any_client.post(JOBS, json={**body, **more}, headers={"Idempotency-Key": key})

    first = post()
    again = post()
    assert again.json() == first.json()
    assert post("twice").json()["id"] != first.json()["id"]
    error_of(post(suffix="other"), 409, "idempotency_key_reused")
    error_of(post("x" * 256), 400, "invalid_value")
    two = {"Authorization": f"Bearer {key_of(any_service, 'two')}"}
    other = {**body, "training_file": file_of(any_service, "two")}
    assert any_client.post(JOBS, json=other, headers={"Idempotency-Key": "once", **two}).status_code == 200
    change(any_service, first.json()["id"], created_at=1)
    assert post().json()["id"] != first.json()["id"]


def test_a_request_that_is_repeated_at_once_makes_one_job(any_service):
    caller = caller_of(any_service, key_of(any_service))
    request = JobRequest(model="tiny", training_file=file_of(any_service))
    jobs, barrier = [], threading.Barrier(5)

    def ask():
        barrier.wait()
        jobs.append(create_job(caller, request, "once").id)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs) == 5
    assert len(set(jobs)) == 1


# -- states -----------------------------------------------------------------------------------------------------------

STATES = ("validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled")
BECOMES = {
    "cancel": {"validating_files": "cancelled", "queued": "cancelled", "running": "running", "paused": "cancelled"},
    "pause": {"validating_files": "paused", "queued": "paused", "running": "running"},
    "resume": {"paused": "validating_files"},
}


@pytest.mark.parametrize("wish", BECOMES)
@pytest.mark.parametrize("status", STATES)
def test_each_wish_is_allowed_in_some_states_only(client, service, wish, status):
    job = made(client, service).json()["id"]
    change(service, job, status=status)
    response = client.post(f"{JOBS}/{job}/{wish}")
    if status in BECOMES[wish]:
        assert response.json()["status"] == BECOMES[wish][status]
        assert response.json()["titer"]["wish"] == (wish if status == "running" else None)
        with service.database.reading() as session:
            assert session.scalars(select(LogEntry.action).order_by(LogEntry.number.desc())).first().startswith("job.")
    else:
        assert status in error_of(response, 400, "invalid_state")["message"]


def test_a_job_that_runs_is_told_what_its_owner_wishes(client, service):
    job = made(client, service).json()["id"]
    change(service, job, status="queued", rows=12)
    mine = Queue(service.database, "a")
    claim = mine.claim()
    client.post(f"{JOBS}/{job}/pause")
    assert mine.beat(claim) == "pause"
    error_of(client.post(f"{JOBS}/{job}/resume"), 400, "invalid_state")
    mine.give_back(claim, "paused")
    assert client.post(f"{JOBS}/{job}/resume").json()["status"] == "queued"
    claim = mine.claim()
    for _ in range(2):
        assert client.post(f"{JOBS}/{job}/cancel").status_code == 200
    assert "being cancelled" in error_of(client.post(f"{JOBS}/{job}/pause"), 400, "invalid_state")["message"]
    assert mine.beat(claim) == "cancel"
    with service.database.writing() as session:
        finish(session, held(session, claim), "cancelled")
    messages = [event["message"] for event in client.get(f"{JOBS}/{job}/events").json()["data"]]
    assert messages[:2] == ["The job was cancelled.", "The job is to be cancelled."]
    assert messages.count("The job is to be cancelled.") == 1


# -- lists ------------------------------------------------------------------------------------------------------------


def test_jobs_are_chosen_by_their_metadata(any_client, any_service):
    odd = {'a"b': "1", "a'b": "%", "a.b[0]": "ü", "$": "null", "\\": "", "titer": "x"}
    with_pairs = made(any_client, any_service, metadata=odd).json()["id"]
    without = made(any_client, any_service).json()["id"]
    null = made(any_client, any_service, metadata=None).json()["id"]
    empty = made(any_client, any_service, metadata={}).json()["id"]
    change(any_service, null, details=None)  # stored as JSON's null

    def found(**params):
        response = any_client.get(JOBS, params=params)
        assert response.status_code == 200, response.text
        return [job["id"] for job in response.json()["data"]]

    for key, value in odd.items():
        assert found(**{f"metadata[{key}]": value}) == [with_pairs]
        assert found(**{f"metadata[{key}]": value + "x"}) == []
    assert found(**{"metadata[$]": "null", "metadata[titer]": "x"}) == [with_pairs]
    assert found(**{"metadata[$]": "null", "metadata[titer]": "y"}) == []
    for nonsense in ("metadata[]", "metadata[", "metadata[x", "metadata[\0]"):
        assert found(**{nonsense: "x"}) == []
    assert found(metadata="null") == [null, without]
    assert empty in found()


def test_pages_are_bounded_and_cursors_are_things_of_ones_own(any_client, any_service):
    job = made(any_client, any_service).json()["id"]
    for address in (JOBS, f"{JOBS}/{job}/events", f"{JOBS}/{job}/checkpoints"):
        for size in (0, 101, -1, 2**70):
            assert error_of(any_client.get(address, params={"limit": size}), 400, "invalid_value")["param"] == "limit"
        error_of(any_client.get(address, params={"limit": "many"}), 400, "invalid_type")
        for cursor in ("none", "\0", ""):
            assert error_of(any_client.get(address, params={"after": cursor}), 404, None)["param"] == "after"


def test_strangers_find_nothing(client, stranger, service):
    job = made(client, service).json()["id"]
    for name in (job, "ftjob-none"):
        for path in ("", "/events", "/checkpoints"):
            error = error_of(stranger.get(f"{JOBS}/{name}{path}"), 404, None)
            assert error["message"] == f"No such fine-tuning job: {name!r}."
        for wish in BECOMES:
            error_of(stranger.post(f"{JOBS}/{name}/{wish}"), 404, None)
    assert stranger.get(JOBS).json()["data"] == []
    error_of(stranger.get(JOBS, params={"after": job}), 404, None)
    with service.database.reading() as session:
        event = session.scalars(select(Event.id)).first()
    own = stranger.post(JOBS, json={"model": "tiny", "training_file": file_of(service, "two")}).json()["id"]
    error_of(stranger.get(f"{JOBS}/{own}/events", params={"after": event}), 404, None)


def test_a_key_for_other_things_makes_no_jobs(client, service):
    headers = {"Authorization": f"Bearer {key_of(service, scopes=['files', 'models', 'admin'])}"}
    for response in (client.get(JOBS, headers=headers), client.post(JOBS, json={}, headers=headers)):
        error_of(response, 403, "insufficient_permissions")


def test_an_audit_is_no_fine_tuning_job(client, service):
    job = made(client, service).json()["id"]
    change(service, job, kind="audit")
    error_of(client.get(f"{JOBS}/{job}"), 404, None)
    error_of(client.post(f"{JOBS}/{job}/cancel"), 404, None)
    assert client.get(JOBS).json()["data"] == []


def test_a_file_that_has_expired_is_not_there(client, service):
    file = file_of(service)
    with service.database.writing() as session:
        session.scalar(select(File)).expires_at = now()
    for name in ("training_file", "validation_file"):
        asked = {"model": "tiny", "training_file": file_of(service), name: file}
        assert error_of(client.post(JOBS, json=asked), 404, None)["param"] == name
