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

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, set[str]] = {}
        self._started: Counter[tuple[str, str]] = Counter()
        self._handled: Counter[tuple[str, str, str]] = Counter()

    def started(self, method: str, carrier: str = "grpc") -> None:
        """A call came in."""
        with self._lock:
            self._started[carrier, self._name(carrier, method)] += 1

    def handled(self, method: str, code: str, carrier: str = "grpc") -> None:
        """A call was answered, with the name of a gRPC status code."""
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

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {"_known": self._known, "_started": self._started.copy(), "_handled": self._handled.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _name(self, carrier: str, method: str) -> str:
        known = self._known.setdefault(carrier, set())
        if method not in known and len(known) >= METHODS_KNOWN:
            return "other"
        known.add(method)
        return method
