"""Who is live: leases of pushers."""

from __future__ import annotations

import time
from collections.abc import Callable

from adamserve.errors import InvalidArgument

SILENT_S = 600.0
"""How long a pusher whose lease ran out counts as silent; after that it counts as gone for good."""


def check_lease(lease_s: float) -> None:
    """Check a lease's length.

    Raises:
        InvalidArgument: it is not a positive, finite number of seconds.
    """
    if not 0.0 < lease_s < float("inf"):
        raise InvalidArgument(f"must be a positive number of seconds, got {lease_s!r}", field="lease_s")


class Leases:
    """Who is live: each pusher's lease, renewed by whatever it does. Not thread-safe.

    Args:
        now: clock in seconds.
        ended: told the name of each pusher whose lease has run out, once that is noticed.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, ended: Callable[[str], None] = lambda pusher: None
    ) -> None:
        self._now = now
        self._tell = ended
        self._ends: dict[str, float] = {}
        self._length: dict[str, float] = {}
        self._ended: set[str] = set()
        self._expiries = 0

    def grant(self, pusher: str, lease_s: float) -> None:
        """Start a lease of `lease_s` seconds, as `check_lease` takes them."""
        self._length[pusher] = lease_s
        self.renew(pusher)

    def renew(self, pusher: str) -> None:
        """Start the pusher's lease anew; one that has none is left without."""
        if pusher in self._length:
            self._note_ended()
            self._ends[pusher] = self._now() + self._length[pusher]
            self._ended.discard(pusher)

    def drop(self, pusher: str) -> None:
        """End a lease now."""
        self._note_ended()
        self._ends.pop(pusher, None)
        self._length.pop(pusher, None)
        self._ended.discard(pusher)

    def live(self) -> list[str]:
        """Pushers whose lease runs, by name."""
        now = self._now()
        return sorted(name for name, end in self._ends.items() if end > now)

    def silent(self) -> list[str]:
        """Pushers whose lease ran out in the last `SILENT_S` seconds, and that have neither come back nor left."""
        now = self._now()
        return sorted(name for name, end in self._ends.items() if now - SILENT_S < end <= now)

    def expiries(self) -> int:
        """How many leases have run out so far; one that was ended or renewed in time is none."""
        self._note_ended()
        return self._expiries

    def _note_ended(self) -> None:
        now = self._now()
        fresh = {name for name, end in self._ends.items() if end <= now} - self._ended
        self._ended |= fresh
        self._expiries += len(fresh)
        for pusher in sorted(fresh):
            self._tell(pusher)

    def next_expiry_s(self) -> float | None:
        """Seconds until the next running lease ends, or None when none runs."""
        now = self._now()
        return min((end - now for end in self._ends.values() if end > now), default=None)
