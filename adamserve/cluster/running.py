"""What a running service offers to whoever started it, wherever its controller is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Concatenate, Self, TypeVar

from adamserve.client.client import Client
from adamserve.cluster.config import CALL_TIMEOUT_S
from adamserve.cluster.controller import Controller, initial_parts
from adamserve.cluster.placement import Answer, Given, Handle, ProcessGone
from adamserve.cluster.process import ProcessInfo
from adamserve.errors import Unavailable
from adamserve.job import JobConfig, Topology
from adamserve.observe.rpc_counts import Calls
from adamserve.observe.state import JobState
from adamserve.regret import Loss
from adamserve.values import Array

Made = TypeVar("Made")


class RunningService(ABC):
    """A service that runs. Thread-safe.

    Its methods raise `Unavailable` where the controller is dead or does not answer.

    Attributes:
        target: host:port of ControlService, for `adamserve.connect`.
        credentials: those of the service's own workers. Hand them on through Ray only.
        shards: how many it has.
    """

    def __init__(self, controller: Handle[Controller]) -> None:
        self._controller = controller
        self._stopped = False
        self.target = self._ask(Controller.target)
        self.credentials = self._ask(Controller.credentials)
        self.shards = len(self.processes())

    def _ask(
        self,
        method: Callable[Concatenate[Controller, Given], Answer],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Answer:
        """Call a method of the controller, and wait for its answer."""
        # These take as long as the jobs are large; each wait within has a deadline of its own.
        timeout_s = None if method in (Controller.resume, Controller.drain) else CALL_TIMEOUT_S
        try:
            return self._controller.call(method, *args, **options).result(timeout_s)
        except TimeoutError:
            raise Unavailable(
                f"the controller has not answered for {CALL_TIMEOUT_S:.0f} s", fix="try again"
            ) from None
        except ProcessGone as error:
            raise Unavailable(
                f"the service is not there: {error.problem}", fix="see the service's log"
            ) from None

    @abstractmethod
    def start_worker(self, make: Callable[[], Made], *, gpus: float = 0.0) -> Handle[Made]:
        """Start a process that `make`, which is pickled, gives its object; with a core and so many GPUs.

        It returns before there is room for the process, which ends with this one at the latest.
        """

    @abstractmethod
    def share(self, value: Any) -> Any:
        """Keep a value where every process can read it, to be given to calls in its place."""

    @abstractmethod
    def free_cpus(self) -> int:
        """How many CPUs are left for workers."""

    def serve(self) -> None:
        """Say at ControlService that the service is ready."""
        self._ask(Controller.serve)

    def calls(self) -> Calls:
        """Counts of ControlService's calls."""
        return self._ask(Controller.calls)

    def drain(self, grace_s: float = 0.0) -> None:
        """Let running calls end within `grace_s` seconds, and write a last checkpoint of every job.

        Raises:
            AdamServeError: what went wrong first; everything else was tried all the same.
        """
        self._ask(Controller.drain, grace_s)

    def stop(self) -> None:
        """End the service at once; without `drain` first, updates since the last checkpoint are lost. Idempotent."""
        if not self._stopped:
            self._stopped = True
            self._ask(Controller.stop)
            self._controller.kill()

    def client(self, job: str, **options: Any) -> Client:
        """A client of a job, as one of the service's own workers; options as for `adamserve.connect`."""
        credentials = replace(self.credentials, transport=options.pop("transport", "auto"))
        return Client(self.target, job, credentials=credentials, **{"kind": "worker", **options})

    def create(self, config: JobConfig, parameters: Mapping[str, Array]) -> bool:
        """Start a job from these parameters. Idempotent; returns whether it was not there before.

        Raises:
            Conflict: a job of that name exists with another configuration.
        """
        parts = initial_parts(config, parameters, self.shards)
        return self._ask(Controller.begin, config, [self.share(part) for part in parts])

    def resume(self, job: str, changes: Mapping[str, Any] | None = None) -> Topology:
        """Take up a job from its newest checkpoint; as long as its size takes.

        Raises:
            NotFound: there is no checkpoint of it that verifies.
        """
        return self._ask(Controller.resume, job, changes)

    def topology(self, job: str) -> Topology:
        """Where a job's shards are now."""
        return self._ask(Controller.topology, job)

    def status(self) -> list[JobState]:
        """How every job stands, after asking every shard."""
        return self._ask(Controller.status_now)

    def seen(self) -> list[JobState]:
        """How every job stood when the controller last looked."""
        return self._ask(Controller.status)

    def report(self, job: str, losses: Sequence[Loss], numbers: Mapping[str, float] | None = None) -> None:
        """Note training losses, and the latest value of each of some other numbers.

        Raises:
            InvalidArgument: one of them is not finite; the others are noted.
        """
        self._ask(Controller.report, job, losses, numbers or {})

    def checkpoint(self, job: str) -> int:
        """Write a checkpoint now; returns its number, 0 where none are kept."""
        return self._ask(Controller.checkpoint, job)

    def delete(self, job: str, *, purge: bool = False) -> bool:
        """Delete a job, and its checkpoints too where `purge`; returns whether there was one."""
        return self._ask(Controller.delete, job, purge=purge)

    def processes(self) -> list[ProcessInfo]:
        """Who each shard's process is."""
        return self._ask(Controller.processes)

    def metrics(self) -> dict[int, str]:
        """Where the metrics of each shard are whose process lives: host:port by shard."""
        return self._ask(Controller.metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


StartService = Callable[..., RunningService]
"""Starts a service: `adamserve.cluster.service.Service.start`, or `adamserve.testing.Service.start` without Ray."""
