"""Slurm and Ray do what this machine's workers do: the same files, and no more lost or done twice when something dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import pytest
from light_jobs import judged, light_plan
from test_experiment import SETTINGS
from test_jobs import left

from titer.errors import TiterError
from titer.jobs.clusters import choose, read_record, record_of
from titer.jobs.launchers import order
from titer.jobs.plan import Silent, execute
from titer.jobs.status import read_status
from titer.workflows import experiment as experiments

LOCAL, DEBUG = {"cluster": "local"}, {"cluster": "debug"}
MISSING = {}
for _name in ("submitit", "ray"):
    try:
        __import__(_name)
    except ModuleNotFoundError:
        MISSING[_name] = f"{_name} is not installed: pip install 'titer[{'slurm' if _name == 'submitit' else 'ray'}]'"
needs_submitit = pytest.mark.skipif("submitit" in MISSING, reason=MISSING.get("submitit", ""))
needs_ray = pytest.mark.skipif("ray" in MISSING, reason=MISSING.get("ray", ""))
BY_ALL = [
    pytest.param("slurm", LOCAL, marks=needs_submitit, id="submitit local"),
    pytest.param("slurm", DEBUG, marks=needs_submitit, id="submitit debug"),
    pytest.param("ray", {}, marks=needs_ray, id="ray"),
]
BY_PROCESSES = [BY_ALL[0], BY_ALL[2]]


@pytest.fixture(scope="module")
def ray_cluster():
    """One cluster of two workers for all tests, which launchers find running; it ends however they end."""
    if "ray" in MISSING:
        yield
        return
    launcher = choose("ray", 2)
    try:
        with launcher:
            yield
    finally:
        launcher.__exit__()


@pytest.fixture
def launcher(ray_cluster, forks, monkeypatch):
    """Makes launchers; a Ray one needs the cluster, and jobs of submitit's local one need not import everything anew."""

    def made(name, resources, workers=2):
        if name == "slurm":
            job = property(lambda self: f"{forks.python} -u -m submitit.core._submit {self.folder}")
            monkeypatch.setattr("submitit.LocalExecutor._submitit_command_str", job)
        return choose(name, workers, resources=resources)

    return made


class Remember(Silent):
    def __init__(self):
        self.settled_as = {}

    def settled(self, job):
        assert job.name not in self.settled_as
        self.settled_as[job.name] = job.status


def lines(path):
    return Path(path).read_text().split() if Path(path).exists() else []


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- the same files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(SETTINGS.format(model=tiny_folder))
    return path


def planned(settings, folder):
    """Training, answers and verdicts; the whole experiment is `benchmarks/launcher_faults.py`'s."""
    small = ("arms={undefended: {align: sft, finetune: sft}}", "finetune.checkpoints=[]")
    plan = experiments.make_plan(experiments.read_experiment(settings, small), folder)
    plan.jobs = {key: job for key, job in plan.jobs.items() if "p=" not in job.name}
    return plan


@pytest.fixture(scope="module")
def by_pool(settings, tmp_path_factory):
    plan = planned(settings, tmp_path_factory.mktemp("pool") / "run")
    assert execute(plan, Silent(), workers=2)
    return {job.key for job in plan.jobs.values()}, left(plan.run_folder)


@pytest.mark.parametrize(("name", "resources"), BY_ALL)
def test_a_cluster_leaves_what_workers_leave(settings, tmp_path, by_pool, launcher, name, resources):
    plan = planned(settings, tmp_path / "run")
    assert execute(plan, Silent(), launcher=launcher(name, resources)), [job.reason for job in plan.jobs.values()]
    assert ({job.key for job in plan.jobs.values()}, left(plan.run_folder)) == by_pool
    assert {path.name for path in left(plan.run_folder)} >= {
        "adapter_model.safetensors",
        "inferences.jsonl",
        "scores.jsonl",
    }
    assert not list((plan.run_folder / "launched").iterdir())
    assert not list((plan.run_folder / "leases").glob("[a-z]*"))


# --- workers that die -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "resources"), BY_PROCESSES)
def test_the_job_of_a_killed_worker_is_taken_over_and_fails_at_last(tmp_path, launcher, caplog, name, resources):
    once, always = tmp_path / "once", tmp_path / "always"
    plan = light_plan(tmp_path, [f"log {once}; die {tmp_path / 'mark'}", f"log {always}; die always", "nothing"], [2])
    show = Remember()
    assert not execute(plan, show, launcher=launcher(name, resources))
    assert show.settled_as | {"judge 2": ""} == {
        **{f"answers {n}": "cached" for n in range(3)}, "judge 0": "done", "judge 1": "failed", "judge 2": ""
    }  # fmt: skip
    assert show.settled_as["judge 2"] == "skipped"
    assert (len(lines(once)), len(lines(always))) == (2, 3)
    failed = next(job for job in plan.jobs.values() if job.name == "judge 1")
    assert "died 3 times" in failed.reason
    assert (failed.folder / "error.txt").read_text() == failed.reason
    assert "judge 0: " in caplog.text
    wait_for(lambda: failures(plan), 10)  # a killed process closes its connections a moment before it is gone
    (status,) = failures(plan)
    assert (status.name, status.reason) == ("judge 1", failed.reason)


def failures(plan):
    return [job for job in read_status(plan.run_folder).jobs if job.status == "failed"]


def test_an_order_that_is_given_again_forces_nothing_that_was_begun(tmp_path):
    plan = light_plan(tmp_path, ["nothing"])
    job = list(plan.jobs.values())[-1]
    first = order(job, force=True)
    assert not first.again().force  # what it left is gone, and what is there is new
    (job.folder).mkdir(parents=True, exist_ok=True)
    (job.folder / "done.json").touch()
    assert first.again() == first  # it had not begun


def test_what_only_the_launcher_knows_reaches_the_worker(tmp_path):
    """A job that needs an incomplete one is incomplete itself, whoever runs it."""
    from titer.jobs.launchers import work

    plan = light_plan(tmp_path, ["nothing"])
    plan.write()
    answers, judge = plan.jobs.values()
    answers.status = "incomplete"
    outcome = work(order(judge, force=False))
    assert outcome.status == "incomplete"
    assert "answers 0" in outcome.reason


# --- a launcher that dies ---------------------------------------------------------------------------------------------


def launched(folder, name, workers, resources, *actions, environment=None):
    script = Path(__file__).parent / "light_jobs.py"
    words = [sys.executable, script, folder, name, workers, json.dumps(resources), *actions]
    return subprocess.Popen(list(map(str, words)), env={**os.environ, **(environment or {})}, stderr=subprocess.PIPE)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm, and what happened in it."""
    environment = fake_slurm.install(tmp_path / "slurm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "slurm" / "state"


def events(slurm, word):
    return [line for line in (slurm / "log").read_text().splitlines() if line.split()[0] == word]


@needs_submitit
@pytest.mark.parametrize("resources", [LOCAL, {}], ids=["submitit local", "slurm"])
def test_a_launcher_takes_up_what_one_before_it_submitted(tmp_path, slurm, resources):
    """Killed while one job runs and, in Slurm, another waits in the queue; none is submitted or done twice."""
    go, logs = tmp_path / "go", [tmp_path / "log0", tmp_path / "log1"]
    actions = [f"log {log}; await {go}" for log in logs]
    workers = 2 if resources else 1
    first = launched(tmp_path, "slurm", workers, resources, *actions)
    run = tmp_path / "run"
    wait_for(lambda: len(list((run / "launched").glob("*.json"))) == 2 and sum(map(bool, map(lines, logs))) >= workers)
    first.kill()
    first.wait()
    before = sorted((run / "launched").glob("*.json"))
    ids = [read_record(path)["id"] for path in before]
    status = read_status(run)
    assert (status.count("running"), status.count("submitted")) == ((2, 0) if resources else (1, 1))
    running = next(job for job in status.jobs if job.status == "running")
    assert any(running.where.startswith(f"{resources.get('cluster', 'slurm')} {name}, process ") for name in ids)
    second = launched(tmp_path, "slurm", workers, resources, *actions)
    time.sleep(1.5)
    assert [read_record(path)["id"] for path in before] == ids
    go.touch()
    assert second.wait(60) == 0, second.stderr.read()
    assert [len(lines(log)) for log in logs] == [1, 1]
    assert len(judged(light_plan(tmp_path, actions))) == 2
    assert not list((run / "launched").iterdir())
    if not resources:
        assert len(events(slurm, "sbatch")) == 1
        assert len(events(slurm, "begin")) == 2


@needs_submitit
def test_a_second_submission_does_no_harm(tmp_path, slurm):
    """Killed between submitting and taking note of it: the lease decides who does the job."""
    go, log = tmp_path / "go", tmp_path / "log"
    actions = [f"log {log}; await {go}"]
    first = launched(tmp_path, "slurm", 1, {}, *actions)
    wait_for(lambda: lines(log))
    first.kill()
    first.wait()
    (record,) = (tmp_path / "run" / "launched").iterdir()
    record.unlink()
    second = launched(tmp_path, "slurm", 1, {}, *actions)
    time.sleep(1.5)
    go.touch()
    assert second.wait(60) == 0, second.stderr.read()
    assert len(lines(log)) == 1


# --- Slurm ------------------------------------------------------------------------------------------------------------


@needs_submitit
def test_jobs_that_can_begin_together_are_one_array_and_no_more_run_at_a_time(tmp_path, slurm, monkeypatch):
    monkeypatch.setattr("titer.jobs.slurm.GRACE", {"slurm": 0.0})
    logs = [tmp_path / f"log{n}" for n in range(5)]
    mark = tmp_path / "preempted"
    actions = [f"log {log}; sleep 0.2" for log in logs]
    actions[1] = f"log {logs[1]}; preempt {mark}; sleep 0.1"
    plan = light_plan(tmp_path, actions, chained=[4])
    asked = {"timeout_min": 30, "judge.gpus_per_node": 1}
    assert execute(plan, Silent(), launcher=choose("slurm", 2, "gpu", asked))
    first, second = events(slurm, "sbatch")
    assert "--array=0-3%2" in first
    for line in (first, second):
        assert "--partition=gpu" in line
        assert "--time=30" in line
        assert "--gpus-per-node=1" in line
    assert "--array" not in second
    at_once, most = 0, 0
    array = first.split()[1]
    for line in (slurm / "log").read_text().splitlines():
        if line.split()[1].partition("_")[0] != array:
            continue
        at_once += {"begin": 1, "COMPLETED": -1, "PENDING": -1}.get(line.split()[0], 0)
        most = max(most, at_once)
    assert most == 2
    # The one that was preempted went on in the queue; no other ran twice.
    assert [len(lines(log)) for log in logs] == [1, 2, 1, 1, 1]
    assert len(events(slurm, "requeue")) == 1
    assert (plan.run_folder / "slurm").is_dir()


@needs_submitit
def test_a_job_that_slurm_cancelled_is_not_submitted_again(tmp_path, slurm, monkeypatch):
    monkeypatch.setattr("titer.jobs.slurm.GRACE", {"slurm": 0.0})
    plan = light_plan(tmp_path, ["await never"])
    process = launched(tmp_path, "slurm", 1, {}, "await never")
    wait_for(lambda: list(slurm.glob("*.state")) and read_status(plan.run_folder).count("running"))
    (state,) = slurm.glob("*.state")
    holder = next(job for job in read_status(plan.run_folder).jobs if job.status == "running")
    pid = int(holder.where.partition("process ")[2].split()[0])
    # Slurm says so before the process has gone.
    os.kill(pid, signal.SIGSTOP)
    state.write_text("CANCELLED by 1000")
    assert process.wait(60) == 1
    os.kill(pid, signal.SIGKILL)
    assert "CANCELLED" in next((plan.run_folder / "jobs").glob("*/error.txt")).read_text()
    assert len(events(slurm, "sbatch")) == 1


@needs_submitit
def test_what_slurm_refuses_is_told(tmp_path, slurm):
    plan = light_plan(tmp_path, ["nothing"])
    with pytest.raises(TiterError, match="slurm takes no jobs: sbatch: error: invalid partition specified: nowhere"):
        execute(plan, Silent(), launcher=choose("slurm", 2, "nowhere"))
    assert not list((plan.run_folder / "jobs").glob("*/error.txt"))


@needs_submitit
def test_no_array_is_longer_than_slurm_takes(tmp_path, slurm, monkeypatch):
    monkeypatch.setattr("titer.jobs.slurm.ARRAY", 2)
    assert execute(light_plan(tmp_path, ["a", "b", "c"]), Silent(), launcher=choose("slurm", 3))
    assert [("--array=0-1%2" in line, "--array" in line) for line in events(slurm, "sbatch")] == [
        (True, True),
        (False, False),
    ]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@needs_submitit
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("slrm", 1), ("Unknown launcher: `slrm`", "`slurm`")),
        (("slurm", 1, None, {"cluster": "debg"}), ("`debg`", "`debug`")),
        (("slurm", 1, None, {"cluster": "local", "mem_gb": 3}), ("`mem_gb` has no effect", "timeout_min")),
        (("slurm", 1, None, {"timeout_minn": 3}), ("timeout_minn", "update_parameters")),
        (("slurm", 1, None, {"slurm_qoss": "x"}), ("slurm_qoss",)),
        (("slurm", 1, None, {"align.gpus_per_nod": 1}), ("gpus_per_nod",)),
        (("slurm", 1, None, {"mem_gb": "much"}), ("mem_gb",)),
        (("slurm", 1, None, {"nodes": 2}), ("one process",)),
        pytest.param(("ray", 1, None, {"num_gpu": 1}), ("`num_gpu`", "`num_gpus`"), marks=needs_ray),
    ],
    ids=str,
)
def test_resources_that_nobody_knows_are_refused_before_anything_is_done(
    tmp_path, slurm, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TiterError) as error:
        choose(*arguments)
    for word in words:
        assert word in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@needs_submitit
def test_without_slurm_it_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TiterError, match=r"no Slurm here.*\n.*srun"):
        choose("slurm", 1)


@needs_submitit
def test_resources_of_a_kind_that_there_is_not(tmp_path):
    plan = light_plan(tmp_path, ["nothing"])
    with pytest.raises(TiterError, match=r"`judg`.*\n.*`judge`"):
        execute(plan, Silent(), launcher=choose("slurm", 1, None, {"cluster": "local", "judg.timeout_min": 3}))


@needs_ray
def test_what_a_ray_cluster_has_not_is_told_at_once(tmp_path, launcher):
    plan = light_plan(tmp_path, ["nothing"])
    with pytest.raises(TiterError, match="`judge` asks for 8 GPU, and there are 0"):
        execute(plan, Silent(), launcher=launcher("ray", {"judge.num_gpus": 8}))


@pytest.mark.parametrize(("library", "name"), [("submitit", "slurm"), ("ray", "ray")])
def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch, library, name):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(TiterError, match=rf"{library}.*\n.*pip install 'titer\[{name}\]'"):
        choose(name, 1)


@pytest.mark.parametrize("verb", [["run", "quickstart"], ["assay", "m", "--against", "n"]], ids=["run", "assay"])
@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--launcher", "slurmm"], ["`--launcher`", "`slurm`"]),
        (["--partition", "gpu"], ["`--partition` has no effect", "`local`"]),
        (["--resource", "num_cpus=1"], ["`--resource` has no effect", "`local`"]),
        (["--launcher", "ray", "--partition", "gpu"], ["`--partition` has no effect", "`ray`"]),
        (["--launcher", "slurm", "--address", "auto"], ["`--address` has no effect", "`slurm`"]),
        (["--launcher", "slurm", "--resource", "cluster=local", "--partition", "x"], ["`--partition` has no effect"]),
        (["--launcher", "slurm", "--resource", "cluster=debug", "--parallel", "2"], ["`--workers` has no effect"]),
        (["--launcher", "slurm", "--resource", "x"], ["`--resource x`", "key=value"]),
        (["--parallel", "0"], ["must be", "`0`"]),
        (["--parallel", "2", "--workers", "2"], ["given twice"]),
        (["--parallel", "2", "--dry-run"], ["has no effect", "`--dry-run`"]),
        (["--launcher", "ray", "--dry-run"], ["`--launcher` has no effect"]),
        (["--address", "auto", "--plan-only"], ["`--address` has no effect"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_options_of_launchers_that_cannot_be_meant(titer, tmp_path, monkeypatch, no_model, verb, words, facts):
    monkeypatch.chdir(tmp_path)
    code, _, error = titer(*verb, *words)
    assert code == 2
    for fact in facts:
        assert fact in error
    assert not list(tmp_path.iterdir())


def test_a_record_that_is_no_record_is_passed_over(tmp_path):
    plan = light_plan(tmp_path, ["nothing"])
    job = list(plan.jobs.values())[-1]
    record_of(job).parent.mkdir()
    record_of(job).write_text("[")
    assert execute(plan, Silent(), launcher=choose("slurm", 1, resources=DEBUG)) or "submitit" in MISSING
