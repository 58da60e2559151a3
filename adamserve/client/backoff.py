"""How often, and for how long, a call that failed is made again."""

from __future__ import annotations

import random

from adamserve.errors import AdamServeError, Unavailable
from adamserve.values import Deadline

ATTEMPT_S = 60.0
"""Longest that one try may take before the call is made again on a new connection."""

FIRST_S, LONGEST_S = 0.05, 2.0
"""The first pause between two tries, and the longest; each is twice the one before."""

JITTER = 0.5
"""Largest share that chance takes off a pause, so that clients that failed together come back apart."""


class Tries:
    """The tries of one call, until its deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self._allowed_s = deadline.remaining()
        self._pause_s = FIRST_S

    @property
    def seconds(self) -> float:
        """Longest that the next try may take."""
        return min(ATTEMPT_S, max(0.001, self.deadline.remaining()))

    def pause_after(self, error: AdamServeError) -> float:
        """Seconds to wait before another try; Unavailable, with what the last one met, where the deadline is nearer."""
        pause = self._pause_s
        if self.deadline.remaining() < pause:
            problem = f"gave up after {round(self._allowed_s, 1):g} s: {error.problem}"
            raise Unavailable(problem, field=error.field, fix=error.fix)
        self._pause_s = min(LONGEST_S, 2 * pause)
        return pause * random.uniform(1 - JITTER, 1)
