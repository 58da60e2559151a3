"""The theorem's bound on a run's regret, from what its workers measure."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from adamserve import optim
from adamserve.errors import InvalidArgument
from adamserve.regret import Meter, adam_bound, check_theorem
from adamserve.values import Array

BOUND_EVERY_S = 5.0
"""How often the theorem's constants are put together, where they are measured."""


def theorem_of(rule: optim.Rule) -> optim.Adam | None:
    """The rule, if the theorem is about it."""
    if not isinstance(rule, optim.Adam):
        return None
    try:
        check_theorem(rule)
    except InvalidArgument:
        return None
    return rule


class Bound:
    """The theorem's bound on R(T)/T, from what all workers measure; None where the theorem is not about the rule.

    The theorem is about one learner whose gradients are applied at once. With several workers their constants are put
    together, and the bound is a yardstick.

    Args:
        rule: what `theorem_of` says.
        best: the parameters that the regret is counted against.
    """

    def __init__(self, rule: optim.Adam | None, best: Mapping[str, Array] | None) -> None:
        self._rule = rule
        self._best = np.concatenate([array.reshape(-1) for array in best.values()]) if best else None
        self._meters: dict[int, Meter] = {}
        self._ended: list[Meter] = []
        self._at = -math.inf
        self.average: float | None = None

    def due(self) -> bool:
        """Whether it is time to ask the workers."""
        return self._rule is not None and time.monotonic() - self._at >= BOUND_EVERY_S

    def keep(self, rank: int) -> None:
        """A worker is gone; what it had measured counts on."""
        if (meter := self._meters.pop(rank, None)) is not None:
            self._ended.append(meter)

    def take(self, meters: Mapping[int, Meter | None]) -> None:
        """Work the bound out from what the workers have measured so far."""
        self._at = time.monotonic()
        self._meters |= {rank: meter for rank, meter in meters.items() if meter is not None}
        everything = [*self._ended, *self._meters.values()]
        if self._rule is not None and self._best is not None and everything:
            constants = Meter.merged(everything).measured(self._best)
            self.average = adam_bound(self._rule, constants) / constants.steps
