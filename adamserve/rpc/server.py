"""ShardService: one endpoint a shard process, calling that process's `ShardHost`s.

A push is assembled in buffers of its own while it arrives, without the shard's lock; only a complete and correct one is
offered to the shard. A stream on which nothing moves is cut by `Stalls`, so that nobody holds a thread for long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import grpc
import numpy as np
import ray
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from adamserve.errors import AdamServeError, InvalidArgument, LimitExceeded, NotFound, Unavailable
from adamserve.partition import Partition
from adamserve.rpc import codec, status, wire
from adamserve.rpc.security import Limits, Security, is_loopback
from adamserve.service.actors import Hosts
from adamserve.v1 import shard_pb2, types_pb2
from adamserve.values import Array, Deadline, Outcome, Push, Receipt, Stamp

log = logging.getLogger("adamserve.rpc")

SERVICE = "adamserve.v1.ShardService"

RANGES = 65_536
"""Separate runs of one tensor that a push may arrive in."""

KEPT_BUFFERS = 4
"""Buffers of at least a chunk's size that an endpoint keeps for the next push: fresh memory costs page faults."""

OUTCOMES: Mapping[Outcome, shard_pb2.Outcome] = {
    Outcome.APPLIED: shard_pb2.OUTCOME_APPLIED,
    Outcome.DUPLICATE: shard_pb2.OUTCOME_DUPLICATE,
    Outcome.STALE: shard_pb2.OUTCOME_STALE,
}

Parsed = TypeVar("Parsed", bound=Message)


# ---- shared by the endpoints


def serve(limits: Limits, handlers: Iterable[grpc.GenericRpcHandler], names: Iterable[str]) -> Endpoint:
    """A gRPC server with these services, health and reflection; not bound, not started, NOT_SERVING."""
    server = grpc.server(
        ThreadPoolExecutor(max_workers=limits.streams, thread_name_prefix="adamserve-grpc"),
        maximum_concurrent_rpcs=limits.streams,
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ],
    )
    server.add_generic_rpc_handlers(list(handlers))
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    every = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(every, server)
    endpoint = Endpoint(server, checks, ("", *names))
    endpoint.mark(serving=False)
    return endpoint


class Endpoint:
    """A gRPC server that listens; its health follows what it is told."""

    def __init__(self, server: grpc.Server, checks: health.HealthServicer, names: Iterable[str]) -> None:
        self.server = server
        self.address = ""
        self._checks = checks
        self._names = tuple(names)

    def listen(self, host: str, port: int, security: Security, advertise: str = "") -> None:
        """Bind and start.

        Raises:
            Unavailable: the port cannot be bound.
        """
        try:
            bound = security.bind(self.server, host, port)
        except RuntimeError:
            raise Unavailable(f"cannot listen on {host}:{port}", field="port", fix="choose another") from None
        self.address = f"{advertise or host}:{bound}"
        self.server.start()

    def mark(self, *, serving: bool) -> None:
        """Set the health of every service."""
        kind = health_pb2.HealthCheckResponse
        for name in self._names:
            self._checks.set(name, kind.SERVING if serving else kind.NOT_SERVING)

    def serve(self) -> None:
        """Say that the endpoint is ready."""
        self.mark(serving=True)

    def drain(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end within `grace_s` seconds, and stop."""
        self.mark(serving=False)
        self.server.stop(grace_s).wait(grace_s + 5)


def abort(context: grpc.ServicerContext, error: AdamServeError) -> None:
    """End a call with our error."""
    context.set_trailing_metadata(tuple(status.metadata(error)))
    context.abort(status.code_of(error), str(error)[: status.LONGEST])


def answers(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """A method that ends its call with our error when it raises one."""

    @wraps(behaviour)
    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return behaviour(self, request, context)
        except AdamServeError as error:
            abort(context, error)

    return answer


def streams(behaviour: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
    """As `answers`, for a method that yields."""

    @wraps(behaviour)
    def stream(self: Any, request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            yield from behaviour(self, request, context)
        except AdamServeError as error:
            abort(context, error)

    return stream


def parse(kind: type[Parsed], data: bytes | memoryview) -> Parsed:
    """A message from its bytes.

    Raises:
        InvalidArgument: they are not one.
    """
    message = kind()
    try:
        message.ParseFromString(bytes(data))
    except DecodeError:
        raise InvalidArgument(f"the bytes are not a {kind.DESCRIPTOR.name}", field="message") from None
    return message


def deadline_of(context: grpc.ServicerContext, limits: Limits) -> Deadline:
    """The call's own deadline, or the service's longest."""
    remaining = context.time_remaining()
    return Deadline.after(limits.call_s if remaining is None else min(remaining, limits.call_s))


class Stalls:
    """Cuts streams on which nothing has moved for `stall_s` seconds."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._moved: dict[grpc.ServicerContext, float] = {}
        threading.Thread(target=self._watch, name="adamserve-stalls", daemon=True).start()

    @contextmanager
    def watching(self, context: grpc.ServicerContext) -> Iterator[Callable[[], None]]:
        """Watch a stream; call what it yields whenever something has moved."""

        def moved() -> None:
            self._moved[context] = time.monotonic()

        with self._lock:
            moved()
        try:
            yield moved
        finally:
            with self._lock:
                self._moved.pop(context, None)

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._stall_s / 4))
            late = time.monotonic() - self._stall_s
            with self._lock:
                stalled = [context for context, at in self._moved.items() if at < late]
            for context in stalled:
                log.warning("cut a stream from %s: nothing moved for %g s", context.peer(), self._stall_s)
                context.cancel()


class Buffers:
    """Arrays to receive into; large ones are kept for the next push."""

    def __init__(self) -> None:
        self._kept: list[Array] = []
        self._lock = threading.Lock()

    def take(self, size: int, dtype: str) -> Array:
        """An array with anything in it."""
        with self._lock:
            for i, array in enumerate(self._kept):
                if array.size == size and array.dtype == dtype:
                    return self._kept.pop(i)
        return np.empty(size, dtype)

    def give(self, array: Array) -> None:
        """Give an array back that nobody reads any more."""
        if array.nbytes >= codec.CHUNK_BYTES:
            with self._lock:
                self._kept = [*self._kept[-KEPT_BUFFERS + 1 :], array]


class Assembly:
    """The tensors of one message stream, put together from chunks that may come in any order.

    Args:
        partition: the job's.
        shard: whose spans are expected.
        buffers: where arrays come from.
        parameters: the chunks are parameters, in the tensors' own dtypes, rather than gradients.
    """

    def __init__(
        self, partition: Partition, shard: int, buffers: Buffers, *, parameters: bool = False
    ) -> None:
        self._partition = partition
        self._shard = shard
        self._spans = {span.tensor: span for span in partition.shards[shard]}
        self._buffers = buffers
        self._parameters = parameters
        self._arrays: dict[str, Array] = {}
        self._ranges: dict[str, list[tuple[int, int]]] = {}

    def add(self, chunk: wire.Chunk) -> None:
        """Check a chunk and copy it to its place.

        Raises:
            NotFound: the shard owns no such tensor.
            InvalidArgument: elements outside the span or sent twice, an encoding that the tensor does not take, a wrong
                number of bytes or checksum.
            LimitExceeded: the tensor comes in too many pieces.
        """
        span = self._spans.get(chunk.tensor)
        spec = self._partition.spec(chunk.tensor)
        if span is None:
            raise NotFound(
                f"shard {self._shard} owns no part of it", field=chunk.tensor, fix="ask the topology"
            )
        begin, end = chunk.start, chunk.start + chunk.length
        if chunk.length < 0 or begin < span.start or end > span.stop:
            raise InvalidArgument(
                f"elements {begin} to {end}, but the shard owns {span.start} to {span.stop}",
                field=chunk.tensor,
            )
        name = codec.encoding_name(chunk.encoding, field=chunk.tensor)
        encoding = codec.ENCODINGS[name]
        if spec.dtype not in encoding.gradients or (self._parameters and name != spec.dtype):
            what = "parameter" if self._parameters else "gradient of a"
            raise InvalidArgument(f"{name} for a {spec.dtype} {what}", field=chunk.tensor)
        dtype = "float64" if name == "float64" else "float32"
        array = self._arrays.get(chunk.tensor)
        if array is None:
            array = self._arrays[chunk.tensor] = self._buffers.take(span.numel, dtype)
        elif array.dtype != dtype:
            raise InvalidArgument(f"chunks of {name} and of {array.dtype}", field=chunk.tensor)
        self._note(chunk.tensor, begin, end)
        out = array[begin - span.start : end - span.start]
        codec.decode(chunk, out)
        if not codec.finite(out):  # while it is in the cache
            raise InvalidArgument(
                f"elements {begin} to {end} hold NaN or infinity",
                field=chunk.tensor,
                fix="skip this batch, or clip the gradient",
            )

    def finish(self) -> dict[str, Array]:
        """The arrays, every element of each received once.

        Raises:
            InvalidArgument: elements are missing, or came twice.
        """
        for name, ranges in self._ranges.items():
            at = self._spans[name].start
            for begin, end in sorted(ranges):
                if begin != at:
                    problem = "are missing" if begin > at else "came twice"
                    raise InvalidArgument(
                        f"elements {min(begin, at)} to {max(begin, at)} {problem}", field=name
                    )
                at = end
            if at != self._spans[name].stop:
                raise InvalidArgument(f"elements {at} to {self._spans[name].stop} are missing", field=name)
        return self._arrays

    def release(self) -> None:
        """Give the arrays back."""
        for array in self._arrays.values():
            self._buffers.give(array)

    def _note(self, tensor: str, begin: int, end: int) -> None:
        ranges = self._ranges.setdefault(tensor, [])
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], end)
            return
        if any(a < end and begin < b for a, b in ranges[-1:]):
            raise InvalidArgument(f"elements {begin} to {end} came twice", field=tensor)
        if len(ranges) >= RANGES:
            raise LimitExceeded(f"more than {RANGES} separate runs", field=tensor, fix="send larger chunks")
        ranges.append((begin, end))


# ---- the shard's own


class ShardServicer:
    """Push, Pull and PushPull over the hosts of one process."""

    def __init__(self, hosts: Hosts, security: Security) -> None:
        self._hosts = hosts
        self._tokens = security.tokens
        self._limits = security.limits
        self._stalls = Stalls(security.limits.stall_s)
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
        with self._stalls.watching(context) as moved:
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
            assembly.finish(),
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
        stamp, flat = host.pull(
            _PUBLISH[name],
            deadline=deadline_of(context, self._limits),
            pusher=request.pusher or None,
            session=request.session,
            training=request.training,
            at_least=request.at_least,
        )
        first = shard_pb2.PullResponse(stamp=types_pb2.Stamp(epoch=stamp.epoch, clock=stamp.clock))
        head: list[bytes | memoryview] = [first.SerializeToString()]
        with self._stalls.watching(context) as moved:
            # Small tensors share a message.
            for span, dtype, offset in host.partition.layout(host.index):
                values = flat[dtype][offset : offset + span.numel]
                for parts in codec.encode(
                    span.tensor, values, span.start, name if dtype == "float32" else dtype
                ):
                    head += parts
                    if sum(map(len, head)) >= codec.CHUNK_BYTES:
                        yield head
                        moved()
                        head = []
            if head:
                yield head


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
        endpoint = serve(self.security.limits, [ShardServicer(hosts, self.security).handler()], [SERVICE])
        advertise = self.host if is_loopback(self.host) else ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        endpoint.listen(self.host, 0, self.security, advertise)
        return endpoint
