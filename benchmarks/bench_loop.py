"""How long is a worker's training step through the service, beside the same step in plain torch?

A step of ours is the training loop's: a batch, the gradient, and one exchange with each shard that pushes it and brings
the parameters back, over the shard's own edge in another process. A plain one takes the same batch, loss, dropout and
threads, and torch's fused Adam on the model itself.

The two take turns, step by step, in one process; figures are medians of seconds. The plain one is timed by itself
first, before there is a service that could slow it down, and the ratio is to the faster of its two medians.

Where others keep the cores busy, torch's threads wait for each other at every layer. That slows the plain step more
than ours, and flatters us, so there is a verdict only if the plain steps were steady.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch

from adamserve import optim
from adamserve.cluster.service import Service
from adamserve.job import JobConfig
from adamserve.shard import consistency
from adamserve.train.loop import Mirror, Report, gradient, run
from adamserve.train.task import Part, arrays, initial_model, tensor_specs
from workers.task import NetworkRecipe

TARGET = 4.2
"""Largest ratio of our step to the plain one."""

WARM_UP = 5
"""Steps on either side that are not counted."""

STEADY = 1.5
"""Largest ratio of the plain steps' median to their fastest, on a machine that is left alone."""


class Turns:
    """Makes a plain step before each of ours, and times both."""

    def __init__(self, task: Any, part: Part) -> None:
        self._task = task
        self._part = part
        self._batch_of = task.batches(part)
        self._model = initial_model(task, part.seed)
        self._adam = torch.optim.Adam(self._model.parameters(), lr=1e-3, fused=True)
        self._began = 0.0
        self._made = 0
        self.alone: list[float] = []
        self.plain: list[float] = []
        self.ours: list[float] = []

    def step(self, seconds: list[float]) -> None:
        """Make a plain step, and note how long it took."""
        began = time.perf_counter()
        seed = self._part.random(self._made)
        gradient(self._task, self._model, self._batch_of(self._made), seed=seed)
        self._adam.step()
        seconds.append(time.perf_counter() - began)
        self._made += 1

    def stopped(self) -> bool:
        """The loop asks before each of its steps."""
        self.step(self.plain)
        self._began = time.perf_counter()
        return False

    def report(self, report: Report) -> None:
        """The loop tells after each of its steps."""
        self.ours.append(time.perf_counter() - self._began)


def measure(network: str, dataset: str, batch: int, shards: int, threads: int, steps: int) -> dict[str, Any]:
    """Medians of one step on each side."""
    torch.set_num_threads(threads)
    task = NetworkRecipe(network=network, dataset=dataset).load(lambda message: None)
    part = Part(
        rank=0, workers=1, batch=batch, epochs=10**9, seed=0, max_steps=steps + WARM_UP, evaluate=False
    )
    model = initial_model(task, part.seed)
    job = JobConfig(
        name="bench",
        tensors=tensor_specs(task, model),
        rule=optim.to_dict(optim.Adam(lr=1e-3)),
        consistency=consistency.to_dict(consistency.Async()),
    )
    turns = Turns(task, part)
    for _ in range(steps + WARM_UP):
        turns.step(turns.alone)
    with Service.start(name="bench", shards=shards) as service:
        service.create(job, arrays(model))
        with service.client("bench", pusher="worker-0") as client:
            client.join()
            run(Mirror(client, model), task, part, report=turns.report, stopped=turns.stopped)
    sides = {"adamserve": turns.ours, "plain": turns.plain, "plain_alone": turns.alone}
    medians = {name: statistics.median(seconds[WARM_UP:]) for name, seconds in sides.items()}
    floor = min(medians["plain"], medians["plain_alone"])
    fastest = min(turns.plain[WARM_UP:] + turns.alone[WARM_UP:])
    ratio = medians["adamserve"] / floor
    steady = floor <= STEADY * fastest
    return {
        "question": "a worker's step through the service, against the same step in plain torch",
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": threads,
            "load": os.getloadavg()[0],
        },
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "task": task.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": batch,
        "shards": shards,
        "steps": steps,
        "median_s": {name: round(value, 6) for name, value in medians.items()},
        "fastest_plain_s": round(fastest, 6),
        "steady": steady,
        "ratio": round(ratio, 3),
        "target": TARGET,
        "met": ratio <= TARGET if steady else None,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mlp")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's, on both sides")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    result = measure(
        arguments.network,
        arguments.dataset,
        arguments.batch,
        arguments.shards,
        arguments.threads,
        arguments.steps,
    )
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result["median_s"].items():
        print(f"{name:14} {value * 1e3:8.2f} ms")
    verdict = f"target {result['target']}" if result["steady"] else "says nothing: the machine was busy"
    print(f"ratio {result['ratio']} ({verdict})")


if __name__ == "__main__":
    main()
