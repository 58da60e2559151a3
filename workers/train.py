"""A whole training run: a Ray, a service, a job, its workers, and the folder that is left behind.

`train` is what `adamserve train` calls; nothing here prints.
"""

from __future__ import annotations

import math
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

import adamserve
from adamserve import checkpoint, optim
from adamserve.cluster.cluster_client import ClusterClient
from adamserve.cluster.config import SHARD_CPUS, ServiceConfig
from adamserve.cluster.exporting import node_address
from adamserve.cluster.lifecycle import initial_parts
from adamserve.cluster.ray_calls import own_error
from adamserve.cluster.ray_runtime import connected
from adamserve.cluster.service import launch
from adamserve.errors import Conflict, InvalidArgument, Unavailable
from adamserve.job import JobConfig, host_port
from adamserve.observe.discovery import Directory
from adamserve.observe.exporter import Exporter
from adamserve.observe.logs import LogConfig
from adamserve.observe.news import News
from adamserve.observe.page import Board, pages
from adamserve.observe.state import JobState
from adamserve.regret import Loss, Meter, adam_bound, check_theorem
from adamserve.shard import consistency
from adamserve.shard.consistency import BSP, Consistency
from adamserve.shard.sparse import spec_of
from adamserve.values import ITEM_BYTES, Array, TensorSpec
from workers import networks
from workers.actor import Task, WorkerActor
from workers.data import Dataset, load
from workers.hindsight import Hindsight
from workers.loop import EpochReport, LoopConfig, Report, StepReport, evaluate
from workers.record import without_nan, write_curve, write_json, write_metrics

JOB = "train"
"""Name of a training run's one job."""

POLL_S = 0.25
"""How often the workers are asked for their reports."""

WORKER_RESTARTS = 3
"""How often a worker that died is started again before the run gives up."""

SPARSE = ("exact", "lazy", "dense")

BOUND_EVERY_S = 5.0
"""How often the theorem's constants are put together, where they are measured."""

START_TIMEOUT_S = 120.0
"""Longest that workers may take to be placed, to load their data and to join."""

STOP_TIMEOUT_S = 120.0
"""How long workers may take to finish the step under way."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        network, dataset: names from `workers.networks` and `workers.data`.
        rule: the update rule.
        consistency: when a push may be applied.
        shards, workers: processes of each kind.
        epochs: passes over the training set by all workers together.
        batch: examples in one worker's mini-batch.
        seed: of the initial weights, the data order and dropout.
        data_dir: folder with the data set's files, for data sets that need one.
        run_dir: folder to write; it must be new, or the run to resume.
        resume: go on from the newest checkpoint in `run_dir`.
        address: of a running Ray cluster; None starts a local one.
        gpus_per_shard, gpus_per_worker: GPUs (or fractions) that each is given.
        lease_s: seconds after which a silent worker stops counting.
        checkpoint_every_s: seconds between checkpoints.
        max_steps, target_loss: stop conditions of each worker, beside `epochs`.
        whiten: normalise and whiten the images.
        l2: for dense logistic regression, weight of the penalty in its loss.
        regret: for dense logistic regression with l2, count the regret: live against the best parameters for the
            training set, and at the end against the best for just the batches seen.
        dtype: of parameters and computation, "float32" or "float64".
        sparse: for data that are bags of words, "exact" or "lazy" as in `JobConfig`, or "dense": push and pull whole
            tensors.
        log: how the run's processes log.
        metrics_host, metrics_port: where to serve Prometheus metrics; port None serves none, 0 takes a free one. Shards
            and workers serve theirs beside it, on any free port.
        sd_file: file to keep for Prometheus' file_sd: where every process's metrics are.
    """

    network: str = "mlp"
    dataset: str = "digits"
    rule: optim.Rule = field(default_factory=lambda: optim.Adam(lr=1e-3))
    consistency: Consistency = field(default_factory=consistency.Async)
    shards: int = 2
    workers: int = 2
    epochs: int = 20
    batch: int = 32
    seed: int = 0
    data_dir: Path | None = None
    run_dir: Path
    resume: bool = False
    address: str | None = None
    gpus_per_shard: float = 0.0
    gpus_per_worker: float = 0.0
    lease_s: float = 10.0
    checkpoint_every_s: float = 30.0
    max_steps: int | None = None
    target_loss: float | None = None
    whiten: bool = False
    l2: float = 0.0
    regret: bool = False
    dtype: str = "float32"
    sparse: str = "exact"
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    sd_file: Path | None = None
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("shards", "workers", "epochs", "batch"):
            if not getattr(self, name) >= 1:
                raise InvalidArgument(f"must be at least 1, got {getattr(self, name)}", field=name)
        for name in ("gpus_per_shard", "gpus_per_worker"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidArgument(f"must be at least 0, got {getattr(self, name)}", field=name)
        for name in ("lease_s", "checkpoint_every_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidArgument(f"must be positive, got {getattr(self, name)}", field=name)
        if self.target_loss is not None and not 0 < self.target_loss < float("inf"):
            raise InvalidArgument(f"must be positive, got {self.target_loss}", field="target_loss")
        if not 0 <= self.l2 < float("inf"):
            raise InvalidArgument(f"must be at least 0, got {self.l2}", field="l2")
        if self.dtype not in ITEM_BYTES:
            raise InvalidArgument(f"must be {' or '.join(ITEM_BYTES)}, got {self.dtype!r}", field="dtype")
        if self.sparse not in SPARSE:
            raise InvalidArgument(f"must be {', '.join(SPARSE)}, got {self.sparse!r}", field="sparse")
        if not 0 <= self.seed < 2**32:
            raise InvalidArgument(f"must be in 0 to 2^32 - 1, got {self.seed}", field="seed")
        if self.sd_file is not None and self.metrics_port is None:
            raise InvalidArgument("there are no metrics", field="sd_file", fix="give --metrics-port too")

    @property
    def theorem(self) -> optim.Adam | None:
        """The rule, where the run counts regret and the theorem's bound on it is about the rule.

        It is about a run from its first update on: one that goes on counts its regret from there, at later rates.
        """
        if self.resume or not self.regret or not isinstance(self.rule, optim.Adam):
            return None
        try:
            check_theorem(self.rule)
        except InvalidArgument:
            return None
        return self.rule

    @property
    def exported_at(self) -> str | None:
        """Where shards and workers serve their metrics; None where nobody does."""
        return None if self.metrics_port is None else self.metrics_host

    def settings(self) -> dict[str, Any]:
        """What the job is, as JSON: kept in every checkpoint, and not to be changed by `resume`."""
        return {
            "network": self.network,
            "dataset": self.dataset,
            "rule": optim.to_dict(self.rule),
            "consistency": consistency.to_dict(self.consistency),
            "workers": self.workers,
            "batch": self.batch,
            "seed": self.seed,
            "whiten": self.whiten,
            "l2": self.l2,
            "dtype": self.dtype,
            "sparse": self.sparse,
            "regret": self.regret,
        }

    def resumed(self) -> TrainConfig:
        """This run with the settings of the checkpoint that it goes on from."""
        _, manifest = checkpoint.newest(self.run_dir / "checkpoints" / JOB)
        kept = manifest.extra
        return replace(
            self,
            network=kept["network"],
            dataset=kept["dataset"],
            rule=optim.from_dict(kept["rule"]),
            consistency=consistency.from_dict(kept["consistency"]),
            workers=kept["workers"],
            batch=kept["batch"],
            seed=kept["seed"],
            whiten=kept.get("whiten", False),
            l2=kept.get("l2", 0.0),
            dtype=kept.get("dtype", "float32"),
            sparse=kept["sparse"],
            regret=kept.get("regret", False),
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """A running job at one moment: for the live line and the metrics."""

    epoch: float
    epochs: int
    loss: float
    test_accuracy: float | None
    pushes_per_s: float
    staleness: float
    average_regret: float | None
    rollbacks: int
    note: str


class _Log:
    """Everything that the workers have reported."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.epochs: list[EpochReport] = []

    def add(self, reports: Sequence[Report]) -> list[Loss]:
        """Keep what was reported; returns the losses among it."""
        losses = []
        for report in reports:
            if isinstance(report, StepReport):
                self.steps.append(report)
                known = not math.isnan(report.comparator_loss)
                losses.append(Loss(report.loss, report.comparator_loss if known else None))
            else:
                self.epochs.append(report)
        return losses

    def progress(self, config: TrainConfig, status: JobState | None, note: str) -> Progress:
        recent = self.steps[-50:]
        window = [s for s in self.steps[-2000:] if s.at > time.time() - 5.0]
        span = max(s.at for s in window) - min(s.at for s in window) if len(window) > 1 else 0.0
        return Progress(
            epoch=max((s.epoch for s in recent), default=0.0),
            epochs=config.epochs,
            loss=math.nan if status is None or status.loss is None else status.loss,
            test_accuracy=self.epochs[-1].test_accuracy if self.epochs else None,
            pushes_per_s=len(window) / span if span > 0 else 0.0,
            staleness=float(np.mean([s.staleness for s in recent])) if recent else 0.0,
            average_regret=status.average_regret if status else None,
            rollbacks=len(status.rollbacks) if status else 0,
            note=note,
        )


def train(
    config: TrainConfig, *, on_progress: Callable[[Progress], None], stop: threading.Event
) -> dict[str, Any]:
    """Run a job to its end, or until `stop` is set; either way with a last checkpoint.

    Args:
        config: the run.
        on_progress: called a few times a second.
        stop: set it to end after the steps under way.

    Returns:
        What `run.json` holds.

    Raises:
        AdamServeError: with nothing left running; what could be checked was checked before Ray was started.
    """
    began = time.time()
    if config.resume:
        config = config.resumed()
    elif (config.run_dir / "run.json").exists() or (config.run_dir / "checkpoints").exists():
        raise Conflict(
            f"{config.run_dir} holds a run already", field="run_dir", fix="give a new folder, or --resume"
        )
    log = _Log()
    data = load(
        config.dataset,
        config.data_dir,
        whiten=config.whiten,
        progress=lambda message: on_progress(log.progress(config, None, message)),
    )
    model = networks.build(config.network, data, seed=config.seed, l2=config.l2)
    model.to(getattr(torch, config.dtype))
    hindsight = None
    if config.regret:
        if not isinstance(model, networks.Logistic):
            raise InvalidArgument(
                f"{config.network} on {config.dataset} has no convex loss",
                field="regret",
                fix="use logreg on dense data",
            )
        hindsight = Hindsight(data, config.l2)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    board, news, exporter = Board(), News(), None
    directory = Directory(config.sd_file)
    if config.metrics_port is not None:
        exporter = Exporter.serve(
            config.metrics_host, config.metrics_port, pages(board), open_pages={"/sd": directory.page}
        )
        directory.put("driver", {0: host_port(node_address(config.metrics_host), exporter.port)})
        where = f"http://{host_port(config.metrics_host, exporter.port)}"
        on_progress(log.progress(config, None, f"status at {where}/, metrics at {where}/metrics"))

    def show(state: JobState) -> None:
        news.show(state)
        if exporter is not None:
            exporter.show(state)
            board.show(state)

    local_cpus = config.workers + math.ceil(config.shards * SHARD_CPUS) + 1
    local_gpus = None if config.gpus_per_shard or config.gpus_per_worker else 0
    try:
        on_progress(log.progress(config, None, "starting Ray, the shards and the workers"))
        with connected(config.address, num_cpus=local_cpus, num_gpus=local_gpus):
            service = ServiceConfig(
                name=f"adamserve-{config.run_dir.resolve().name}-{int(began * 1000):x}",
                shards=config.shards,
                gpus_per_shard=config.gpus_per_shard,
                checkpoint_dir=(config.run_dir / "checkpoints").resolve(),
                metrics_host=config.exported_at,
                log=config.log,
            )
            controller = launch(service)
            try:
                record = _train(
                    config, controller, data, model, hindsight, log, on_progress, stop, show, directory
                )
            finally:
                ray.get(controller.stop.remote(), timeout=STOP_TIMEOUT_S)
    except RayTaskError as error:
        raise own_error(error) from None
    finally:
        directory.close()
        if exporter is not None:
            exporter.close()
    record = {**record, "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds")}
    record["seconds"] = {**record["seconds"], "total": round(time.time() - began, 3)}
    record = dict(without_nan(record))
    write_metrics(config.run_dir / "metrics.csv", log.steps, append=config.resume)
    write_curve(
        config.run_dir / "loss.png", log.steps, log.epochs, title=f"{config.network} on {config.dataset}"
    )
    write_json(config.run_dir / "run.json", record)
    return record


def _train(
    config: TrainConfig,
    controller: Any,
    data: Dataset,
    model: torch.nn.Module,
    hindsight: Hindsight | None,
    log: _Log,
    on_progress: Callable[[Progress], None],
    stop: threading.Event,
    show: Callable[[JobState], None],
    directory: Directory,
) -> dict[str, Any]:
    """The part of a run that has a service: job, workers, last checkpoint, last evaluation."""
    _open_job(config, controller, model)
    comparator = None
    if hindsight is not None:
        on_progress(log.progress(config, None, "looking for the best parameters"))
        comparator = hindsight.as_parameters(hindsight.minimum().w)
    crew = _Crew(config, controller, ray.put(data), comparator, directory)
    began = time.time()
    stopped_early = crew.work(log, on_progress, stop, show)
    seconds = time.time() - began
    ray.get(controller.checkpoint.remote(JOB), timeout=STOP_TIMEOUT_S)
    reader = ClusterClient(controller, JOB)
    parameters, clocks = reader.pull(training=False)
    model.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in parameters.items()})
    train_loss, train_accuracy = evaluate(model, data.train_x, data.train_y)
    test_loss, test_accuracy = evaluate(model, data.test_x, data.test_y)
    [status] = ray.get(controller.status_now.remote(), timeout=STOP_TIMEOUT_S)
    pushes: dict[str, int] = {}
    for shard in status.shards:
        for outcome, count in shard.pushes.items():
            pushes[outcome] = pushes.get(outcome, 0) + count
    staleness = np.array([s.staleness for s in log.steps] or [0])
    return {
        "status": "stopped" if stopped_early else "completed",
        "config": {
            **config.settings(),
            "epochs": config.epochs,
            "shards": config.shards,
            "max_steps": config.max_steps,
            "target_loss": config.target_loss,
            "resume": config.resume,
            "address": config.address,
        },
        "seeds": {"job": config.seed},
        "versions": {
            "adamserve": adamserve.__version__,
            "python": platform.python_version(),
            "ray": ray.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "parameters": sum(spec.numel for spec in tensor_specs(model)),
        "kernels": [shard.kernel for shard in status.shards],
        "shards": [asdict(info) for info in ray.get(controller.processes.remote(), timeout=STOP_TIMEOUT_S)],
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "steps": len(log.steps),
        "regret": None if hindsight is None else _regret(config, hindsight, log, status),
        "best_loss": status.best_loss,
        "clocks": [stamp.clock for stamp in clocks],
        "incarnations": [stamp.incarnation for stamp in clocks],
        "pushes": {"by_shard_and_outcome": pushes, "per_s": round(len(log.steps) / max(seconds, 1e-9), 1)},
        "bytes": {
            "pushed": sum(shard.bytes_in for shard in status.shards),
            "pulled": sum(shard.bytes_out for shard in status.shards),
        },
        "staleness": {f"p{q}": float(np.percentile(staleness, q)) for q in (50, 90, 99, 100)},
        "rollbacks": [_as_json(rollback) for rollback in status.rollbacks],
        "worker_restarts": crew.restarts,
        "checkpoints": status.checkpoint,
        "seconds": {"training": round(seconds, 3)},
        "run_dir": str(config.run_dir),
    }


def _regret(config: TrainConfig, hindsight: Hindsight, log: _Log, state: JobState) -> dict[str, Any]:
    """The regret of the steps that this run made, live and in hindsight."""
    if not log.steps:
        return {"steps": 0}
    found = hindsight.regret_of(log.steps, batch=config.batch, workers=config.workers, seed=config.seed)
    return {
        "steps": found.steps,
        "regret": found.total,
        "average_regret": found.average,
        "gradient_norm": found.best.gradient_norm,
        "live": {"regret": state.regret, "average_regret": state.average_regret},
    }


def tensor_specs(model: torch.nn.Module) -> tuple[TensorSpec, ...]:
    """The model's parameters as a job's tensors, in the model's order."""
    return tuple(
        spec_of(name, p.detach().numpy(), getattr(model, "tables", ()))
        for name, p in model.named_parameters()
    )


def _open_job(config: TrainConfig, controller: Any, model: torch.nn.Module) -> None:
    """Create the job with the model's initial parameters, or take it up from its newest checkpoint."""
    if config.resume:
        ray.get(controller.resume.remote(JOB, {"checkpoint_every_s": config.checkpoint_every_s}))
        return
    job = JobConfig(
        name=JOB,
        tensors=tensor_specs(model),
        rule=optim.to_dict(config.rule),
        consistency=consistency.to_dict(config.consistency),
        sparse="lazy" if config.sparse == "lazy" else "exact",
        checkpoint_every_s=config.checkpoint_every_s,
        extra=config.settings(),
    )
    initial = {name: p.detach().numpy() for name, p in model.named_parameters()}
    parts = [ray.put(part) for part in initial_parts(job, initial, config.shards)]
    ray.get(controller.create.remote(job, parts))


class _Crew:
    """The workers of a run: started together, watched, started again where one dies, stopped together."""

    def __init__(
        self,
        config: TrainConfig,
        controller: Any,
        data: Any,
        comparator: Mapping[str, Array] | None,
        directory: Directory,
    ) -> None:
        self._config = config
        self._directory = directory
        self._bound = _Bound(config.theorem, comparator)
        self._data = data
        self._controller = controller
        self._task = Task(
            controller=controller,
            job=JOB,
            network=config.network,
            l2=config.l2,
            lease_s=config.lease_s,
            comparator=comparator,
            theorem=config.theorem,
            metrics_host=config.exported_at,
        )
        self._threads = max(1, (torch.get_num_threads()) // config.workers)
        self.restarts = 0
        self._actors = [self._start() for _ in range(config.workers)]
        _within_start([self._assign(rank) for rank in range(config.workers)], config.workers)

    def work(
        self,
        log: _Log,
        on_progress: Callable[[Progress], None],
        stop: threading.Event,
        show: Callable[[JobState], None],
    ) -> bool:
        """Run every worker to its end. All have joined before any begins, so that the first round is whole.

        Returns:
            Whether `stop` ended it early.
        """
        _within_start([actor.join.remote() for actor in self._actors], self._config.workers)
        self._directory.put("worker", self._each("metrics"))
        runs = {actor.run.remote(): rank for rank, actor in enumerate(self._actors)}
        asked_to_stop = False
        note = ""
        while runs:
            if stop.is_set() and not asked_to_stop:
                self._stop_together()
                asked_to_stop = True
                note = "stopping"
            done, _ = ray.wait(list(runs), timeout=POLL_S)
            for ref in done:
                rank = runs.pop(ref)
                try:
                    ray.get(ref)
                except RayActorError:
                    self._directory.drop("worker", rank)
                    self._bound.keep(rank)
                    if asked_to_stop:
                        note = f"stopping; worker {rank} died"
                        continue
                    note = f"worker {rank} died and was started again"
                    runs[self._replace(rank)] = rank
            self._report(log)
            [state] = ray.get(self._controller.status.remote(), timeout=STOP_TIMEOUT_S)
            on_progress(log.progress(self._config, state, note))
            self._directory.put("shard", ray.get(self._controller.metrics.remote(), timeout=STOP_TIMEOUT_S))
            show(state)
        self._report(log)
        return asked_to_stop

    def _start(self) -> Any:
        return WorkerActor.options(  # type: ignore[attr-defined]
            num_cpus=1, num_gpus=self._config.gpus_per_worker, scheduling_strategy="SPREAD"
        ).remote(self._threads, self._config.log)

    def _assign(self, rank: int) -> Any:
        config = self._config
        loop = LoopConfig(
            rank=rank,
            workers=config.workers,
            batch=config.batch,
            epochs=config.epochs,
            seed=config.seed,
            max_steps=config.max_steps,
            target_loss=config.target_loss,
            device="cuda" if config.gpus_per_worker else "cpu",
            dtype=config.dtype,
            by_rows=config.sparse != "dense",
        )
        return self._actors[rank].take.remote(self._task, self._data, loop)

    def _replace(self, rank: int) -> Any:
        """Start a dead worker again; it goes on after its last decided push."""
        self.restarts += 1
        if self.restarts > WORKER_RESTARTS:
            raise Unavailable(f"worker {rank} died, after {WORKER_RESTARTS} restarts", field=f"worker {rank}")
        self._actors[rank] = self._start()
        _within_start([self._assign(rank)], 1)
        _within_start([self._actors[rank].join.remote()], 1)
        self._directory.put("worker", self._each("metrics"))
        return self._actors[rank].run.remote()

    def _stop_together(self) -> None:
        """Stop every worker after the step under way; in bsp all after the same one, so that no round is cut."""
        begun = self._each("hold")
        last = max(begun.values(), default=0)
        together = isinstance(self._config.consistency, BSP)
        for rank, step in begun.items():
            self._actors[rank].stop_at.remote(last if together else step)

    def _reports(self) -> list[Report]:
        gathered = [report for reports in self._each("reports").values() for report in reports]
        return sorted(gathered, key=lambda report: report.at)

    def _each(self, method: str) -> dict[int, Any]:
        """Call every worker that answers."""
        refs = {rank: getattr(actor, method).remote() for rank, actor in enumerate(self._actors)}
        answers = {}
        for rank, ref in refs.items():
            try:
                answers[rank] = ray.get(ref, timeout=STOP_TIMEOUT_S)
            except RayActorError:
                continue
        return answers

    def _report(self, log: _Log) -> None:
        """Pass on what the workers have reported, and what is known of the run as a whole."""
        losses = log.add(self._reports())
        if self._bound.due():
            self._bound.take(self._each("meter"))
        known = {
            "test_accuracy": log.epochs[-1].test_accuracy if log.epochs else None,
            "average_regret_bound": self._bound.average,
        }
        numbers = {name: number for name, number in known.items() if number is not None}
        ray.get(self._controller.report.remote(JOB, losses, numbers), timeout=STOP_TIMEOUT_S)


def _within_start(refs: Sequence[Any], workers: int) -> None:
    """Wait for workers that Ray has to place first.

    Raises:
        Unavailable: they did not start in time, as where a cluster has no room for them.
    """
    try:
        ray.get(list(refs), timeout=START_TIMEOUT_S)
    except GetTimeoutError:
        raise Unavailable(
            f"{workers} workers have not started within {START_TIMEOUT_S:.0f} s",
            field="workers",
            fix="ask for fewer, or for a cluster with a free CPU (and its GPUs) for each",
        ) from None


class _Bound:
    """The theorem's bound on R(T)/T, from what the workers measure; None where the theorem is not about the rule.

    The theorem is about one learner whose gradients are applied at once. With several workers their constants are put
    together, and the bound is a yardstick.
    """

    def __init__(self, rule: optim.Adam | None, best: Mapping[str, Array] | None) -> None:
        self._rule = rule
        self._best = np.concatenate([array.reshape(-1) for array in best.values()]) if best else None
        self._meters: dict[int, Meter] = {}
        self._ended: list[Meter] = []
        self._at = -math.inf
        self.average: float | None = None

    def due(self) -> bool:
        """Whether it is time to ask the workers."""
        return self._rule is not None and time.monotonic() - self._at >= BOUND_EVERY_S

    def keep(self, rank: int) -> None:
        """A worker is gone; what it had measured counts on."""
        if (meter := self._meters.pop(rank, None)) is not None:
            self._ended.append(meter)

    def take(self, meters: Mapping[int, Meter | None]) -> None:
        """Work the bound out from what the workers have measured so far."""
        self._at = time.monotonic()
        self._meters |= {rank: meter for rank, meter in meters.items() if meter is not None}
        everything = [*self._ended, *self._meters.values()]
        if self._rule is not None and self._best is not None and everything:
            constants = Meter.merged(everything).measured(self._best)
            self.average = adam_bound(self._rule, constants) / constants.steps


def _as_json(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
