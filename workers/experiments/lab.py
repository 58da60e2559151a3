"""Runs many small trainings as jobs on one service, several at a time, and remembers those that are done."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from adamserve import optim
from adamserve.cluster.cluster_client import ClusterClient
from adamserve.cluster.config import ServiceConfig
from adamserve.cluster.lifecycle import initial_parts
from adamserve.cluster.ray_calls import own_error
from adamserve.cluster.ray_runtime import connected
from adamserve.cluster.service import launch
from adamserve.errors import NotFinite
from adamserve.job import JobConfig
from adamserve.shard import consistency
from adamserve.shard.consistency import Async, Consistency
from adamserve.values import Array, Gradient
from workers import networks
from workers.actor import Task, WorkerActor
from workers.data import Dataset, load
from workers.hindsight import Hindsight
from workers.loop import LoopConfig, Report, StepReport
from workers.loop import run as loop
from workers.record import without_nan
from workers.train import tensor_specs

POLL_S = 0.5
"""How often the workers are asked for their reports."""

CALL_S = 120.0
"""Longest that anything but a training may take."""

Made = TypeVar("Made")

Progress = Callable[[str], None]
"""Told, in a line for people, how far things are."""

Observe = Callable[[Mapping[str, Array], Mapping[str, Gradient]], None]
"""Shown the parameters pulled and the gradients, before every push."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set, or the first part of it.

    Attributes:
        name: as `workers.data` knows it.
        examples: of the training set, the first so many; None for all.
        whiten: as for `workers.data.load`.
    """

    name: str
    examples: int | None = None
    whiten: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training. Trials with one seed start from the same weights and see the same examples in the same order.

    Attributes:
        network, data, l2, dtype: what is trained, and on what.
        rule: the update rule.
        batch, epochs, seed: as for a training run.
        workers, consistency: how many push, and when a push may be applied.
        regret: count the regret in hindsight.
    """

    network: str
    data: Data
    rule: optim.Rule
    batch: int
    epochs: int
    seed: int
    l2: float = 0.0
    dtype: str = "float32"
    workers: int = 1
    consistency: Consistency = field(default_factory=Async)
    regret: bool = False

    def key(self) -> str:
        """What names the trial in the log: all of it, as JSON."""
        settings = {
            **asdict(self),
            "rule": optim.to_dict(self.rule),
            "consistency": consistency.to_dict(self.consistency),
        }
        return json.dumps(settings, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a trial.

    Attributes:
        costs: by epoch, the mean training cost of its mini-batches, each at the parameters pulled for it. Infinite from
            the epoch on in which the training diverged.
        staleness: mean, in updates.
        seconds: from the first step to the last.
        average_regret: R(T)/T in hindsight, where it was counted.
    """

    costs: tuple[float, ...]
    staleness: float
    seconds: float
    average_regret: float | None = None

    @property
    def final(self) -> float:
        """The last epoch's cost."""
        return self.costs[-1]

    @property
    def diverged(self) -> bool:
        """Whether a loss or a gradient was no longer finite."""
        return math.isinf(self.final)


class Lab:
    """A service with workers, for trials. Data can be loaded before it is entered, which starts the service.

    Args:
        data_dir: folder with the data sets' files.
        shards: shard processes.
        address: of a running Ray cluster; None starts a local one.
        progress: told how far things are.
    """

    def __init__(
        self, *, data_dir: Path | None, shards: int, address: str | None, progress: Progress
    ) -> None:
        self._data_dir = data_dir
        self._shards = shards
        self._address = address
        self.progress = progress
        self._open = ExitStack()
        self._idle: list[Any] = []
        self._data: dict[Data, Dataset] = {}
        self._references: dict[Data, Any] = {}
        self._whole: dict[str, dict[str, Any]] = {}
        self._hindsight: dict[tuple[Data, float], Hindsight] = {}
        self._jobs = 0
        self._cores = 1

    def __enter__(self) -> Self:
        # Ray counts every worker as a core, and there may be more workers than cores.
        self._open.enter_context(connected(self._address, num_cpus=64, num_gpus=0))
        # A cluster may have fewer than this machine, which gives Ray one for each of them.
        self._cores = max(1, min(os.cpu_count() or 1, int(ray.available_resources().get("CPU", 1)) - 1))  # type: ignore[no-untyped-call]
        self.controller = launch(
            ServiceConfig(name=f"adamserve-lab-{os.getpid()}-{time.time_ns():x}", shards=self._shards)
        )
        self._open.callback(lambda: ray.get(self.controller.stop.remote(), timeout=CALL_S))
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

    def open_job(self, trial: Trial) -> str:
        """Start a trial's job from its network's initial weights; returns its name."""
        model = networks.build(trial.network, self.data(trial.data), seed=trial.seed, l2=trial.l2)
        model.to(getattr(torch, trial.dtype))
        initial = {name: p.detach().numpy() for name, p in model.named_parameters()}
        return self.create(tensor_specs(model), initial, trial.rule, trial.consistency)

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
        parts = [ray.put(part) for part in initial_parts(job, initial, self._shards)]
        ray.get(self.controller.create.remote(job, parts), timeout=CALL_S)
        return job.name

    def drop(self, job: str) -> None:
        """End a job."""
        ray.get(self.controller.drop.remote(job), timeout=CALL_S)

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
            ray.wait([ref for run in running for ref in run.pending], timeout=POLL_S)
            for run in list(running):
                run.look()
                if not run.pending:
                    running.remove(run)
                    result = results[run.trial.key()] = run.finish()
                    entry = {"trial": json.loads(run.trial.key()), "result": without_nan(asdict(result))}
                    _append(log, entry)
                    done += 1
            now = "; ".join(run.line() for run in running)
            self.progress(f"trial {min(done + 1, total)}/{total}  {now}")
        return [results[trial.key()] for trial in trials]

    def drive(self, trial: Trial, steps: int, *, observe: Observe | None = None) -> list[StepReport]:
        """Train in this process, as the job's only worker; what comes in and goes out can be watched.

        Args:
            trial: the training; its `epochs` and `steps` both end it.
            steps: how many pushes to make.
            observe: as for `workers.loop.run`.

        Returns:
            The steps' reports.
        """
        job = self.open_job(trial)
        model = networks.build(trial.network, self.data(trial.data), seed=trial.seed, l2=trial.l2)
        reports: list[Report] = []

        def keep(report: Report) -> None:
            reports.append(report)
            if len(reports) % 100 == 0:
                self.progress(f"{type(trial.rule).__name__} seed {trial.seed}: update {len(reports)}/{steps}")

        config = replace(loop_config(trial, 0), max_steps=steps)
        with ClusterClient(self.controller, job, "worker-0") as client:
            client.join()
            loop(
                client,
                model,
                self.data(trial.data),
                config,
                report=keep,
                stopped=lambda: False,
                observe=observe,
            )
        self.drop(job)
        return [report for report in reports if isinstance(report, StepReport)]

    def hire(self, workers: int) -> list[Any]:
        """So many worker actors, old ones first."""
        while len(self._idle) < workers:
            options = WorkerActor.options(num_cpus=1, scheduling_strategy="SPREAD")  # type: ignore[attr-defined]
            self._idle.append(options.remote(1))
        hired, self._idle = self._idle[:workers], self._idle[workers:]
        return hired

    def release(self, actors: Sequence[Any]) -> None:
        """Give workers back."""
        self._idle += actors

    def reference(self, wanted: Data) -> Any:
        """The data set in Ray's object store."""
        if wanted not in self._references:
            self._references[wanted] = ray.put(self.data(wanted))
        return self._references[wanted]


class _Run:
    """A trial under way."""

    def __init__(self, lab: Lab, trial: Trial) -> None:
        self._lab = lab
        self.trial = trial
        self._job = lab.open_job(trial)
        self._actors = lab.hire(trial.workers)
        task = Task(controller=lab.controller, job=self._job, network=trial.network, l2=trial.l2)
        ray.get(
            [
                actor.take.remote(task, lab.reference(trial.data), loop_config(trial, rank))
                for rank, actor in enumerate(self._actors)
            ],
            timeout=CALL_S,
        )
        ray.get([actor.join.remote() for actor in self._actors], timeout=CALL_S)
        self._steps: list[StepReport] = []
        self._diverged = False
        self._began = time.perf_counter()
        self._seconds = 0.0
        self.pending = [actor.run.remote() for actor in self._actors]

    def look(self) -> None:
        """Take in what the workers report, and those that have ended."""
        ended, self.pending = ray.wait(self.pending, num_returns=len(self.pending), timeout=0)
        for ref in ended:
            try:
                ray.get(ref)
            except RayTaskError as error:
                cause = own_error(error)
                if not isinstance(cause, NotFinite):
                    raise cause from None
                self._diverged = True
                ray.get([actor.stop_at.remote(0) for actor in self._actors], timeout=CALL_S)
        self._seconds = time.perf_counter() - self._began
        self._take_reports()

    def finish(self) -> Result:
        """The result; the workers are free again and the job is gone."""
        self._take_reports()
        self._lab.release(self._actors)
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
        gathered: list[list[Report]] = ray.get(
            [actor.reports.remote() for actor in self._actors], timeout=CALL_S
        )
        self._steps += [r for reports in gathered for r in reports if isinstance(r, StepReport)]

    def _regret(self) -> float:
        trial = self.trial
        found = self._lab.hindsight(trial.data, trial.l2).regret_of(
            self._steps, batch=trial.batch, workers=trial.workers, seed=trial.seed
        )
        return found.average


def loop_config(trial: Trial, rank: int) -> LoopConfig:
    """One worker's part in a trial."""
    return LoopConfig(
        rank=rank,
        workers=trial.workers,
        batch=trial.batch,
        epochs=trial.epochs,
        seed=trial.seed,
        dtype=trial.dtype,
        evaluate=False,
    )


def read_log(path: Path) -> dict[str, Result]:
    """The results of a log by their trials' keys; a line that was cut short is passed over."""
    results = {}
    for entry in _entries(path):
        found = entry["result"]
        costs = tuple(math.inf if cost is None else cost for cost in found["costs"])
        results[json.dumps(entry["trial"], sort_keys=True)] = Result(**{**found, "costs": costs})
    return results


def kept(
    path: Path, key: Mapping[str, Any], make: Callable[[], Made], read: Callable[[Mapping[str, Any]], Made]
) -> Made:
    """What a log holds for the key, or what is made now and added to it.

    Args:
        path: a file of one JSON object a line.
        key: all that the result depends on.
        make: makes it, a dataclass.
        read: makes it of its fields again.
    """
    wanted = json.loads(json.dumps(key))
    for entry in _entries(path):
        if entry["key"] == wanted:
            return read(entry["result"])
    made = make()
    _append(path, {"key": wanted, "result": asdict(made)})  # type: ignore[call-overload] # it is a dataclass
    return made


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log; one that was cut short is passed over."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
