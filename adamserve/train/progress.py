"""What a run has come to: its workers' reports, and what they say at one moment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from adamserve.observe.state import JobState
from adamserve.optim import Adam
from adamserve.regret import Meter, adam_bound
from adamserve.train.loop import EpochReport, Report
from adamserve.train.task import Step
from adamserve.values import Array

RECENT = 50
"""Steps that count as the latest ones."""

WINDOW_S = 5.0
"""Seconds over which pushes a second are counted."""

BOUND_EVERY_S = 5.0
"""How often the theorem's constants are put together, where they are measured."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A running job at one moment: for the live line.

    Attributes:
        epoch, epochs: passes over the training set, so far and in all.
        loss: mean of the latest training losses; NaN before the first.
        staleness: mean of the latest pushes, in updates.
        average_regret: R(T)/T; None where it is not counted.
        rollbacks: how often a shard has lost updates.
        note: what has just happened, for people.
        numbers: what the task measured at the end of the latest epoch.
    """

    epoch: float
    epochs: int
    loss: float
    pushes_per_s: float
    staleness: float
    average_regret: float | None
    rollbacks: int
    note: str
    numbers: Mapping[str, float] = field(default_factory=dict)


class Log:
    """Everything that the workers have reported."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.epochs: list[EpochReport] = []

    @property
    def numbers(self) -> Mapping[str, float]:
        """What the task measured last."""
        return self.epochs[-1].numbers if self.epochs else {}

    def add(self, reports: Sequence[Report]) -> None:
        """Take reports in, in the order of their times."""
        self.steps += [report for report in reports if isinstance(report, Step)]
        self.epochs += [report for report in reports if isinstance(report, EpochReport)]

    def progress(self, state: JobState | None, *, epochs: int, note: str) -> Progress:
        """How far the run is; `state` is None before there is a job."""
        recent = self.steps[-RECENT:]
        window = [step for step in self.steps[-2000:] if step.at > time.time() - WINDOW_S]
        span = max(s.at for s in window) - min(s.at for s in window) if len(window) > 1 else 0.0
        return Progress(
            epoch=max((step.epoch for step in recent), default=0.0),
            epochs=epochs,
            loss=math.nan if state is None or state.loss is None else state.loss,
            pushes_per_s=len(window) / span if span > 0 else 0.0,
            staleness=float(np.mean([step.staleness for step in recent])) if recent else 0.0,
            average_regret=state.average_regret if state else None,
            rollbacks=len(state.rollbacks) if state else 0,
            note=note,
            numbers=self.numbers,
        )


class Bound:
    """The theorem's bound on R(T)/T, from what all workers measure; None where the theorem is not about the rule.

    The theorem is about one learner whose gradients are applied at once. With several workers their constants are put
    together, and the bound is a yardstick. `best` are the parameters that the regret is counted against.
    """

    def __init__(self, rule: Adam | None, best: Mapping[str, Array] | None) -> None:
        self._rule = rule
        self._best = np.concatenate([array.reshape(-1) for array in best.values()]) if best else None
        self._meters: dict[int, Meter] = {}
        self._ended: list[Meter] = []
        self._at = -math.inf
        self.average: float | None = None

    def keep(self, rank: int) -> None:
        """A worker is gone; what it had measured counts on."""
        if (meter := self._meters.pop(rank, None)) is not None:
            self._ended.append(meter)

    def look(self, meters: Callable[[], Mapping[int, Meter | None]]) -> None:
        """Ask the workers now and then what they have measured so far, and work the bound out."""
        if self._rule is None or self._best is None or time.monotonic() - self._at < BOUND_EVERY_S:
            return
        self._at = time.monotonic()
        self._meters |= {rank: meter for rank, meter in meters().items() if meter is not None}
        if everything := [*self._ended, *self._meters.values()]:
            constants = Meter.merged(everything).measured(self._best)
            self.average = adam_bound(self._rule, constants) / constants.steps
