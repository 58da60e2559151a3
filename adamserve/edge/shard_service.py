"""ShardService: what its calls do with the `ShardHost`s of one shard process, whatever carries their messages.

A push is assembled in buffers of its own while it arrives, without the shard's lock; only a complete and correct one is
offered to the shard. A stream on which nothing moves is cut by `Stalls`, so that nobody holds a thread for long.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar, cast, get_args
from weakref import WeakKeyDictionary

import numpy as np

from adamserve.edge.assembly import Assembly
from adamserve.edge.buffers import Buffers
from adamserve.edge.grpc_server import Call, Messages, Stalls, deadline_of, parse
from adamserve.edge.security import Security
from adamserve.errors import Conflict, InvalidArgument, LimitExceeded, NotFound, Unavailable
from adamserve.shard.host import ShardHost
from adamserve.v1 import shard_pb2
from adamserve.values import Array, Parameters, PullRequest, Push, PusherKind, Receipt, Stamp
from adamserve.wire import chunks, codec
from adamserve.wire.frames import Parts
from adamserve.wire.records import to_message

SERVICE = shard_pb2.DESCRIPTOR.services_by_name["ShardService"]

Hosts = Callable[[str], ShardHost]
"""Finds the shard of a job in this process, or raises NotFound."""

Named = shard_pb2.PushStart | shard_pb2.PullRequest | shard_pb2.JoinRequest | shard_pb2.LeaveRequest
"""What says which job a call is for, and which shard."""

Request = TypeVar("Request", shard_pb2.PullRequest, shard_pb2.JoinRequest, shard_pb2.LeaveRequest)


class ShardCalls:
    """The methods of ShardService over the hosts of one process."""

    def __init__(self, hosts: Hosts, security: Security) -> None:
        self._hosts = hosts
        self._tokens = security.tokens
        self._limits = security.limits
        self.stalls = Stalls(security.limits.stall_s)
        self._buffers = Buffers()
        self.look_for: Callable[[ShardHost, str], None] = lambda host, pusher: None
        """Asks the carrier that knows when connections end."""
        self._pushers: WeakKeyDictionary[ShardHost, set[str]] = WeakKeyDictionary()
        self.methods: Mapping[str, Callable[[Messages, Call], Iterator[Parts]]] = {
            "Push": self._push,
            "Pull": self._pull,
            "PushPull": self._push_pull,
            "Join": self._join,
            "Leave": self._leave,
        }

    def answer(self, method: str, messages: Messages, call: Call) -> Iterator[Parts]:
        """Answer one call, as shard.proto says.

        Raises:
            NotFound: there is no such method. While answers are taken: what is wrong with the call.
        """
        if method not in self.methods:
            raise NotFound(
                f"there is no method {method!r}", field="method", fix=f"call one of {', '.join(self.methods)}"
            )
        return self.methods[method](messages, call)

    def _push(self, messages: Messages, call: Call) -> Iterator[Parts]:
        host, push, _ = self._receive(((message, b"") for message in messages), call)
        receipt = host.push(push, deadline=deadline_of(call, self._limits))
        yield [_response(receipt).SerializeToString()]

    def _push_pull(self, messages: Messages, call: Call) -> Iterator[Parts]:
        host, push, request = self._receive((chunks.inside(message, 1) for message in messages), call)
        request.pusher, request.session = push.pusher, push.session
        asked = _asked(request)
        receipt, parameters = host.push_pull(push, asked, deadline=deadline_of(call, self._limits))
        yield [shard_pb2.PushPullResponse(push=_response(receipt)).SerializeToString()]
        for parts in self._answer(host, asked, parameters, call):
            yield chunks.embedded(2, parts)

    def _pull(self, messages: Messages, call: Call) -> Iterator[Parts]:
        request, host = self._only(shard_pb2.PullRequest, messages, call)
        asked = _asked(request)
        yield from self._answer(host, asked, host.pull(asked, deadline=deadline_of(call, self._limits)), call)

    def _join(self, messages: Messages, call: Call) -> Iterator[Parts]:
        request, host = self._only(shard_pb2.JoinRequest, messages, call)
        self._limits.check_name(request.pusher, "pusher")
        self._limits.check_name(request.session, "session")
        kinds = get_args(PusherKind)
        if request.kind not in ("", *kinds):
            raise InvalidArgument(f"{request.kind!r} is none", field="kind", fix=f"one of {', '.join(kinds)}")
        pushers = self._pushers.setdefault(host, set())
        if request.pusher not in pushers and len(pushers) >= self._limits.pushers:
            raise LimitExceeded(
                f"the job has had {len(pushers)} pushers", field="pusher", fix="use names again"
            )
        join = partial(
            host.join,
            request.pusher,
            lease_s=request.lease_s,
            last_seq=request.last_seq,
            session=request.session,
            kind=cast("PusherKind", request.kind or "trainer"),
        )
        try:
            joined = join()
        except Conflict:  # which stands, unless the other client's process has ended
            self.look_for(host, request.pusher)
            joined = join()
        pushers.add(request.pusher)
        _note(call, host, request.pusher, request.session)
        yield [to_message(joined, shard_pb2.JoinResponse).SerializeToString()]

    def _leave(self, messages: Messages, call: Call) -> Iterator[Parts]:
        request, host = self._only(shard_pb2.LeaveRequest, messages, call)
        host.leave(request.pusher, request.session)
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

    def _only(self, kind: type[Request], messages: Messages, call: Call) -> tuple[Request, ShardHost]:
        """Receive the message of a call that has one, and find its shard."""
        with self.stalls.watching(call):
            requests = [parse(kind, message) for message in itertools.islice(messages, 2)]
        if len(requests) != 1:
            raise InvalidArgument(f"a {kind.DESCRIPTOR.name} is one message", field="message")
        return requests[0], self._host(requests[0], call)

    def _receive(
        self, messages: Iterator[tuple[bytes | memoryview, bytes]], call: Call
    ) -> tuple[ShardHost, Push, shard_pb2.PullRequest]:
        """Receive a whole push, and what to pull after it: each message is a part of the one, and what is beside it."""
        start: shard_pb2.PushStart | None = None
        commit: shard_pb2.PushCommit | None = None
        pull = shard_pb2.PullRequest()
        with self.stalls.watching(call) as moved:
            for message, beside in messages:
                moved()
                rest, pieces = chunks.split(message)
                part = parse(shard_pb2.PushRequest, rest)
                if start is None:
                    if not part.HasField("start"):
                        raise InvalidArgument("the first message has none", field="start")
                    start = part.start
                    host = self._host(start, call)
                    host.may_push(start.pusher, start.session)
                    _note(call, host, start.pusher, start.session)
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
        if start is None or commit is None:
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
        first = shard_pb2.PullResponse(stamp=parameters.stamp._asdict())
        message: list[bytes | memoryview] = [first.SerializeToString()]
        size = 0
        with self.stalls.watching(call) as moved:
            for parts in _chunks(host, asked, parameters.arrays):
                message += parts
                size += sum(map(len, parts))
                if size >= codec.CHUNK_BYTES:
                    yield message
                    moved()
                    message, size = [], 0
            if message:
                yield message


def _note(call: Call, host: ShardHost, pusher: str, session: str) -> None:
    """Tell a carrier that knows when connections end whose session this one carries."""
    carries = getattr(call, "carries", None)
    if carries is not None:
        carries(host, pusher, session)


def _asked(request: shard_pb2.PullRequest) -> PullRequest:
    encoding = codec.encoding_name(request.encoding or codec.ENCODINGS["float32"].number, field="encoding")
    if encoding not in ("float32", "bfloat16", "float16"):
        raise InvalidArgument(f"parameters do not travel as {encoding}", field="encoding")
    for part in request.rows:
        if len(part.rows) % 4:
            raise InvalidArgument(
                f"{len(part.rows)} bytes of row numbers", field=part.tensor, fix="4 bytes a row"
            )
    rows = {part.tensor: np.frombuffer(part.rows, "<u4").astype(np.int64) for part in request.rows}
    return PullRequest(request.pusher, request.session, request.training, request.at_least, encoding, rows)


def _chunks(
    host: ShardHost, asked: PullRequest, arrays: Mapping[str, Array]
) -> Iterator[list[bytes | memoryview]]:
    """A shard's answer to a pull, as `Parameters` has it, as chunks."""
    for span, dtype, offset in host.partition.layout(host.index):
        encoding = asked.encoding if dtype == "float32" else dtype
        if span.tensor in asked.rows:
            yield from codec.encode_rows(span.tensor, asked.rows[span.tensor], arrays[span.tensor], encoding)
        else:
            values = arrays[span.tensor] if asked.rows else arrays[dtype][offset : offset + span.numel]
            yield from codec.encode(span.tensor, values, span.start, encoding)


def _response(receipt: Receipt) -> shard_pb2.PushResponse:
    return shard_pb2.PushResponse(
        outcome=f"OUTCOME_{receipt.outcome}",
        stamp=receipt.stamp._asdict(),
        staleness=receipt.staleness,
        reason=receipt.reason,
    )
