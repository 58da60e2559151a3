"""A job's losses as they are reported, and what they cost above a comparator's."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from adamserve.errors import InvalidArgument

RECENT = 50
"""Losses that a job's present loss is the mean of."""


class Loss(NamedTuple):
    """One batch's training loss, and its loss at W* where that is known."""

    loss: float
    comparator_loss: float | None = None


@dataclass(slots=True)
class Account:
    """A job's losses.

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


def slope(steps: Sequence[float], averages: Sequence[float]) -> float:
    """The exponent of T in R(T)/T (the theorem's: -0.5): least squares of its logarithm over the last two decades of T.

    Args:
        steps, averages: T, increasing, and R(T)/T, positive over the range fitted.

    Raises:
        InvalidArgument: fewer than three values in the range, or one that has no logarithm.
    """
    t, r = np.asarray(steps, float), np.asarray(averages, float)
    last = t >= t[-1] / 100 * (1 - 1e-12)
    if last.sum() < 3:
        raise InvalidArgument(f"has {int(last.sum())} values in the last 2 decades", field="steps")
    if not (r[last] > 0).all():
        raise InvalidArgument("is not positive throughout", field="averages")
    return float(np.polyfit(np.log(t[last]), np.log(r[last]), 1)[0])
