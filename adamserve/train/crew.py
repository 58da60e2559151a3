"""The workers of a run: started together, watched, started again where one dies, stopped together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any

import torch

from adamserve.cluster.placement import Answer, Handle, ProcessGone, gather
from adamserve.cluster.running import RunningService
from adamserve.errors import Unavailable
from adamserve.observe.monitor import Monitor
from adamserve.train.config import TrainConfig
from adamserve.train.progress import Bound, Log
from adamserve.train.task import Task
from adamserve.train.worker import Assignment, Worker

POLL_S = 0.25
"""How often the workers are asked for their reports."""

WORKER_RESTARTS = 3
"""How often a worker that died is started again before the run gives up."""

START_TIMEOUT_S = 120.0
"""Longest that workers may take to be placed, to load their data and to join."""

STOP_TIMEOUT_S = 120.0
"""How long workers may take to finish the step under way."""


class Crew:
    """The workers of a run. Making it returns once all have taken the job up.

    `bound` is told what they measure for the theorem, and `monitor` where their metrics are.

    Raises:
        Unavailable: the workers did not start in time.
    """

    def __init__(
        self,
        config: TrainConfig,
        service: RunningService,
        task: Task[Any],
        assignment: Assignment,
        bound: Bound,
        monitor: Monitor,
    ) -> None:
        self._config = config
        self._assignment = assignment
        self._bound = bound
        self._monitor = monitor
        self.restarts = 0
        threads = max(1, torch.get_num_threads() // config.workers)
        self._start: Callable[[], Handle[Worker]] = partial(
            service.start_worker, partial(Worker, threads, config.log), gpus=config.gpus_per_worker
        )
        self._task = service.share(task)
        self._workers = [self._start() for _ in range(config.workers)]
        self._started([self._take(rank) for rank in range(config.workers)])

    def work(self, log: Log, stop: threading.Event, look: Callable[[str], None]) -> bool:
        """Run every worker to its end; returns whether `stop` ended it early, after the steps under way.

        All have joined before any begins, so that the first round is whole. `look` is called after every round of
        questions, with a note of what has happened.

        Raises:
            Unavailable: a worker died too often.
            AdamServeError: what a worker raised.
        """
        self._started([worker.call(Worker.probe) for worker in self._workers])
        self._started([worker.call(Worker.join) for worker in self._workers])
        self._monitor.directory.put("worker", self._each(Worker.metrics))
        runs = {worker.call(Worker.run): rank for rank, worker in enumerate(self._workers)}
        stopping = False
        note = ""
        while runs:
            if stop.is_set() and not stopping:
                self._stop_together()
                stopping, note = True, "stopping"
            for ended in wait(runs, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                rank = runs.pop(ended)
                try:
                    ended.result()
                except ProcessGone:
                    self._monitor.directory.drop("worker", rank)
                    self._bound.keep(rank)
                    if stopping:
                        note = f"stopping; worker {rank} died"
                        continue
                    note = f"worker {rank} died and was started again"
                    runs[self._replace(rank)] = rank
            reports = [report for reports in self._each(Worker.reports).values() for report in reports]
            log.add(sorted(reports, key=lambda report: report.at))
            self._bound.look(partial(self._each, Worker.meter))
            look(note)
        return stopping

    def _take(self, rank: int) -> Future[Any]:
        return self._workers[rank].call(Worker.take, self._assignment, self._task, self._config.part(rank))

    def _replace(self, rank: int) -> Future[Any]:
        """Start a dead worker again; it goes on after its last decided push."""
        self.restarts += 1
        if self.restarts > WORKER_RESTARTS:
            raise Unavailable(f"worker {rank} died, after {WORKER_RESTARTS} restarts", field=f"worker {rank}")
        self._workers[rank] = self._start()
        self._started([self._take(rank)])
        self._started([self._workers[rank].call(Worker.join)])
        self._monitor.directory.put("worker", self._each(Worker.metrics))
        return self._workers[rank].call(Worker.run)

    def _stop_together(self) -> None:
        """Stop every worker after the step under way; in bsp all after the same one, so that no round is cut."""
        begun = self._each(Worker.hold)
        last = max(begun.values(), default=0)
        together = self._config.consistency.gathers
        for rank, step in begun.items():
            self._workers[rank].call(Worker.stop_at, last if together else step)

    def _each(self, method: Callable[[Worker], Answer]) -> dict[int, Answer]:
        """Call every worker; the answers by rank, of those that live."""
        answers = {}
        for rank, answer in enumerate([worker.call(method) for worker in self._workers]):
            try:
                answers[rank] = answer.result(timeout=STOP_TIMEOUT_S)
            except ProcessGone:
                continue
        return answers

    def _started(self, answers: Sequence[Future[Any]]) -> None:
        """Wait for workers that have to be placed first."""
        try:
            gather(answers, START_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(
                f"{len(answers)} workers have not started within {START_TIMEOUT_S:.0f} s",
                field="workers",
                fix="ask for fewer, or for a cluster with a free CPU (and its GPUs) for each",
            ) from None
