"""Streams of convex losses whose best parameters are known in closed form, for the study of regret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from adamserve.values import Array


class Stream(Protocol):
    """Losses L_1, L_2, ... of parameters of shape (elements,), in float64."""

    @property
    def start(self) -> Array:
        """Where training begins."""

    def loss(self, t: int, w: Array) -> float:
        """L_t(w), t from 1."""

    def gradient(self, t: int, w: Array) -> Array:
        """The gradient of L_t at w."""

    def best(self, steps: int) -> Array:
        """W*: where the sum of L_1 to L_steps is least."""


@dataclass(frozen=True)
class Quadratic:
    """L_t(w) = 1/2 sum_i a_i (w_i - c_ti)^2: noisy targets c_t around 1 by `seed`, curvatures a_i from 1 to 1/100."""

    seed: int = 0
    curvatures: ClassVar[Array] = np.geomspace(1.0, 0.01, 10)

    @property
    def start(self) -> Array:
        return np.zeros(len(self.curvatures))

    def loss(self, t: int, w: Array) -> float:
        return float(0.5 * self.curvatures @ np.square(w - self.target(t)))

    def gradient(self, t: int, w: Array) -> Array:
        gradient: Array = self.curvatures * (w - self.target(t))
        return gradient

    def best(self, steps: int) -> Array:
        """The mean of the targets."""
        mean: Array = np.mean([self.target(t) for t in range(1, steps + 1)], axis=0)
        return mean

    def target(self, t: int) -> Array:
        """c_t."""
        return 1.0 + np.random.default_rng((self.seed, t)).standard_normal(len(self.curvatures))


class Alternating:
    """L_t(w) = C w at every third step, from the first, and -w at the others, on the interval [-1, 1].

    With C > 2 the best w is -1. Adam with beta1 = 0, beta2 = 1 / (1 + C^2) and rate a / sqrt(t), a < sqrt(1 - beta2),
    goes from +1 back to +1 all the same: its memory is too short for the large gradient to weigh as much as it should
    (Reddi, Kale & Kumar 2018, Theorem 1, https://openreview.net/forum?id=ryQu7f-RZ). At +1 it loses 2 (C - 2) in three
    steps.
    """

    C = 5.0

    limit = 2.0 * (C - 2.0) / 3.0
    """The average regret of whoever stays at +1."""

    @property
    def start(self) -> Array:
        """+1, where the theorem begins."""
        return np.ones(1)

    def loss(self, t: int, w: Array) -> float:
        return float(self.gradient(t, w)[0] * w[0])

    def gradient(self, t: int, w: Array) -> Array:
        """The slope, whatever w is."""
        return np.array([self.C if t % 3 == 1 else -1.0])

    def best(self, steps: int) -> Array:
        """-1, the end of the interval, at which the steep losses are least."""
        return np.array([-1.0])
