"""The worker loop as a Ray actor. No decisions here."""

from __future__ import annotations

import threading
from typing import Any

import ray
import torch

from adamserve.service.client import ClusterClient
from workers import networks
from workers.data import Dataset
from workers.loop import LoopConfig, Report, run


@ray.remote(concurrency_groups={"loop": 1, "control": 2})  # type: ignore[call-overload] # not in Ray's stubs
class WorkerActor:
    """One worker of a job: joins, runs the loop, and hands its reports over when asked.

    Args:
        controller: handle of the service's controller.
        job: the job's name; the worker pushes as "worker-RANK".
        network: name of the network to build.
        data: the data set, shared through Ray's object store.
        config: this worker's part.
        threads: torch's threads in this process.
        lease_s: the pusher's lease.
    """

    def __init__(
        self,
        controller: Any,
        job: str,
        network: str,
        data: Dataset,
        config: LoopConfig,
        threads: int,
        lease_s: float,
    ) -> None:
        torch.set_num_threads(threads)
        self._data = data
        self._config = config
        self._model = networks.build(network, data, seed=config.seed)
        self._client = ClusterClient(controller, job, f"worker-{config.rank}", lease_s=lease_s)
        self._reports: list[Report] = []
        self._changed = threading.Condition()
        self._begun = 0
        self._held = False
        self._limit: int | None = None

    @ray.method(concurrency_group="control")
    def join(self) -> int:
        """Become live on every shard; returns the last step made."""
        return self._client.join()

    @ray.method(concurrency_group="loop")
    def run(self) -> int:
        """Train to the end; returns the last step made."""
        with self._client:
            return run(
                self._client,
                self._model,
                self._data,
                self._config,
                report=self._keep,
                stopped=self._may_not_begin,
            )

    @ray.method(concurrency_group="control")
    def reports(self) -> list[Report]:
        """What has been reported since the last call."""
        with self._changed:
            reports, self._reports = self._reports, []
        return reports

    @ray.method(concurrency_group="control")
    def hold(self) -> int:
        """Begin no further step until `stop_at`; returns the last step begun, which will be finished."""
        with self._changed:
            self._held = True
            return self._begun

    @ray.method(concurrency_group="control")
    def stop_at(self, step: int) -> None:
        """End after that step. With `hold` first, every worker of a round can be given the same one."""
        with self._changed:
            self._limit = step
            self._changed.notify_all()

    def _may_not_begin(self) -> bool:
        """Whether the loop is to end before its next step; waits while it is held."""
        with self._changed:
            while self._held and self._limit is None:
                self._changed.wait()
            if self._limit is not None and self._client.seq >= self._limit:
                return True
            self._begun = self._client.seq + 1
            return False

    def _keep(self, report: Report) -> None:
        with self._changed:
            self._reports.append(report)
