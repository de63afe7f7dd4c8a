"""Jobs by Ray Core: a process for each, on a cluster that there is or on one of its own on this machine.

Ray's tasks end with whoever started them, so a launcher that is killed leaves nothing that runs: the next one goes on from
checkpoints. `ray job submit` runs the launcher on the cluster itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, Self

from titer.errors import TiterError, check_known
from titer.jobs.clusters import Away, Died, Resources, Sent, extra
from titer.jobs.job import Job
from titer.jobs.launchers import Came, work

logger = logging.getLogger(__name__)

OPTIONS = ("num_cpus", "num_gpus", "memory", "accelerator_type", "resources")
"""What a job may ask Ray for, by its names; `resources` is a mapping of a cluster's own."""

OBJECTS = 100 * 2**20
"""Bytes of the object store of an own cluster, in which there is nothing but how jobs came out."""


class Ray(Away):
    """Hands jobs to a Ray cluster.

    Args:
        workers: Jobs that run at the same time.
        address: Of the cluster; one of its own on this machine when `None`.
        resources: By Ray's names, for all jobs or for a kind.

    Raises:
        TiterError: For names that Ray does not know.
    """

    name = "ray"

    def __init__(self, workers: int, address: str | None, resources: Mapping[str, Any]) -> None:
        super().__init__(workers, Resources(resources))
        check_known(self.resources.names(), OPTIONS, "resource of Ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = extra("ray", "ray")
        self.address = address
        self._started = False

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one.

        Raises:
            TiterError: Where there is none at that address.
        """
        if self._ray.is_initialized():
            return self  # whoever started it ends it
        quietly = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self.address is not None:
                self._ray.init(address=self.address, **quietly)
            else:
                many = max(self.workers, os.cpu_count() or 1)
                self._ray.init(
                    address="local", num_cpus=many, include_dashboard=False, object_store_memory=OBJECTS, **quietly
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise TiterError(
                f"Ray could not be reached: {str(error).splitlines()[0]}",
                "`--address` is that of the cluster (`HOST:6379`, or `auto` on one of its nodes); without it, one is started.",
            ) from error
        self._started = True
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the cluster; one of its own ends."""
        if self._started:
            self._ray.shutdown()
            self._started = False

    def take_up(self, jobs: Iterable[Job]) -> None:
        """Find out whether the cluster has what jobs ask for.

        Raises:
            TiterError: When it has not, or has GPUs and nobody asked for them, which would hide them from the jobs.
        """
        jobs = list(jobs)
        super().take_up(jobs)
        there: dict[str, float] = self._ray.cluster_resources()
        if there.get("GPU") and "num_gpus" not in self.resources.names():
            raise TiterError(
                f"The Ray cluster has {there['GPU']:g} GPUs, and jobs see only those that they ask for.",
                "For example `--resource num_gpus=1`; `num_gpus=0` for none.",
            )
        for kind in dict.fromkeys(job.kind for job in jobs):
            own = self.resources.of(kind)
            asked = {"CPU": own.get("num_cpus", 1), "GPU": own.get("num_gpus", 0), **own.get("resources", {})}
            lacking = [name for name, many in asked.items() if many > there.get(name, 0)]
            if lacking and self.address is None:
                name = lacking[0]
                raise TiterError(
                    f"`{kind}` asks for {asked[name]:g} {name}, and there are {there.get(name, 0):g} here."
                )
            if lacking:
                logger.warning("`%s` asks for more %s than the Ray cluster has now.", kind, ", ".join(lacking))

    def handle_of(self, job: Job, record: Mapping[str, Any]) -> Any:
        """Return `None`: Ray ends what a launcher started with it."""
        return None

    def flush(self, wait: bool) -> None:
        """Start what has not been started; a worker ends with its job, and so does all that it holds."""
        for sent in self._sent.values():
            if sent.handle is None:
                remote = self._ray.remote(max_calls=1, max_retries=0, **self.resources.of(sent.job.kind))(work)
                sent.handle = remote.remote(sent.order)
                self.note(sent, sent.handle.task_id().hex())

    def over(self, sent: Sent) -> bool:
        """Whether a task has come to its end."""
        ready, _ = self._ray.wait([sent.handle], timeout=0)
        return bool(ready)

    def result(self, sent: Sent) -> Came:
        """Return what the worker said."""
        errors = self._ray.exceptions
        try:
            came: Came = self._ray.get(sent.handle)
        except errors.RayTaskError as error:
            raise Died(f"{type(error.cause).__name__}: {error.cause}", final=True) from error
        except errors.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise Died(f"its process or its node died: {type(error).__name__}, {first}") from error
        return came
