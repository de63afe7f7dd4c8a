"""Workers: what becomes of a job when its process, its worker, its owner or the database does this or that."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from conftest import opened
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from working import adapter_of, add_job, done, events_of, job_of, messages_of

from titer.service.running import AGAIN, LOST, OVER, STOPPED
from titer.service.tables import Job
from titer.service.worker import Worker


def until(worker, holds, seconds=60):
    """Let a worker work until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        worker.step()
        time.sleep(0.02)


@pytest.fixture
def stand_in(service, monkeypatch):
    """A worker whose processes run a few lines of Python in the place of a job, and beat often."""
    monkeypatch.setattr("titer.service.worker.REST", 0.1)
    found = Worker(service, seconds=0.6, grace=1.0)

    def program(lines):
        def process(errors):
            words = [sys.executable, "-c", f"import sys, time, os, signal\nsys.stdin.readline()\n{lines}"]
            return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=errors, stderr=errors)

        found._process = process
        return found

    yield program
    for child in found.children:
        child.process.kill()
        child.process.wait()


def status_of(service, name):
    return job_of(service, name).status


SLEEPS = "time.sleep(60)"
STOPS = f"signal.signal(signal.SIGINT, lambda *_: os._exit({STOPPED})); time.sleep(60)"


def wish(service, name, what):
    with service.database.writing() as session:
        session.scalar(select(Job).where(Job.id == name)).wish = what


def test_a_job_that_its_owner_cancels_is_over_at_once(service, stand_in):
    name, worker = add_job(service), stand_in(SLEEPS)
    until(worker, lambda: worker.children)
    wish(service, name, "cancel")
    until(worker, lambda: status_of(service, name) == "cancelled")
    assert worker.children == []


@pytest.mark.parametrize("lines", [STOPS, f"signal.signal(signal.SIGINT, signal.SIG_IGN); {SLEEPS}"])
def test_a_job_that_its_owner_pauses_waits_for_him(service, stand_in, lines):
    """It stops by itself, or is killed after a while: its last checkpoint counts."""
    name, worker = add_job(service), stand_in(lines)
    until(worker, lambda: worker.children)
    time.sleep(0.3)
    wish(service, name, "pause")
    until(worker, lambda: status_of(service, name) == "paused")
    assert job_of(service, name).worker is None


def test_a_process_that_dies_is_tried_again_and_in_the_end_the_job_has_failed(service, stand_in, capsys):
    name = add_job(service)
    worker = stand_in("print('the end', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    until(worker, lambda: status_of(service, name) == "failed")
    job = job_of(service, name)
    assert job.attempt == 3
    assert job.error["code"] == "worker_crashed"
    assert "died 3 times at the same place (SIGKILL)" in job.error["message"]
    number = re.search(r"req_\w{24}", job.error["message"])[0]
    assert "the end" not in job.error["message"]
    told = capsys.readouterr().err
    assert f"{number}), its process's last words: the end" in told
    assert len([event for event in events_of(service, name) if event.data and "crashes" in event.data]) == 2


def test_a_death_that_is_written_down_late_counts_once(service, stand_in, monkeypatch):
    """The database goes away between any two transactions, and comes again."""
    name = add_job(service)
    worker = stand_in("os.kill(os.getpid(), signal.SIGKILL)")
    until(worker, lambda: worker.children)
    worker.jobs = 0  # takes no other one
    dialect, fails = service.database.engine.dialect, iter([False, True] * 3)
    inner = dialect.do_commit

    def commit(connection):
        if next(fails, False):
            raise sqlite3.OperationalError("disk I/O error")
        inner(connection)

    monkeypatch.setattr(dialect, "do_commit", commit)
    until(worker, lambda: status_of(service, name) == "queued" and not worker._unsettled)
    assert [event.data["crashes"] for event in events_of(service, name) if event.data] == [1]


def test_deaths_on_the_way_do_not_add_up(service, stand_in):
    from titer.service.queue import say

    name = add_job(service)
    worker = stand_in("os.kill(os.getpid(), signal.SIGKILL)")
    for step in range(4):
        worker.jobs = 1
        until(worker, lambda attempt=step: job_of(service, name).attempt > attempt)
        worker.jobs = 0  # takes no other one
        until(worker, lambda: not worker.children)
        with service.database.writing() as session:
            say(session, session.scalar(select(Job)), "a step", kind="metrics", data={"step": step})
    assert status_of(service, name) == "queued"


def test_a_job_that_cannot_go_on_now_waits(service, stand_in):
    name, worker = add_job(service), stand_in(f"os._exit({AGAIN})")
    until(worker, lambda: job_of(service, name).attempt >= 2)
    assert status_of(service, name) in ("queued", "running")


def test_a_job_that_another_worker_has_is_let_alone(service, stand_in):
    name, worker = add_job(service), stand_in(SLEEPS)
    until(worker, lambda: worker.children)
    with service.database.writing() as session:
        session.scalar(select(Job).where(Job.id == name)).attempt += 1
    until(worker, lambda: not worker.children)
    job = job_of(service, name)
    assert (job.status, job.attempt) == ("running", 2)
    worker.step()
    assert worker.children == []


def test_a_database_that_is_away_stops_no_process(service, stand_in, monkeypatch, capsys):
    name, worker = add_job(service), stand_in(f"time.sleep(0.8); os._exit({AGAIN})")
    until(worker, lambda: worker.children)

    def away(*words):
        raise OperationalError("select", {}, Exception("gone"))

    with monkeypatch.context() as patched:
        patched.setattr(type(service.database), "writing", away)
        until(worker, lambda: not worker.children)
        worker.step()
        assert worker._unsettled
    until(worker, lambda: not worker._unsettled)
    assert status_of(service, name) == "queued"
    assert "cannot be reached" in capsys.readouterr().err


def test_several_jobs_run_beside_each_other(service, stand_in):
    for _ in range(3):
        add_job(service)
    worker = stand_in(SLEEPS)
    worker.jobs = 2
    until(worker, lambda: len(worker.children) == 2)
    for _ in range(5):
        worker.step()
    assert len(worker.children) == 2


def test_a_process_ends_with_its_worker(service, stand_in):
    """As when the worker is killed: its end of the pipe closes."""
    add_job(service)
    lines = f"import threading\nthreading.Thread(target=lambda: (sys.stdin.read(), os._exit(77))).start(); {SLEEPS}"
    worker = stand_in(lines)
    until(worker, lambda: worker.children)
    child = worker.children.pop()
    child.process.stdin.close()
    assert child.process.wait(10) == 77


@pytest.mark.parametrize("code", [OVER, LOST])
def test_exit_codes_of_a_job_that_is_over_leave_nothing_to_do(service, stand_in, code):
    name, worker = add_job(service), stand_in(f"os._exit({code})")
    until(worker, lambda: worker.children)
    until(worker, lambda: not worker.children)
    assert status_of(service, name) == "running"


# -- real processes ---------------------------------------------------------------------------------------------------

LONG = {"n_epochs": 12}


def test_a_process_that_is_killed_in_its_training_leaves_the_same_adapter(service, tmp_path):
    """Through real processes: the second one has nothing but the store, as on another machine."""
    name = add_job(service, hyperparameters=LONG)
    worker = Worker(service, environment={"TITER_CACHE": str(tmp_path)})

    def steps():
        return [event.data["step"] for event in events_of(service, name) if event.kind == "metrics"]

    until(worker, lambda: len(steps()) >= 4, seconds=120)
    assert worker.children
    worker.children[0].process.kill()
    until(worker, lambda: status_of(service, name) not in ("queued", "running") and not worker.children, seconds=120)
    job = job_of(service, name)
    assert (job.status, job.error) == ("succeeded", None)
    said = messages_of(service, name)
    assert any("(SIGKILL); it is tried again" in message for message in said)
    assert any(message.startswith("The training goes on behind step") for message in said)
    assert steps() == list(range(1, 37))
    assert [event.place for event in events_of(service, name)] == list(range(1, len(said) + 1))
    assert not list((service.data / "logs").iterdir())
    straight = add_job(service, hyperparameters=LONG)
    done(service, straight)
    weights = "adapter_model.safetensors"
    assert adapter_of(service, name)[weights] == adapter_of(service, straight)[weights]


def test_the_verb_takes_jobs_and_gives_them_back_when_it_is_stopped(tmp_path, tiny_folder):
    data = tmp_path / "data"
    with opened(data, tiny_folder) as service:
        name = add_job(service, hyperparameters={"n_epochs": 50, "batch_size": 1}, status="validating_files")
        words = [sys.executable, "-c", "from titer.cli import main; main()", "worker", "--data", str(data)]
        environment = {**os.environ, "TITER_CACHE": str(tmp_path)}
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            end = time.monotonic() + 120
            while not any(event.kind == "metrics" for event in events_of(service, name)):
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 0
        job = job_of(service, name)
        assert (job.status, job.worker, job.stage) == ("queued", None, "train")
        # It stopped at a checkpoint of its own, not only at that of an epoch.
        assert service.store.exists(f"jobs/{name}/checkpoints/newest")
        assert f"{name}: attempt 1" in told
        assert f"{name}: queued" in told
