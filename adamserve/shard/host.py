"""A shard with its lock: the waiting that consistency asks for, and pulls that share one copy.

Everything that calls a `Shard` from several threads calls it through a `ShardHost`: the Ray actor here, and
whatever else brings pushes in. One condition guards the shard; every wait on it has a deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adamserve import checkpoint
from adamserve.errors import InvalidArgument, Unavailable
from adamserve.shard.consistency import Verdict
from adamserve.shard.durations import PUSH_BUCKETS, QUEUE_BUCKETS, Stopwatch
from adamserve.shard.geometry import Partition
from adamserve.shard.statistics import ShardStatistics
from adamserve.values import Array, Deadline, Joined, Narrow, Push, Receipt, Stamp

if TYPE_CHECKING:
    from adamserve.shard.shard import Shard

Handle = TypeVar("Handle")


GLANCE_S = 0.02
"""Longest that a scrape waits for a shard's writer."""

Publish = Callable[[Mapping[str, Array]], Handle]
"""Copies a shard's flat arrays by dtype to where pullers read them, and returns how they find it."""


class ShardHost:
    """One shard, safe to call from many threads.

    Args:
        partition: the job's; the shard's spans are in it.
        shard: the state; nobody else may call it.
    """

    def __init__(self, partition: Partition, shard: Shard) -> None:
        self.partition = partition
        self.index = shard.index
        self._shard = shard
        self._changed = threading.Condition()
        self._published: dict[tuple[Publish[Any], bool], tuple[Stamp, Any]] = {}
        self._waiting = 0
        self._push_seconds = Stopwatch(PUSH_BUCKETS)
        self._queue_seconds = Stopwatch(QUEUE_BUCKETS)
        self._last: ShardStatistics | None = None

    def push(self, push: Push, *, deadline: Deadline, narrow: Narrow | None = None) -> Receipt:
        """Apply a push, at most once, waiting for its turn until the deadline.

        The check of the gradients runs outside the lock, beside another push's update.

        Args:
            push: what arrived.
            deadline: for its turn.
            narrow: a copy for the pull that follows, which the update may write along the way; see `adopt`.

        Raises:
            InvalidArgument, NotFound, BadSequence: as `Shard.check` and `Shard.offer`; nothing changed.
            Unavailable: its turn did not come in time; the push is forgotten and may be sent again.
        """
        began = time.perf_counter()
        with self.refusing(push.pusher):
            checked = self._shard.check(push, narrow)
            arrived = time.perf_counter()
            with self._changed:
                queued = time.perf_counter() - arrived
                self._shard.renew(push.pusher, push.session)
                answer = self._shard.offer(checked)
                while not isinstance(answer, Receipt):
                    if deadline.remaining() == 0.0:
                        self._shard.withdraw(push.pusher)
                        self._changed.notify_all()
                        raise Unavailable(answer.reason, field=push.pusher, fix="send the same push again")
                    self._waiting += 1
                    turn = time.perf_counter()
                    try:
                        self._wait(deadline)
                    finally:
                        self._waiting -= 1
                        queued += time.perf_counter() - turn
                    answer = self._shard.receipt(push.pusher, push.seq) or self._shard.offer(checked)
                self._changed.notify_all()
                self._queue_seconds.add(queued)
                self._push_seconds.add(time.perf_counter() - began)
                return answer

    @contextmanager
    def refusing(self, pusher: str) -> Iterator[None]:
        """Count what is found wrong with a push, and remember why; for transports that look at it first."""
        try:
            yield
        except InvalidArgument as error:
            with self._changed:
                self._shard.refuse(pusher, str(error))
            raise

    def pull(
        self,
        publish: Publish[Handle],
        *,
        deadline: Deadline,
        pusher: str | None = None,
        session: str = "",
        training: bool = True,
        at_least: int = 0,
    ) -> tuple[Stamp, Handle]:
        """The parameters and their stamp, from one moment between two updates.

        Args:
            publish: makes the one copy of the parameters that all pullers of a clock share. It is called while
                the writer is held, so a pull never sees half an update; the same function each time.
            pusher: who pulls to compute its next gradient; ssp may hold it back. None only reads.
            training: return the point where gradients are taken rather than w.
            at_least: wait until the clock has come this far.

        Raises:
            Unavailable: the clock, or the pusher's turn, did not come in time.
        """
        with self._changed:
            stamp = self._await_turn(deadline, pusher, session, at_least)
            self._shard.note_pull(pusher)
            ahead = training and self._shard.rule.has_lookahead
            kept = self._published.get((publish, ahead))
            if kept is None or kept[0] != stamp:
                kept = (stamp, publish(self._shard.read(training=ahead)))
                self._published[publish, ahead] = kept
            return kept

    def adopt(self, publish: Publish[Handle], stamp: Stamp, handle: Handle) -> None:
        """Take what an update has written along the way for what `publish` would make, unless it is out of date."""
        with self._changed:
            if self._shard.stamp == stamp:
                self._published[publish, self._shard.rule.has_lookahead] = (stamp, handle)

    def pull_rows(
        self,
        rows: Mapping[str, Array],
        *,
        deadline: Deadline,
        pusher: str | None = None,
        session: str = "",
        training: bool = True,
        at_least: int = 0,
    ) -> tuple[Stamp, dict[str, Array]]:
        """As `pull`, of some rows of some tensors and of the others whole; see `Shard.read_rows`."""
        with self._changed:
            stamp = self._await_turn(deadline, pusher, session, at_least)
            found = self._shard.read_rows(rows, training=training)
            asked = sum(4 * len(numbers) for numbers in rows.values())
            self._shard.note_pull(
                pusher, asked=asked, answered=sum(values.nbytes for values in found.values())
            )
            return stamp, found

    def _await_turn(self, deadline: Deadline, pusher: str | None, session: str, at_least: int) -> Stamp:
        """Wait until a pull may be answered; returns the moment that it is answered from."""
        if pusher is not None:
            self._shard.renew(pusher, session)
        while True:
            reason = f"clock {at_least}, it is at {self._shard.stamp.clock}"
            ready = self._shard.stamp.clock >= at_least
            if ready and pusher is not None:
                decision = self._shard.may_start(pusher)
                ready, reason = decision.verdict is Verdict.APPLY, decision.reason
            if ready:
                return self._shard.stamp
            deadline.check(reason)
            self._wait(deadline)

    def join(self, pusher: str, *, lease_s: float, last_seq: int = 0, session: str = "") -> Joined:
        """As `Shard.join`."""
        with self._changed:
            joined = self._shard.join(pusher, lease_s=lease_s, last_seq=last_seq, session=session)
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

    def write(self, folder: Path) -> Path:
        """Write one consistent cut into the page cache, between two updates; returns the unsealed file."""
        with self._changed:
            return checkpoint.write_shard(folder, self._shard.state())

    def statistics(self) -> ShardStatistics:
        """As `Shard.statistics`, with the pushes' times and those that wait."""
        with self._changed:
            found = self._account()
        return self._looked(found)

    def glance(self, patience_s: float = GLANCE_S) -> ShardStatistics:
        """As `statistics`, for a scrape: it asks for a look at the next update, and does not wait for a long one.

        While the shard is busy for longer than `patience_s`, these are the statistics that were read last.
        """
        self._shard.probe.ask()
        kept = self._last
        if not self._changed.acquire(timeout=patience_s if kept is not None else -1):
            assert kept is not None  # for without one the wait has no end
            return self._looked(kept)
        try:
            found = self._account()
        finally:
            self._changed.release()
        return self._looked(found)

    def _account(self) -> ShardStatistics:
        """What happens while the writer is held: copies of a few counters."""
        return replace(
            self._shard.statistics(),
            waiting=self._waiting,
            push_seconds=self._push_seconds.read(),
            queue_seconds=self._queue_seconds.read(),
        )

    def _looked(self, found: ShardStatistics) -> ShardStatistics:
        """With the last look at an update, worked out beside the writer; kept for a scrape that cannot wait."""
        self._last = replace(found, seen=self._shard.probe.seen())
        return self._last

    def _wait(self, deadline: Deadline) -> None:
        """Wait until something changes, a lease ends, or the deadline passes."""
        expiry = self._shard.next_expiry_s()
        seconds = deadline.remaining()
        self._changed.wait(seconds if expiry is None else min(seconds, expiry + 0.001))
