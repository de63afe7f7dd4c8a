"""Jobs as data: one at a time by `titer job`, several at once, shared between processes, and taken over from dead ones."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
from test_experiment import SETTINGS
from typer.testing import CliRunner

from titer.cli import app
from titer.errors import TiterError
from titer.jobs.job import Job, Kind
from titer.jobs.leases import Held, Lease, LeaseLost, holder, holders
from titer.jobs.plan import Plan, Silent, execute
from titer.workflows import experiment as experiments

SMALL = (
    "arms={undefended: {align: sft, finetune: sft}, booster: [{align: sft}, {align: booster}, {finetune: sft}]}",
    "finetune.checkpoints=[]",
)


@pytest.fixture(scope="module")
def settings(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(SETTINGS.format(model=tiny_folder))
    return path


def planned(settings, folder):
    return experiments.make_plan(experiments.read_experiment(settings, SMALL), folder)


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """What one undisturbed process leaves."""
    plan = planned(settings, tmp_path_factory.mktemp("alone") / "run")
    assert execute(plan, Silent())
    return left(plan.run_folder)


def left(folder):
    """Return what jobs left that does not tell the time or the machine, by its path."""
    return {
        path.relative_to(folder / "jobs"): path.read_bytes()
        for path in sorted((folder / "jobs").rglob("*"))
        if path.name in ("adapter_model.safetensors", "adapter_config.json", "inferences.jsonl", "scores.jsonl")
    }


def command(*words, **environment):
    code = "from titer.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# --- leases -----------------------------------------------------------------------------------------------------------


def test_one_process_has_a_lease_until_it_gives_it_back(tmp_path):
    with Lease(tmp_path, "job"):
        assert str(os.getpid()) in holder(tmp_path, "job")
        with pytest.raises(Held):
            Lease(tmp_path, "job")
        with Lease(tmp_path, "another"):
            pass
    assert holder(tmp_path, "job") is None
    with Lease(tmp_path, "job") as lease:
        lease.remove()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("job")]


def test_a_lease_of_a_dead_process_is_over_at_once(tmp_path):
    script = "import sys, os; from titer.jobs.leases import Lease; Lease(__import__('pathlib').Path(sys.argv[1]), 'job'); os._exit(9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert (tmp_path / "job.1").exists()
    with Lease(tmp_path, "job") as lease:
        assert lease.path.name == "job.2"


def test_a_lease_of_a_dead_process_that_nobody_has_buried_is_over_too(tmp_path):
    script = "import sys, os; from titer.jobs.leases import Lease; Lease(__import__('pathlib').Path(sys.argv[1]), 'job'); os.kill(os.getpid(), 9)"
    dead = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # its number stays its own until it is waited for
        os.kill(dead.pid, 0)
        assert holder(tmp_path, "job") is None
        assert not holders(tmp_path)
    finally:
        dead.wait()


def test_a_lease_that_is_not_renewed_runs_out_on_any_machine_and_its_owner_finds_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Lease, "_renew", lambda self: None)
    first = Lease(tmp_path, "job", seconds=5)
    elsewhere = {**json.loads(first.path.read_text()), "machine": ["another"]}
    first.path.write_text(json.dumps(elsewhere))
    with pytest.raises(Held):
        Lease(tmp_path, "job", seconds=5)
    os.utime(first.path, (time.time() - 6,) * 2)
    with Lease(tmp_path, "job", seconds=5) as second:
        assert not first.holds
        assert second.holds
        with pytest.raises(LeaseLost):
            first.check()
    assert second.path.exists()


def test_an_owner_renews_its_lease(tmp_path):
    with Lease(tmp_path, "job", seconds=0.6) as lease:
        lease.path.write_text(json.dumps({**json.loads(lease.path.read_text()), "machine": ["another"]}))
        time.sleep(1.2)
        with pytest.raises(Held):
            Lease(tmp_path, "job", seconds=0.6)


def test_work_whose_lease_is_lost_leaves_no_record(tmp_path):
    def overtaken(job):
        (lease,) = (job.run_folder / "leases").glob(f"{job.folder.name}.*")
        lease.with_suffix(".7").write_text(lease.read_text())
        lease.unlink()

    job = Plan(tmp_path).add(Kind("answer", "nowhere:ANSWER", overtaken), "x", {})
    with pytest.raises(LeaseLost):
        job.attempt()
    assert not (job.folder / "done.json").exists()


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_jobs_that_are_run_one_by_one_leave_what_a_run_leaves(settings, tmp_path, alone):
    plan = planned(settings, tmp_path / "run")
    plan.write()
    last = list(plan.jobs.values())[-1]
    with pytest.raises(TiterError, match="not done") as error:
        CliRunner().invoke(app, ["job", str(last.folder)], catch_exceptions=False)
    assert str(last.needs[0].folder) in error.value.hint
    for job in plan.jobs.values():
        result = CliRunner().invoke(app, ["job", str(job.folder)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert "done before" in CliRunner().invoke(app, ["job", str(last.folder)]).output
    assert left(plan.run_folder) == alone
    with Lease(plan.run_folder / "leases", last.folder.name):
        assert CliRunner().invoke(app, ["job", str(last.folder), "--force"]).exit_code == 75


@pytest.mark.parametrize(
    "change", [{"version": 99}, {"libraries": {"torch": "0"}}, {"settings": {}}, {"run": "os:system"}]
)
def test_a_job_that_was_edited_or_planned_elsewhere_is_refused(settings, tmp_path, change):
    plan = planned(settings, tmp_path / "run")
    plan.write()
    job = next(iter(plan.jobs.values()))
    path = job.folder / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TiterError, match=r"job\.json|`os:system`"):
        Job.read(job.folder)


def test_damaged_inputs_are_told(settings, tmp_path):
    plan = planned(settings, tmp_path / "run")
    plan.write()
    job = Job.read(next(iter(plan.jobs.values())).folder)
    rows = job.records("records")
    file = job.run_folder / "inputs" / f"{job.spec['inputs']['records']}.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(TiterError, match=file.name):
        job.records("records")
    assert len(rows) == 16


def test_workers_leave_what_one_process_leaves(settings, tmp_path, alone):
    plan = planned(settings, tmp_path / "run")
    assert execute(plan, Silent(), workers=2), [job.reason for job in plan.jobs.values()]
    assert left(plan.run_folder) == alone


def test_processes_that_are_killed_at_random_moments_are_taken_over_from(settings, tmp_path, alone):
    """Two processes share a run; one of them is killed again and again, and another one started."""
    folder, draw = tmp_path / "run", random.Random(time.time_ns())
    words = ["run", settings, "-o", folder, *(word for text in SMALL for word in ("--set", text))]
    steady = command(*words)
    moments = []
    while steady.poll() is None:
        victim = command(*words)
        moments.append(draw.uniform(4, 14))
        deadline = time.monotonic() + moments[-1]
        while time.monotonic() < deadline and steady.poll() is None:
            time.sleep(0.1)
        victim.kill()
        victim.wait()
    assert steady.returncode == 0, (moments, steady.communicate())
    assert left(folder) == alone, moments
    results = json.loads((folder / "results.json").read_text())
    assert {job["status"] for job in results["provenance"]["stages"]} <= {"done", "cached"}
    assert not list((folder / "leases").glob("[a-z]*"))


def test_a_job_that_is_at_work_elsewhere_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("titer.jobs.plan.LOOK_EVERY", 0.01)
    ran, waited = [], []

    class Show(Silent):
        def waits(self, job, who):
            waited.append(job.name)
            if len(waited) == 3:
                lease.__exit__()

    plan = Plan(tmp_path)
    kind = Kind("answer", "nowhere:ANSWER", lambda job: ran.append(job.name))
    first = plan.add(kind, "first", {"n": 1})
    plan.add(kind, "second", {"n": 2})
    plan.add(kind, "third", {"n": 3}, needs=[first])
    lease = Lease(tmp_path / "leases", first.folder.name)
    assert execute(plan, Show())
    assert ran == ["second", "first", "third"]
    assert waited == ["first"] * 3
