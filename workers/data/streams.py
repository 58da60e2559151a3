"""Streams of convex losses L_1, L_2, ... of parameters w in float64, for the study of regret.

Each has a `start`, where training begins, and in closed form `best`: W*, where the sum of the first losses is least.
"""

from __future__ import annotations

import numpy as np

from adamserve.values import Array


class Quadratic:
    """L_t(w) = 1/2 sum_i a_i (w_i - c_ti)^2: noisy targets c_t around 1, curvatures a_i from 1 down to 1/100."""

    curvatures = np.geomspace(1.0, 0.01, 10)
    start = np.zeros(10)

    def target(self, t: int) -> Array:
        """c_t, t from 1."""
        return 1.0 + np.random.default_rng((0, t)).standard_normal(10)

    def loss(self, t: int, w: Array) -> float:
        """L_t(w)."""
        return float(0.5 * self.curvatures @ np.square(w - self.target(t)))

    def gradient(self, t: int, w: Array) -> Array:
        """The gradient of L_t at w."""
        return np.asarray(self.curvatures * (w - self.target(t)))

    def best(self, steps: int) -> Array:
        """The mean of the targets."""
        return np.asarray(np.mean([self.target(t) for t in range(1, steps + 1)], axis=0))


class Alternating:
    """L_t(w) = C w at every third step, from the first, and -w at the others, on the interval [-1, 1].

    With C > 2 the best w is -1. Adam with beta1 = 0, beta2 = 1 / (1 + C^2) and rate a / sqrt(t), a < sqrt(1 - beta2),
    goes from +1 back to +1 all the same: its memory is too short for the large gradient to weigh as much as it should
    (Reddi, Kale & Kumar 2018, Theorem 1, https://openreview.net/forum?id=ryQu7f-RZ). At +1 it loses 2 (C - 2) in three
    steps.
    """

    C = 5.0
    start = np.ones(1)

    limit = 2.0 * (C - 2.0) / 3.0
    """The average regret of whoever stays at +1."""

    def loss(self, t: int, w: Array) -> float:
        """L_t(w), t from 1."""
        return float(self.gradient(t, w)[0] * w[0])

    def gradient(self, t: int, w: Array) -> Array:
        """The slope, whatever w is."""
        return np.array([self.C if t % 3 == 1 else -1.0])

    def best(self, steps: int) -> Array:
        """-1, the end of the interval, at which the steep losses are least."""
        return np.array([-1.0])


Stream = Quadratic | Alternating
