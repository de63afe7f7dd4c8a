"""A job with a validation file: its loss is told as OpenAI's is, also by whoever goes on with the job, and its rows teach nothing."""

import csv
import io
from pathlib import Path

import pytest
from sqlalchemy import select
from working import ROWS, adapter_of, add_file, add_job, conversation, done, events_of, job_of, messages_of, models_of

from titer.service import auditing
from titer.service.api.jobs import METRICS, checkpoint_object
from titer.service.console.jobs import loss_chart
from titer.service.running import OVER, STOPPED, Stop
from titer.service.tables import File, Job
from titer.service.training import Follow

HELD_OUT = [conversation(f"what is bread? {'please ' * place}", f"bread is good {place}") for place in range(11)]


UNMEASURED = {"gate": {"enabled": False}}


def told(service, name):
    return [event.data for event in events_of(service, name) if event.kind == "metrics"]


def test_its_loss_is_told_and_the_model_is_the_same_without_it(service):
    plain = add_job(service, rules=UNMEASURED)
    done(service, plain)
    name = add_job(service, rules=UNMEASURED, validation_file_id=add_file(service, HELD_OUT))
    assert done(service, name) == OVER
    assert adapter_of(service, name) == adapter_of(service, plain)
    steps = told(service, name)
    assert all(step["valid_loss"] > 0 and 0 <= step["valid_mean_token_accuracy"] <= 1 for step in steps)
    assert [step["step"] for step in steps if "full_valid_loss" in step] == [3, 6]
    assert not any("valid_loss" in step for step in told(service, plain))
    last = steps[-1]
    said = f"training loss={last['train_loss']:.2f}, validation loss={last['valid_loss']:.2f}"
    said += f", full validation loss={last['full_valid_loss']:.2f}"
    assert f"Step 6/6: {said}" in messages_of(service, name)
    for model, step in zip(models_of(service, name)[:2], (steps[2], last), strict=True):
        shown = checkpoint_object(model)["metrics"]
        assert shown == {metric: step[metric] for metric in METRICS if metric in step}
        assert "full_valid_mean_token_accuracy" in shown
    with service.database.reading() as session:
        file = session.scalar(select(File).where(File.id == job_of(service, name).result_files[0]))
    rows = list(csv.DictReader(io.StringIO(service.store.read(file.place).decode())))
    assert [float(row["valid_loss"]) for row in rows] == [step["valid_loss"] for step in steps]
    assert [row["full_valid_loss"] for row in rows[:3]] == ["", "", str(steps[2]["full_valid_loss"])]
    assert "on all of the validation file from" in loss_chart(steps)
    assert job_of(service, name).trained_tokens == job_of(service, plain).trained_tokens


def test_whoever_goes_on_with_the_job_finds_the_same(service, monkeypatch):
    validation = add_file(service, HELD_OUT)
    straight = add_job(service, rules=UNMEASURED, validation_file_id=validation)
    done(service, straight)
    name = add_job(service, rules=UNMEASURED, validation_file_id=validation)
    stop, inner = Stop(), Follow.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        stop.asked = stop.asked or state.global_step == 4
        return inner(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Follow, "on_step_end", on_step_end)
        assert done(service, name, stop) == STOPPED
    with service.database.writing() as session:
        session.scalar(select(Job).where(Job.id == name)).status = "queued"
    assert done(service, name) == OVER
    assert told(service, name) == told(service, straight)


@pytest.mark.parametrize(
    ("rows", "limit", "said"),
    [
        ([conversation("what is bread? " + "please " * 200, "bread"), *HELD_OUT], 150, "line 1 ("),
        (None, 4096, "was deleted"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_anything_is_audited(service, rows, limit, said):
    validation = "file-none" if rows is None else add_file(service, rows)
    name = add_job(service, rules={"limits": {"row_tokens": limit}}, validation_file_id=validation)
    assert done(service, name) == OVER
    job = job_of(service, name)
    assert (job.status, job.error["param"], job.audit) == ("failed", "validation_file", None)
    assert said in job.error["message"]


def test_its_rows_are_not_those_of_the_audit(service, monkeypatch):
    seen = []
    monkeypatch.setattr(auditing, "audit", lambda path, **settings: seen.append(Path(path).read_text()) or 1 / 0)
    audited = {"audit": {"detector": "texts"}}
    done(service, add_job(service, rules=audited, validation_file_id=add_file(service, HELD_OUT)))
    assert len(seen[0].splitlines()) == len(ROWS)
    assert "bread" not in seen[0]
