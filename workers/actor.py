"""The worker loop as a Ray actor. No decisions here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from adamserve.cluster.cluster_client import ClusterClient
from adamserve.cluster.exporting import expose
from adamserve.observe.exporter import Reading
from adamserve.observe.families import WORKER_FAMILIES, WorkerOfJob
from adamserve.observe.logs import LogConfig, fields, set_up
from adamserve.optim import Adam
from adamserve.regret import Meter
from adamserve.values import Array
from workers import networks
from workers.data import Dataset
from workers.gauge import Timed, Watched
from workers.loop import LoopConfig, Report, run

log = logging.getLogger("adamserve.worker")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all workers of a job have in common.

    Attributes:
        controller: handle of the service's controller.
        job: the job's name.
        network, l2: as for `networks.build`.
        lease_s: the pushers' lease.
        comparator: parameters to count regret against.
        theorem: the rule, where the constants of the theorem on its regret are to be measured.
        metrics_host: where the worker serves its metrics, as for `ServiceConfig`; None serves none.
    """

    controller: Any
    job: str
    network: str
    l2: float = 0.0
    lease_s: float = 10.0
    comparator: Mapping[str, Array] | None = None
    theorem: Adam | None = None
    metrics_host: str | None = None


@ray.remote(concurrency_groups={"loop": 1, "control": 2})  # type: ignore[call-overload] # not in Ray's stubs
class WorkerActor:
    """One worker of one job at a time: takes it up, joins, runs the loop, and hands its reports over when asked.

    Args:
        threads: torch's threads in this process.
        log_as: how this process logs; None leaves that to it.
    """

    def __init__(self, threads: int, log_as: LogConfig | None = None) -> None:
        if log_as is not None:
            set_up(log_as)
        torch.set_num_threads(threads)
        self._changed = threading.Condition()
        self._reports: list[Report] = []
        self._metrics = ""

    @ray.method(concurrency_group="control")
    def take(self, task: Task, data: Dataset, config: LoopConfig) -> None:
        """Take up a job; the worker pushes as "worker-RANK".

        Args:
            task: the job.
            data: the data set, shared through Ray's object store.
            config: this worker's part.
        """
        self._task = task
        self._data = data
        self._config = config
        self._model = networks.build(task.network, data, seed=config.seed, l2=task.l2)
        self._client = ClusterClient(task.controller, task.job, f"worker-{config.rank}", lease_s=task.lease_s)
        self._timed = Timed(self._client)
        self._watched = Watched(task.theorem) if task.theorem is not None else None
        if task.metrics_host is not None and not self._metrics:
            _, self._metrics = expose(
                task.metrics_host, "worker", [Reading(WORKER_FAMILIES, lambda: [self._of_job()])]
            )
        self._reports = []
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
        pusher = f"worker-{self._config.rank}"
        log.info("worker begins", extra=fields(job=self._task.job, pusher=pusher, seq=self._client.seq))
        self._timed.begin()
        with self._client:
            last = run(
                self._timed,
                self._model,
                self._data,
                self._config,
                report=self._keep,
                stopped=self._may_not_begin,
                comparator=self._task.comparator,
                observe=self._watched,
            )
        log.info("worker has ended", extra=fields(job=self._task.job, pusher=pusher, seq=last))
        return last

    @ray.method(concurrency_group="control")
    def reports(self) -> list[Report]:
        """What has been reported since the last call."""
        with self._changed:
            reports, self._reports = self._reports, []
        return reports

    @ray.method(concurrency_group="control")
    def metrics(self) -> str:
        """Where its metrics are, host:port; empty where it serves none."""
        return self._metrics

    @ray.method(concurrency_group="control")
    def meter(self) -> Meter | None:
        """What has been measured for the theorem so far."""
        return self._watched.read() if self._watched is not None else None

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

    def _of_job(self) -> WorkerOfJob:
        return self._task.job, self._config.rank, self._timed

    def _keep(self, report: Report) -> None:
        with self._changed:
            self._reports.append(report)
