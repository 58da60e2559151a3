"""Worker processes of a driver: started on Ray, called, and found dead."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import ray

from adamserve.cluster.ray_calls import as_future

GROUPS = {"loop": 1, "control": 2}
"""Threads of a worker's process for each kind of call: its loop must not keep questions to it out."""


class WorkerHandle:
    """One worker's process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: str, *args: Any, loop: bool = False) -> Future[Any]:
        """Call a method of the worker; returns at once.

        Args:
            method: its name.
            args: its arguments; what `Pool.share` returned arrives as the value that was shared.
            loop: the call takes as long as the training does.

        Returns:
            The answer's future; its exception is `ProcessGone` once the process is known to be dead.
        """
        group = "loop" if loop else "control"
        return as_future(getattr(self._actor, method).options(concurrency_group=group).remote(*args))

    def kill(self) -> None:
        """End the process at once."""
        ray.kill(self._actor)


class Pool:
    """Starts worker processes, spread over the cluster's nodes; each takes one CPU.

    Args:
        worker: class of the object that a process holds.
        gpus: GPUs, or a fraction of one, that each is given.
    """

    def __init__(self, worker: type, *, gpus: float = 0.0) -> None:
        self._worker: Any = ray.remote(concurrency_groups=GROUPS)(worker)  # type: ignore[call-overload] # not in Ray's stubs
        self._gpus = gpus

    def start(self, *args: Any) -> WorkerHandle:
        """Start a process that makes `worker(*args)`; returns before it is up."""
        options = self._worker.options(num_cpus=1, num_gpus=self._gpus, scheduling_strategy="SPREAD")
        return WorkerHandle(options.remote(*args))

    @staticmethod
    def share(value: Any) -> Any:
        """Copy a value to where every process of the cluster can read it; arrays are not copied again."""
        return ray.put(value)
