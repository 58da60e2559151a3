"""Regret: what the losses so far cost above the best fixed parameters in hindsight, and what the theorem allows.

    R(T) = sum of L_t(W_t) - L_t(W*) over t = 1 to T,        W* = argmin over W of the sum of L_t(W)

L_t is the loss of the t-th mini-batch and W_t the parameters that it was computed at. Regret is a matter of convex
losses: where they are not, nothing here is called so. Source: Kingma & Ba 2015, section 4 and Theorem 4.1
(https://arxiv.org/abs/1412.6980); Zinkevich 2003.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from adamserve.errors import InvalidArgument
from adamserve.optim import Adam
from adamserve.values import Array

RECENT = 50
"""Losses that a job's present loss is the mean of."""

SNAPSHOTS_PER_DECADE = 8
"""How many of the parameters' moments a `Meter` keeps, to measure how far apart they were."""


@dataclass(slots=True)
class Account:
    """A job's losses as they are reported.

    Attributes:
        steps: losses reported together with the comparator's.
        regret: sum of their differences: R(`steps`) against that comparator.
        best: the lowest that `loss` has been over a full window.
        not_finite: losses refused because they were NaN or infinite.
    """

    steps: int = 0
    regret: float = 0.0
    best: float | None = None
    not_finite: int = 0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _rest: float = 0.0

    def add(self, loss: float, comparator: float | None = None) -> None:
        """Take one batch's loss into account, and its loss at W* where that is known.

        Raises:
            InvalidArgument: a number is not finite; nothing but `not_finite` has changed.
        """
        for name, value in (("loss", loss), ("comparator_loss", comparator)):
            if value is not None and not math.isfinite(value):
                self.not_finite += 1
                raise InvalidArgument(f"must be finite, got {value!r}", field=name)
        self._recent.append(loss)
        if len(self._recent) == RECENT:
            mean = sum(self._recent) / RECENT
            self.best = mean if self.best is None else min(self.best, mean)
        if comparator is not None:
            self.steps += 1
            # Compensated (Kahan 1965): a long run's sum keeps its small terms.
            term = (loss - comparator) - self._rest
            total = self.regret + term
            self._rest = (total - self.regret) - term
            self.regret = total

    @property
    def loss(self) -> float | None:
        """Mean of the last `RECENT` losses; None before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    @property
    def average(self) -> float | None:
        """R(T)/T; None where no comparator is known."""
        return self.regret / self.steps if self.steps else None


def slope(steps: Sequence[float], averages: Sequence[float], *, decades: float = 2.0) -> float:
    """The exponent of T in R(T)/T: least squares of its logarithm over the last `decades` of T.

    Args:
        steps: T, increasing.
        averages: R(T)/T, positive over the range fitted.
        decades: how far back to look; -0.5 is the theorem's exponent.

    Raises:
        InvalidArgument: fewer than three values in the range, or one that has no logarithm.
    """
    t, r = np.asarray(steps, float), np.asarray(averages, float)
    last = t >= t[-1] / 10**decades * (1 - 1e-12)
    if last.sum() < 3:
        raise InvalidArgument(f"has {int(last.sum())} values in the last {decades:g} decades", field="steps")
    if not (r[last] > 0).all():
        raise InvalidArgument("is not positive throughout", field="averages")
    return float(np.polyfit(np.log(t[last]), np.log(r[last]), 1)[0])


@dataclass(frozen=True, slots=True)
class Constants:
    """What Theorem 4.1 is about, measured on a run of T updates.

    Attributes:
        steps: T.
        D: largest Euclidean distance between parameters of the run, and W*, among those looked at.
        D_inf: largest distance in one element, of all.
        G, G_inf: largest Euclidean and largest max-norm of a gradient.
        roots: sum over elements of sqrt(T v^_T).
        norms: sum over elements of the Euclidean norm of the element's gradients, 1 to T.
        elements: number of elements.
    """

    steps: int
    D: float
    D_inf: float
    G: float
    G_inf: float
    roots: float
    norms: float
    elements: int


def adam_bound(rule: Adam, seen: Constants) -> float:
    """The right-hand side of Kingma & Ba 2015, Theorem 4.1: R(T) is at most this.

        D^2 / (2 a (1-b1)) sum_i sqrt(T v^_T,i)
        + a (1+b1) G_inf / ((1-b1) sqrt(1-b2) (1-gamma)^2) sum_i ||g_1:T,i||
        + sum_i D_inf^2 G_inf sqrt(1-b2) / (2 a (1-b1) (1-lambda)^2),          gamma = b1^2 / sqrt(b2)

    The proof has a gap (Reddi et al. 2018, https://openreview.net/forum?id=ryQu7f-RZ): there are streams on which
    Adam's regret does not obey it.

    Raises:
        InvalidArgument: as `check_theorem`.
    """
    check_theorem(rule)
    a, b1, b2 = rule.lr, rule.beta1, rule.beta2
    first = seen.D**2 / (2 * a * (1 - b1)) * seen.roots
    second = a * (1 + b1) * seen.G_inf / ((1 - b1) * math.sqrt(1 - b2) * (1 - gamma(rule)) ** 2) * seen.norms
    third = seen.D_inf**2 * seen.G_inf * math.sqrt(1 - b2) / (2 * a * (1 - b1) * (1 - rule.beta1_decay) ** 2)
    return first + second + seen.elements * third


def check_theorem(rule: Adam) -> None:
    """Check that the theorem is about this rule.

    Raises:
        InvalidArgument: it is not; names the constant.
    """
    if rule.lr_schedule != "inverse_sqrt":
        raise InvalidArgument("the theorem's rate is lr / sqrt(t)", field="lr_schedule", fix="inverse_sqrt")
    wanted = {"bias_correction": True, "amsgrad": False, "weight_decay": 0.0, "l2": 0.0, "eps": 0.0}
    for name, value in wanted.items():
        if getattr(rule, name) != value:
            raise InvalidArgument(f"the theorem is about Adam with {value}", field=name)
    if not rule.beta1_decay < 1.0:
        raise InvalidArgument("the theorem's lambda is below 1", field="beta1_decay", fix="e.g. 0.99")
    if not 0.0 < rule.beta2 < 1.0 or not gamma(rule) < 1.0:
        raise InvalidArgument("the theorem needs beta1^2 < sqrt(beta2) < 1", field="beta2")
    if not rule.lr > 0.0:
        raise InvalidArgument("must be positive", field="lr")


def gamma(rule: Adam) -> float:
    """The theorem's gamma: beta1^2 / sqrt(beta2)."""
    return rule.beta1**2 / math.sqrt(rule.beta2) if rule.beta2 else math.inf


class Meter:
    """Watches the parameters and gradients of a run, and measures the theorem's constants.

    Args:
        rule: the run's.
        elements: parameters, all tensors together.
    """

    def __init__(self, rule: Adam, elements: int) -> None:
        self._rule = rule
        self._elements = elements
        self.steps = 0
        self._largest, self._largest_inf = 0.0, 0.0
        self._v, self._squares = np.zeros(elements), np.zeros(elements)
        self._low, self._high = np.full(elements, math.inf), np.full(elements, -math.inf)
        self._snapshots: list[Array] = []

    def add(self, w: Array, g: Array) -> None:
        """One update: its gradient, and the parameters that it was taken at; both of shape (elements,)."""
        if w.shape != (self._elements,) or g.shape != w.shape:
            raise InvalidArgument(f"have shapes {w.shape} and {g.shape}, not ({self._elements},)", field="w")
        w, g = w.astype(np.float64), g.astype(np.float64)
        square = g * g
        self._v += (1.0 - self._rule.beta2) * (square - self._v)
        self._squares += square
        self._largest = max(self._largest, float(np.sqrt(square.sum())))
        self._largest_inf = max(self._largest_inf, float(np.abs(g).max()))
        np.minimum(self._low, w, out=self._low)
        np.maximum(self._high, w, out=self._high)
        if round(SNAPSHOTS_PER_DECADE * math.log10(self.steps + 1)) >= len(self._snapshots):
            self._snapshots.append(w)
        self.steps += 1

    @classmethod
    def merged(cls, meters: Sequence[Meter]) -> Self:
        """Several workers' meters of one job as one.

        Exact but for v, which depends on the order of the gradients: it is the mean of the workers' corrected v.
        """
        first = meters[0]
        found = cls(first._rule, first._elements)
        found.steps = sum(meter.steps for meter in meters)
        found._largest = max(meter._largest for meter in meters)
        found._largest_inf = max(meter._largest_inf for meter in meters)
        found._squares = np.sum([meter._squares for meter in meters], axis=0)
        found._low = np.min([meter._low for meter in meters], axis=0)
        found._high = np.max([meter._high for meter in meters], axis=0)
        found._snapshots = [w for meter in meters for w in meter._snapshots]
        weighted = np.sum([meter.steps * meter._corrected() for meter in meters], axis=0)
        found._v = weighted / found.steps * found._correction()
        return found

    def measured(self, best: Array) -> Constants:
        """The constants of the updates so far, with W* = `best`.

        D is measured among W* and a few of the parameters only, which can but make the bound smaller.
        """
        points = np.stack([*self._snapshots, best])
        largest = max(float(np.linalg.norm(points - point, axis=1).max()) for point in points)
        spread = np.maximum(self._high, best) - np.minimum(self._low, best)
        return Constants(
            steps=self.steps,
            D=largest,
            D_inf=float(spread.max()),
            G=self._largest,
            G_inf=self._largest_inf,
            roots=float(np.sqrt(self.steps * self._corrected()).sum()),
            norms=float(np.sqrt(self._squares).sum()),
            elements=self._elements,
        )

    def _correction(self) -> float:
        """1 - beta2^T."""
        return -math.expm1(self.steps * math.log(self._rule.beta2))

    def _corrected(self) -> Array:
        """v^_T."""
        return self._v / self._correction()


@dataclass(frozen=True, slots=True)
class Minimum:
    """Where a convex function is least: the point, its value, the gradient's Euclidean norm there, and the work."""

    w: Array
    value: float
    gradient_norm: float
    evaluations: int


def minimize(
    objective: Callable[[Array], tuple[float, Array]], start: Array, *, gradient_norm: float = 1e-8
) -> Minimum:
    """Minimise a smooth convex function by L-BFGS (scipy), with one thread in BLAS.

    Its threads spin while they wait for each other. On two cores a second one made this three times slower, and beside
    other work a hundred times.

    Args:
        objective: value and gradient at a point, in float64.
        start: where to begin, of shape (elements,).
        gradient_norm: Euclidean norm at which a point counts as the minimum.

    Raises:
        InvalidArgument: the norm was not reached.
    """
    from scipy.optimize import minimize as scipy_minimize
    from threadpoolctl import threadpool_limits

    point, evaluations = np.asarray(start, np.float64), 0
    for _ in range(5):  # again from where a line search gave up: L-BFGS then forgets its curvature
        # What has no minimum runs away.
        with threadpool_limits(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
            found: Any = scipy_minimize(
                objective,
                point,
                jac=True,
                method="L-BFGS-B",
                options={
                    "gtol": gradient_norm / math.sqrt(point.size),
                    "ftol": 0.0,
                    "maxcor": 30,
                    "maxiter": 20_000,
                    "maxfun": 20_000,
                },
            )
            point, evaluations = found.x, evaluations + int(found.nfev)
            norm = float(np.linalg.norm(found.jac))
        if norm <= gradient_norm:
            return Minimum(point, float(found.fun), norm, evaluations)
    raise InvalidArgument(
        f"{gradient_norm:g} was not reached in {evaluations} evaluations, but {norm:g}",
        field="gradient_norm",
        fix="is the function convex and bounded from below? then allow a larger norm",
    )
