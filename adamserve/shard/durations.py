"""Durations counted by buckets: what a histogram is made of, at the cost of one search and two additions each."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

PUSH_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""For a push, from arrival to receipt: from one small update to a round that waits."""

APPLY_BUCKETS = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""For a rule's update: from a few elements to some 10^9 of them."""

QUEUE_BUCKETS = (0.00001, 0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""For a push's wait: from a lock that is free to a round's last member."""


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, so far: upper bounds in seconds, a count for each and one beyond, and the sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Stopwatch:
    """Counts durations. Not thread-safe."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def read(self) -> Times:
        """What has been counted."""
        return Times(self._bounds, tuple(self._counts), self._total)
