"""Runs many small trainings as jobs on one service, several at a time, and remembers those that are done."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from adamserve import optim
from adamserve.cluster.placement import Handle, gather
from adamserve.cluster.running import StartService
from adamserve.errors import NotFinite
from adamserve.job import JobConfig
from adamserve.shard import consistency
from adamserve.train.loop import Mirror, Report
from adamserve.train.loop import run as loop
from adamserve.train.record import without_nan
from adamserve.train.task import Part, Step, arrays, initial_model, tensor_specs
from adamserve.train.worker import Assignment, Worker
from adamserve.values import Array
from workers.data import Dataset, Progress, load
from workers.data.whiten import whitened
from workers.experiments.trial import Data, Result, Trial, append, read_log
from workers.hindsight import Hindsight
from workers.task import NetworkTask

POLL_S = 0.5
"""How often the workers are asked for their reports."""

CALL_S = 120.0
"""Longest that anything but a training may take."""

Variant = TypeVar("Variant", bound=Hashable)


class Lab:
    """A service with workers, for trials. Data can be loaded before it is entered, which starts the service.

    `data_dir` has the data sets' files. For `start` it is settled where the service is, and with how many shards.
    """

    def __init__(self, data_dir: Path | None, progress: Progress, start: StartService) -> None:
        self._data_dir = data_dir
        self.progress = progress
        self._start = start
        self._shared: dict[Hashable, Any] = {}
        self.idle: list[Handle[Worker]] = []
        self._jobs = 0
        self._load = cache(self._loaded)
        self.hindsight = cache(lambda data, l2: Hindsight(self.data(data), l2))

    def __enter__(self) -> Self:
        # Ray counts every worker as a core, and there may be more workers than cores.
        name = f"adamserve-lab-{os.getpid()}-{time.time_ns():x}"
        self.service = self._start(name=name, num_cpus=64, num_gpus=0)
        self.service.serve()
        # A cluster may have fewer than this machine, which gives Ray one for each of them.
        self._cores = max(1, min(os.cpu_count() or 1, self.service.free_cpus() - 1))
        return self

    def __exit__(self, *error: object) -> None:
        self.service.stop()

    def data(self, wanted: Data) -> Dataset:
        """The data set, loaded once."""
        return self._load(wanted)[0]

    def whole(self, wanted: Data) -> Mapping[str, Any]:
        """What tells the data set that it is a part of from another of that name: `examples`, and `sha256` over all."""
        return self._load(wanted)[1]

    def task(self, trial: Trial) -> NetworkTask:
        """What a trial trains."""
        return NetworkTask(network=trial.network, data=self.data(trial.data), l2=trial.l2, dtype=trial.dtype)

    def open_job(self, trial: Trial) -> str:
        """Start a trial's job from its network's initial weights; returns its name."""
        task = self.task(trial)
        model = initial_model(task, trial.seed)
        self._jobs += 1
        job = JobConfig(
            name=f"trial-{self._jobs}",
            tensors=tensor_specs(task, model),
            rule=optim.to_dict(trial.rule),
            consistency=consistency.to_dict(trial.consistency),
            checkpoint_every_s=None,
        )
        self.service.create(job, arrays(model))
        return job.name

    def run(
        self, variants: Mapping[Variant, Trial], seeds: int, log: Path, *, alone: bool = False
    ) -> dict[Variant, list[Result]]:
        """Run what the log lacks of every variant with every seed, as many trials at a time as there are cores.

        Args:
            variants: what to run; as many results come back by variant as there are `seeds`.
            log: a file of one JSON object a trial, added to whenever one is done.
            alone: one at a time, where seconds matter.

        Raises:
            AdamServeError: a trial failed in another way than by diverging.
        """
        trials = {
            variant: [replace(trial, seed=seed) for seed in range(seeds)]
            for variant, trial in variants.items()
        }
        results = {key: Result.read(fields) for key, fields in read_log(log).items()}
        wanted = dict.fromkeys(trial for some in trials.values() for trial in some)
        waiting = [trial for trial in wanted if trial.key() not in results]
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
                    append(log, run.trial.key(), without_nan(asdict(result)))
            at = min(len(wanted) - len(waiting) - len(running) + 1, len(wanted))
            self.progress(f"trial {at}/{len(wanted)}  {'; '.join(run.line() for run in running)}")
        return {variant: [results[trial.key()] for trial in some] for variant, some in trials.items()}

    def drive(self, trial: Trial, steps: int, observe: Callable[[Array, Array], None]) -> list[Step]:
        """Train in this process, as the job's only worker, until the trial's epochs or `steps` pushes are done.

        `observe` is as the loop's.
        """
        reports: list[Report] = []

        def keep(report: Report) -> None:
            reports.append(report)
            if len(reports) % 100 == 0:
                self.progress(f"{type(trial.rule).__name__} seed {trial.seed}: update {len(reports)}/{steps}")

        job, task = self.open_job(trial), self.task(trial)
        model, config = initial_model(task, trial.seed), replace(loop_config(trial, 0), max_steps=steps)
        with self.service.client(job, pusher="worker-0") as client:
            client.join()
            loop(Mirror(client, model), task, config, report=keep, stopped=lambda: False, observe=observe)
        self.service.delete(job, purge=True)
        return [report for report in reports if isinstance(report, Step)]

    def shared(self, trial: Trial) -> Any:
        """A trial's task where every worker can read it, once for all trials of that task."""
        key = (trial.data, trial.network, trial.l2, trial.dtype)
        if key not in self._shared:
            self._shared[key] = self.service.share(self.task(trial))
        return self._shared[key]

    def _loaded(self, wanted: Data) -> tuple[Dataset, Mapping[str, Any]]:
        folder = self._data_dir
        if folder is not None and (folder / wanted.name).is_dir():
            folder = folder / wanted.name
        whole = load(wanted.name, folder, progress=self.progress)
        data = whole.first(wanted.examples)
        if wanted.whiten:
            data = whitened(data, progress=self.progress)
        return data, {"examples": len(whole.train_y), "sha256": whole.digest()}


class _Run:
    """A trial under way."""

    def __init__(self, lab: Lab, trial: Trial) -> None:
        self._lab = lab
        self.trial = trial
        self._job = lab.open_job(trial)
        while len(lab.idle) < trial.workers:
            lab.idle.append(lab.service.start_worker(partial(Worker, 1)))
        self._workers = [lab.idle.pop(0) for _ in range(trial.workers)]
        service, task = lab.service, lab.shared(trial)
        assignment = Assignment(target=service.target, credentials=service.credentials, job=self._job)
        calls = [
            worker.call(Worker.take, assignment, task, loop_config(trial, rank))
            for rank, worker in enumerate(self._workers)
        ]
        gather(calls, CALL_S)
        self._call(Worker.join)
        self._steps: list[Step] = []
        self._diverged = False
        self._began = time.perf_counter()
        self.pending = [worker.call(Worker.run) for worker in self._workers]

    def look(self) -> None:
        """Take in what the workers report, and those that have ended."""
        ended = [run for run in self.pending if run.done()]
        self.pending = [run for run in self.pending if run not in ended]
        for error in filter(None, [run.exception() for run in ended]):
            if not isinstance(error, NotFinite):
                raise error
            self._diverged = True
            self._call(Worker.stop_at, 0)
        self._seconds = time.perf_counter() - self._began
        self._steps += [r for reports in self._call(Worker.reports) for r in reports if isinstance(r, Step)]

    def finish(self) -> Result:
        """The result; the workers are free again and the job is gone."""
        self._lab.idle += self._workers
        self._lab.service.delete(self._job, purge=True)
        trial, steps = self.trial, self._steps
        latest = {step.rank: step.epoch for step in steps}
        whole = math.floor(min(latest.values(), default=0.0)) if self._diverged else trial.epochs
        costs = []
        for epoch in range(trial.epochs):
            losses = [step.loss for step in steps if epoch < step.epoch <= epoch + 1]
            costs.append(float(np.mean(losses)) if epoch < whole else math.inf)
        average_regret = None
        if trial.regret and not self._diverged:
            hindsight = self._lab.hindsight(trial.data, trial.l2)
            average_regret = hindsight.regret(steps, loop_config(trial, 0))["average_regret"]
        return Result(
            costs=tuple(costs),
            staleness=float(np.mean([step.staleness for step in steps] or [0])),
            seconds=self._seconds,
            average_regret=average_regret,
        )

    def line(self) -> str:
        """How far it is."""
        rule, last = self.trial.rule, self._steps[-1] if self._steps else None
        where = f"epoch {last.epoch:.1f}/{self.trial.epochs} loss {last.loss:.4f}" if last else "starting"
        return f"{type(rule).__name__} lr {rule.lr:g} seed {self.trial.seed}: {where}"

    def _call(self, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Every worker's answer."""
        return gather([worker.call(method, *arguments) for worker in self._workers], CALL_S)


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
