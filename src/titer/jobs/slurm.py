"""Jobs by Slurm, through submitit: jobs that can begin at the same time are one array.

A job that Slurm preempts, or whose time is over, is put into the queue again, and goes on from its last checkpoint. submitit's
`local` executor (`cluster=local`) runs them in processes of this machine, its `debug` executor in this process.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from titer.errors import TiterError, check_known, did_you_mean
from titer.jobs.clusters import Away, Died, Resources, Sent, cores, extra
from titer.jobs.job import Job
from titer.jobs.launchers import Came, Order, work

HOURS_4 = 240
"""Minutes that a job may take at a time, unless `timeout_min` says otherwise."""

ARRAY = 1000
"""Most jobs of an array, which is what Slurm takes as it comes (`MaxArraySize`)."""

TIMEOUTS = 100
"""How often a job may use up its time and go on."""

GRACE = {"slurm": 15.0}
"""Seconds in which the result of a job that is over may still come, over a network file system."""

FINAL = ("CANCELLED", "OUT_OF_MEMORY", "DEADLINE")
"""States of Slurm in which a job would end again."""

OWN = {"local": ("timeout_min", "gpus_per_node"), "debug": ()}
"""What submitit's executors for one machine heed."""


class Attempt:
    """A job as submitit calls it, and puts it into the queue again.

    Args:
        threads: How many the process may have; `None` for what Slurm gives it.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def __call__(self, order: Order) -> Came:
        """Run the job."""
        if self.threads is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # read when torch is imported
        return work(order)

    def checkpoint(self, order: Order) -> Any:
        """Return what goes on from the last checkpoint, which is in the job's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order.again())


class Slurm(Away):
    """Hands jobs to Slurm.

    Args:
        workers: Jobs that run at the same time.
        partition: Where they run; Slurm's own choice when `None`.
        resources: Of submitit's `update_parameters`, by its names, for all jobs or for a kind; and `cluster`.

    Raises:
        TiterError: For names and values that submitit does not take, and where there is no Slurm.
    """

    name = "slurm"
    cluster: str = "slurm"

    def __init__(self, workers: int, partition: str | None, resources: Mapping[str, Any]) -> None:
        self._submitit = extra("submitit", "slurm")
        asked = dict(resources)
        self.cluster = str(asked.pop("cluster", "slurm"))
        check_known([self.cluster], ("slurm", "local", "debug"), "`cluster` in resources")
        self.outlives = self.cluster != "debug"
        if partition is not None:
            asked["slurm_partition"] = partition
        super().__init__(workers, Resources(asked))
        if self.cluster != "slurm":
            for name in self.resources.names():
                if name not in OWN[self.cluster]:
                    raise TiterError(
                        f"`{name}` has no effect on `cluster={self.cluster}`.",
                        did_you_mean(name, OWN[self.cluster]) if OWN[self.cluster] else "Leave it out.",
                    )
        with tempfile.TemporaryDirectory() as scratch:  # what submitit does not take is told before anything is done
            for kind in ("", *self.resources.by_kind):
                self._executor(Path(scratch), kind, 1)

    def _parameters(self, kind: str) -> dict[str, Any]:
        """Return what submitit is told of jobs of a kind."""
        asked = {"timeout_min": HOURS_4, "name": "titer"} | self.resources.of(kind)
        for name in ("nodes", "tasks_per_node"):
            if asked.get(name, 1) != 1:
                raise TiterError(f"`{name}={asked[name]}`: a job of titer is one process.", "Leave it out.")
        return {} if self.cluster == "debug" else asked

    def _executor(self, folder: Path, kind: str, parallelism: int) -> Any:
        """Return submitit's executor for jobs of a kind."""
        parameters, more = self._parameters(kind), {}
        if self.cluster == "slurm":
            parameters["slurm_array_parallelism"] = parallelism
            more["slurm_max_num_timeout"] = TIMEOUTS
        try:
            executor = self._submitit.AutoExecutor(folder, self.cluster, **more)
            executor.update_parameters(**parameters)
        except RuntimeError as error:
            raise TiterError(
                f"There is no Slurm here: {error}",
                "Run it where `srun` is; `--resource cluster=local` tries it on this machine.",
            ) from error
        except (NameError, AssertionError, ValueError, TypeError) as error:
            raise TiterError(
                f"submitit does not take these resources: {str(error).splitlines()[0]}",
                "Names are those of submitit's `AutoExecutor.update_parameters`: timeout_min, mem_gb, slurm_qos, …",
            ) from error
        return executor

    # -- handing over --------------------------------------------------------------------------------------------------

    @property
    def free(self) -> bool:
        """Whether it can take another job: as many as can begin, for Slurm itself counts those of an array."""
        if self.cluster == "slurm":
            return self._room() > 0
        return super().free

    def _room(self) -> int:
        """Return how many more may run at the same time than the arrays that were submitted let run."""
        arrays: dict[str, list[int]] = {}
        for sent in self._sent.values():
            if sent.handle is not None:
                arrays.setdefault(sent.handle.job_id.partition("_")[0], []).append(sent.parallelism)
        return self.workers - sum(min(len(each), each[0]) for each in arrays.values())

    def flush(self, wait: bool) -> None:
        """Submit what has not been submitted; of Slurm, when no job can be added."""
        if self.cluster == "slurm" and not wait:
            return
        groups: dict[str, list[Sent]] = {}
        for sent in self._sent.values():
            if sent.handle is None:
                kind = sent.job.kind if sent.job.kind in self.resources.by_kind else ""
                groups.setdefault(kind, []).append(sent)
        for kind, group in groups.items():
            room = self._room() if self.cluster == "slurm" else self.workers
            if room > 0:
                self._submit(group[:ARRAY], kind, min(room, len(group)))

    def _submit(self, group: Sequence[Sent], kind: str, parallelism: int) -> None:
        """Submit jobs as one array."""
        executor = self._executor(group[0].job.run_folder.absolute() / "slurm", kind, parallelism)
        attempt = Attempt(cores(self.workers) if self.cluster == "local" else None)
        try:
            handles = executor.map_array(attempt, [sent.order for sent in group])
        except RuntimeError as error:  # submitit's own are of that kind
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise TiterError(
                f"{self.cluster} takes no jobs: {first}", "What is submitted goes on: the same command takes it up."
            ) from error
        for sent, handle in zip(group, handles, strict=True):
            sent.handle, sent.parallelism = handle, parallelism
            self.note(sent, handle.job_id, cluster=self.cluster, parallelism=parallelism)

    def handle_of(self, job: Job, record: Mapping[str, Any]) -> Any:
        """Return the submitted job, unless it is over."""
        if self.cluster == "debug":
            return None
        folder, name = job.run_folder.absolute() / "slurm", str(record["id"])
        handle: Any
        if self.cluster == "local":
            handle = Adopted(self._submitit.LocalJob(folder, name))
        else:
            handle = self._submitit.SlurmJob(folder, name)
        return None if handle.done() else handle

    # -- taking in -----------------------------------------------------------------------------------------------------

    def over(self, sent: Sent) -> bool:
        """Whether a job is over, and its result there or not to be expected any more."""
        if not sent.handle.done():
            return False
        if self.cluster == "debug" or sent.handle.paths.result_pickle.exists():
            return True
        if _state(sent.handle) in FINAL:
            return True
        sent.over_since = sent.over_since or time.monotonic()
        return time.monotonic() - sent.over_since >= GRACE.get(self.cluster, 0.0)

    def result(self, sent: Sent) -> Came:
        """Return what the worker said."""
        job = sent.handle
        log = f" ({job.paths.stderr})"
        if self.cluster != "debug" and not job.paths.result_pickle.exists():
            state = _state(job)
            raise Died(f"its process was killed: {self.cluster} job {job.job_id}, {state}{log}", final=state in FINAL)
        error = job.exception()
        if error is not None:
            trace = str(error).split("-" * 22 + "\n")[1:2] or [f"{type(error).__name__}: {error}"]
            raise Died(f"{trace[0].strip().splitlines()[-1]}{log}", final=True)
        came: Came = job.result()
        return came


def _state(handle: Any) -> str:
    """Return the state of a job in one word: Slurm says `CANCELLED by 1000`."""
    return str(handle.state).split()[0]


class Adopted:
    """A job of submitit's local executor that a launcher before started; its id is that of its process.

    Args:
        job: As submitit finds it.
    """

    def __init__(self, job: Any) -> None:
        self._job = job

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def done(self) -> bool:
        """Whether its process has ended, which submitit knows only of its own."""
        import psutil

        if self.paths.result_pickle.exists():
            return True
        try:
            return str(self.paths.folder) not in psutil.Process(int(self.job_id)).cmdline()
        except psutil.Error:
            return True
