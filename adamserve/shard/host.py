"""A shard with its lock: the waiting that consistency asks for, and pulls that share one copy.

Everything that calls a `Shard` from several threads calls it through a `ShardHost`. One condition guards the shard;
every wait on it has a deadline. A push, a pull, or a push and the pull after it are one verb, `push_pull`, which holds
the condition once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from adamserve.errors import AdamServeError, InvalidArgument, Unavailable
from adamserve.shard.consistency import Decision, Verdict
from adamserve.shard.durations import PUSH_BUCKETS, QUEUE_BUCKETS, Stopwatch
from adamserve.shard.geometry import Partition
from adamserve.shard.ledger import Decided
from adamserve.shard.statistics import ShardStatistics
from adamserve.values import (
    Array,
    Deadline,
    Joined,
    Parameters,
    PullRequest,
    Push,
    PusherKind,
    Receipt,
    ShardState,
)

if TYPE_CHECKING:
    from adamserve.shard.shard import CheckedPush, Shard

Result = TypeVar("Result")

GLANCE_S = 0.02
"""Longest that a scrape waits for a shard's writer."""


class Publisher(Protocol):
    """Makes the copy of a shard's parameters that all pullers of a clock share."""

    def room(self, items: int) -> Array:
        """Memory for so many uint16, for an update to write its bfloat16 copy to."""

    def copy(self, arrays: Mapping[str, Array], encoding: str) -> Mapping[str, Array]:
        """Copy flat arrays by dtype, float32 ones in an encoding; bfloat16 has the bits in uint16."""


class PlainPublisher:
    """Copies into new memory; float32 only in its own encoding and in those that numpy has."""

    def room(self, items: int) -> Array:
        """As `Publisher.room`."""
        return np.empty(items, "<u2")

    def copy(self, arrays: Mapping[str, Array], encoding: str) -> Mapping[str, Array]:
        """As `Publisher.copy`."""
        return {
            dtype: values.astype(encoding if dtype == "float32" else dtype)
            for dtype, values in arrays.items()
        }


class ShardHost:
    """One shard, safe to call from many threads.

    Args:
        partition: the job's; the shard's spans are in it.
        shard: the state; nobody else may call it.
        publisher: copies parameters for pullers.
    """

    def __init__(self, partition: Partition, shard: Shard, publisher: Publisher | None = None) -> None:
        self.partition = partition
        self.index = shard.index
        self._shard = shard
        self._publisher: Publisher = publisher or PlainPublisher()
        self._changed = threading.Condition()
        self._published: dict[tuple[str, bool], Parameters] = {}
        self._waiting = 0
        self._closed: AdamServeError | None = None
        self._push_seconds = Stopwatch(PUSH_BUCKETS)
        self._queue_seconds = Stopwatch(QUEUE_BUCKETS)
        self._last: ShardStatistics | None = None

    def push_pull(self, push: Push, pull: PullRequest, *, deadline: Deadline) -> tuple[Receipt, Parameters]:
        """Apply a push, at most once, and answer a pull from the moment after it, or from a later one.

        The check of the gradients runs outside the lock, beside another push's update.

        Args:
            push: what arrived.
            pull: what to answer.
            deadline: for the turns of both.

        Raises:
            InvalidArgument, NotFound, BadSequence: as `Shard.check` and `Shard.offer`; nothing changed.
            Unavailable: a turn did not come in time. Send the same push again: if it was applied, its receipt says so.
        """
        copied = pull.encoding == "bfloat16" and not pull.rows
        began = time.perf_counter()
        checked = self._check(push, copied=copied)
        arrived = time.perf_counter()
        with self._changed:
            receipt = self._apply(checked, began, arrived, deadline, copied=copied)
            return receipt, self._read(pull, deadline)

    def push(self, push: Push, *, deadline: Deadline) -> Receipt:
        """As `push_pull`, without a pull."""
        began = time.perf_counter()
        checked = self._check(push, copied=False)
        arrived = time.perf_counter()
        with self._changed:
            return self._apply(checked, began, arrived, deadline, copied=False)

    def pull(self, pull: PullRequest, *, deadline: Deadline) -> Parameters:
        """The parameters, or some rows, and their stamp, from one moment between two updates.

        All pullers of a clock share one copy, which is made while the writer is held, so that a pull never sees half an
        update.

        Raises:
            NotFound, InvalidArgument: as `Shard.read_rows`.
            Unavailable: the clock, or the pusher's turn, did not come in time.
        """
        with self._changed:
            return self._read(pull, deadline)

    @contextmanager
    def refusing(self, pusher: str) -> Iterator[None]:
        """Count what is found wrong with a push, and remember why; for transports that look at it first."""
        try:
            yield
        except InvalidArgument as error:
            with self._changed:
                self._shard.refuse(pusher, str(error))
            raise

    def may_push(self, pusher: str, session: str) -> None:
        """As `Shard.may_push`."""
        self._shard.may_push(pusher, session)

    def join(
        self,
        pusher: str,
        *,
        lease_s: float,
        last_seq: int = 0,
        session: str = "",
        kind: PusherKind = "trainer",
    ) -> Joined:
        """As `Shard.join`."""
        with self._changed:
            joined = self._shard.join(pusher, lease_s=lease_s, last_seq=last_seq, session=session, kind=kind)
            self._changed.notify_all()
            return joined

    def renew(self, pusher: str, session: str = "") -> None:
        """As `Shard.renew`."""
        with self._changed:
            self._shard.renew(pusher, session)

    def leave(self, pusher: str, session: str = "") -> None:
        """As `Shard.leave`; pushes that waited for this pusher look again."""
        with self._changed:
            self._shard.leave(pusher, session)
            self._changed.notify_all()

    def cut(self, take: Callable[[ShardState], Result]) -> Result:
        """Hand one consistent cut of the state to `take`, between two updates; nothing moves until it returns."""
        with self._changed:
            return take(self._shard.state())

    def close(self, error: AdamServeError) -> None:
        """Let nobody wait here any longer: whoever does, or would, gets `error`."""
        with self._changed:
            self._closed = error
            self._changed.notify_all()

    def statistics(self) -> ShardStatistics:
        """As `Shard.statistics`, with the pushes' times and those that wait."""
        with self._changed:
            statistics = self._account()
        return self._looked(statistics)

    def glance(self, patience_s: float = GLANCE_S) -> ShardStatistics:
        """As `statistics`, for a scrape: it asks for a look at the next update, and does not wait for a long one.

        While the shard is busy for longer than `patience_s`, these are the statistics that were read last.
        """
        self._shard.store.probe.ask()
        kept = self._last
        if not self._changed.acquire(timeout=patience_s if kept is not None else -1):
            assert kept is not None  # for without one the wait has no end
            return self._looked(kept)
        try:
            statistics = self._account()
        finally:
            self._changed.release()
        return self._looked(statistics)

    def _check(self, push: Push, *, copied: bool) -> CheckedPush:
        with self.refusing(push.pusher):
            return self._shard.check(push, copied=copied)

    # ---- while the condition is held

    def _apply(
        self, checked: CheckedPush, began: float, arrived: float, deadline: Deadline, *, copied: bool
    ) -> Receipt:
        """Offer a push until it is decided; a copy that its update has written is published."""
        push, room = checked.push, self._publisher.room if copied else None
        queued = time.perf_counter() - arrived
        try:
            self._shard.renew(push.pusher, push.session)
            answer = self._shard.offer(checked, room)
            while isinstance(answer, Decision):
                queued += self._await_round(push, answer, deadline)
                receipt = self._shard.receipt(push.pusher, push.seq)
                answer = Decided(receipt) if receipt is not None else self._shard.offer(checked, room)
        except InvalidArgument as error:
            self._shard.refuse(push.pusher, str(error))
            raise
        if answer.bfloat16 is not None:
            key = ("bfloat16", self._shard.rule.has_lookahead)
            self._published[key] = Parameters(self._shard.stamp, {"float32": answer.bfloat16})
        self._changed.notify_all()
        self._queue_seconds.add(queued)
        self._push_seconds.add(time.perf_counter() - began)
        return answer.receipt

    def _await_round(self, push: Push, decision: Decision, deadline: Deadline) -> float:
        """Wait until a push may have its turn; returns for how long, in seconds."""
        if deadline.remaining() == 0.0:
            self._shard.withdraw(push.pusher)
            self._changed.notify_all()
            raise Unavailable(decision.reason, field=push.pusher, fix="send the same push again")
        began = time.perf_counter()
        self._waiting += 1
        try:
            self._wait(deadline)
        finally:
            self._waiting -= 1
        return time.perf_counter() - began

    def _read(self, pull: PullRequest, deadline: Deadline) -> Parameters:
        """Answer a pull when its turn has come."""
        self._await_turn(pull, deadline)
        stamp, shard = self._shard.stamp, self._shard
        if pull.rows:
            rows = shard.read_rows(pull.rows, training=pull.training)
            asked = sum(4 * len(numbers) for numbers in pull.rows.values())
            shard.note_pull(pull.pusher, asked=asked, answered=sum(a.nbytes for a in rows.values()))
            return Parameters(stamp, rows)
        shard.note_pull(pull.pusher)
        key = (pull.encoding, pull.training and shard.rule.has_lookahead)
        kept = self._published.get(key)
        if kept is None or kept.stamp != stamp:
            arrays = self._publisher.copy(shard.read(training=key[1]), pull.encoding)
            kept = self._published[key] = Parameters(stamp, arrays)
        return kept

    def _await_turn(self, pull: PullRequest, deadline: Deadline) -> None:
        """Wait until a pull may be answered."""
        if pull.pusher:
            self._shard.renew(pull.pusher, pull.session)
        while True:
            clock = self._shard.stamp.clock
            ready, reason = clock >= pull.at_least, f"clock {pull.at_least}, it is at {clock}"
            if ready and pull.pusher:
                decision = self._shard.may_start(pull.pusher)
                ready, reason = decision.verdict is Verdict.APPLY, decision.reason
            if ready:
                return
            deadline.check(reason)
            self._wait(deadline)

    def _account(self) -> ShardStatistics:
        """Copies of a few counters."""
        return replace(
            self._shard.statistics(),
            waiting=self._waiting,
            push_seconds=self._push_seconds.read(),
            queue_seconds=self._queue_seconds.read(),
        )

    def _wait(self, deadline: Deadline) -> None:
        """Wait until something changes, a lease ends, or the deadline passes.

        Raises:
            AdamServeError: what `close` was given.
        """
        expiry = self._shard.next_expiry_s()
        seconds = deadline.remaining()
        if self._closed is None:
            self._changed.wait(seconds if expiry is None else min(seconds, expiry + 0.001))
        if self._closed is not None:
            raise self._closed

    # ---- beside it

    def _looked(self, statistics: ShardStatistics) -> ShardStatistics:
        """Add the last look at an update, worked out beside the writer; kept for a scrape that cannot wait."""
        self._last = replace(statistics, seen=self._shard.store.probe.seen())
        return self._last
