"""A worker: it takes up one job at a time, joins, runs the loop, and hands its reports over when asked."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from adamserve.client.client import Client
from adamserve.client.credentials import Credentials
from adamserve.cluster.probe import probe
from adamserve.cluster.process import ProcessInfo
from adamserve.cluster.ray_runtime import node_address
from adamserve.errors import Unavailable
from adamserve.job import host_port
from adamserve.observe.exporter import Exporter, Reading
from adamserve.observe.families import WORKER_FAMILIES
from adamserve.observe.logs import LogConfig, fields, set_up
from adamserve.optim import Adam
from adamserve.regret import Meter
from adamserve.train.loop import Mirror, Report, run
from adamserve.train.task import Part, Step, Task, initial_model
from adamserve.values import Array

log = logging.getLogger("adamserve.worker")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What all workers of a job have in common, beside the task.

    Attributes:
        target, job: host:port of the service, and the job's name.
        credentials: those of the service's own workers.
        shards: the service's shard processes as the run begins, which every worker tries to reach.
        session: of the run: a worker that is started again takes the place of the dead one, whose lease may run still.
            Empty where none is started again.
        lease_s: the pushers' lease.
        comparator: parameters to count regret against.
        theorem: the rule, where the constants of the theorem on its regret are to be measured.
        metrics_host: where the worker serves its metrics, as for `ServiceConfig`; None serves none.
    """

    target: str
    credentials: Credentials = field(repr=False)
    job: str
    shards: Sequence[ProcessInfo] = ()
    session: str = field(default="", repr=False)
    lease_s: float = 10.0
    comparator: Mapping[str, Array] | None = None
    theorem: Adam | None = None
    metrics_host: str | None = None


class Worker:
    """One worker, in a process of its own, with some threads for torch; without `log_as` it logs as the process does.

    `run` goes on in one thread while others call the rest.
    """

    def __init__(self, threads: int, log_as: LogConfig | None = None) -> None:
        if log_as is not None:
            set_up(log_as)
        torch.set_num_threads(threads)
        self._changed = threading.Condition()
        self._reports: list[Report] = []
        self._metrics = ""

    def take(self, assignment: Assignment, task: Task[Any], part: Part) -> None:
        """Take up a job; the worker pushes as "worker-RANK"."""
        self._assignment = assignment
        self._task = task
        self._part = part
        self._client = Client(
            assignment.target,
            assignment.job,
            pusher=f"worker-{part.rank}",
            session=assignment.session and f"{assignment.session}-{part.rank}",
            kind="worker",
            credentials=assignment.credentials,
            lease_s=assignment.lease_s,
        )
        self._mirror = Mirror(self._client, initial_model(task, part.seed), part.device)
        self._meter: Meter | None = None
        if assignment.metrics_host is not None and not self._metrics:
            host = node_address(assignment.metrics_host)
            steps = Reading(
                WORKER_FAMILIES,
                lambda: [(self._assignment.job, self._part.rank, self._mirror.steps, self._mirror.seconds)],
            )
            self._metrics = host_port(host, Exporter(host, 0, process="worker", collect=[steps]).port)
        self._reports = []
        self._begun = 0
        self._held = False
        self._limit: int | None = None

    def probe(self) -> None:
        """Find out, within seconds, whether the service and all shards can be reached; `Unavailable` says why not."""
        given = self._assignment
        probe(given.target, given.shards, given.credentials, node=node_address(None))

    def join(self) -> int:
        """Become live on every shard; returns the last step made."""
        return self._client.join()

    def run(self) -> int:
        """Train to the end; returns the last step made."""
        who = {"job": self._assignment.job, "pusher": f"worker-{self._part.rank}"}
        theorem = self._assignment.theorem
        log.info("worker begins", extra=fields(**who, seq=self._client.seq))
        with self._client:
            last = run(
                self._mirror,
                self._task,
                self._part,
                report=self._keep,
                stopped=self._may_not_begin,
                comparator=self._assignment.comparator,
                observe=partial(self._measure, theorem) if theorem is not None else None,
            )
        log.info("worker has ended", extra=fields(**who, seq=last))
        return last

    def reports(self) -> list[Report]:
        """What has been reported since the last call."""
        with self._changed:
            reports, self._reports = self._reports, []
        return reports

    def metrics(self) -> str:
        """Where its metrics are, host:port; empty where it serves none."""
        return self._metrics

    def meter(self) -> Meter | None:
        """A copy of what has been measured for the theorem; None before the first step."""
        with self._changed:
            return deepcopy(self._meter)

    def hold(self) -> int:
        """Begin no further step until `stop_at`; returns the last step begun, which will be finished."""
        with self._changed:
            self._held = True
            return self._begun

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

    def _measure(self, rule: Adam, w: Array, gradient: Array) -> None:
        """Measure a step for the theorem."""
        with self._changed:
            if self._meter is None:
                self._meter = Meter(rule, w.size)
            self._meter.add(w, gradient)

    def _keep(self, report: Report) -> None:
        """Keep a report until the driver asks, and tell the service the loss; it does without where it is away."""
        with self._changed:
            self._reports.append(report)
        if isinstance(report, Step):
            known = not math.isnan(report.comparator_loss)
            try:
                self._client.report(report.loss, report.comparator_loss if known else None)
            except Unavailable as error:
                log.warning("losses were not reported: %s", error)
