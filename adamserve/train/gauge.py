"""What a worker measures of itself while its loop runs: where the time goes, and the theorem's constants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import numpy as np

from adamserve.optim import Adam
from adamserve.regret import Meter
from adamserve.values import Array, Gradient


class Timed:
    """Notes how long the loop spends where; what is neither pull nor push counts as computing.

    An exchange that pushes and pulls counts as a push.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = dict.fromkeys(("pull", "compute", "push"), 0.0)
        self.begin()

    def begin(self) -> None:
        """The loop begins now."""
        self._last = time.perf_counter()

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Time a pull or a push; a push that ends without an error is a step."""
        self._until("compute")
        try:
            yield
        finally:
            self._until(part)
        self.steps += part == "push"

    def _until(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


class Watched:
    """Feeds a `Meter` with the parameters that the loop pulls and the gradients that it pushes there."""

    def __init__(self, rule: Adam) -> None:
        self._rule = rule
        self._lock = threading.Lock()
        self._meter: Meter | None = None

    def __call__(self, parameters: Mapping[str, Array], gradients: Mapping[str, Gradient]) -> None:
        """One step; a tensor without a gradient has zeros."""
        w = np.concatenate([array.reshape(-1) for array in parameters.values()])
        g = np.concatenate(
            [
                np.asarray(gradients[name]).reshape(-1) if name in gradients else np.zeros(array.size)
                for name, array in parameters.items()
            ]
        )
        with self._lock:
            if self._meter is None:
                self._meter = Meter(self._rule, w.size)
            self._meter.add(w, g)

    def read(self) -> Meter | None:
        """A copy of the meter; None before the first step."""
        with self._lock:
            return deepcopy(self._meter)
