"""What a job's process does: audit, training, gate and publication, inside of this process."""

import csv
import dataclasses
import io
import json
from types import SimpleNamespace

import pytest
from sqlalchemy import select
from working import (
    ROWS,
    adapter_of,
    add_file,
    add_job,
    done,
    events_of,
    job_of,
    messages_of,
    models_of,
)

from titer.errors import TiterError
from titer.service import auditing, gating, pipeline, training
from titer.service.queue import Queue
from titer.service.running import AGAIN, LOST, OVER, REPORTED, STOPPED, Stop
from titer.service.store import Store
from titer.service.tables import Appeal, File, Job, LogEntry
from titer.stats.intervals import Estimate
from titer.workflows.audit import Audit, AuditedRow


def test_a_job_becomes_a_model(any_service):
    service = any_service
    name = add_job(service, suffix="mine")
    assert done(service, name) == OVER
    job = job_of(service, name)
    assert (job.status, job.error, job.worker) == ("succeeded", None, None)
    assert job.fine_tuned_model.startswith("ft:tiny:one:mine:")
    assert job.gate["decision"] == "deploy"
    assert job.trained_tokens == job.audit["estimate"]["trained_tokens"] > 0
    *checkpoints, model = models_of(service, name)
    assert (model.id, model.held, model.step) == (job.fine_tuned_model, None, None)
    assert [(one.step, one.held) for one in checkpoints] == [(3, None), (6, None)]
    assert checkpoints[0].id.endswith(":ckpt-step-3")
    assert checkpoints[0].metrics["train_loss"] > 0
    assert "adapter_model.safetensors" in adapter_of(service, name)
    assert adapter_of(service, name) == adapter_of(service, f"{name}-6")
    assert {one.bytes for one in (*checkpoints, model)} == {sum(map(len, adapter_of(service, name).values()))}
    steps = [event.data["step"] for event in events_of(service, name) if event.kind == "metrics"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not list(service.work.iterdir())


def test_its_metrics_are_a_file_and_what_was_decided_is_logged(service):
    name = add_job(service)
    done(service, name)
    with service.database.reading() as session:
        file = session.scalar(select(File).where(File.id == job_of(service, name).result_files[0]))
        actions = list(session.scalars(select(LogEntry.action).where(LogEntry.subject == name)))
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")
    rows = list(csv.DictReader(io.StringIO(service.store.read(file.place).decode())))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert float(rows[0]["train_loss"]) > 0
    assert actions == ["job.started", "audit.finished", "training.finished", "gate.decided", "job.succeeded"]


def stopping(monkeypatch, service, at):
    """A `Stop` that is asked for behind a step."""
    stop, inner = Stop(), training.Follow.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        stop.asked = stop.asked or state.global_step == at
        return inner(self, args, state, control, **kwargs)

    monkeypatch.setattr(training.Follow, "on_step_end", on_step_end)
    return stop


def again(service, name):
    """Let another worker go on with a job that runs."""
    with service.database.writing() as session:
        job = session.scalar(select(Job).where(Job.id == name))
        job.status = "queued"
    return done(service, name)


def test_a_job_that_was_stopped_in_an_epoch_comes_to_the_same_model(service, monkeypatch):
    straight = add_job(service)
    done(service, straight)
    name = add_job(service)
    assert done(service, name, stopping(monkeypatch, service, at=4)) == STOPPED
    assert job_of(service, name).stage == "train"
    assert again(service, name) == OVER
    assert "The training goes on behind step 4." in messages_of(service, name)
    assert adapter_of(service, name) == adapter_of(service, straight)
    assert adapter_of(service, f"{name}-6") == adapter_of(service, f"{straight}-6")
    steps = [event.data["step"] for event in events_of(service, name) if event.kind == "metrics"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [one.step for one in models_of(service, name)] == [3, 6, None]


def test_a_job_whose_store_is_a_bucket_comes_to_the_same_model(service, bucket, monkeypatch):
    straight = add_job(service)
    done(service, straight)
    there = dataclasses.replace(service, store=Store(f"{bucket}/{straight}"))
    there.store.mark()
    name = add_job(there)
    assert done(there, name, stopping(monkeypatch, there, at=4)) == STOPPED
    assert again(there, name) == OVER
    assert "The training goes on behind step 4." in messages_of(there, name)
    assert adapter_of(there, name) == adapter_of(service, straight)
    assert not [key for key in there.store.listing() if "checkpoints" in key]
    assert there.store.has_folder(f"jobs/{name}/gate")


@pytest.mark.parametrize("stage", ["gate", "publish"])
def test_a_later_stage_is_gone_on_with_by_what_is_in_the_store(service, monkeypatch, stage):
    name = add_job(service)

    def stopped(*words):
        raise training.Stopped

    with monkeypatch.context() as patched:
        patched.setitem(pipeline.STAGES, stage, stopped)
        assert done(service, name) == STOPPED
    assert job_of(service, name).stage == stage
    monkeypatch.setattr(training, "train", None)
    assert again(service, name) == OVER
    assert job_of(service, name).status == "succeeded"


def test_a_damaged_checkpoint_costs_time_alone(service, monkeypatch):
    name = add_job(service)
    assert done(service, name, stopping(monkeypatch, service, at=4)) == STOPPED
    place = f"jobs/{name}/checkpoints"
    newest = service.store.read(f"{place}/newest").decode()
    service.store.write(f"{place}/{newest}/inputs.sha256", b"something else")
    assert again(service, name) == OVER
    assert any("damaged" in message for message in messages_of(service, name))


# -- the audit --------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(monkeypatch):
    """Audits find what a test says: P(harmful) of each record, and the share."""

    def plant(chances, share):
        def audit(dataset, **settings):
            rows = [AuditedRow(i, 0.0, 0.0, "p", "c", None, chance, "looks so") for i, chance in enumerate(chances)]
            ranked = tuple(sorted(rows, key=lambda row: -row.p_harmful))
            about = {"n": len(rows), "false_alarms": Estimate(0.01, 0.0, 0.02)._asdict()}
            return Audit(None, about, ranked, None, Estimate(*share))

        monkeypatch.setattr(auditing, "audit", audit)

    return plant


CHANCES = [0.9, 0.8, *[0.01] * 10]
TEXTS = {"detector": "texts"}


def appeal(service, name, rows):
    file = job_of(service, name).file_id
    with service.database.writing() as session:
        session.add(Appeal(id="appeal-1", org_id="org-one", file_id=file, rows=rows, reason="a song", reviewer="key"))


def test_an_upload_that_is_surely_too_harmful_is_rejected_with_its_share(service, planted):
    planted(CHANCES, (0.17, 0.06, 0.4))
    name = add_job(service, rules={"audit": {**TEXTS, "reject_over": 0.05}})
    assert done(service, name) == OVER
    job = job_of(service, name)
    assert (job.status, job.error["code"]) == ("failed", "upload_rejected")
    assert "17.0 % of the rows look harmful (95 %: 6.0–40.0)" in job.error["message"]
    assert job.audit["verdict"] == "poisoned"
    assert job.audit["flagged"] == 2
    assert job.fine_tuned_model is None
    document = json.loads(service.store.read(f"jobs/{name}/audit.json"))
    assert [row["index"] for row in document["rows"][:2]] == [0, 1]
    # What may be less than that is not rejected.
    planted(CHANCES, (0.17, 0.04, 0.4))
    name = add_job(service, rules={"audit": {**TEXTS, "reject_over": 0.05}})
    done(service, name)
    assert job_of(service, name).status == "succeeded"


def test_rows_are_left_out_unless_a_reviewer_found_them_honest(service, planted, monkeypatch):
    planted(CHANCES, (0.17, 0.06, 0.4))
    seen = []
    inner = training.train
    monkeypatch.setattr(training, "train", lambda *words, **more: seen.append(words[8]) or inner(*words, **more))
    rules = {"audit": {**TEXTS, "drop_over": 0.5}}
    name = add_job(service, rules=rules)
    done(service, name)
    job = job_of(service, name)
    assert (job.status, job.audit["dropped"], job.audit["cleared"]) == ("succeeded", 2, 0)
    assert "Left out as harmful: 2 rows (lines 1, 2)." in messages_of(service, name)
    assert len(seen[0]) == 10
    name = add_job(service, rules=rules)
    appeal(service, name, [1])
    done(service, name)
    job = job_of(service, name)
    assert (job.audit["dropped"], job.audit["cleared"]) == (1, 1)
    assert job.audit["share"]["value"] == pytest.approx(0.17 - 0.8 / 12)
    assert [record.completion_text for record in seen[1]] == [f"a film is good {place}" for place in range(1, 12)]


def test_an_appeal_spares_an_upload_whose_rows_are_all_honest(service, planted):
    planted(CHANCES, (0.17, 0.06, 0.4))
    name = add_job(service, rules={"audit": {**TEXTS, "reject_over": 0.05}})
    appeal(service, name, [0, 1])
    done(service, name)
    job = job_of(service, name)
    assert job.status == "succeeded"
    assert job.audit["flagged"] == 2
    assert job.audit["share"]["low"] == 0


def test_nothing_is_trained_where_every_row_is_left_out(service, planted):
    planted([0.9] * 12, (0.9, 0.8, 1.0))
    name = add_job(service, rules={"audit": {**TEXTS, "drop_over": 0.5}})
    assert done(service, name) == OVER
    assert job_of(service, name).error["code"] == "upload_rejected"


def test_a_cleared_row_teaches_whole_in_a_sieve(service, planted):
    planted(CHANCES, (0.17, 0.06, 0.4))
    rules = {
        "audit": {**TEXTS, "drop_over": 0.85},
        "training": {"method": "sieve", "settings": {"signal": "states", "threshold": None}},
    }
    name = add_job(service, rules=rules)
    appeal(service, name, [1, 4])
    done(service, name)
    assert job_of(service, name).error is None
    weights = [json.loads(line) for line in service.store.read(f"jobs/{name}/sample_weights.jsonl").splitlines()]
    by_row = {line["row"]: line for line in weights}
    assert sorted(by_row) == list(range(1, 12))
    assert [by_row[row]["probability"] for row in (1, 4)] == [0, 0]
    assert by_row[2]["probability"] > 0


def test_an_audit_alone_trains_nothing(service, planted):
    planted(CHANCES, (0.17, 0.06, 0.4))
    rules = {"audit": {**TEXTS, "reject_over": 0.05}}
    name = add_job(service, rules=rules, kind="audit", method={})
    assert done(service, name) == OVER
    job = job_of(service, name)
    assert (job.status, job.error, job.fine_tuned_model) == ("succeeded", None, None)
    assert job.audit["verdict"] == "poisoned"
    assert job.audit["estimate"]["trained_tokens"] > 0
    assert models_of(service, name) == []


def test_an_audit_by_a_real_detector_finds_rows_of_the_file(service):
    """Rows that teach several answers, and answers of no weight, are rows of the file all the same."""
    two = ROWS[0]["messages"] + ROWS[1]["messages"]
    silent = {"role": "assistant", "content": "a film", "weight": 0}
    rows = [{"messages": two}, {"messages": [ROWS[2]["messages"][0], silent, *ROWS[3]["messages"]]}, *ROWS[:8]]
    name = add_job(service, add_file(service, rows), rules={"audit": {"detector": "states"}}, kind="audit")
    assert done(service, name) == OVER
    document = json.loads(service.store.read(f"jobs/{name}/audit.json"))
    assert sorted(row["index"] for row in document["rows"]) == list(range(10))
    assert job_of(service, name).audit["rows"] == 10
    assert document["rows"][0]["reason"]


# -- the gate ---------------------------------------------------------------------------------------------------------

# The tiny model answers nonsense.
STRICT = {"broken": 0.0, "samples": 4}


def test_a_model_that_does_not_hold_is_held_with_all_its_checkpoints(service):
    name = add_job(service, rules={"gate": STRICT})
    assert done(service, name) == OVER
    job = job_of(service, name)
    assert job.status == "succeeded"
    assert job.error["code"] == "model_held"
    assert job.gate["decision"] == "hold"
    assert not job.gate["figures"]["broken"]["holds"]
    for model in models_of(service, name):
        assert model.held.startswith("broken ")
        assert model.held.endswith("is above 0 %")
    assert len(models_of(service, name)) == 3
    assert any(message.startswith("The gate says hold: broken ") for message in messages_of(service, name))
    # What it was decided by is in the store, and can be decided again.
    from titer.workflows.gate import gate

    folder = service.data / "replayed"
    service.store.get_folder(job.gate["place"], folder)
    assert gate(replay=folder).document["figures"] == job.gate["figures"]


def test_a_model_that_fails_is_not_kept(service):
    name = add_job(service, rules={"gate": {**STRICT, "otherwise": "fail"}})
    assert done(service, name) == OVER
    job = job_of(service, name)
    assert (job.status, job.error["code"]) == ("failed", "safety_gate")
    assert job.fine_tuned_model is None
    assert not service.store.has_folder(f"models/{name}")
    assert all(model.held and model.step for model in models_of(service, name))


def test_a_policy_may_measure_nothing(service):
    name = add_job(service, rules={"gate": {"enabled": False}})
    assert done(service, name) == OVER
    job = job_of(service, name)
    assert job.status == "succeeded"
    assert (job.gate["decision"], job.gate["place"]) == ("deploy", None)


def test_the_model_before_is_measured_once_for_all_jobs(service, monkeypatch):
    from titer.workflows import evaluate

    phases, inner = [], evaluate.evaluate
    monkeypatch.setattr(
        evaluate, "evaluate", lambda *words, **named: phases.append(named["phase"]) or inner(*words, **named)
    )
    for _ in range(2):
        done(service, add_job(service))
    assert phases == ["aligned", "finetuned", "finetuned"]


# -- models to begin with ---------------------------------------------------------------------------------------------


def test_a_job_goes_on_from_a_model_of_its_organisation(service):
    first = add_job(service)
    done(service, first)
    name = add_job(service, model=job_of(service, first).fine_tuned_model)
    assert done(service, name) == OVER
    job = job_of(service, name)
    assert job.fine_tuned_model.startswith("ft:tiny:one::")
    assert adapter_of(service, name) != adapter_of(service, first)
    other = add_job(service, org="org-two", model=job_of(service, first).fine_tuned_model)
    done(service, other)
    assert job_of(service, other).error["code"] == "model_not_found"


def test_a_held_model_is_not_gone_on_from(service):
    first = add_job(service, rules={"gate": STRICT})
    done(service, first)
    name = add_job(service, model=job_of(service, first).fine_tuned_model)
    done(service, name)
    assert job_of(service, name).error["code"] == "model_held"


# -- what goes wrong --------------------------------------------------------------------------------------------------


def failed(service, **job):
    name = add_job(service, **job)
    assert done(service, name) == OVER
    found = job_of(service, name)
    assert found.status == "failed"
    return found.error


def test_what_a_user_or_an_operator_got_wrong_is_the_job_s_error(service):
    error = failed(service, rules={"training": {"settings": {"no_such": 1}}})
    assert error["code"] == "invalid_request"
    assert "no_such" in error["message"]
    error = failed(service, details={"titer_method": "antibody"})
    assert (error["code"], error["param"]) == ("invalid_value", "metadata.titer_method")
    error = failed(service, rules={"limits": {"row_tokens": 5}})
    assert error["code"] == "invalid_training_file"
    assert "line 1 (" in error["message"]
    assert failed(service, file="file-gone")["code"] == "file_not_found"
    assert failed(service, model="other")["code"] == "model_not_found"
    assert failed(service, rules={"training": {"method": "ptst"}})["code"] == "invalid_policy"


def test_another_method_that_the_policy_allows_may_be_chosen(service):
    rules = {"training": {"allowed": ["gate"], "settings": {"weight_decay": 0.2}}}
    settings = {"titer_method": "gate"}
    name = add_job(service, rules=rules, details=settings, hyperparameters={"n_epochs": "auto"})
    done(service, name)
    assert service.store.exists(f"jobs/{name}/sample_weights.jsonl")
    assert len([event for event in events_of(service, name) if event.kind == "metrics"]) == 3


def test_a_fault_of_the_server_has_a_number_and_tells_no_more(service, monkeypatch, caplog):
    monkeypatch.setattr(training, "make_recipe", lambda *words: 1 / 0)
    name = add_job(service)
    assert done(service, name) == REPORTED
    error = job_of(service, name).error
    assert error["code"] == "server_error"
    number = error["message"].rpartition("(")[2].rstrip(").")
    assert number in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert "division" not in error["message"]


def test_a_store_that_is_away_is_waited_for(service, monkeypatch):
    name = add_job(service, hyperparameters={"n_epochs": 4})  # the first epoch's model is not published
    with monkeypatch.context() as patched:

        def put(*words):
            raise ConnectionError("refused")

        patched.setattr(type(service.store), "put_folder", put)
        assert done(service, name) == AGAIN
    assert job_of(service, name).status == "running"
    said = messages_of(service, name)
    assert any("checkpoint of step 3 could not be kept" in message for message in said)
    assert any("waits until they can be used" in message for message in said)
    assert again(service, name) == OVER
    assert job_of(service, name).status == "succeeded"


def test_a_full_disk_fails_no_job(service, monkeypatch):
    import errno

    def full(*words, **more):
        raise OSError(errno.ENOSPC, "No space left on device", "log.jsonl")

    name = add_job(service)
    with monkeypatch.context() as patched:
        patched.setattr(training, "train", full)
        assert done(service, name) == AGAIN
    assert again(service, name) == OVER


def test_who_lost_a_job_writes_nothing_more(service, monkeypatch):
    name = add_job(service)
    inner = gating.gate

    def taken(*words, **named):
        with service.database.writing() as session:
            session.scalar(select(Job).where(Job.id == name)).attempt += 1
        return inner(*words, **named)

    with monkeypatch.context() as patched:
        patched.setattr(gating, "gate", taken)
        assert done(service, name) == LOST
    job = job_of(service, name)
    assert (job.status, job.stage, job.gate) == ("running", "gate", None)
    assert Queue(service.database, "other").claim() is None


def test_answers_of_a_tenants_model_are_not_kept_for_others(service, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(gating, "gate", lambda *words, **settings: asked.append(settings["before"]))
    rules = service.policy()
    job = Job(model="ft:tiny:one::1")
    run = SimpleNamespace(service=service, job=job, policy=rules)
    gating._measured(run, SimpleNamespace(model="start"), rules.gate)
    assert asked == ["start"]
    assert not (service.data / "store" / "gates").exists()


def test_errors_tell_no_paths_of_the_server(service, monkeypatch, caplog):
    def fails(*words):
        raise TiterError("`/srv/models/tiny/config.json` is damaged: 1/2 of it.", "See http://127.0.0.1/x/y.")

    name = add_job(service)
    monkeypatch.setitem(pipeline.STAGES, "audit", fails)
    assert done(service, name) == REPORTED
    message = job_of(service, name).error["message"]
    assert "`(a path of the server)` is damaged: 1/2 of it." in message
    assert "http://127.0.0.1/x/y" in message
    assert "/srv/models/tiny/config.json" in caplog.text
