"""Kingma & Ba's Theorem 4.1: its bound on the regret, with constants measured on a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from adamserve.errors import InvalidArgument
from adamserve.optim import Adam
from adamserve.values import Array

SNAPSHOTS_PER_DECADE = 8
"""How many of the parameters' moments a `Meter` keeps, to measure how far apart they were."""


@dataclass(frozen=True, slots=True)
class Constants:
    """What Theorem 4.1 is about, measured on a run of `steps` updates of `elements` numbers.

    Attributes:
        D: largest Euclidean distance between parameters of the run, and W*, among those looked at.
        D_inf: largest distance in one element, of all.
        G, G_inf: largest Euclidean and largest max-norm of a gradient.
        roots: sum over elements of sqrt(T v^_T).
        norms: sum over elements of the Euclidean norm of the element's gradients, 1 to T.
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
    """Check that the theorem is about this rule; the InvalidArgument names the constant if not."""
    if rule.lr_schedule != "inverse_sqrt":
        raise InvalidArgument("the theorem's rate is lr / sqrt(t)", field="lr_schedule", fix="inverse_sqrt")
    zeros = dict.fromkeys(("lr_decay", "weight_decay", "l2", "eps"), 0.0)
    for name, value in {"bias_correction": True, "amsgrad": False, **zeros}.items():
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
    """Watches the parameters and gradients of a run, `elements` numbers each, and measures the theorem's constants."""

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
