"""ShardService: what its calls do, with the `ShardHost`s of one shard process; gRPC's side of it is at the end.

A push is assembled in buffers of its own while it arrives, without the shard's lock; only a complete and correct one is
offered to the shard. A stream on which nothing moves is cut by `Stalls`, so that nobody holds a thread for long.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import grpc
import numpy as np

from adamserve.edge.assembly import Assembly
from adamserve.edge.buffers import Buffers
from adamserve.edge.grpc_server import Call, Stalls, answers, deadline_of, parse, streams
from adamserve.edge.security import Security
from adamserve.errors import InvalidArgument, LimitExceeded, NotFound, Unavailable
from adamserve.shard.host import ShardHost
from adamserve.v1 import shard_pb2, types_pb2
from adamserve.values import Array, Outcome, Parameters, PullRequest, Push, PusherKind, Receipt, Stamp
from adamserve.wire import chunks, codec
from adamserve.wire.frames import Parts

SERVICE = "adamserve.v1.ShardService"

Hosts = Callable[[str], ShardHost]
"""Finds the shard of a job in this process, or raises NotFound."""

Messages = Iterable[bytes | memoryview]

Named = shard_pb2.PushStart | shard_pb2.PullRequest | shard_pb2.JoinRequest | shard_pb2.LeaveRequest
"""What says which job a call is for, and which shard."""

Request = TypeVar("Request", shard_pb2.PullRequest, shard_pb2.JoinRequest, shard_pb2.LeaveRequest)

METHODS = ("Push", "Pull", "PushPull", "Join", "Leave")

KINDS = ("worker", "trainer")

OUTCOMES: Mapping[Outcome, shard_pb2.Outcome] = {
    Outcome.APPLIED: shard_pb2.OUTCOME_APPLIED,
    Outcome.DUPLICATE: shard_pb2.OUTCOME_DUPLICATE,
    Outcome.STALE: shard_pb2.OUTCOME_STALE,
}


class ShardCalls:
    """The methods of ShardService over the hosts of one process, whatever carries their messages."""

    def __init__(self, hosts: Hosts, security: Security) -> None:
        self._hosts = hosts
        self._tokens = security.tokens
        self._limits = security.limits
        self.stalls = Stalls(security.limits.stall_s)
        self._buffers = Buffers()
        self._pushers: WeakKeyDictionary[ShardHost, set[str]] = WeakKeyDictionary()

    def answer(self, method: str, messages: Messages, call: Call) -> Iterator[Parts]:
        """Answer one call, as shard.proto says.

        Args:
            method: one of `METHODS`.
            messages: the call's; each needs to last only until the next one is taken.
            call: who calls, and for how long.

        Returns:
            The answers, in pieces.

        Raises:
            NotFound: there is no such method. While answers are taken: what is wrong with the call.
        """
        match method:
            case "Push":
                return self._push(messages, call)
            case "PushPull":
                return self._push_pull(messages, call)
            case "Pull":
                return self._pull(messages, call)
            case "Join":
                return self._join(messages, call)
            case "Leave":
                return self._leave(messages, call)
        raise NotFound(
            f"there is no method {method!r}", field="method", fix=f"call one of {', '.join(METHODS)}"
        )

    def _push(self, messages: Messages, call: Call) -> Iterator[Parts]:
        host, push, _ = self._receive(((message, None) for message in messages), call)
        receipt = host.push(push, deadline=deadline_of(call, self._limits))
        yield [_response(receipt).SerializeToString()]

    def _push_pull(self, messages: Messages, call: Call) -> Iterator[Parts]:
        host, push, request = self._receive(
            ((push, rest) for push, rest in (chunks.inside(message, 1) for message in messages)), call
        )
        request.pusher, request.session = push.pusher, push.session
        asked = _asked(request)
        receipt, parameters = host.push_pull(push, asked, deadline=deadline_of(call, self._limits))
        yield [shard_pb2.PushPullResponse(push=_response(receipt)).SerializeToString()]
        for parts in self._answer(host, asked, parameters, call):
            yield chunks.embedded(2, parts)

    def _pull(self, messages: Messages, call: Call) -> Iterator[Parts]:
        request = self._only(shard_pb2.PullRequest, messages, call)
        host, asked = self._host(request, call), _asked(request)
        yield from self._answer(host, asked, host.pull(asked, deadline=deadline_of(call, self._limits)), call)

    def _join(self, messages: Messages, call: Call) -> Iterator[Parts]:
        request = self._only(shard_pb2.JoinRequest, messages, call)
        host = self._host(request, call)
        for field in ("pusher", "session"):
            size = len(getattr(request, field).encode())
            if not 0 < size <= self._limits.name_bytes:
                raise InvalidArgument(
                    f"has {size} bytes", field=field, fix=f"use 1 to {self._limits.name_bytes}"
                )
        if request.kind not in ("", *KINDS):
            raise InvalidArgument(f"{request.kind!r} is none", field="kind", fix=f"one of {', '.join(KINDS)}")
        pushers = self._pushers.setdefault(host, set())
        if request.pusher not in pushers and len(pushers) >= self._limits.pushers:
            raise LimitExceeded(
                f"the job has had {len(pushers)} pushers", field="pusher", fix="use names again"
            )
        joined = host.join(
            request.pusher,
            lease_s=request.lease_s,
            last_seq=request.last_seq,
            session=request.session,
            kind=cast("PusherKind", request.kind or "trainer"),
        )
        pushers.add(request.pusher)
        answer = shard_pb2.JoinResponse(
            stamp=_stamp(joined.stamp), last_seq=joined.last_seq, restored_clock=joined.restored_clock
        )
        yield [answer.SerializeToString()]

    def _leave(self, messages: Messages, call: Call) -> Iterator[Parts]:
        request = self._only(shard_pb2.LeaveRequest, messages, call)
        self._host(request, call).leave(request.pusher, request.session)
        yield [shard_pb2.LeaveResponse().SerializeToString()]

    def _host(self, named: Named, call: Call) -> ShardHost:
        """Find the shard that a call is for, if its caller may ask for that job."""
        self._tokens.check(call.invocation_metadata(), named.job)
        host = self._hosts(named.job)
        if named.HasField("shard") and named.shard != host.index:
            raise Unavailable(
                f"this is shard {host.index}, not {named.shard}", field="shard", fix="ask the topology"
            )
        return host

    def _only(self, kind: type[Request], messages: Messages, call: Call) -> Request:
        """Receive the message of a call that has one."""
        with self.stalls.watching(call):
            requests = [parse(kind, message) for message in itertools.islice(messages, 2)]
        if len(requests) != 1:
            raise InvalidArgument(f"a {kind.DESCRIPTOR.name} is one message", field="message")
        return requests[0]

    def _receive(
        self, messages: Iterable[tuple[bytes | memoryview, bytes | None]], call: Call
    ) -> tuple[ShardHost, Push, shard_pb2.PullRequest]:
        """Receive a whole push, and what to pull after it."""
        start: shard_pb2.PushStart | None = None
        commit: shard_pb2.PushCommit | None = None
        pull = shard_pb2.PullRequest()
        assembly: Assembly | None = None
        with self.stalls.watching(call) as moved:
            for message, beside in messages:
                moved()
                rest, pieces = chunks.split(message)
                part = parse(shard_pb2.PushRequest, rest)
                if assembly is None or start is None:
                    if not part.HasField("start"):
                        raise InvalidArgument("the first message has none", field="start")
                    start = part.start
                    host = self._host(start, call)
                    host.may_push(start.pusher, start.session)
                    assembly = Assembly(host.partition, host.index, self._buffers, values=bool(start.assign))
                    if beside:
                        pull = parse(shard_pb2.PushPullRequest, beside).pull
                elif part.HasField("start"):
                    raise InvalidArgument("came twice", field="start")
                if commit is not None:
                    raise InvalidArgument("a message follows it", field="commit")
                with host.refusing(start.pusher):
                    for chunk in pieces:
                        assembly.add(chunk)
                if part.HasField("commit"):
                    commit = part.commit
        if start is None or assembly is None or commit is None:
            raise InvalidArgument(
                "the stream ended without it; nothing was applied",
                field="commit",
                fix="send it in the last message",
            )
        with host.refusing(start.pusher):
            gradients = assembly.gradients()
        pulled = Stamp(start.pulled.incarnation, start.pulled.clock)
        push = Push(
            start.pusher,
            start.seq,
            pulled,
            gradients,
            commit.lr if commit.HasField("lr") else None,
            # A rate for a tensor of another shard is that shard's to check.
            dict(commit.rates),
            start.session,
            finite=True,
            constants={name: dict(group.values) for group in commit.constants for name in group.tensors},
            assign=start.assign,
            updates=dict(commit.updates),
        )
        return host, push, pull

    def _answer(
        self, host: ShardHost, asked: PullRequest, parameters: Parameters, call: Call
    ) -> Iterator[list[bytes | memoryview]]:
        """Parameters as the parts of PullResponses; small tensors share a message."""
        fields = _chunks(host, asked, parameters.arrays)
        first = shard_pb2.PullResponse(stamp=_stamp(parameters.stamp))
        head: list[bytes | memoryview] = [first.SerializeToString()]
        with self.stalls.watching(call) as moved:
            for parts in fields:
                head += parts
                if sum(map(len, head)) >= codec.CHUNK_BYTES:
                    yield head
                    moved()
                    head = []
            if head:
                yield head


def _asked(request: shard_pb2.PullRequest) -> PullRequest:
    encoding = codec.encoding_name(request.encoding or codec.ENCODINGS["float32"].number, field="encoding")
    if "float32" not in codec.ENCODINGS[encoding].parameters:
        raise InvalidArgument(f"parameters do not travel as {encoding}", field="encoding")
    rows = {part.tensor: _numbers(part) for part in request.rows}
    return PullRequest(request.pusher, request.session, request.training, request.at_least, encoding, rows)


def _numbers(part: shard_pb2.RowSet) -> Array:
    if len(part.rows) % 4:
        raise InvalidArgument(
            f"{len(part.rows)} bytes of row numbers", field=part.tensor, fix="4 bytes a row"
        )
    return np.frombuffer(part.rows, "<u4").astype(np.int64)


def _chunks(
    host: ShardHost, asked: PullRequest, arrays: Mapping[str, Array]
) -> Iterator[list[bytes | memoryview]]:
    """A shard's answer to a pull, as `Parameters` has it, as chunks."""
    for span, dtype, offset in host.partition.layout(host.index):
        encoding = asked.encoding if dtype == "float32" else dtype
        if not asked.rows:
            values = arrays[dtype][offset : offset + span.numel]
            yield from codec.encode(span.tensor, values, span.start, encoding)
        elif span.tensor in asked.rows:
            yield from codec.encode_rows(span.tensor, asked.rows[span.tensor], arrays[span.tensor], encoding)
        else:
            yield from codec.encode(span.tensor, arrays[span.tensor], span.start, encoding)


def _response(receipt: Receipt) -> shard_pb2.PushResponse:
    return shard_pb2.PushResponse(
        outcome=OUTCOMES[receipt.outcome],
        stamp=_stamp(receipt.stamp),
        staleness=receipt.staleness,
        reason=receipt.reason,
    )


def _stamp(stamp: Stamp) -> types_pb2.Stamp:
    return types_pb2.Stamp(incarnation=stamp.incarnation, clock=stamp.clock)


def grpc_handler(calls: ShardCalls) -> grpc.GenericRpcHandler:
    """The methods as gRPC takes them; messages come and go as bytes."""

    @answers
    def one(method: str, messages: Messages, context: grpc.ServicerContext) -> bytes:
        return b"".join(next(calls.answer(method, messages, context)))

    @streams
    def several(method: str, messages: Messages, context: grpc.ServicerContext) -> Iterator[bytes]:
        return map(b"".join, calls.answer(method, messages, context))

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Push": grpc.stream_unary_rpc_method_handler(partial(one, "Push")),
            "Pull": grpc.unary_stream_rpc_method_handler(lambda m, context: several("Pull", [m], context)),
            "PushPull": grpc.stream_stream_rpc_method_handler(partial(several, "PushPull")),
            "Join": grpc.unary_unary_rpc_method_handler(lambda m, context: one("Join", [m], context)),
            "Leave": grpc.unary_unary_rpc_method_handler(lambda m, context: one("Leave", [m], context)),
        },
    )
