"""The way to a shard over the network: bare connections, or gRPC where they cannot be had."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from adamserve.client.backoff import Tries
from adamserve.client.carriers import DirectCarrier, Full, GrpcCarrier, Unreachable
from adamserve.client.control_link import Place
from adamserve.client.credentials import Credentials
from adamserve.client.destination import Target
from adamserve.client.threads import Thread, do_here
from adamserve.errors import AdamServeError, InvalidArgument, Unavailable
from adamserve.v1 import shard_pb2, types_pb2
from adamserve.values import Deadline, Joined, Outcome, PusherKind, Receipt, SparseRows, Stamp
from adamserve.wire import chunks, codec
from adamserve.wire.frames import Parts

if TYPE_CHECKING:
    from adamserve.client.pushes import OutgoingPush, Terms

AVOID_S = 300.0
"""How long gRPC is used once no bare connection could be made, and"""

AVOID_FULL_S = 10.0
"""once the shard took a connection and ended it."""

OUTCOMES = {shard_pb2.Outcome.Value(f"OUTCOME_{outcome}"): outcome for outcome in Outcome}

Answers = Iterator[bytes | memoryview]


KINDS: tuple[PusherKind, ...] = ("worker", "trainer")


class Aborted(Exception):
    """A push was given up before its commit: no shard has counted it."""


@dataclass(frozen=True, slots=True)
class Member:
    """Who a client is to the shards of its job; after `lease_s` seconds of silence they stop counting it."""

    job: str
    pusher: str
    session: str
    kind: PusherKind
    lease_s: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgument(f"{self.kind!r} is none", field="kind", fix=f"one of {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull, as `values.PullRequest`; every link writes its own shard's part into the target."""

    target: Target
    deadline: Deadline
    encoding: str
    training: bool = True
    at_least: int = 0


class PushAnswer(NamedTuple):
    """A shard's answer to a push, and the stamp of what was pulled after it."""

    receipt: Receipt
    pulled: Stamp | None


class WireLink:
    """One client's way to one shard. Thread-safe; it makes pushes and pulls in the order in which they were asked for.

    Args:
        recover: after a try that met an error, waits and looks for the shard; raises where no other try is to be made.

    Attributes:
        index, spans: the shard's number, and what it owns.
        renewed_at: when the last answered call began that renewed the client's lease, by `time.monotonic`.
    """

    def __init__(
        self,
        place: Place,
        member: Member,
        credentials: Credentials,
        recover: Callable[[WireLink, Tries, AdamServeError], None],
    ) -> None:
        self.index = place.index
        self.spans = place.spans
        self.renewed_at = 0.0
        self._reached = False
        self._failed_at: float | None = None
        self._spans = {span.tensor: span for span in place.spans}
        self._member = member
        self._who: dict[str, Any] = {
            "job": member.job,
            "pusher": member.pusher,
            "session": member.session,
            "shard": place.index,
        }
        self._credentials = credentials
        self._recover = recover
        self._thread = Thread(f"adamserve-shard-{place.index}")
        self._lock = threading.Lock()
        self._endpoints = ("", "")
        self._carriers: tuple[DirectCarrier | None, GrpcCarrier | None] = (None, None)
        self._avoid_until = 0.0
        self.move(place)

    def push(self, push: OutgoingPush, *, here: bool) -> Future[PushAnswer]:
        """Send this shard's part of a push, and make its pull in the same exchange; try until it is answered.

        With `here` the caller's thread does it, before this returns; nothing else may be under way. The future's
        exception is an AdamServeError, or `Aborted`.
        """
        return (do_here if here else self._thread.submit)(self._push, push)

    def pull(self, pull: Pull, *, here: bool) -> Future[Stamp]:
        """Fetch this shard's part of the parameters; try until it is answered."""
        return (do_here if here else self._thread.submit)(self._pull, pull)

    @property
    def endpoint(self) -> str:
        """Where the shard is said to be."""
        return self._endpoints[0]

    def unreached_s(self) -> float:
        """For how long it was tried in vain; 0 once it has answered. Call it after a try that failed."""
        now = time.monotonic()
        self._failed_at = self._failed_at or now
        return 0.0 if self._reached or self.renewed_at else now - self._failed_at

    def join(self, last_seq: int, timeout_s: float) -> Joined:
        """Become live on the shard, or renew the lease: one try, in the caller's thread, beside what is under way."""
        m, began = self._member, time.monotonic()
        request = shard_pb2.JoinRequest(**self._who, kind=m.kind, lease_s=m.lease_s, last_seq=last_seq)
        answer = self._call_beside("Join", request.SerializeToString(), timeout_s)
        joined = shard_pb2.JoinResponse.FromString(answer)
        self.renewed_at = began
        return Joined(_stamp(joined.stamp), joined.last_seq, joined.restored_clock)

    def leave(self, timeout_s: float) -> None:
        """Stop counting there: one try."""
        self._call_beside("Leave", shard_pb2.LeaveRequest(**self._who).SerializeToString(), timeout_s)

    def move(self, place: Place) -> None:
        """Talk to the shard where it is now."""
        with self._lock:
            if (place.endpoint, place.direct) != self._endpoints:
                if place.direct != self._endpoints[1]:
                    self._avoid_until = 0.0
                self._endpoints = (place.endpoint, place.direct)
                self._reconnect()

    def reconnect(self) -> None:
        """Drop the connections, and make others."""
        with self._lock:
            self._reconnect()

    def close(self) -> None:
        """Drop the connections for good."""
        self._thread.shutdown(cancel_futures=True)
        with self._lock:
            self._use(None, None)

    # ---- calls

    def _push(self, push: OutgoingPush) -> PushAnswer:
        tries = Tries(push.deadline)
        while True:
            began = time.monotonic()
            try:
                answer = self._push_once(push, tries.seconds)
                self.renewed_at = began
                return answer
            except AdamServeError as error:
                if push.aborted:
                    raise Aborted from None
                self._failed(tries, error)

    def _push_once(self, push: OutgoingPush, timeout_s: float) -> PushAnswer:
        if push.then is None:
            answer = _only(self._call("Push", self._messages(push), timeout_s))
            return PushAnswer(_receipt(shard_pb2.PushResponse.FromString(answer)), None)
        answers = self._call("PushPull", self._messages_of_both(push, push.then), timeout_s)
        receipt = _receipt(shard_pb2.PushPullResponse.FromString(_first(answers)).push)
        pulled = self._take((chunks.inside(answer, 2)[0] for answer in answers), push.then)
        return PushAnswer(receipt, pulled)

    def _pull(self, pull: Pull) -> Stamp:
        tries = Tries(pull.deadline)
        message = self._pull_request(pull).SerializeToString()
        while True:
            began = time.monotonic()
            try:
                stamp = self._take(self._call("Pull", iter([[message]]), tries.seconds), pull)
                self._reached = True
                self.renewed_at = began if pull.training else self.renewed_at
                return stamp
            except AdamServeError as error:
                self._failed(tries, error)

    def _call(self, method: str, messages: Iterator[Parts], timeout_s: float) -> Answers:
        """Make one call over the better way that there is."""
        direct, below = self._carriers
        if direct is not None and time.monotonic() >= self._avoid_until:
            try:
                return direct.call(method, messages, timeout_s)
            except Unreachable:
                if below is None:
                    raise
                self._avoid_until = time.monotonic() + AVOID_S
        if below is None:
            raise Unavailable(f"shard {self.index} has no direct endpoint", field="transport", fix="use grpc")
        return below.call(method, messages, timeout_s)

    def _call_beside(self, method: str, message: bytes, timeout_s: float) -> bytes:
        """Make a short call beside a push under way: by gRPC where the shard has no place for a second connection."""
        try:
            return _only(self._call(method, iter([[message]]), timeout_s))
        except Full:
            below = self._carriers[1]
            if below is None:
                raise
            return _only(below.call(method, iter([[message]]), timeout_s))

    def _failed(self, tries: Tries, error: AdamServeError) -> None:
        """Find the shard again; leave bare connections alone for a while where it has no place for another."""
        if isinstance(error, Full) and self._carriers[1] is not None:
            self._avoid_until = time.monotonic() + AVOID_FULL_S
        self._recover(self, tries, error)

    # ---- messages

    def _messages(self, push: OutgoingPush) -> Iterator[list[bytes | memoryview]]:
        """A push as messages of about a chunk: start in the first, commit in the last; small tensors share one."""
        pulled = push.clock[self.index]
        stamp = types_pb2.Stamp(incarnation=pulled.incarnation, clock=pulled.clock)
        start = shard_pb2.PushStart(**self._who, seq=push.seq, pulled=stamp, assign=push.assign)
        message: list[bytes | memoryview] = [shard_pb2.PushRequest(start=start).SerializeToString()]
        size = 0
        for span, (gradient, encoding, _) in push.parts(self._spans):
            if isinstance(gradient, SparseRows):
                fields = codec.encode_rows(span.tensor, gradient.indices, gradient.values, encoding)
            else:
                fields = codec.encode(span.tensor, gradient, span.start, encoding)
            for parts in fields:
                message += parts
                size += sum(map(len, parts))
                if size >= codec.CHUNK_BYTES:
                    yield message
                    message, size = [], 0
        if not push.aborted:
            message.append(shard_pb2.PushRequest(commit=_commit(push.terms)).SerializeToString())
        yield message

    def _messages_of_both(self, push: OutgoingPush, then: Pull) -> Iterator[list[bytes | memoryview]]:
        request = shard_pb2.PushPullRequest(pull=self._pull_request(then))
        head: list[bytes | memoryview] = [request.SerializeToString()]
        for message in self._messages(push):
            yield head + chunks.embedded(1, message)
            head = []

    def _pull_request(self, pull: Pull) -> shard_pb2.PullRequest:
        who = self._who if pull.training else {**self._who, "pusher": "", "session": ""}
        return shard_pb2.PullRequest(
            **who,
            training=pull.training,
            at_least=pull.at_least,
            encoding=codec.ENCODINGS[pull.encoding].number,  # type: ignore[arg-type] # an enum's number
            rows=[
                shard_pb2.RowSet(tensor=span.tensor, rows=numbers.astype("<u4").tobytes())
                for span, numbers in pull.target.asked(self.spans)
            ],
        )

    def _take(self, messages: Answers, pull: Pull) -> Stamp:
        """Write a pull's chunks to their places; all of the shard's elements, or an error."""
        stamp: Stamp | None = None
        missing = pull.target.expected(self.spans)
        for message in messages:
            rest, pieces = chunks.split(message)
            if stamp is None:
                stamp = _stamp(shard_pb2.PullResponse.FromString(rest).stamp)
            for chunk in pieces:
                missing -= pull.target.take(chunk, self._spans)
        if stamp is None or missing:
            raise Unavailable(f"shard {self.index} sent {missing} elements too few")
        return stamp

    # ---- while the lock is held

    def _reconnect(self) -> None:
        endpoint, direct = self._endpoints
        credentials, transport = self._credentials, self._credentials.transport
        self._use(
            DirectCarrier(credentials, direct) if direct and transport != "grpc" else None,
            GrpcCarrier(credentials.channel(endpoint), credentials.metadata)
            if transport != "direct"
            else None,
        )

    def _use(self, direct: DirectCarrier | None, below: GrpcCarrier | None) -> None:
        """Put these in the place of the carriers so far, and close those."""
        before, self._carriers = self._carriers, (direct, below)
        for carrier in before:
            if carrier is not None:
                carrier.close()


def _first(answers: Answers) -> bytes:
    answer = next(answers, None)
    if answer is None:
        raise Unavailable("the shard ended the call without an answer")
    return bytes(answer)


def _only(answers: Answers) -> bytes:
    """The answer of a call that has one, read to its end, so that its connection can be used again."""
    answer = _first(answers)
    for _ in answers:
        pass
    return answer


def _commit(terms: Terms) -> shard_pb2.PushCommit:
    """The end of a push; tensors with equal constants share a message."""
    groups: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for name, values in (terms.constants or {}).items():
        groups.setdefault(tuple(values.items()), []).append(name)
    constants = [
        shard_pb2.PushConstants(tensors=names, values=dict(group)) for group, names in groups.items()
    ]
    return shard_pb2.PushCommit(lr=terms.lr, rates=terms.rates, constants=constants, updates=terms.updates)


def _receipt(answer: shard_pb2.PushResponse) -> Receipt:
    return Receipt(OUTCOMES[answer.outcome], _stamp(answer.stamp), answer.staleness, answer.reason)


def _stamp(stamp: types_pb2.Stamp) -> Stamp:
    return Stamp(stamp.incarnation, stamp.clock)
