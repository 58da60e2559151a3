"""One pusher's standing with a service: lease, places of the shards, what was seen of them, and calls tried again."""

from __future__ import annotations

import os
import random
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from adamserve.client.link import Credentials, Feed, Link, spans_of
from adamserve.errors import (
    AdamServeError,
    Conflict,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    RolledBack,
    Unavailable,
)
from adamserve.v1 import control_pb2, control_pb2_grpc
from adamserve.values import Clocks, Deadline, Stamp, TensorSpec
from adamserve.wire import codec
from adamserve.wire.status import error_of

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Pause before a second try; it doubles with each, and a random share of it is waited."""

ATTEMPT_S = 60.0
"""Longest that one try may take before the call is made again on a new connection."""


class Aborted(Exception):
    """A push was given up before its commit."""


class Session:
    """Joins a job's shards, keeps the lease, and makes calls until they are answered.

    Attributes:
        id: tells this client from another one of the same pusher's name.
        shards: the ways to them; empty before `open`.
        tensors: the job's, by name; empty before `open`.
        seq: the last one used.
        resync: some shards may have counted another seq than others; `join` makes them agree.
    """

    def __init__(
        self,
        target: str,
        job: str,
        *,
        pusher: str,
        credentials: Credentials,
        timeout_s: float,
        lease_s: float,
    ) -> None:
        self.job = job
        self.pusher = pusher or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.id = uuid.uuid4().hex
        self.credentials = credentials
        self.channel: Any = credentials.channel(target)
        self.control = control_pb2_grpc.ControlServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.shards: list[Link] = []
        self.tensors: dict[str, TensorSpec] = {}
        self.seq = 0
        self.resync = False
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self._joined = False
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._lost: tuple[Clocks, Clocks] | None = None

    def deadline(self) -> Deadline:
        """That of a call which begins now."""
        return Deadline.after(self._timeout_s)

    # ---- the lease

    def open(self, deadline: Deadline, *, join: bool = False) -> None:
        """Learn where the shards are, and join them, the first time."""
        if self.closed:
            raise InvalidArgument("the client is closed", field="client")
        if not self.shards:
            request = control_pb2.GetTopologyRequest(job=self.job)
            found = self.call(self.control.GetTopology, request, deadline)
            self.tensors = {
                t.name: TensorSpec(
                    t.name, tuple(t.shape), codec.encoding_name(t.dtype, field=t.name), t.stride or 1
                )
                for t in found.job.tensors
            }
            self.shards = [Link(i, place, self.credentials) for i, place in enumerate(found.shards)]
        if join and not self._joined:
            self.seq = max(self.join(deadline, 0), default=0)
            self.join(deadline, self.seq)
            self._joined = True
            threading.Thread(target=self._beat, name="adamserve-lease", daemon=True).start()

    def join(self, deadline: Deadline, last_seq: int) -> list[int]:
        """Join every shard; returns the last seq that each knows."""
        found = self.call(self.control.Join, self._lease(last_seq), deadline)
        self._note(found.shards)
        return [place.last_seq for place in found.shards]

    def _lease(self, last_seq: int = 0) -> control_pb2.JoinRequest:
        return control_pb2.JoinRequest(
            job=self.job, pusher=self.pusher, session=self.id, lease_s=self._lease_s, last_seq=last_seq
        )

    def _beat(self) -> None:
        """Renew the lease three times in its length, until closed."""
        while not self._closed.wait(self._lease_s / 3):
            try:
                self.control.Join(self._lease(), timeout=self._lease_s, metadata=self.credentials.metadata)
            except (grpc.RpcError, ValueError):
                continue  # the next push or pull says what is wrong; ValueError: the channel was closed meanwhile

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """Stop counting as live, and disconnect."""
        self._closed.set()
        if self._joined:
            request = control_pb2.LeaveRequest(job=self.job, pusher=self.pusher, session=self.id)
            with suppress(grpc.RpcError):  # the lease runs out by itself
                self.control.Leave(request, timeout=5.0, metadata=self.credentials.metadata)
        for shard in self.shards:
            shard.close()
        self.channel.close()

    # ---- shards, seen and lost

    def refresh(self, deadline: Deadline) -> None:
        """Learn anew where the shards are, and be live on those that were restored."""
        if self._joined:
            self.join(deadline, 0)
        else:
            request = control_pb2.GetTopologyRequest(job=self.job)
            self._note(self.call(self.control.GetTopology, request, deadline).shards)

    def _note(self, places: Any) -> None:
        if [spans_of(place) for place in places] != [shard.spans for shard in self.shards]:
            raise Conflict(
                f"the service has {len(places)} shards now, where it had {len(self.shards)}, or others",
                field="shards",
                fix="connect again",
            )
        for shard, place in zip(self.shards, places, strict=True):
            shard.move(place)
            if place.stamp.incarnation > shard.seen.incarnation:
                shard.restored_clock = place.restored_clock
                self.resync = True  # it may know of fewer pushes than were made
                self.see(shard, Stamp(place.stamp.incarnation, place.restored_clock))

    def see(self, shard: Link, stamp: Stamp) -> None:
        """Note a shard's stamp; a new incarnation that began before what was seen in the old one has lost updates."""
        with self._lock:
            if stamp.incarnation > shard.seen.incarnation and shard.restored_clock < shard.seen.clock:
                before, after = self._lost or (None, None)
                now = Clocks(s.seen for s in self.shards)
                mended = Clocks(
                    Stamp(stamp.incarnation, shard.restored_clock) if s is shard else kept
                    for s, kept in zip(self.shards, after or now, strict=True)
                )
                self._lost = (before or now, mended)
            shard.seen = max(shard.seen, stamp)

    def raise_lost(self) -> None:
        """Say once that a shard was restored and updates that this client saw are lost.

        Raises:
            RolledBack: with the clocks before and after.
        """
        lost = self.forget_lost()
        if lost is not None:
            raise rolled_back(
                "a shard was restored from a checkpoint; updates that this client saw are lost", *lost
            )

    def forget_lost(self) -> tuple[Clocks, Clocks] | None:
        """The clocks before and after what `raise_lost` would say, which it then does not."""
        with self._lock:
            lost, self._lost = self._lost, None
        return lost

    # ---- calls

    def call(self, method: Any, request: Any, deadline: Deadline | None = None) -> Any:
        """One call of the ControlService, tried until it is answered."""
        return self.retrying(
            lambda s: method(request, timeout=s, metadata=self.credentials.metadata),
            deadline or self.deadline(),
        )

    def retrying(
        self,
        attempt: Callable[[float], Any],
        deadline: Deadline,
        shard: Link | None = None,
        feed: Feed | None = None,
    ) -> Any:
        """Call until it is answered, the error is not one that time mends, or the deadline passes.

        Args:
            attempt: one try, given the seconds that it may take.
            shard: whose connections are made anew before another try.
            feed: the push that the call is a part of.

        Raises:
            Aborted: the push was given up.
            AdamServeError: what the last try met.
        """
        pause = FIRST_PAUSE_S
        while True:
            try:
                return attempt(min(ATTEMPT_S, max(0.001, deadline.remaining())))
            except grpc.RpcError as failed:
                error = error_of(failed)
            except AdamServeError as failed:
                error = failed
            if feed is not None and feed.aborted:
                raise Aborted
            # A restored shard knows neither job nor pusher for a moment.
            restoring = shard is not None and isinstance(error, NotFound) and error.field in ("job", "pusher")
            if not (restoring or isinstance(error, Unavailable)) or self.closed:
                raise error
            if deadline.remaining() < pause:
                raise Unavailable(
                    f"gave up after {self._timeout_s:g} s: {error.problem}", field=error.field, fix=error.fix
                )
            self._closed.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)
            if shard is not None:
                shard.reconnect()
                try:
                    self.refresh(Deadline.after(min(5.0, deadline.remaining())))
                except (Unavailable, NotFound, LimitExceeded):
                    continue  # the service is away too


def rolled_back(problem: str, before: Clocks, after: Clocks) -> RolledBack:
    """The error that tells a rollback, with its clocks."""
    error = RolledBack(f"{problem} (clocks {before} before, {after} after)", fix="pull, and compute again")
    error.before, error.after = tuple(before), tuple(after)
    return error
