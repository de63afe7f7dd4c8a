"""`titer status`: from a run's folder alone, which it leaves as it is."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from light_jobs import light_plan

from titer.jobs.clusters import choose, record_of
from titer.jobs.leases import Lease, this_process
from titer.jobs.plan import Silent, execute
from titer.jobs.status import JobStatus, RunStatus, read_status


def tree(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def run(tmp_path):
    """A run in the middle of which everything stands that may: and how each job is."""
    plan = light_plan(tmp_path, ["a", "b", "c", "d", "e", "f", "g"], chained=[4, 5])
    plan.write()
    jobs = {job.name: job for job in plan.jobs.values()}
    assert jobs["judge 0"].attempt().status == "done"
    failed = jobs["judge 3"]
    (failed.folder / "error.txt").write_text("\nOSError: no room\n\nTraceback …\n")
    records = {
        "judge 1": {"launcher": "slurm", "cluster": "slurm", "id": "17_3", "outlives": True},
        "judge 2": {"launcher": "slurm", "cluster": "slurm", "id": "17_4", "outlives": True},
        "judge 6": {"launcher": "ray", "id": "abc", "outlives": False},  # whose launcher is gone
    }
    for name, about in records.items():
        by = this_process() if about["outlives"] else {**this_process(), "started": 1.0}
        record_of(jobs[name]).parent.mkdir(exist_ok=True)
        record_of(jobs[name]).write_text(json.dumps({**about, "since": time.time() - 60, "by": by}))
    with Lease(plan.run_folder / "leases", jobs["judge 1"].folder.name):
        yield plan.run_folder


STATES = {
    "judge 0": "done", "judge 1": "running", "judge 2": "submitted", "judge 3": "failed", "judge 4": "blocked",
    "judge 5": "blocked", "judge 6": "waiting", **{f"answers {n}": "done" for n in range(7)},
}  # fmt: skip


def test_every_job_is_what_its_files_say(run):
    before = tree(run)
    found = read_status(run)
    assert tree(run) == before, "it reads only"
    jobs = {job.name: job for job in found.jobs}
    assert {name: job.status for name, job in jobs.items()} == STATES
    assert jobs["judge 1"].where == f"slurm 17_3, process {os.getpid()} on {os.uname().nodename}"
    assert 0 <= time.time() - jobs["judge 1"].since < 60
    assert jobs["judge 2"].where == "slurm 17_4"
    assert 59 < time.time() - jobs["judge 2"].since < 120
    assert jobs["judge 3"].reason == "OSError: no room"
    assert jobs["judge 3"].path.endswith("error.txt")
    assert jobs["judge 4"].reason == "needs `judge 3`, which failed"
    assert jobs["judge 5"].reason == "needs `judge 4`, which is blocked"
    assert found.kinds()["judge"] == {
        "done": 8, "running": 1, "submitted": 1, "failed": 1, "blocked": 2, "waiting": 1
    }  # fmt: skip


def test_it_is_told_in_a_table_and_as_json(titer, run):
    code, told, _ = titer("status", run)
    assert code == 0
    words = " ".join(told.split())
    for fact in ("14 jobs, 8 done, 1 running, 1 submitted, 1 waiting, 1 failed, 2 blocked", "about", "17_4"):
        assert fact in words
    assert "judge 3: OSError: no room" in words
    code, told, _ = titer("status", run, "--json")
    document = json.loads(told)
    assert code == 0
    assert {job["name"]: job["status"] for job in document["jobs"]} == STATES
    assert document["kinds"]["judge"]["done"] == 8
    assert document["seconds_left"] >= 0
    code, _, error = titer("status", run, "--json", "--watch")
    assert code == 2
    assert "`--watch` has no effect" in error


@pytest.mark.parametrize("there", ["nothing", "a file", "another folder"])
def test_where_no_run_is(titer, tmp_path, there):
    place = tmp_path / "x"
    if there == "a file":
        place.touch()
    elif there == "another folder":
        place.mkdir()
    code, _, error = titer("status", place)
    assert code == 2
    assert "no folder of a run" in error


def test_jobs_of_plans_before_are_left_out_unless_somebody_works_on_them(tmp_path):
    old = light_plan(tmp_path, ["old"])
    old.write()
    new = light_plan(tmp_path, ["new"])
    new.write()
    jobs = [job for job in old.jobs.values() if job.key not in new.jobs]
    assert jobs
    assert len(read_status(new.run_folder).jobs) == 2
    with Lease(old.run_folder / "leases", jobs[0].folder.name):
        assert len(read_status(new.run_folder).jobs) == 3


def made(*jobs):
    return RunStatus(
        "run", tuple(JobStatus(f"{n}", f"{n}", kind, status, **more) for n, (kind, status, more) in enumerate(jobs))
    )


def test_the_time_left_is_that_of_jobs_of_the_kind_over_how_many_run():
    done = [
        ("align", "done", {"seconds": 100.0}),
        ("align", "done", {"seconds": 300.0}),
        ("judge", "done", {"seconds": 10.0}),
    ]
    running = [("align", "running", {"since": 950.0}), ("align", "running", {"since": 0.0})]
    found = made(*done, *running, ("align", "waiting", {}), ("judge", "submitted", {}), ("judge", "blocked", {}))
    # (200 − 50) + max(0, 200 − 1000) + 200 + 10, two at a time
    assert found.left(now=1000.0) == (180.0, "")
    assert made(*done).left() == (0.0, "")


def test_no_time_is_guessed():
    assert made(("align", "waiting", {})).left() == (None, "nothing runs")
    unknown = made(("align", "running", {}), ("judge", "waiting", {}), ("align", "done", {"seconds": 1.0}))
    assert unknown.left() == (None, "no job `judge` is done yet")
    assert "time left is not known: no job `judge` is done yet" in str(unknown)


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_a_run_is_watched_from_another_process_until_it_has_ended(tmp_path, name):
    """Without a terminal: a line at first, one every half minute, and the table at the end."""
    if name == "slurm":
        pytest.importorskip("submitit")
    go = tmp_path / "go"
    plan = light_plan(tmp_path, [f"await {go}"])
    resources = {"cluster": "local"} if name == "slurm" else None
    running = threading.Thread(target=lambda: execute(plan, Silent(), launcher=choose(name, 1, resources=resources)))
    running.start()
    try:
        end = time.monotonic() + 90
        while not (plan.run_folder / "jobs").is_dir() or not read_status(plan.run_folder).count("running"):
            assert time.monotonic() < end
            time.sleep(0.05)
        code = "from titer import progress; progress.EVERY = 0.5; from titer.cli import main; main()"
        words = [sys.executable, "-c", code, "status", str(plan.run_folder), "--watch"]
        written = tmp_path / "told", tmp_path / "error"
        with written[0].open("w") as out, written[1].open("w") as err:
            watching = subprocess.Popen(words, stdout=out, stderr=err)
        while "1 done, 1 running" not in written[1].read_text():  # what it says before that, it says while it starts
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        go.touch()
        running.join()
    assert watching.wait(timeout=60) == 0
    told, error = (path.read_text() for path in written)
    assert told.splitlines()[0].startswith(f"{plan.run_folder}: 2 jobs, 1 done, 1 running; about ")
    assert "2 jobs, 2 done" in " ".join(told.split())
    assert "… status" in error


def test_in_a_terminal_it_is_drawn_again(tmp_path, monkeypatch, capsys):
    from titer.cli import status
    from titer.screen import Screen

    plan = light_plan(tmp_path, ["nothing"])
    plan.write()
    job = list(plan.jobs.values())[-1]
    monkeypatch.setattr(status, "LOOK_EVERY", 0.01)
    looks = []

    def look(seconds):
        looks.append(read_status(plan.run_folder).count("done"))
        if len(looks) == 2:
            job.attempt()

    monkeypatch.setattr(status.time, "sleep", look)
    status._watch(plan.run_folder, Screen(force_terminal=True, width=100))
    assert looks == [1, 1]
    assert "2 done" in capsys.readouterr().out
