"""Detectors that jobs have fitted, in the artefact store: other workers need not fit them again."""

from __future__ import annotations

from titer.service.running import Running


class Detectors:
    """The store's folder `detectors`, as a shelf of `titer.risk`.

    As of the answers in `gates`, there are as many as the operator has models and prompts. What is fitted on a tenant's own
    model is not kept there: it would outlive the model.

    Args:
        run: The job.
    """

    def __init__(self, run: Running) -> None:
        self._run = run
        self._shared = run.job.model in run.policy.models

    def read(self, name: str) -> bytes:
        """Return what is kept under a name; raises `FileNotFoundError` and `Away`."""
        if not self._shared:
            raise FileNotFoundError(name)
        with self._run.storing():
            return self._run.service.store.read(f"detectors/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Keep something; raises `Away`."""
        if self._shared:
            with self._run.storing():
                self._run.service.store.write(f"detectors/{name}", data)
