"""The best parameters in hindsight, for the one network here whose losses are convex: logistic regression.

In numpy and float64, apart from the code that trained: an account that agrees with it agrees for a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from adamserve.errors import InvalidArgument
from adamserve.regret import Minimum, minimize
from adamserve.train.task import Part, Step
from adamserve.values import Array
from workers.data import Dataset
from workers.data.bags import Bags


def has_minimum(data: Dataset, l2: float) -> None:
    """Find that L2-regularised logistic regression has one minimum; an InvalidArgument for bags, or l2 of 0."""
    if isinstance(data.train_x, Bags):
        raise InvalidArgument("regret is counted on dense examples", field="dataset")
    if not l2 > 0:
        raise InvalidArgument("must be positive for a minimum to exist", field="l2", fix="e.g. 0.001")


class Hindsight:
    """The losses of L2-regularised logistic regression, over any multiset of a data set's dense training examples.

        L(W) = mean cross-entropy of the examples + l2/2 |W|^2,       W: weights and biases

    Raises:
        InvalidArgument: as `has_minimum`.
    """

    def __init__(self, data: Dataset, l2: float) -> None:
        has_minimum(data, l2)
        assert not isinstance(data.train_x, Bags)
        self._x = data.train_x.astype(np.float64)
        self._y = data.train_y
        self._l2 = l2
        self.shape = (data.classes, data.features)

    @property
    def elements(self) -> int:
        """Weights and biases together."""
        return self.shape[0] * (self.shape[1] + 1)

    def minimum(self, counts: Array | None = None, *, start: Array | None = None) -> Minimum:
        """W* of the losses of all batches in which training example i occurs counts[i] times in all (None: once).

        Its value is the batches' mean loss at W*, as all batches have one size. Raises as `regret.minimize`.
        """
        counts = np.ones(len(self._y)) if counts is None else counts
        chosen = np.flatnonzero(counts)
        weights = counts[chosen] / counts.sum()
        x, y = (self._x, self._y) if len(chosen) == len(self._y) else (self._x[chosen], self._y[chosen])

        def objective(w: Array) -> tuple[float, Array]:
            losses, gradients = _cross_entropy(self._logits(w, x), y)
            gradients *= weights[:, None]
            gradient = np.concatenate([(gradients.T @ x).ravel(), gradients.sum(axis=0)])
            return float(weights @ losses + 0.5 * self._l2 * (w @ w)), gradient + self._l2 * w

        return minimize(objective, np.zeros(self.elements) if start is None else start)

    def counts(self, batches: Sequence[Array]) -> Array:
        """How often each training example occurs in the batches, given by their examples' numbers."""
        return np.bincount(np.concatenate(batches), minlength=len(self._y))

    def losses(self, w: Array, batches: Iterable[Array]) -> Array:
        """L_t(W) of each mini-batch, given by its examples' numbers."""
        each, _ = _cross_entropy(self._logits(w, self._x), self._y)
        penalty = 0.5 * self._l2 * float(w @ w)
        return np.array([each[batch].mean() + penalty for batch in batches])

    def regret(self, steps: Sequence[Step], part: Part) -> dict[str, float]:
        """R(T) of a run, whose mini-batches follow from any worker's `part`, against the best for just these.

        By name `steps`: T, `regret`: R(T), `average_regret`, and the `gradient_norm` at W*. Raises as `minimum`.
        """
        batches = [replace(part, rank=s.rank).examples(len(self._y), s.step - 1) for s in steps]
        best = self.minimum(self.counts(batches))
        total = float(np.sum(np.array([s.loss for s in steps]) - self.losses(best.w, batches)))
        return {
            "steps": len(steps),
            "regret": total,
            "average_regret": total / len(steps),
            "gradient_norm": best.gradient_norm,
        }

    def as_parameters(self, w: Array) -> dict[str, Array]:
        """W by the names and shapes of `networks.Logistic`."""
        weights = self.shape[0] * self.shape[1]
        return {"weight": w[:weights].reshape(self.shape), "bias": w[weights:]}

    def _logits(self, w: Array, x: Array) -> Array:
        named = self.as_parameters(w)
        return np.asarray(x @ named["weight"].T + named["bias"])


def _cross_entropy(logits: Array, y: Array) -> tuple[Array, Array]:
    """Each example's loss, [examples], and its gradient by the logits, [examples, classes]."""
    rows = np.arange(len(y))
    top = logits.max(axis=1, keepdims=True)
    shifted = np.exp(logits - top)
    total = shifted.sum(axis=1, keepdims=True)
    losses = (top + np.log(total))[:, 0] - logits[rows, y]
    shifted /= total
    shifted[rows, y] -= 1.0
    return losses, shifted
