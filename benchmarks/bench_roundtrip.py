"""How long is push + step + pull of one shard on one machine, beside Ray's documented parameter-server pattern?

The pattern (Ray's "Parameter Server" example): one actor with a torch model and optimizer; `apply_gradients` takes
numpy gradients, stacks and sums them over the workers, sets them, steps, and returns the weights. Here with
torch.optim.Adam, one worker, and numpy weights. `pattern_lean` leaves out the stacking, for those who would.

Both sides get the same gradient, in turn, in one run; figures are medians of seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import numpy as np
import ray
import torch

from adamserve import optim
from adamserve.cluster.service import Service

TARGET = 0.45
"""Largest ratio of ours to the documented pattern."""


@ray.remote
class Pattern:
    """Ray's documented parameter server, with Adam."""

    def __init__(self, shapes: list[tuple[int, ...]], stack: bool) -> None:
        self._parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        self._optimizer = torch.optim.Adam(self._parameters, lr=1e-3)
        self._stack = stack

    def apply_gradients(self, *gradients: list[Any]) -> list[Any]:
        summed = (
            [np.stack(zipped).sum(axis=0) for zipped in zip(*gradients, strict=True)]
            if self._stack
            else gradients[0]
        )
        self._optimizer.zero_grad()
        for parameter, gradient in zip(self._parameters, summed, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        self._optimizer.step()
        return [parameter.detach().numpy() for parameter in self._parameters]


def measure(elements: int, repeats: int) -> dict[str, Any]:
    """Medians of one round trip on each side, taken in turn."""
    rows = max(1, elements // 4 // 1000)
    shapes = [(rows, 1000)] * 4
    rng = np.random.default_rng(0)
    gradients = {f"w{i}": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    into = {name: np.empty_like(g) for name, g in gradients.items()}
    seconds: dict[str, list[float]] = {"adamserve": [], "apart": [], "pattern": [], "pattern_lean": []}
    with Service.start(shards=1, name="bench", num_cpus=4) as service, service.client("bench") as client:
        client.create({name: np.zeros_like(g) for name, g in gradients.items()}, optim.Adam(lr=1e-3))
        server: Any = Pattern
        patterns = {"pattern": server.remote(shapes, True), "pattern_lean": server.remote(shapes, False)}
        _, clock = client.pull(into=into)
        for turn in range(repeats + 2):
            t0 = time.perf_counter()
            _, _, clock = client.push_pull(gradients, clock, into=into)
            t1 = time.perf_counter()
            client.push(gradients, clock)
            _, clock = client.pull(into=into)
            t2 = time.perf_counter()
            taken = {"adamserve": t1 - t0, "apart": t2 - t1}
            for name, actor in patterns.items():
                t0 = time.perf_counter()
                weights = ray.get(actor.apply_gradients.remote(list(gradients.values())))
                for array, weight in zip(into.values(), weights, strict=True):
                    np.copyto(array, weight)
                taken[name] = time.perf_counter() - t0
                del weights
            if turn >= 2:
                for name, value in taken.items():
                    seconds[name].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["adamserve"] / medians["pattern"]
    return {
        "question": "push + step + pull of one shard, against Ray's documented pattern",
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": torch.get_num_threads()},
        "versions": {"ray": ray.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "elements": rows * 4000,
        "repeats": repeats,
        "median_s": {name: round(value, 5) for name, value in medians.items()},
        "ratio": round(ratio, 3),
        "ratio_lean": round(medians["adamserve"] / medians["pattern_lean"], 3),
        "target": TARGET,
        "met": ratio <= TARGET,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=float, default=25e6, help="float32 parameters")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    result = measure(int(arguments.elements), arguments.repeats)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result["median_s"].items():
        print(f"{name:14} {value * 1e3:8.1f} ms")
    print(f"ratio {result['ratio']} (target {result['target']}), lean {result['ratio_lean']}")


if __name__ == "__main__":
    main()
