"""A whole training run: a Ray, a service, a job, its workers, and the folder that is left behind.

`train` is what `adamserve train` calls; nothing here prints.
"""

from __future__ import annotations

import math
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

import adamserve
from adamserve import optim
from adamserve.cluster.cluster_client import ClusterClient
from adamserve.cluster.config import SHARD_CPUS, ServiceConfig
from adamserve.cluster.exporting import node_address
from adamserve.cluster.lifecycle import initial_parts
from adamserve.cluster.ray_calls import own_error
from adamserve.cluster.ray_runtime import connected
from adamserve.cluster.service import launch
from adamserve.errors import Conflict
from adamserve.job import JobConfig, host_port
from adamserve.observe.discovery import Directory
from adamserve.observe.exporter import Exporter
from adamserve.observe.news import News
from adamserve.observe.page import Board, pages
from adamserve.observe.state import JobState
from adamserve.regret import Loss
from adamserve.shard import consistency
from adamserve.train.bound import Bound
from adamserve.train.config import JOB, TrainConfig
from adamserve.train.crew import STOP_TIMEOUT_S, Crew
from adamserve.train.loop import measured
from adamserve.train.progress import Log, Progress
from adamserve.train.record import without_nan, write_curve, write_json, write_metrics
from adamserve.train.task import Task, arrays, initial_model, put, tensor_specs
from adamserve.train.worker import Assignment

OnProgress = Callable[[Progress], None]


def train(config: TrainConfig, *, on_progress: OnProgress, stop: threading.Event) -> dict[str, Any]:
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
    elif (config.run_dir / "run.json").exists() or config.checkpoints.exists():
        raise Conflict(
            f"{config.run_dir} holds a run already", field="run_dir", fix="give a new folder, or --resume"
        )
    log = Log()

    def say(note: str) -> None:
        on_progress(log.progress(None, epochs=config.epochs, note=note))

    task = config.recipe.load(say)
    model = initial_model(task, config.seed)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    board, news, exporter = Board(), News(), None
    directory = Directory(config.sd_file)
    if config.metrics_port is not None:
        exporter = Exporter.serve(
            config.metrics_host, config.metrics_port, pages(board), open_pages={"/sd": directory.page}
        )
        directory.put("driver", {0: host_port(node_address(config.metrics_host), exporter.port)})
        where = f"http://{host_port(config.metrics_host, exporter.port)}"
        say(f"status at {where}/, metrics at {where}/metrics")

    def show(state: JobState) -> None:
        news.show(state)
        if exporter is not None:
            exporter.show(state)
            board.show(state)

    local_cpus = config.workers + math.ceil(config.shards * SHARD_CPUS) + 1
    local_gpus = None if config.gpus_per_shard or config.gpus_per_worker else 0
    try:
        say("starting Ray, the shards and the workers")
        with connected(config.address, num_cpus=local_cpus, num_gpus=local_gpus):
            service = ServiceConfig(
                name=f"adamserve-{config.run_dir.resolve().name}-{int(began * 1000):x}",
                shards=config.shards,
                gpus_per_shard=config.gpus_per_shard,
                checkpoint_dir=config.checkpoints.resolve(),
                metrics_host=config.exported_at,
                log=config.log,
            )
            controller = launch(service)
            try:
                record = _train(config, controller, task, model, log, on_progress, stop, show, directory)
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
    write_curve(config.run_dir / "loss.png", log.steps, log.epochs, title=task.name)
    write_json(config.run_dir / "run.json", record)
    return record


def _train(
    config: TrainConfig,
    controller: Any,
    task: Task[Any],
    model: torch.nn.Module,
    log: Log,
    on_progress: OnProgress,
    stop: threading.Event,
    show: Callable[[JobState], None],
    directory: Directory,
) -> dict[str, Any]:
    """The part of a run that has a service: job, workers, last checkpoint, last evaluation."""
    _open_job(config, controller, task, model)
    comparator = None
    if config.recipe.counts_regret:
        on_progress(log.progress(None, epochs=config.epochs, note="looking for the best parameters"))
        comparator = task.comparator()
    bound = Bound(config.theorem, comparator)
    assignment = Assignment(
        controller=controller,
        job=JOB,
        lease_s=config.lease_s,
        comparator=comparator,
        theorem=config.theorem,
        metrics_host=config.exported_at,
    )
    crew = Crew(config, task, assignment, bound, directory)

    def look(losses: Sequence[Loss], note: str) -> None:
        known = {**log.numbers, "average_regret_bound": bound.average}
        numbers = {name: n for name, n in known.items() if n is not None and math.isfinite(n)}
        ray.get(controller.report.remote(JOB, losses, numbers), timeout=STOP_TIMEOUT_S)
        [state] = ray.get(controller.status.remote(), timeout=STOP_TIMEOUT_S)
        on_progress(log.progress(state, epochs=config.epochs, note=note))
        directory.put("shard", ray.get(controller.metrics.remote(), timeout=STOP_TIMEOUT_S))
        show(state)

    began = time.time()
    stopped_early = crew.work(log, stop, look)
    seconds = time.time() - began
    ray.get(controller.checkpoint.remote(JOB), timeout=STOP_TIMEOUT_S)
    parameters, clocks = ClusterClient(controller, JOB).pull(training=False)
    put(model, parameters)
    [status] = ray.get(controller.status_now.remote(), timeout=STOP_TIMEOUT_S)
    pushes: Counter[str] = Counter()
    for shard in status.shards:
        pushes.update(shard.pushes)
    staleness = np.array([step.staleness for step in log.steps] or [0])
    regret = task.regret(log.steps, config.loop(0).part)
    return {
        "status": "stopped" if stopped_early else "completed",
        "task": task.name,
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
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "kernels": [shard.kernel for shard in status.shards],
        "shards": [asdict(info) for info in ray.get(controller.processes.remote(), timeout=STOP_TIMEOUT_S)],
        **measured(task.summary, model),
        "steps": len(log.steps),
        "regret": regret
        and {**regret, "live": {"regret": status.regret, "average_regret": status.average_regret}},
        "best_loss": status.best_loss,
        "clocks": [stamp.clock for stamp in clocks],
        "incarnations": [stamp.incarnation for stamp in clocks],
        "pushes": {
            "by_shard_and_outcome": dict(pushes),
            "per_s": round(len(log.steps) / max(seconds, 1e-9), 1),
        },
        "bytes": {
            "pushed": sum(shard.bytes_in for shard in status.shards),
            "pulled": sum(shard.bytes_out for shard in status.shards),
        },
        "staleness": {f"p{q}": float(np.percentile(staleness, q)) for q in (50, 90, 99, 100)},
        "rollbacks": [asdict(rollback) for rollback in status.rollbacks],
        "worker_restarts": crew.restarts,
        "checkpoints": status.checkpoint,
        "seconds": {"training": round(seconds, 3)},
        "run_dir": str(config.run_dir),
    }


def _open_job(config: TrainConfig, controller: Any, task: Task[Any], model: torch.nn.Module) -> None:
    """Create the job with the model's initial parameters, or take it up from its newest checkpoint."""
    if config.resume:
        ray.get(controller.resume.remote(JOB, {"checkpoint_every_s": config.checkpoint_every_s}))
        return
    job = JobConfig(
        name=JOB,
        tensors=tensor_specs(task, model),
        rule=optim.to_dict(config.rule),
        consistency=consistency.to_dict(config.consistency),
        sparse="lazy" if task.lazy else "exact",
        checkpoint_every_s=config.checkpoint_every_s,
        extra=config.settings(),
    )
    parts = [ray.put(part) for part in initial_parts(job, arrays(model), config.shards)]
    ray.get(controller.create.remote(job, parts))
