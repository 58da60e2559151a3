"""A shard with its lock: the waiting that consistency asks for, and pulls that share one copy.

One condition guards the shard; every wait on it has a deadline. A push and the pull after it hold it once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from adamserve.errors import AdamServeError, InvalidArgument, Unavailable
from adamserve.shard.consistency import Decision, Verdict
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
    from adamserve.shard.shard import Shard

Result = TypeVar("Result")

GLANCE_S = 0.02
"""Longest that a scrape waits for a shard's writer."""


class Publisher(Protocol):
    """Makes the copy of a shard's parameters that all pullers of a clock share."""

    def room(self, encoding: str, items: int) -> Array:
        """Memory for so many elements, for an update to write its copy to; bfloat16 has the bits in uint16."""

    def copy(self, arrays: Mapping[str, Array], encoding: str) -> Mapping[str, Array]:
        """Copy flat arrays by dtype, float32 ones in an encoding; bfloat16 has the bits in uint16."""


class ShardHost:
    """One shard, safe to call from many threads.

    Args:
        shard: the state; nobody else may call it.
        publisher: copies parameters for pullers.
    """

    def __init__(self, shard: Shard, publisher: Publisher) -> None:
        self.partition = shard.partition
        self.index = shard.index
        self._shard = shard
        self._publisher = publisher
        self._changed = threading.Condition()
        self._published: dict[tuple[str, bool], Parameters] = {}
        self._closed: AdamServeError | None = None
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
        copied = pull.encoding if pull.encoding in ("float32", "bfloat16") and not pull.rows else ""
        return self._apply(
            push, deadline, lambda receipt: (receipt, self._read(pull, deadline)), copied=copied
        )

    def push(self, push: Push, *, deadline: Deadline) -> Receipt:
        """As `push_pull`, without a pull."""
        return self._apply(push, deadline, lambda receipt: receipt)

    def pull(self, pull: PullRequest, *, deadline: Deadline) -> Parameters:
        """The parameters, or some rows, and their stamp, from one moment between two updates.

        All pullers of a clock share one copy.

        Raises:
            NotFound, InvalidArgument: as `Store.read_rows`.
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
        """Check who pushes, before its gradients have come.

        Raises:
            NotFound: the pusher has not joined.
            Conflict: another session has taken its name over.
        """
        self._shard.ledger[pusher].check_session(pusher, session)

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

    def cut_off(self, pusher: str, session: str) -> None:
        """As `Shard.cut_off`."""
        with self._changed:
            self._shard.cut_off(pusher, session)

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
        """As `Shard.statistics`, with the last look at an update."""
        with self._changed:
            statistics = self._shard.statistics()
        return self._looked(statistics)

    def glance(self, patience_s: float = GLANCE_S) -> ShardStatistics:
        """As `statistics`, for a scrape: it asks for a look at the next update, and does not wait for a long one.

        While the shard is busy for longer than `patience_s`, these are the statistics that were read last.
        """
        self._shard.store.probe.ask()
        statistics = self._last
        if self._changed.acquire(timeout=patience_s if statistics is not None else -1):
            try:
                statistics = self._shard.statistics()
            finally:
                self._changed.release()
        assert statistics is not None  # for without one the wait has no end
        return self._looked(statistics)

    def _apply(
        self, push: Push, deadline: Deadline, then: Callable[[Receipt], Result], *, copied: str = ""
    ) -> Result:
        """Offer a push until it is decided, publish the copy that its update wrote, and answer with `then`."""
        shard, room = self._shard, partial(self._publisher.room, copied) if copied else None
        began = time.perf_counter()
        with self.refusing(push.pusher):
            checked = shard.check(push, copied=copied)
        arrived = time.perf_counter()
        with self._changed:
            queued = time.perf_counter() - arrived
            with self.refusing(push.pusher):
                shard.renew(push.pusher, push.session)
                answer = shard.offer(checked, room)
                while isinstance(answer, Decision):
                    queued += self._await_round(push, answer, deadline)
                    receipt = shard.ledger[push.pusher].receipts.get(push.seq)
                    answer = Decided(receipt) if receipt is not None else shard.offer(checked, room)
            if answer.copy is not None:
                key = (copied, shard.rule.has_lookahead)
                self._published[key] = Parameters(shard.stamp, {"float32": answer.copy})
            self._changed.notify_all()
            shard.queue_seconds.add(queued)
            shard.push_seconds.add(time.perf_counter() - began)
            return then(answer.receipt)

    # ---- while the condition is held

    def _await_round(self, push: Push, decision: Decision, deadline: Deadline) -> float:
        """Wait until a push may have its turn; returns for how long, in seconds."""
        if deadline.remaining() == 0.0:
            self._shard.withdraw(push.pusher)
            self._changed.notify_all()
            raise Unavailable(decision.reason, field=push.pusher, fix="send the same push again")
        began = time.perf_counter()
        self._shard.waiting += 1
        try:
            self._wait(deadline)
        finally:
            self._shard.waiting -= 1
        return time.perf_counter() - began

    def _read(self, pull: PullRequest, deadline: Deadline) -> Parameters:
        """Answer a pull when its turn has come."""
        shard = self._shard
        if pull.pusher:
            shard.renew(pull.pusher, pull.session)
        while (reason := self._not_yet(pull)) is not None:
            deadline.check(reason)
            self._wait(deadline)
        stamp = shard.stamp
        if pull.rows:
            rows = shard.store.read_rows(pull.rows, training=pull.training)
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

    def _not_yet(self, pull: PullRequest) -> str | None:
        """Why a pull has to wait, or None when its turn has come."""
        if (clock := self._shard.stamp.clock) < pull.at_least:
            return f"clock {pull.at_least}, it is at {clock}"
        if not pull.pusher:
            return None
        decision = self._shard.consistency.may_start(pull.pusher, self._shard.ledger.steps())
        return None if decision.verdict is Verdict.APPLY else decision.reason

    def _wait(self, deadline: Deadline) -> None:
        """Wait until something changes, a lease ends, or the deadline passes; raises what `close` was given."""
        expiry = self._shard.ledger.next_expiry_s()
        seconds = deadline.remaining()
        if self._closed is None:
            self._changed.wait(seconds if expiry is None else min(seconds, expiry + 0.001))
        if self._closed is not None:
            raise self._closed

    def _looked(self, statistics: ShardStatistics) -> ShardStatistics:
        """Add the last look at an update, worked out beside the writer; kept for a scrape that cannot wait."""
        self._last = replace(statistics, seen=self._shard.store.probe.seen())
        return self._last
