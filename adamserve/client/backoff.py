"""How often, and for how long, a call that failed is made again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from adamserve.errors import AdamServeError, InvalidArgument, Unavailable
from adamserve.values import Deadline

ATTEMPT_S = 60.0
"""Longest that one try may take before the call is made again on a new connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """The pauses between the tries of one call, in seconds.

    Attributes:
        first_s, longest_s: the first pause, and the longest.
        factor: each pause is so many times the one before.
        jitter: largest share that chance takes off a pause, so that clients that failed together come back apart.
    """

    first_s: float = 0.05
    longest_s: float = 2.0
    factor: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.first_s <= self.longest_s and self.factor >= 1 and 0 <= self.jitter < 1):
            raise InvalidArgument(f"{self} has no such pauses", field="backoff")


class Tries:
    """The tries of one call, until its deadline."""

    def __init__(self, backoff: Backoff, deadline: Deadline) -> None:
        self.deadline = deadline
        self._backoff = backoff
        self._allowed_s = deadline.remaining()
        self._pause_s = backoff.first_s

    @property
    def seconds(self) -> float:
        """Longest that the next try may take."""
        return min(ATTEMPT_S, max(0.001, self.deadline.remaining()))

    def pause_after(self, error: AdamServeError) -> float:
        """Seconds to wait before another try, after one that met an error.

        Raises:
            Unavailable: the deadline comes first; says what the last try met.
        """
        pause, rule = self._pause_s, self._backoff
        if self.deadline.remaining() < pause:
            problem = f"gave up after {round(self._allowed_s, 1):g} s: {error.problem}"
            raise Unavailable(problem, field=error.field, fix=error.fix)
        self._pause_s = min(rule.longest_s, rule.factor * pause)
        return pause * random.uniform(1 - rule.jitter, 1)
