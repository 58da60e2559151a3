"""A whole training run: a Ray, a service, a job, its workers, and the folder that is left behind. Nothing prints."""

from __future__ import annotations

import math
import platform
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from adamserve import optim
from adamserve.cluster.config import SHARD_CPUS
from adamserve.cluster.ray_runtime import node_address
from adamserve.cluster.running import RunningService, StartService
from adamserve.cluster.service import Service
from adamserve.errors import AdamServeError, Conflict
from adamserve.job import JobConfig
from adamserve.observe.monitor import Monitor
from adamserve.observe.state import JobState
from adamserve.shard import consistency
from adamserve.train.config import JOB, TrainConfig
from adamserve.train.crew import Crew
from adamserve.train.loop import measured
from adamserve.train.progress import Bound, Log, Progress
from adamserve.train.record import without_nan, write_curve, write_json, write_metrics
from adamserve.train.task import Task, arrays, initial_model, put, tensor_specs
from adamserve.train.worker import Assignment

PACKAGES = ("adamserve", "ray", "torch", "numpy")
"""Packages whose versions `run.json` holds."""


def train(
    config: TrainConfig,
    *,
    on_progress: Callable[[Progress], None],
    stop: threading.Event,
    start: StartService = Service.start,
) -> dict[str, Any]:
    """Run a job to its end, or until `stop` is set; either way with a last checkpoint. Returns what `run.json` holds.

    `stop` ends it after the steps under way; `on_progress` is called a few times a second.

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
    log = Log()

    def say(note: str, state: JobState | None = None) -> None:
        on_progress(log.progress(state, epochs=config.epochs, note=note))

    task = config.recipe.load(say)
    model = initial_model(task, config.seed)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    monitor = Monitor(
        config.metrics_host,
        config.metrics_port,
        advertise=node_address(config.metrics_host) if config.metrics_port is not None else "",
        sd_file=config.sd_file,
        guard=config.security.tokens.guard(),
    )
    with closing(monitor):
        if monitor.address:
            say(f"status at http://{monitor.address}/, metrics at http://{monitor.address}/metrics")
        say("starting Ray, the shards and the workers")
        service = start(
            name=f"adamserve-{config.run_dir.resolve().name}-{int(began * 1000):x}",
            checkpoint_dir=config.run_dir / "checkpoints",
            metrics_host=config.metrics_host if monitor.address else None,
            num_cpus=config.workers + math.ceil(config.shards * SHARD_CPUS) + 1,
            num_gpus=None if config.gpus_per_shard or config.gpus_per_worker else 0,
            **config.named(
                "shards", "address", "security", "insecure", "shard_ports", "gpus_per_shard", "log"
            ),
        )
        with service:
            say(f"the service is at {service.target}")
            try:
                record = _train(config, service, task, model, log, say, stop, monitor)
            except AdamServeError as error:
                say(f"stopping the service, for {error}")  # at once: stopping takes a while
                raise
    record["started"] = datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds")
    record["seconds"]["total"] = round(time.time() - began, 3)
    record = dict(without_nan(record))
    write_metrics(config.run_dir / "metrics.csv", log.steps, append=config.resume)
    write_curve(config.run_dir / "loss.png", log.steps, log.epochs, title=task.name)
    write_json(config.run_dir / "run.json", record)
    return record


def _train(
    config: TrainConfig,
    service: RunningService,
    task: Task[Any],
    model: torch.nn.Module,
    log: Log,
    say: Callable[..., None],
    stop: threading.Event,
    monitor: Monitor,
) -> dict[str, Any]:
    """The part of a run that has a service: job, workers, last checkpoint, last evaluation."""
    if config.resume:
        service.resume(JOB, {"checkpoint_every_s": config.checkpoint_every_s})
    else:
        job = JobConfig(
            name=JOB,
            tensors=tensor_specs(task, model),
            rule=optim.to_dict(config.rule),
            consistency=consistency.to_dict(config.consistency),
            sparse="lazy" if task.lazy else "exact",
            checkpoint_every_s=config.checkpoint_every_s,
            extra=config.settings(),
        )
        service.create(job, arrays(model))
    service.serve()
    comparator = None
    if config.recipe.counts_regret:
        say("looking for the best parameters")
        comparator = task.comparator()
    bound = Bound(config.theorem, comparator)
    assignment = Assignment(
        target=service.target,
        credentials=service.credentials,
        job=JOB,
        shards=service.processes(),
        session=uuid.uuid4().hex,
        lease_s=config.lease_s,
        comparator=comparator,
        theorem=config.theorem,
        metrics_host=config.metrics_host if monitor.address else None,
    )
    crew = Crew(config, service, task, assignment, bound, monitor)
    say("trying every shard from every worker")

    def look(note: str) -> None:
        numbers = dict(log.numbers)
        if bound.average is not None:
            numbers["average_regret_bound"] = bound.average
        service.report(JOB, [], {name: n for name, n in numbers.items() if math.isfinite(n)})
        [state] = monitor.look(service)
        say(note, state)

    began = time.time()
    stopped_early = crew.work(log, stop, look)
    seconds = time.time() - began
    service.checkpoint(JOB)
    with service.client(JOB) as reader:
        parameters, clocks = reader.pull(training=False)
    put(model, parameters)
    [state] = service.status()
    pushes: Counter[str] = Counter()
    for shard in state.shards:
        pushes.update(shard.pushes)
    staleness = np.array([step.staleness for step in log.steps] or [0])
    regret = task.regret(log.steps, config.part(0))
    live = {"regret": state.regret, "average_regret": state.average_regret}  # against the task's comparator
    return {
        "status": "stopped" if stopped_early else "completed",
        "task": task.name,
        "config": {
            **config.settings(),
            **config.named("epochs", "shards", "max_steps", "target_loss", "resume", "address"),
        },
        "seeds": {"job": config.seed},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "kernels": [shard.kernel for shard in state.shards],
        "target": service.target,
        "shards": [asdict(process) for process in service.processes()],
        **measured(task.summary, model),
        "steps": len(log.steps),
        "regret": regret and {**regret, "live": live},
        "best_loss": state.best_loss,
        "clocks": [stamp.clock for stamp in clocks],
        "incarnations": [stamp.incarnation for stamp in clocks],
        "pushes": {
            "by_shard_and_outcome": dict(pushes),
            "per_s": round(len(log.steps) / max(seconds, 1e-9), 1),
        },
        "bytes": {
            "pushed": sum(shard.bytes_in for shard in state.shards),
            "pulled": sum(shard.bytes_out for shard in state.shards),
        },
        "staleness": {f"p{q}": float(np.percentile(staleness, q)) for q in (50, 90, 99, 100)},
        "rollbacks": [asdict(rollback) for rollback in state.rollbacks],
        "worker_restarts": crew.restarts,
        "checkpoints": state.checkpoint,
        "seconds": {"training": round(seconds, 3)},
        "run_dir": str(config.run_dir),
    }
