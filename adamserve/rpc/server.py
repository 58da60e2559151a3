"""ShardService: one endpoint a shard process, calling that process's `ShardHost`s.

A push is assembled in buffers of its own while it arrives, without the shard's lock; only a complete and correct one is
offered to the shard. A stream on which nothing moves is cut by `Stalls`, so that nobody holds a thread for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import ray

from adamserve.errors import InvalidArgument
from adamserve.rpc import codec, wire
from adamserve.rpc.assembly import Assembly, Buffers
from adamserve.rpc.endpoint import Endpoint, Stalls, answers, deadline_of, parse, serve, streams
from adamserve.rpc.security import Security, is_loopback
from adamserve.service.actors import Hosts
from adamserve.service.host import ShardHost
from adamserve.v1 import shard_pb2, types_pb2
from adamserve.values import Array, Outcome, Push, Receipt, Stamp

SERVICE = "adamserve.v1.ShardService"

OUTCOMES: Mapping[Outcome, shard_pb2.Outcome] = {
    Outcome.APPLIED: shard_pb2.OUTCOME_APPLIED,
    Outcome.DUPLICATE: shard_pb2.OUTCOME_DUPLICATE,
    Outcome.STALE: shard_pb2.OUTCOME_STALE,
}


class ShardServicer:
    """Push, Pull and PushPull over the hosts of one process."""

    def __init__(self, hosts: Hosts, security: Security) -> None:
        self._hosts = hosts
        self._tokens = security.tokens
        self._limits = security.limits
        self.stalls = Stalls(security.limits.stall_s)
        self._buffers = Buffers()

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods by name; messages come and go as bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Push": grpc.stream_unary_rpc_method_handler(self.push),
                "Pull": grpc.unary_stream_rpc_method_handler(self.pull),
                "PushPull": grpc.stream_stream_rpc_method_handler(self.push_pull),
            },
        )

    @answers
    def push(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """As in shard.proto."""
        receipt, _ = self._push(((message, None) for message in messages), context)
        return _response(receipt).SerializeToString()

    @streams
    def pull(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """As in shard.proto."""
        for parts in self._pull(parse(shard_pb2.PullRequest, message), context):
            yield b"".join(parts)

    @streams
    def push_pull(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """As in shard.proto."""
        receipt, pull = self._push(
            ((push, rest) for push, rest in (wire.inside(message, 1) for message in messages)), context
        )
        yield shard_pb2.PushPullResponse(push=_response(receipt)).SerializeToString()
        for parts in self._pull(pull, context):
            yield b"".join(wire.embedded(2, parts))

    def _push(
        self, messages: Iterable[tuple[bytes | memoryview, bytes | None]], context: grpc.ServicerContext
    ) -> tuple[Receipt, shard_pb2.PullRequest]:
        """Receive a whole push and apply it; returns also what to pull afterwards, as job and pusher of the push."""
        start: shard_pb2.PushStart | None = None
        commit: shard_pb2.PushCommit | None = None
        pull = shard_pb2.PullRequest()
        assembly: Assembly | None = None
        with self.stalls.watching(context) as moved:
            for message, beside in messages:
                moved()
                rest, chunks = wire.split(message)
                part = parse(shard_pb2.PushRequest, rest)
                if assembly is None:
                    if not part.HasField("start"):
                        raise InvalidArgument("the first message has none", field="start")
                    start = part.start
                    self._tokens.check(context.invocation_metadata(), start.job)
                    host = self._hosts(start.job)
                    host.renew(start.pusher, start.session)
                    assembly = Assembly(host.partition, host.index, self._buffers)
                    if beside:
                        pull = parse(shard_pb2.PushPullRequest, beside).pull
                    pull.job, pull.pusher, pull.session = start.job, start.pusher, start.session
                elif part.HasField("start"):
                    raise InvalidArgument("came twice", field="start")
                if commit is not None:
                    raise InvalidArgument("a message follows it", field="commit")
                for chunk in chunks:
                    assembly.add(chunk)
                if part.HasField("commit"):
                    commit = part.commit
        if start is None or assembly is None or commit is None:
            raise InvalidArgument(
                "the stream ended without it; nothing was applied",
                field="commit",
                fix="send it in the last message",
            )
        pulled = Stamp(start.pulled.epoch, start.pulled.clock)
        push = Push(
            start.pusher,
            start.seq,
            pulled,
            assembly.gradients(),
            commit.lr if commit.HasField("lr") else None,
            # A rate for a tensor of another shard is that shard's to check.
            dict(commit.rates),
            start.session,
            finite=True,
        )
        receipt = host.push(push, deadline=deadline_of(context, self._limits))
        assembly.release()
        return receipt, pull

    def _pull(
        self, request: shard_pb2.PullRequest, context: grpc.ServicerContext
    ) -> Iterator[list[bytes | memoryview]]:
        """The parameters as the parts of PullResponses."""
        self._tokens.check(context.invocation_metadata(), request.job)
        host = self._hosts(request.job)
        name = codec.encoding_name(request.encoding or codec.ENCODINGS["float32"].number, field="encoding")
        if "float32" not in codec.ENCODINGS[name].parameters:
            raise InvalidArgument(f"parameters do not travel as {name}", field="encoding")
        options: dict[str, Any] = {
            "deadline": deadline_of(context, self._limits),
            "pusher": request.pusher or None,
            "session": request.session,
            "training": request.training,
            "at_least": request.at_least,
        }
        if request.rows:
            wanted = {part.tensor: _numbers(part) for part in request.rows}
            stamp, found = host.pull_rows(wanted, **options)
            fields = _chunks_of_rows(host, wanted, found, name)
        else:
            stamp, flat = host.pull(_PUBLISH[name], **options)
            fields = _chunks(host, flat, name)
        first = shard_pb2.PullResponse(stamp=types_pb2.Stamp(epoch=stamp.epoch, clock=stamp.clock))
        head: list[bytes | memoryview] = [first.SerializeToString()]
        with self.stalls.watching(context) as moved:
            for parts in fields:  # small tensors share a message
                head += parts
                if sum(map(len, head)) >= codec.CHUNK_BYTES:
                    yield head
                    moved()
                    head = []
            if head:
                yield head


def _numbers(part: shard_pb2.RowSet) -> Array:
    if len(part.rows) % 4:
        raise InvalidArgument(
            f"{len(part.rows)} bytes of row numbers", field=part.tensor, fix="4 bytes a row"
        )
    return np.frombuffer(part.rows, "<u4").astype(np.int64)


def _chunks(host: ShardHost, flat: Mapping[str, Array], name: str) -> Iterator[list[bytes | memoryview]]:
    """A shard's parameters, flat by dtype, as chunks."""
    for span, dtype, offset in host.partition.layout(host.index):
        values = flat[dtype][offset : offset + span.numel]
        yield from codec.encode(span.tensor, values, span.start, name if dtype == "float32" else dtype)


def _chunks_of_rows(
    host: ShardHost, wanted: Mapping[str, Array], found: Mapping[str, Array], name: str
) -> Iterator[list[bytes | memoryview]]:
    """What `ShardHost.pull_rows` found, as chunks."""
    for span, dtype, _ in host.partition.layout(host.index):
        encoding, values = name if dtype == "float32" else dtype, found[span.tensor]
        if span.tensor in wanted:
            yield from codec.encode_rows(span.tensor, wanted[span.tensor], values, encoding)
        else:
            yield from codec.encode(span.tensor, values, span.start, encoding)


def _publisher(name: str) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """Copies a shard's flat arrays, float32 ones in an encoding's items."""

    def publish(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        return {
            dtype: codec.narrow(values, name) if dtype == "float32" and name != "float32" else values.copy()
            for dtype, values in arrays.items()
        }

    return publish


_PUBLISH = {name: _publisher(name) for name, e in codec.ENCODINGS.items() if "float32" in e.parameters}


def _response(receipt: Receipt) -> shard_pb2.PushResponse:
    return shard_pb2.PushResponse(
        outcome=OUTCOMES[receipt.outcome],
        stamp=types_pb2.Stamp(epoch=receipt.stamp.epoch, clock=receipt.stamp.clock),
        staleness=receipt.staleness,
        reason=receipt.reason,
    )


@dataclass(frozen=True, slots=True)
class ShardEdge:
    """Starts a shard's endpoint in the shard's own process (`adamserve.service.actors.Edge`)."""

    host: str
    security: Security

    def open(self, hosts: Hosts) -> Endpoint:
        """Listen on any free port; NOT_SERVING until told otherwise."""
        servicer = ShardServicer(hosts, self.security)
        endpoint = serve(self.security.limits, SERVICE, servicer.handler(), servicer.stalls)
        advertise = self.host if is_loopback(self.host) else ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        endpoint.listen(self.host, 0, self.security, advertise)
        return endpoint
