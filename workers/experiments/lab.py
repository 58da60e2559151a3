"""Runs many small trainings as jobs on one service, several at a time, and remembers those that are done."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from adamserve import optim
from adamserve.cluster.pool import gather
from adamserve.cluster.running import StartService
from adamserve.cluster.service import Service
from adamserve.errors import NotFinite
from adamserve.job import JobConfig
from adamserve.shard import consistency
from adamserve.shard.consistency import Consistency
from adamserve.train.loop import Mirror, Report
from adamserve.train.loop import run as loop
from adamserve.train.record import without_nan
from adamserve.train.task import Part, Step, arrays, initial_model, tensor_specs
from adamserve.train.worker import Assignment, Worker
from adamserve.values import Array, Gradient
from workers.data import Dataset, load
from workers.experiments.trial import Data, Result, Trial, append, read_log
from workers.hindsight import Hindsight
from workers.task import NetworkTask

POLL_S = 0.5
"""How often the workers are asked for their reports."""

CALL_S = 120.0
"""Longest that anything but a training may take."""

Progress = Callable[[str], None]
"""Told, in a line for people, how far things are."""

Observe = Callable[[Mapping[str, Array], Mapping[str, Gradient]], None]
"""Shown the parameters pulled and the gradients, before every push."""


class Lab:
    """A service with workers, for trials. Data can be loaded before it is entered, which starts the service.

    Args:
        data_dir: folder with the data sets' files.
        shards: shard processes.
        address: of a running Ray cluster; None starts a local one.
        progress: told how far things are.
        start: starts the service.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None,
        shards: int,
        address: str | None,
        progress: Progress,
        start: StartService = Service.start,
    ) -> None:
        self._data_dir = data_dir
        self._shards = shards
        self._address = address
        self.progress = progress
        self._start = start
        self._open = ExitStack()
        self._idle: list[Any] = []
        self._data: dict[Data, Dataset] = {}
        self._shared: dict[tuple[Data, str, float, str], Any] = {}
        self._whole: dict[str, dict[str, Any]] = {}
        self._hindsight: dict[tuple[Data, float], Hindsight] = {}
        self._jobs = 0
        self._cores = 1

    def __enter__(self) -> Self:
        # Ray counts every worker as a core, and there may be more workers than cores.
        self.service = self._start(
            name=f"adamserve-lab-{os.getpid()}-{time.time_ns():x}",
            shards=self._shards,
            address=self._address,
            num_cpus=64,
            num_gpus=0,
        )
        self._open.callback(self.service.stop)
        self.service.serve()
        self._pool = self.service.workers(partial(Worker, 1))
        # A cluster may have fewer than this machine, which gives Ray one for each of them.
        self._cores = max(1, min(os.cpu_count() or 1, self.service.free_cpus() - 1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def data(self, wanted: Data) -> Dataset:
        """The data set, loaded once."""
        if wanted not in self._data:
            folder = self._data_dir
            if folder is not None and (folder / wanted.name).is_dir():
                folder = folder / wanted.name
            whole = load(wanted.name, folder, progress=self.progress)
            data = whole.first(wanted.examples)
            if wanted.name not in self._whole:
                self._whole[wanted.name] = {"examples": len(whole.train_y), "sha256": whole.digest()}
            if wanted.whiten:
                from workers.data.whiten import whitened

                data = whitened(data, progress=self.progress)
            self._data[wanted] = data
        return self._data[wanted]

    def whole(self, wanted: Data) -> Mapping[str, Any]:
        """What tells the data set that it is a part of from another of that name: `examples`, and `sha256` over all."""
        self.data(wanted)
        return self._whole[wanted.name]

    def hindsight(self, wanted: Data, l2: float) -> Hindsight:
        """The regret's other half for that data set."""
        if (wanted, l2) not in self._hindsight:
            self._hindsight[wanted, l2] = Hindsight(self.data(wanted), l2)
        return self._hindsight[wanted, l2]

    def task(self, trial: Trial) -> NetworkTask:
        """What a trial trains."""
        return NetworkTask(network=trial.network, data=self.data(trial.data), l2=trial.l2, dtype=trial.dtype)

    def open_job(self, trial: Trial) -> str:
        """Start a trial's job from its network's initial weights; returns its name."""
        task = self.task(trial)
        model = initial_model(task, trial.seed)
        return self.create(tensor_specs(task, model), arrays(model), trial.rule, trial.consistency)

    def create(
        self, specs: Sequence[Any], initial: Mapping[str, Any], rule: optim.Rule, mode: Consistency
    ) -> str:
        """Start a job; returns its name."""
        self._jobs += 1
        job = JobConfig(
            name=f"trial-{self._jobs}",
            tensors=tuple(specs),
            rule=optim.to_dict(rule),
            consistency=consistency.to_dict(mode),
            checkpoint_every_s=None,
        )
        self.service.create(job, initial)
        return job.name

    def drop(self, job: str) -> None:
        """End a job."""
        self.service.delete(job, purge=True)

    def run(self, trials: Sequence[Trial], log: Path, *, alone: bool = False) -> list[Result]:
        """Run those trials that the log does not hold yet, as many at a time as there are cores.

        Args:
            trials: what to run.
            log: a file of one JSON object a trial, added to whenever one is done.
            alone: one at a time, where seconds matter.

        Returns:
            In the trials' order.

        Raises:
            AdamServeError: a trial failed in another way than by diverging.
        """
        results = read_log(log)
        waiting = [trial for trial in dict.fromkeys(trials) if trial.key() not in results]
        done = len(set(trials)) - len(waiting)
        total = done + len(waiting)
        running: list[_Run] = []
        while waiting or running:
            busy = sum(run.trial.workers for run in running)
            while waiting and (not running or (not alone and busy + waiting[0].workers <= self._cores)):
                busy += waiting[0].workers
                running.append(_Run(self, waiting.pop(0)))
            wait([run for each in running for run in each.pending], POLL_S, FIRST_COMPLETED)
            for run in list(running):
                run.look()
                if not run.pending:
                    running.remove(run)
                    result = results[run.trial.key()] = run.finish()
                    entry = {"trial": json.loads(run.trial.key()), "result": without_nan(asdict(result))}
                    append(log, entry)
                    done += 1
            now = "; ".join(run.line() for run in running)
            self.progress(f"trial {min(done + 1, total)}/{total}  {now}")
        return [results[trial.key()] for trial in trials]

    def drive(self, trial: Trial, steps: int, *, observe: Observe | None = None) -> list[Step]:
        """Train in this process, as the job's only worker; what comes in and goes out can be watched.

        Args:
            trial: the training; its `epochs` and `steps` both end it.
            steps: how many pushes to make.
            observe: as for `adamserve.train.loop.run`.

        Returns:
            The steps' reports.
        """
        job = self.open_job(trial)
        task = self.task(trial)
        reports: list[Report] = []

        def keep(report: Report) -> None:
            reports.append(report)
            if len(reports) % 100 == 0:
                self.progress(f"{type(trial.rule).__name__} seed {trial.seed}: update {len(reports)}/{steps}")

        config = replace(loop_config(trial, 0), max_steps=steps)
        with self.service.client(job, pusher="worker-0") as client:
            client.join()
            loop(
                Mirror(client, initial_model(task, trial.seed)),
                task,
                config,
                report=keep,
                stopped=lambda: False,
                observe=observe,
            )
        self.drop(job)
        return [report for report in reports if isinstance(report, Step)]

    def hire(self, workers: int) -> list[Any]:
        """So many workers, old ones first."""
        while len(self._idle) < workers:
            self._idle.append(self._pool.start())
        hired, self._idle = self._idle[:workers], self._idle[workers:]
        return hired

    def release(self, workers: Sequence[Any]) -> None:
        """Give workers back."""
        self._idle += workers

    def shared(self, trial: Trial) -> Any:
        """A trial's task where every worker can read it, once for all trials of that task."""
        key = (trial.data, trial.network, trial.l2, trial.dtype)
        if key not in self._shared:
            self._shared[key] = self._pool.share(self.task(trial))
        return self._shared[key]


class _Run:
    """A trial under way."""

    def __init__(self, lab: Lab, trial: Trial) -> None:
        self._lab = lab
        self.trial = trial
        self._job = lab.open_job(trial)
        self._workers = lab.hire(trial.workers)
        service, task = lab.service, lab.shared(trial)
        assignment = Assignment(target=service.target, credentials=service.credentials, job=self._job)
        parts = [loop_config(trial, rank) for rank in range(trial.workers)]
        gather(
            [
                worker.call("take", assignment, task, part)
                for worker, part in zip(self._workers, parts, strict=True)
            ],
            CALL_S,
        )
        gather([worker.call("join") for worker in self._workers], CALL_S)
        self._steps: list[Step] = []
        self._diverged = False
        self._began = time.perf_counter()
        self._seconds = 0.0
        self.pending = [worker.work("run") for worker in self._workers]

    def look(self) -> None:
        """Take in what the workers report, and those that have ended."""
        ended = [run for run in self.pending if run.done()]
        self.pending = [run for run in self.pending if run not in ended]
        for run in ended:
            if (error := run.exception()) is None:
                continue
            if not isinstance(error, NotFinite):
                raise error
            self._diverged = True
            gather([worker.call("stop_at", 0) for worker in self._workers], CALL_S)
        self._seconds = time.perf_counter() - self._began
        self._take_reports()

    def finish(self) -> Result:
        """The result; the workers are free again and the job is gone."""
        self._take_reports()
        self._lab.release(self._workers)
        self._lab.drop(self._job)
        latest = {step.rank: step.epoch for step in self._steps}
        whole = math.floor(min(latest.values(), default=0.0)) if self._diverged else self.trial.epochs
        costs = []
        for epoch in range(self.trial.epochs):
            losses = [step.loss for step in self._steps if epoch < step.epoch <= epoch + 1]
            costs.append(float(np.mean(losses)) if epoch < whole else math.inf)
        return Result(
            costs=tuple(costs),
            staleness=float(np.mean([step.staleness for step in self._steps] or [0])),
            seconds=self._seconds,
            average_regret=self._regret() if self.trial.regret and not self._diverged else None,
        )

    def line(self) -> str:
        """How far it is."""
        rule, last = self.trial.rule, self._steps[-1] if self._steps else None
        where = f"epoch {last.epoch:.1f}/{self.trial.epochs} loss {last.loss:.4f}" if last else "starting"
        return f"{type(rule).__name__} lr {rule.lr:g} seed {self.trial.seed}: {where}"

    def _take_reports(self) -> None:
        gathered: list[list[Report]] = gather([worker.call("reports") for worker in self._workers], CALL_S)
        self._steps += [r for reports in gathered for r in reports if isinstance(r, Step)]

    def _regret(self) -> float:
        trial = self.trial
        return self._lab.hindsight(trial.data, trial.l2).regret_of(self._steps, loop_config(trial, 0)).average


def loop_config(trial: Trial, rank: int) -> Part:
    """One worker's part in a trial."""
    return Part(
        rank=rank,
        workers=trial.workers,
        batch=trial.batch,
        epochs=trial.epochs,
        seed=trial.seed,
        evaluate=False,
    )
