"""Losses and other numbers on their way to the controller: queued, and sent in batches beside the training."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

from adamserve.client.control_link import ControlLink
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
        self._thread: threading.Thread | None = None
        self._sending = False
        self._hurry = False
        self._closed = False
        self._error: AdamServeError | None = None

    def add(
        self, loss: float | None, comparator: float | None, numbers: Mapping[str, float], deadline: Deadline
    ) -> None:
        """Queue a loss and other numbers; returns at once while there is room.

        A loss that is not finite is refused, and queued all the same: the service counts those.

        Raises:
            NotFinite: a number is NaN or infinite; names it.
            InvalidArgument: a comparator's loss without a loss.
            Unavailable: the queue is full, and nothing was sent in time.
            AdamServeError: what an earlier batch met.
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
            if self._thread is None:
                self._thread = threading.Thread(target=self._send, name="adamserve-reports", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        if bad:
            raise NotFinite(f"must be finite, got {values[bad]!r}", field=bad)
        self._raise()

    def flush(self, deadline: Deadline) -> None:
        """Wait until everything queued has been sent; raises what a batch has met."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not (self._queued or self._sending), deadline.remaining()):
                raise Unavailable("not all losses could be sent", field="loss")
        self._raise()

    def close(self, deadline: Deadline) -> None:
        """Send what is queued, and stop; never raises what a batch has met."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(deadline.remaining())

    @property
    def _queued(self) -> bool:
        return bool(self._losses or self._numbers)

    def _raise(self) -> None:
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _send(self) -> None:
        """Send batches until closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queued or self._closed)
                self._changed.wait_for(
                    lambda: self._hurry or self._closed or len(self._losses) >= QUEUED, LATE_S
                )
                if not self._queued:
                    return
                losses, numbers = self._losses, self._numbers
                self._losses, self._numbers, self._sending, self._hurry = [], {}, True, False
                self._changed.notify_all()
            error: AdamServeError | None = None
            try:
                self._control.report(self._job, self._pusher, losses, numbers)
            except AdamServeError as met:
                error = met
            if isinstance(error, InvalidArgument) and error.field in ("loss", "comparator_loss"):
                error = None  # the one that was not finite has been refused already
            with self._changed:
                self._sending, self._error = False, error or self._error
                self._changed.notify_all()
