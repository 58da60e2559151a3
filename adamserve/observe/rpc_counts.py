"""How many calls came in and how they were answered, whatever carried them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

METHODS_KNOWN = 64
"""Different methods that are told apart for each carrier; further ones count as "other"."""


class Calls:
    """Counts the calls of one process. Thread-safe; a call costs two additions.

    Pickled, it is a copy of the counts of that moment.
    """

    def __init__(
        self,
        begun: Mapping[tuple[str, str], int] | None = None,
        answered: Mapping[tuple[str, str, str], int] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._started = Counter(begun)
        self._handled = Counter(answered)

    def started(self, method: str, carrier: str = "grpc") -> None:
        """A call came in."""
        with self._lock:
            self._started[carrier, self._name(carrier, method)] += 1

    def handled(self, method: str, code: str, carrier: str = "grpc") -> None:
        """A call that came in was answered, with the name of a gRPC status code."""
        with self._lock:
            self._handled[carrier, self._name(carrier, method), code] += 1

    def begun(self) -> Mapping[tuple[str, str], int]:
        """Calls that came in, by (carrier, method)."""
        with self._lock:
            return dict(self._started)

    def answered(self) -> Mapping[tuple[str, str, str], int]:
        """Calls that were answered, by (carrier, method, code)."""
        with self._lock:
            return dict(self._handled)

    def __reduce__(self) -> tuple[Any, ...]:
        return Calls, (self.begun(), self.answered())

    def _name(self, carrier: str, method: str) -> str:
        if (carrier, method) in self._started:
            return method
        return method if sum(c == carrier for c, _ in self._started) < METHODS_KNOWN else "other"
