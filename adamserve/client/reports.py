"""Losses and other numbers on their way to the controller: queued, and sent in batches beside the training."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import suppress

from adamserve.client.control_link import ControlLink
from adamserve.client.threads import Thread
from adamserve.errors import AdamServeError, InvalidArgument, NotFinite, Unavailable
from adamserve.regret import Loss
from adamserve.values import Deadline

LATE_S = 0.25
"""Longest that a report waits for others to be sent with."""

QUEUED = 4096
"""Losses that wait to be sent; a further one waits for its place."""


class Reports:
    """Sends what one pusher reports, in order, from a thread of its own. Thread-safe."""

    def __init__(self, control: ControlLink, job: str, pusher: str) -> None:
        self._control = control
        self._job = job
        self._pusher = pusher
        self._changed = threading.Condition()
        self._losses: list[Loss] = []
        self._numbers: dict[str, float] = {}
        self._thread = Thread("adamserve-reports")
        self._newest: Future[None] | None = None  # batch: it waits for others to join it, and is sent
        self._collecting = self._hurry = False
        self._error: AdamServeError | None = None

    def add(
        self, loss: float | None, comparator: float | None, numbers: Mapping[str, float], deadline: Deadline
    ) -> None:
        """Queue a loss and other numbers; returns at once while there is room, and raises what an earlier batch met.

        A loss that is not finite is refused, and queued all the same: the service counts those.
        """
        if loss is None and comparator is not None:
            raise InvalidArgument("goes with a loss", field="comparator_loss", fix="give both")
        values = {"loss": loss, "comparator_loss": comparator, **numbers}
        bad = next((name for name, v in values.items() if v is not None and not math.isfinite(v)), "")
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._losses) < QUEUED, deadline.remaining()):
                raise Unavailable(f"{QUEUED} losses wait to be sent", field="loss")
            if loss is not None:
                self._losses.append(Loss(loss, comparator))
            if not bad:
                self._numbers.update(numbers)
            if (self._losses or self._numbers) and not self._collecting:
                self._collecting = True
                with suppress(RuntimeError):  # closed
                    self._newest = self._thread.submit(self._send)
            self._changed.notify_all()
        if bad:
            raise NotFinite(f"must be finite, got {values[bad]!r}", field=bad)
        self._raise()

    def flush(self, deadline: Deadline) -> None:
        """Wait until everything queued has been sent; raises what a batch has met."""
        if not self._sent(deadline):
            raise Unavailable("not all losses could be sent", field="loss")
        self._raise()

    def close(self, deadline: Deadline) -> None:
        """Send what is queued, and stop; never raises what a batch has met."""
        self._sent(deadline)
        self._thread.shutdown()

    def _sent(self, deadline: Deadline) -> bool:
        """Send what is queued now, and say whether that was in time."""
        with self._changed:
            self._hurry = self._collecting
            self._changed.notify_all()
        return self._newest is None or not wait([self._newest], deadline.remaining()).not_done

    def _raise(self) -> None:
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _send(self) -> None:
        """Send one batch, when it is full or late."""
        with self._changed:
            self._changed.wait_for(lambda: self._hurry or len(self._losses) >= QUEUED, LATE_S)
            losses, numbers = self._losses, self._numbers
            self._losses, self._numbers, self._collecting, self._hurry = [], {}, False, False
            self._changed.notify_all()
        try:
            self._control.report(self._job, self._pusher, losses, numbers)
        except AdamServeError as error:
            refused = isinstance(error, InvalidArgument) and error.field in ("loss", "comparator_loss")
            if not refused:  # by `add`: it was not finite
                self._error = error
