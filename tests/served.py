"""A service for many tests, each with a job of its own, and what they push."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from adamserve import testing
from adamserve.client.client import Client
from adamserve.cluster.serving import Ready, ServeConfig, serving

STALL_S = 2.0

Connect = Callable[..., Client]


@contextmanager
def served(**options: Any) -> Iterator[Ready]:
    """What `adamserve serve` runs, but in this process and without Ray; options as for `ServeConfig`."""
    ended = threading.Event()

    def observing() -> None:
        while not ended.wait(0.2):
            observe()

    config = ServeConfig(**{"port": 0, "grace_s": 1.0, **options})
    with serving(config, start=testing.Service.start) as (ready, observe):
        observer = threading.Thread(target=observing, daemon=True)
        observer.start()
        try:
            yield ready
        finally:
            ended.set()
            observer.join()


def zeros() -> dict[str, Any]:
    """A small tensor, one of several chunks that both shards own, and a scalar in float64."""
    return {"w": np.zeros((4, 5), np.float32), "large": np.zeros((700, 1000), np.float32), "s": np.zeros(())}


def ones(scale: float = 1.0) -> dict[str, Any]:
    return {name: np.full_like(array, scale) for name, array in zeros().items()}
