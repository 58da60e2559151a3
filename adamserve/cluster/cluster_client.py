"""push, pull and wait from inside the cluster, straight to the shards.

One `ClusterClient` a pusher. A shard that died is invisible to its caller but for the incarnation: `push` answers
STALE for the gradients that were under way, `pull` waits until the shard is back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, OwnerDiedError, RayActorError, RayTaskError

from adamserve.client.destination import Target
from adamserve.cluster.ray_calls import own_error
from adamserve.errors import AdamServeError, InvalidArgument, NotFinite, Unavailable
from adamserve.job import JobConfig, Topology
from adamserve.optim import all_finite
from adamserve.shard import sparse
from adamserve.shard.geometry import Partition, partition
from adamserve.shard.gradients import borrow
from adamserve.values import (
    GRADIENT_DTYPES,
    Array,
    Clocks,
    Deadline,
    Gradient,
    JobReceipt,
    Joined,
    Outcome,
    Push,
    Receipt,
    SparseRows,
    Stamp,
)

CALL_MARGIN_S = 30.0
"""How much longer than a shard's own deadline its answer is waited for."""

GONE = (RayActorError, OwnerDiedError, ObjectLostError)
"""What Ray raises when a shard's process is no more."""


class ClusterClient:
    """Pushes and pulls for one pusher of one job.

    Not thread-safe: one push or pull at a time. A heartbeat thread renews the lease while gradients are computed.

    Args:
        controller: handle of the service's controller.
        job: the job's name; it exists.
        pusher: this pusher's name, unique in the job; None for a reader that only pulls.
        lease_s: seconds after which the shards stop counting a pusher that fell silent.
        timeout_s: longest that a push or pull may wait for its turn, or for a shard to be restored.
    """

    def __init__(
        self,
        controller: Any,
        job: str,
        pusher: str | None = None,
        *,
        lease_s: float = 10.0,
        timeout_s: float = 120.0,
    ) -> None:
        self._controller = controller
        self._job = job
        self._pusher = pusher
        self._lease_s = lease_s
        self._timeout_s = timeout_s
        self._seq = 0
        self._topology: Topology = ray.get(controller.topology.remote(job), timeout=timeout_s)
        self._actors: list[Any] = ray.get(controller.actors.remote(), timeout=timeout_s)
        self._partition: Partition = partition(self._topology.config.tensors, len(self._actors))
        self._closed = threading.Event()
        self._heartbeat: threading.Thread | None = None

    @property
    def config(self) -> JobConfig:
        """The job's configuration."""
        return self._topology.config

    @property
    def seq(self) -> int:
        """The last seq used; the number of pushes that this pusher has made."""
        return self._seq

    def join(self) -> int:
        """Become live on every shard, and go on counting where an earlier pusher of this name stopped.

        Returns:
            The last seq used.
        """
        if self._pusher is None:
            raise InvalidArgument("a client without a pusher's name only pulls", field="pusher")
        deadline = Deadline.after(self._timeout_s)
        joined = self._everywhere(self._join, deadline)
        self._seq = max(answer.last_seq for answer in joined)
        self._everywhere(self._join, deadline)
        if self._heartbeat is None:
            self._heartbeat = threading.Thread(target=self._beat, name="adamserve-lease", daemon=True)
            self._heartbeat.start()
        return self._seq

    def pull(
        self,
        *,
        into: Mapping[str, Array] | None = None,
        rows: Mapping[str, Array] | None = None,
        training: bool = True,
        at_least: int = 0,
    ) -> tuple[Mapping[str, Array], Clocks]:
        """Fetch the parameters. Returns when every shard has answered.

        Args:
            into: writable contiguous arrays by tensor, of the tensors' shapes and dtypes, to fill: one copy, from the
                object store. Without it new arrays are made.
            rows: by tensor, the numbers of the rows wanted; only those travel, and come back in this order as an array
                of shape (n, *shape[1:]), never in `into`. Other tensors come whole.
            training: the point where gradients are to be taken rather than w; ssp may hold the call back.
            at_least: wait until every shard's clock has come this far.

        Returns:
            The arrays, and the stamp of each shard.

        Raises:
            Unavailable: a turn, a clock or a restored shard did not come within the timeout.
        """
        deadline = Deadline.after(self._timeout_s)
        pusher = self._pusher if training else None
        target = Target(self._partition.specs, into, rows)
        stamps = []
        if target.by_rows:
            asked = [
                {span.tensor: sparse.narrow(wanted) for span, wanted in target.asked(spans)}
                for spans in self._partition.shards
            ]
            fetch = partial(
                self._fetch_rows, asked=asked, pusher=pusher, training=training, at_least=at_least
            )
            for shard, (stamp, found) in enumerate(self._everywhere(fetch, deadline)):
                for span in self._partition.shards[shard]:
                    if span.tensor in asked[shard]:
                        target.put_rows(span.tensor, asked[shard][span.tensor], found[span.tensor])
                    else:
                        target.flat[span.tensor][span.start : span.stop] = found[span.tensor]
                stamps.append(stamp)
            return target.result(), Clocks(stamps)
        fetch = partial(self._fetch, pusher=pusher, training=training, at_least=at_least)
        for shard, (stamp, arrays) in enumerate(self._everywhere(fetch, deadline, take=_read)):
            for span, dtype, offset in self._partition.layout(shard):
                part = torch.from_numpy(target.flat[span.tensor][span.start : span.stop])
                part.copy_(borrow(arrays[dtype][offset : offset + span.numel]))  # on torch's threads
            stamps.append(stamp)
        return target.result(), Clocks(stamps)

    def push(
        self, gradients: Mapping[str, Gradient], clock: Clocks, *, lr: float | None = None
    ) -> JobReceipt:
        """Send gradients to the shards that own them. Returns when every shard has answered.

        Args:
            gradients: by tensor, of the tensor's shape, or `SparseRows` (also torch.sparse_coo and scipy matrices); a
                tensor left out had no gradient. They are copied once, into Ray's object store, before this returns.
            clock: what the pull returned.
            lr: rate for this push in place of the rule's.

        Raises:
            InvalidArgument: a name, shape or dtype is wrong, or a value is NaN or infinite. No shard has
                changed, where the fault could be seen before sending.
            Unavailable: a shard did not answer within the timeout.
        """
        if self._pusher is None:
            raise InvalidArgument("a client without a pusher's name only pulls", field="pusher")
        flat = {name: self._flat(name, gradient) for name, gradient in gradients.items()}
        self._seq += 1
        pushes = []
        for shard, spans in enumerate(self._partition.shards):
            parts = {s.tensor: _slim(sparse.part(flat[s.tensor], s)) for s in spans if s.tensor in flat}
            pushes.append(Push(self._pusher, self._seq, clock[shard], parts, lr))
        send = partial(self._send, pushes=pushes)
        deadline = Deadline.after(self._timeout_s)
        try:
            return JobReceipt(tuple(self._everywhere(send, deadline, lost=_stale)))
        except AdamServeError:
            # Some shards may have counted this seq and some not: join again, so that all of them have.
            self._everywhere(self._join, Deadline.after(self._timeout_s))
            raise

    def leave(self) -> None:
        """Stop counting as live on every shard, and end the heartbeat."""
        self._closed.set()
        if self._pusher is None:
            return
        self._everywhere(self._leave, Deadline.after(self._timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    # ---- one shard

    def _join(self, shard: int, timeout_s: float) -> Any:
        return self._actor(shard).join.remote(self._job, self._pusher, self._lease_s, self._seq)

    def _leave(self, shard: int, timeout_s: float) -> Any:
        return self._actor(shard).leave.remote(self._job, self._pusher)

    def _fetch(
        self, shard: int, timeout_s: float, *, pusher: str | None, training: bool, at_least: int
    ) -> Any:
        return self._actor(shard).pull.remote(self._job, pusher, training, at_least, timeout_s)

    def _fetch_rows(
        self,
        shard: int,
        timeout_s: float,
        *,
        asked: Sequence[Mapping[str, Array]],
        pusher: str | None,
        training: bool,
        at_least: int,
    ) -> Any:
        actor = self._actor(shard)
        return actor.pull_rows.remote(self._job, asked[shard], pusher, training, at_least, timeout_s)

    def _send(self, shard: int, timeout_s: float, *, pushes: Sequence[Push]) -> Any:
        return self._actor(shard).push.remote(self._job, pushes[shard], timeout_s)

    def _actor(self, shard: int) -> Any:
        return self._actors[shard]

    def _everywhere(
        self,
        call: Callable[[int, float], Any],
        deadline: Deadline,
        *,
        take: Callable[[Any, float], Any] = lambda answer, _: answer,
        lost: Callable[[Stamp], Any] | None = None,
    ) -> list[Any]:
        """Call every shard at once, and wait for all of them.

        Args:
            call: starts the call on a shard that may take some seconds; returns Ray's reference.
            deadline: for everything together.
            take: what to make of an answer, within some seconds.
            lost: the answer in place of a shard that was restored meanwhile; without it the shard is called again.
        """
        asked = list(self._topology.incarnations)  # as the topology changes when one of them was restored
        refs = [call(shard, deadline.remaining()) for shard in range(len(asked))]
        answers = []
        for shard, ref in enumerate(refs):
            while True:
                try:
                    answer = ray.get(ref, timeout=deadline.remaining() + CALL_MARGIN_S)
                    answers.append(take(answer, deadline.remaining() + CALL_MARGIN_S))
                    break
                except GONE:
                    stamp = self._await_restored(shard, asked[shard], deadline)
                    if lost is not None:
                        answers.append(lost(stamp))
                        break
                    asked[shard] = self._topology.incarnations[shard]
                    ref = call(shard, deadline.remaining())
                except GetTimeoutError:
                    raise Unavailable(f"shard {shard} did not answer in {self._timeout_s:.0f} s") from None
                except RayTaskError as error:
                    raise own_error(error) from None
        return answers

    def _await_restored(self, shard: int, incarnation: int, deadline: Deadline) -> Stamp:
        """Wait until a shard is back in an incarnation after this one, and join it again; returns where it stands."""
        waited = self._controller.await_restored.remote(self._job, shard, incarnation, deadline.remaining())
        try:
            self._topology = ray.get(waited, timeout=deadline.remaining() + CALL_MARGIN_S)
            self._actors = ray.get(self._controller.actors.remote(), timeout=CALL_MARGIN_S)
            if self._heartbeat is None or self._closed.is_set():
                return Stamp(self._topology.incarnations[shard], 0)
            joined: Joined = ray.get(self._join(shard, 0.0), timeout=deadline.remaining() + CALL_MARGIN_S)
            return joined.stamp
        except RayTaskError as error:
            raise own_error(error) from None

    def _flat(self, name: str, gradient: Gradient) -> Gradient:
        """A gradient as one contiguous run, or as increasing rows; refused here where that can be seen before any shard
        is sent its part."""
        spec = self._partition.spec(name)
        rows = sparse.as_rows(name, gradient)
        if rows is not None:
            return sparse.for_shards(spec, rows)
        assert not isinstance(gradient, SparseRows)
        if tuple(gradient.shape) != spec.shape:
            raise InvalidArgument(f"a gradient of shape {tuple(gradient.shape)} for {spec.shape}", field=name)
        flat = sparse.to_places(spec, np.ascontiguousarray(gradient))
        if str(flat.dtype) not in GRADIENT_DTYPES[spec.dtype]:
            raise InvalidArgument(
                f"a gradient of dtype {flat.dtype} for a {spec.dtype} parameter", field=name
            )
        # One shard refuses a push whole by itself; of several, some would apply their part and others not.
        if len(self._actors) > 1 and not all_finite(borrow(flat)):
            raise NotFinite(
                "the gradient holds NaN or infinity", field=name, fix="skip this batch, or clip the gradient"
            )
        return flat

    def _beat(self) -> None:
        """Renew the lease three times in its length, until closed."""
        while not self._closed.wait(self._lease_s / 3):
            for shard in range(len(self._actors)):
                self._actor(shard).renew.remote(self._job, self._pusher)


def _slim(gradient: Gradient) -> Gradient:
    if isinstance(gradient, SparseRows):
        return SparseRows(sparse.narrow(gradient.indices), gradient.values)
    return gradient


def _read(answer: tuple[Stamp, Sequence[Any]], timeout_s: float) -> tuple[Stamp, Mapping[str, Array]]:
    """Follow a pull's reference into the object store; the arrays are read-only views of it."""
    stamp, [published] = answer
    return stamp, ray.get(published, timeout=timeout_s)


def _stale(stamp: Stamp) -> Receipt:
    """The answer for a push to a shard that died before it answered."""
    reason = f"the shard was restored: incarnation {stamp.incarnation}, clock {stamp.clock}; pull and compute again"
    return Receipt(Outcome.STALE, stamp, 0, reason)
