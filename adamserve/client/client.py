"""`adamserve.connect`: push and pull from outside the cluster. Needs numpy, grpcio and protobuf only.

Every call goes straight to the shards, each over a connection and in a thread of its own, and is tried again until its
deadline: pushes are named by (job, pusher, seq), so a shard applies each once however often it comes. Calls to one
shard keep their order.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal, Self, TypeVar, overload

import numpy as np

from adamserve import optim
from adamserve.client.destination import Target
from adamserve.client.link import Credentials, Feed, Link
from adamserve.client.outgoing import Outgoing
from adamserve.client.session import Session, rolled_back
from adamserve.errors import (
    InvalidArgument,
    Unavailable,
)
from adamserve.observe.state import JobState
from adamserve.shard.sparse import check_tables, spec_of, to_places
from adamserve.v1 import control_pb2, shard_pb2, types_pb2
from adamserve.values import (
    Array,
    Clocks,
    Deadline,
    Gradient,
    JobReceipt,
    Outcome,
    Receipt,
    Stamp,
    TensorSpec,
)
from adamserve.wire import chunks, codec
from adamserve.wire.frames import Parts
from adamserve.wire.records import from_message

OUTCOMES: Mapping[int, Outcome] = {
    shard_pb2.OUTCOME_APPLIED: Outcome.APPLIED,
    shard_pb2.OUTCOME_DUPLICATE: Outcome.DUPLICATE,
    shard_pb2.OUTCOME_STALE: Outcome.STALE,
}

Result = TypeVar("Result")


class PushHandle:
    """A push under way."""

    def __init__(self, client: Client, clock: Clocks, shards: list[Future[Receipt]]) -> None:
        self._client = client
        self._clock = clock
        self.futures = shards

    def done(self) -> bool:
        """Whether every shard has answered."""
        return all(future.done() for future in self.futures)

    def result(self) -> JobReceipt:
        """Wait for every shard's answer; each has its deadline already.

        Raises:
            RolledBack: a shard was restored after the gradient's parameters were pulled.
            AdamServeError: as `Client.push`.
        """
        return self._client._settle(self._clock, [_outcome(future) for future in self.futures])


class Client:
    """Pushes and pulls for one pusher of one job; `adamserve.connect` makes it.

    Thread-safe, but for `push`, `push_pull` and `pull` with training=True, which one thread at a time calls. A
    heartbeat thread renews the lease while gradients are computed.
    """

    def __init__(
        self,
        target: str,
        job: str,
        *,
        pusher: str = "",
        credentials: Credentials | None = None,
        timeout_s: float = 120.0,
        lease_s: float = 10.0,
        wire_dtype: str = "float32",
        max_in_flight: int = 4,
    ) -> None:
        if wire_dtype not in codec.ENCODINGS or wire_dtype == "float64":
            known = ", ".join(name for name in codec.ENCODINGS if name != "float64")
            raise InvalidArgument(
                f"{wire_dtype!r} is not a wire dtype", field="wire_dtype", fix=f"one of {known}"
            )
        if not max_in_flight >= 1:
            raise InvalidArgument(f"must be at least 1, got {max_in_flight}", field="max_in_flight")
        self._session = Session(
            target,
            job,
            pusher=pusher,
            credentials=credentials or Credentials(),
            timeout_s=timeout_s,
            lease_s=lease_s,
        )
        self._outgoing = Outgoing(self._session, wire_dtype)
        self._max_in_flight = max_in_flight
        self._in_flight = threading.BoundedSemaphore(max_in_flight)
        self._pending: list[PushHandle] = []
        self._lock = threading.Lock()

    # ---- the job

    @property
    def job(self) -> str:
        """The job's name."""
        return self._session.job

    @property
    def pusher(self) -> str:
        """This pusher's name."""
        return self._session.pusher

    @property
    def seq(self) -> int:
        """The last seq used; the number of pushes that this pusher has made."""
        return self._session.seq

    def join(self) -> int:
        """Become live on every shard now; returns the last seq used."""
        self._session.open(self._session.deadline(), join=True)
        return self.seq

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The job's tensors, in order."""
        self._session.open(self._session.deadline())
        return tuple(self._session.tensors.values())

    def create(
        self,
        parameters: Mapping[str, Array],
        rule: optim.Rule,
        *,
        consistency: str = "async",
        tensor_rules: Mapping[str, optim.Rule] | None = None,
        tables: Collection[str] = (),
        sparse: str = "exact",
        checkpoint_every_s: float | None = None,
    ) -> bool:
        """Start the job from these parameters. Idempotent; the values of a job that exists are left as they are.

        Args:
            parameters: float32 or float64 arrays by tensor, in the order in which they are laid out.
            rule: how gradients become updates.
            consistency: "async", "bsp", or "ssp:S".
            tensor_rules: by tensor, a rule other than `rule`: of the same class and with the same slots.
            tables: tensors of which some rows are far busier than others, such as embeddings sorted by frequency: each
                shard gets an equal share of any run of rows. A whole push or pull of a table costs one copy more.
            sparse: "exact" or "lazy", what `SparseRows` do to the other rows: what a zero gradient would, or nothing.
            checkpoint_every_s: seconds between checkpoints; None takes the service's default.

        Returns:
            Whether this call created it.

        Raises:
            Conflict: a job of that name exists with other tensors, another rule or mode.
            InvalidArgument: a name, dtype, value or constant is wrong; names it.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in parameters.items()}
        specs = [spec_of(name, array, tables) for name, array in arrays.items()]
        check_tables(specs, tables)
        asked = control_pb2.JobSpec(
            name=self.job,
            tensors=[
                types_pb2.TensorSpec(
                    name=spec.name,
                    shape=np.shape(parameters[spec.name]),
                    dtype=codec.ENCODINGS[spec.dtype].number,  # type: ignore[arg-type]
                    stride=spec.stride,
                )
                for spec in specs
            ],
            rule_json=json.dumps(optim.to_dict(rule)),
            tensor_rules_json={n: json.dumps(optim.to_dict(r)) for n, r in (tensor_rules or {}).items()},
            consistency=consistency,
            checkpoint_every_s=checkpoint_every_s or 0.0,
            sparse=sparse,
        )

        def messages() -> Iterator[bytes]:
            yield control_pb2.CreateJobRequest(start=asked).SerializeToString()
            for spec in specs:
                kept = to_places(spec, arrays[spec.name])
                for parts in codec.encode(spec.name, kept, 0, spec.dtype):
                    yield b"".join(parts)

        create = self._session.channel.stream_unary("/adamserve.v1.ControlService/CreateJob")
        deadline = self._session.deadline()
        answer = self._session.retrying(
            lambda s: create(messages(), timeout=s, metadata=self._session.credentials.metadata), deadline
        )
        return control_pb2.CreateJobResponse.FromString(answer).created

    def pull(
        self,
        *,
        into: Mapping[str, Array] | None = None,
        rows: Mapping[str, Array] | None = None,
        training: bool = True,
        at_least: int = 0,
    ) -> tuple[Mapping[str, Array], Clocks]:
        """Fetch the parameters. Returns when every shard has answered; pushes made earlier go first.

        Args:
            into: writable contiguous arrays by tensor, of the tensors' shapes and dtypes, to fill. Without it new ones
                are made. After an error they may hold anything.
            rows: by tensor, the numbers of the rows wanted; only those travel, and come back in this order as an array
                of shape (n, *shape[1:]), never in `into`. Other tensors come whole.
            training: the point where gradients are to be taken rather than w; ssp may hold the call back.
            at_least: wait until every shard's clock has come this far.

        Returns:
            The arrays, and the stamp of each shard.

        Raises:
            RolledBack: a shard was restored, and updates that this client saw are lost. Pull again to go on.
            Unavailable: a turn, a clock or a shard did not come within the timeout.
        """
        deadline = self._session.deadline()
        self._session.open(deadline, join=training)
        target = self._pull_target(into, rows)
        fetch = partial(
            self._pull_one, training=training, at_least=at_least, target=target, deadline=deadline
        )
        stamps = self._everywhere(fetch)
        self._session.raise_lost()
        return target.result(), Clocks(stamps)

    @overload
    def push(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        wait: Literal[True] = True,
    ) -> JobReceipt: ...
    @overload
    def push(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        wait: Literal[False],
    ) -> PushHandle: ...
    def push(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        wait: bool = True,
    ) -> JobReceipt | PushHandle:
        """Send gradients to the shards that own them.

        Args:
            gradients: by tensor, of the tensor's shape, float32 or float64, or `SparseRows` (also torch.sparse_coo and
                scipy matrices); a tensor left out had no gradient.
            clock: what the pull returned.
            lr: rate for this push in place of the rule's.
            rates: by tensor, a rate in place of `lr` and the rule's.
            wait: return the receipt when every shard has answered. False copies the gradients and returns a handle at
                once; it waits only while `max_in_flight` pushes are under way.

        Raises:
            InvalidArgument: a name, shape, dtype or value is wrong; nothing was sent.
            RolledBack: a shard was restored after `clock`; the others have applied their part. Pull and go on.
            Unavailable: a shard did not answer within the timeout.
        """
        flat, commit = self._gradients(gradients, copy=not wait), _commit(lr, rates)
        feed, _, calls = self._opened(clock)
        handle = self._complete(feed, calls, flat, commit, wait=wait)
        return handle.result() if wait else handle

    def push_pull(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        into: Mapping[str, Array] | None = None,
        rows: Mapping[str, Array] | None = None,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> tuple[JobReceipt, Mapping[str, Array], Clocks]:
        """`push`, then `pull`, in one exchange with each shard."""
        flat, commit = self._gradients(gradients, copy=False), _commit(lr, rates)
        target = self._pull_target(into, rows)
        feed, stamps, calls = self._opened(clock, target=target)
        receipt = self._complete(feed, calls, flat, commit, wait=True).result()
        self._session.raise_lost()
        return receipt, target.result(), Clocks(stamps)

    def report(self, loss: float, comparator_loss: float | None = None) -> None:
        """Report a batch's training loss; it feeds the convergence metrics.

        Args:
            loss: at the parameters that were pulled.
            comparator_loss: for a convex job, the same batch's loss at the best parameters, W*; it feeds the regret.
        """
        request = control_pb2.ReportRequest(
            job=self.job,
            pusher=self.pusher,
            losses=[control_pb2.Loss(loss=loss, comparator_loss=comparator_loss)],
        )
        self._session.call(self._session.control.Report, request)

    def status(self) -> JobState:
        """How the job stands."""
        [found] = self.jobs()
        return found

    def jobs(self) -> list[JobState]:
        """How this client's job stands; of one that was made with job "", every job that its token may see."""
        request = control_pb2.GetStatusRequest(job=self.job)
        answer = self._session.call(self._session.control.GetStatus, request)
        return [from_message(JobState, found) for found in answer.jobs]

    def checkpoint(self) -> int:
        """Write a checkpoint now; returns its number, 0 where the service keeps none."""
        request = control_pb2.CheckpointRequest(job=self.job)
        number: int = self._session.call(self._session.control.Checkpoint, request).number
        return number

    def delete(self, *, purge: bool = False) -> bool:
        """Delete the job; its name can be used again.

        Args:
            purge: remove its checkpoints too, instead of moving them to the trash.

        Returns:
            Whether there was one.
        """
        request = control_pb2.DeleteJobRequest(job=self.job, purge=purge)
        deleted: bool = self._session.call(self._session.control.DeleteJob, request).deleted
        return deleted

    def close(self) -> None:
        """Wait for the pushes under way, stop counting as live, and disconnect. Never raises what a push has raised."""
        if self._session.closed:
            return
        self._wait_for_pending()
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- pushes

    def begin(self, clock: Clocks, *, into: Mapping[str, Array]) -> tuple[Feed, list[Stamp], Target]:
        """Open a push whose gradients are not all known yet, and a pull after it in the same exchange.

        `Feed.add` the gradients, then `finish` (or `abort`) the push.

        Args:
            clock: what the pull returned.
            into: as for `pull`.

        Returns:
            The feed; and, once the push is settled, the pull's stamps and its target, whose `result` fills `into`.
        """
        target = self._pull_target(into, None)
        feed, stamps, calls = self._opened(clock, target=target)
        feed.futures = [
            shard.thread.submit(call) for shard, call in zip(self._session.shards, calls, strict=True)
        ]
        self._release_after(feed)
        return feed, stamps, target

    def _opened(
        self, clock: Clocks, *, target: Target | None = None
    ) -> tuple[Feed, list[Stamp], list[Callable[[], Receipt]]]:
        """A push with its seq and its place among those under way; and each shard's call, not made yet."""
        deadline = self._session.deadline()
        self._session.open(deadline, join=True)
        if len(clock) != len(self._session.shards):
            raise InvalidArgument(
                f"has {len(clock)} stamps for {len(self._session.shards)} shards",
                field="clock",
                fix="give what pull returned",
            )
        try:
            stamps = [Stamp(*stamp) for stamp in clock]
        except TypeError:
            raise InvalidArgument(
                "holds what is no stamp", field="clock", fix="give what pull returned"
            ) from None
        self._settle_earlier(deadline)
        if not self._in_flight.acquire(timeout=deadline.remaining()):
            raise Unavailable(f"{self._max_in_flight} pushes are still under way", field="max_in_flight")
        self._session.seq += 1
        feed = Feed(clock, deadline)
        calls: list[Callable[[], Receipt]] = []
        for shard, stamp in zip(self._session.shards, stamps, strict=True):
            start = shard_pb2.PushStart(
                job=self.job,
                pusher=self.pusher,
                session=self._session.id,
                seq=self._session.seq,
                pulled=types_pb2.Stamp(incarnation=stamp.incarnation, clock=stamp.clock),
            )
            head = shard_pb2.PushRequest(start=start).SerializeToString()
            call = partial(self._push_pull_one, target=target, stamps=stamps) if target else self._push_one
            calls.append(partial(call, shard, feed, head, deadline))
        return feed, stamps, calls

    def _complete(
        self,
        feed: Feed,
        calls: list[Callable[[], Receipt]],
        flat: Mapping[str, Gradient],
        commit: bytes,
        *,
        wait: bool,
    ) -> PushHandle:
        """Make a push of gradients that are all here; where the caller waits, the last shard's call is its own."""
        for name, values in flat.items():
            feed.add(name, self._outgoing.with_residual(name, values))
        feed.end(commit)
        own = len(calls) - 1 if wait and all(handle.done() for handle in self._pending) else len(calls)
        feed.futures = [
            shard.thread.submit(call)
            for shard, call in zip(self._session.shards[:own], calls[:own], strict=True)
        ]
        for call in calls[own:]:
            future: Future[Receipt] = Future()
            feed.futures.append(future)
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:  # Ctrl-C: whether the shard has applied it is not known
                future.set_exception(error)
                self._release_after(feed)
                raise
        self._release_after(feed)
        return self._handle(feed)

    def _release_after(self, feed: Feed) -> None:
        """Give the push's place free when every shard has answered; after an error seqs have to be agreed on anew."""
        left = [len(feed.futures)]

        def finished(future: Future[Receipt]) -> None:
            if future.cancelled() or future.exception() is not None:
                self._session.resync = True
            with self._lock:
                left[0] -= 1
                last = left[0] == 0
            if last:
                self._in_flight.release()

        for future in feed.futures:
            future.add_done_callback(finished)

    def gradient(self, name: str, gradient: Gradient, *, copy: bool) -> Gradient:
        """A gradient as `Feed.add` takes it: one contiguous run, or increasing rows; checked.

        Raises:
            InvalidArgument, NotFound, NotFinite: what is wrong with it; names the tensor.
        """
        return self._outgoing.checked(name, gradient, copy=copy)

    def raise_lost(self) -> None:
        """As `Session.raise_lost`."""
        self._session.raise_lost()

    def finish(
        self, feed: Feed, *, lr: float | None = None, rates: Mapping[str, float] | None = None
    ) -> PushHandle:
        """Commit a push; returns its handle."""
        feed.end(_commit(lr, rates))
        return self._handle(feed)

    def _handle(self, feed: Feed) -> PushHandle:
        handle = PushHandle(self, feed.clock, feed.futures)
        self._pending = [h for h in self._pending if not h.done()] + [handle]
        return handle

    def abort(self, feed: Feed) -> None:
        """Give a push up that was begun and not finished: no shard has applied anything, and its seq is free."""
        feed.end(None)
        for future in feed.futures:
            _outcome(future)
        self._session.seq -= 1

    def _push_one(self, shard: Link, feed: Feed, head: bytes, deadline: Deadline) -> Receipt:
        """One shard's part of a push, tried until it is answered."""

        def attempt(timeout: float) -> shard_pb2.PushResponse:
            answers = shard.call("Push", lambda: self._outgoing.messages(shard, feed, head), timeout)
            answer = shard_pb2.PushResponse.FromString(bytes(_first(answers)))
            for _ in answers:  # to the end of the call, so that its connection can be used again
                pass
            return answer

        return _receipt(self._session.retrying(attempt, deadline, shard, feed))

    def _push_pull_one(
        self,
        shard: Link,
        feed: Feed,
        head: bytes,
        deadline: Deadline,
        *,
        target: Target,
        stamps: list[Stamp],
    ) -> Receipt:
        asked = self._pull_request(shard, target, training=True, at_least=0)
        request = shard_pb2.PushPullRequest(pull=asked)
        pull = request.SerializeToString()

        def messages() -> Iterator[Parts]:
            for i, message in enumerate(self._outgoing.messages(shard, feed, head)):
                embedded = chunks.embedded(1, message)
                yield embedded if i else [pull, *embedded]

        def attempt(timeout: float) -> Receipt:
            answers = shard.call("PushPull", messages, timeout)
            receipt = _receipt(shard_pb2.PushPullResponse.FromString(bytes(_first(answers))).push)
            stamps[shard.index] = self._take(
                shard, (chunks.inside(answer, 2)[0] for answer in answers), target
            )
            return receipt

        receipt: Receipt = self._session.retrying(attempt, deadline, shard, feed)
        return receipt

    def _settle(self, clock: Clocks, outcomes: list[Receipt | Exception]) -> JobReceipt:
        """Make one answer of the shards' answers."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if errors:
            self._session.resync = True  # some shards have counted this seq, and some not
            raise errors[0]
        receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
        if any(
            r.stamp.incarnation > s.seen.incarnation
            for s, r in zip(self._session.shards, receipts, strict=True)
        ):
            self._session.refresh(self._session.deadline())
        for shard, receipt in zip(self._session.shards, receipts, strict=True):
            self._session.see(shard, receipt.stamp)
        rolled = [
            receipt
            for receipt, pulled in zip(receipts, clock, strict=True)
            if receipt.outcome is Outcome.STALE and receipt.stamp.incarnation > pulled.incarnation
        ]
        if rolled:
            self._session.resync = True
            self._session.forget_lost()
            raise rolled_back(rolled[0].reason, clock, Clocks(r.stamp for r in receipts))
        return JobReceipt(tuple(receipts))

    def _settle_earlier(self, deadline: Deadline) -> None:
        """After a push that only some shards have counted: wait for those under way, then agree on seq anew."""
        if not self._session.resync:
            return
        self._wait_for_pending()
        self._session.join(deadline, self._session.seq)
        self._session.resync = False

    def _gradients(self, gradients: Mapping[str, Gradient], *, copy: bool) -> dict[str, Gradient]:
        """Every gradient as one contiguous run, all of them checked before anything is sent."""
        self._session.open(self._session.deadline(), join=True)
        return {
            name: self._outgoing.checked(name, gradient, copy=copy) for name, gradient in gradients.items()
        }

    def _wait_for_pending(self) -> None:
        for handle in self._pending:
            for future in handle.futures:
                _outcome(future)

    # ---- pulls

    def _pull_request(
        self, shard: Link, target: Target, *, training: bool, at_least: int
    ) -> shard_pb2.PullRequest:
        narrow = self._outgoing.encoding if self._outgoing.encoding in ("bfloat16", "float16") else "float32"
        return shard_pb2.PullRequest(
            job=self.job,
            pusher=self.pusher if training else "",
            session=self._session.id if training else "",
            training=training,
            at_least=at_least,
            encoding=codec.ENCODINGS[narrow].number,  # type: ignore[arg-type]
            rows=[
                shard_pb2.RowSet(tensor=span.tensor, rows=numbers.astype("<u4").tobytes())
                for span, numbers in target.asked(shard.spans)
            ],
        )

    def _pull_one(
        self,
        shard: Link,
        *,
        training: bool,
        at_least: int,
        target: Target,
        deadline: Deadline,
    ) -> Stamp:
        request = self._pull_request(shard, target, training=training, at_least=at_least)
        message = request.SerializeToString()

        def attempt(timeout: float) -> Stamp:
            return self._take(shard, shard.call("Pull", lambda: [[message]], timeout), target)

        stamp: Stamp = self._session.retrying(attempt, deadline, shard)
        if stamp.incarnation > shard.seen.incarnation:
            self._session.refresh(deadline)
        self._session.see(shard, stamp)
        return stamp

    def _take(self, shard: Link, messages: Iterator[Any], target: Target) -> Stamp:
        """Write a pull's chunks to their places; all of the shard's elements, or an error."""
        stamp: Stamp | None = None
        missing = target.expected(shard.spans)
        for message in messages:
            rest, pieces = chunks.split(message)
            if stamp is None:
                found = shard_pb2.PullResponse.FromString(rest).stamp
                stamp = Stamp(found.incarnation, found.clock)
            for chunk in pieces:
                if chunk.rows is not None:
                    width = self._session.tensors[chunk.tensor].width
                    rows, values, _ = codec.decode_rows(chunk, width)
                    target.put_rows(chunk.tensor, rows, values)
                else:
                    at = slice(chunk.start, chunk.start + chunk.length)
                    codec.decode(chunk, target.flat[chunk.tensor][at])
                missing -= chunk.length
        if stamp is None or missing:
            raise Unavailable(f"shard {shard.index} sent {missing} elements too few")
        return stamp

    def _pull_target(self, into: Mapping[str, Array] | None, rows: Mapping[str, Array] | None) -> Target:
        self._session.open(self._session.deadline())
        return Target(self._session.tensors, into, rows)

    def _everywhere(self, call: Callable[[Link], Result]) -> list[Result]:
        """Call every shard at once, in order after what it was called before; wait for all."""
        outcomes = [_outcome(future) for future in [s.thread.submit(call, s) for s in self._session.shards]]
        results: list[Result] = []
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            results.append(outcome)
        return results


def _commit(lr: float | None, rates: Mapping[str, float] | None) -> bytes:
    """A push's last message."""
    commit = shard_pb2.PushCommit(lr=lr, rates=dict(rates or {}))
    return shard_pb2.PushRequest(commit=commit).SerializeToString()


def _receipt(answer: shard_pb2.PushResponse) -> Receipt:
    stamp = Stamp(answer.stamp.incarnation, answer.stamp.clock)
    return Receipt(OUTCOMES[answer.outcome], stamp, answer.staleness, answer.reason)


def _first(answers: Iterator[Any]) -> Any:
    answer = next(answers, None)
    if answer is None:
        raise Unavailable("the shard ended the call without an answer")
    return answer


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except Exception as error:
        return error
