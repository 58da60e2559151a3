"""One client's ways to one shard, and the push that goes over them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import grpc

from adamserve.client.carrier import DirectCarrier, Full, GrpcCarrier, Unreachable
from adamserve.errors import InvalidArgument, Unavailable
from adamserve.shard import sparse
from adamserve.v1 import types_pb2
from adamserve.values import Clocks, Deadline, Gradient, Receipt, Span, Stamp
from adamserve.wire.frames import PREFACE, Parts, client_tls

CONNECT_S = 2.0
"""Longest that a direct connection may take to be made; gRPC is used in its place then, and"""

AVOID_S = 300.0
"""for as long, before a direct one is tried again."""

AVOID_FULL_S = 10.0
"""The same, where the shard took a connection and ended it."""

Answers = Iterator[bytes | memoryview]

TRANSPORTS = ("auto", "direct", "grpc")

OPTIONS = [
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """How to reach a service: plain text without `ca`, TLS with it, mutual TLS with `cert` and `key` too.

    Attributes:
        token: bearer token; "" sends none.
        ca: PEM authorities that the server's certificate must come from.
        cert, key: this client's own PEM certificate chain and key.
        server_name: name to expect in the server's certificate in place of the endpoint's host.
        transport: how tensors travel. "direct": over bare connections; "grpc"; "auto": direct where that can be had.
    """

    token: str = field(default="", repr=False)
    ca: bytes = field(default=b"", repr=False)
    cert: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    server_name: str = ""
    transport: str = "auto"

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS:
            raise InvalidArgument(
                f"{self.transport!r} is none", field="transport", fix=f"one of {', '.join(TRANSPORTS)}"
            )

    def channel(self, endpoint: str) -> grpc.Channel:
        """A connection of its own to an endpoint; made when it is first used."""
        if not self.ca:
            return grpc.insecure_channel(endpoint, OPTIONS)
        options = [*OPTIONS]
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))  # type: ignore[arg-type]
        secure = grpc.ssl_channel_credentials(self.ca, self.key or None, self.cert or None)
        return grpc.secure_channel(endpoint, secure, options)

    def connect(self, endpoint: str, timeout_s: float) -> socket.socket:
        """A bare connection to an endpoint, its preface sent.

        Raises:
            OSError: there is none to be had.
        """
        host, _, port = endpoint.rpartition(":")
        host = host.strip("[]")
        connected = socket.create_connection((host, int(port)), min(CONNECT_S, timeout_s))
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.ca:
                tls = client_tls(self.ca, self.cert, self.key)
                connected = tls.wrap_socket(connected, server_hostname=self.server_name or host)
            connected.sendall(PREFACE)
        except BaseException:
            connected.close()
            raise
        return connected

    @property
    def authorization(self) -> str:
        """What every call carries; "" without a token."""
        return f"Bearer {self.token}" if self.token else ""

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """`authorization` as gRPC takes it."""
        return (("authorization", self.authorization),) if self.token else ()


class Feed:
    """The gradients of one push, as they become known; each shard's call reads them from the first, however often.

    `Client.begin` makes it. Nothing is applied anywhere before `Client.finish`.
    """

    def __init__(self, clock: Clocks, deadline: Deadline) -> None:
        self.clock = clock
        self._deadline = deadline
        self.gradients: dict[str, Gradient] = {}
        self.futures: list[Future[Receipt]] = []
        self.tail: bytes | None = None
        self.aborted = False
        self._changed = threading.Condition()

    def add(self, name: str, gradient: Gradient) -> None:
        """One tensor's gradient, 1-D or checked rows; it stays as it is until the push is over."""
        with self._changed:
            self.gradients[name] = gradient
            self._changed.notify_all()

    def end(self, tail: bytes | None) -> None:
        """All gradients are here, and this is the last message; None gives the push up."""
        with self._changed:
            self.tail, self.aborted = tail, self.aborted or tail is None
            self._changed.notify_all()

    def parts(self, shard: Link) -> Iterator[tuple[Span, Gradient]]:
        """A shard's spans of the gradients, each when it is known, until the end."""
        spans = {span.tensor: span for span in shard.spans}
        done = 0
        while True:
            with self._changed:
                while self.tail is None and not self.aborted and len(self.gradients) == done:
                    if not self._changed.wait(self._deadline.remaining()):
                        self.aborted = True
                if self.aborted:
                    return  # without a commit, nothing is applied
                fresh = list(self.gradients.items())[done:]
                ended = self.tail is not None
            done += len(fresh)
            for name, gradient in fresh:
                span = spans.get(name)
                if span is not None:
                    yield span, sparse.part(gradient, span)
            if ended:
                return


def spans_of(place: types_pb2.ShardPlace) -> list[Span]:
    """What a shard owns."""
    return [Span(span.tensor, span.start, span.stop) for span in place.spans]


class Link:
    """The ways to one shard."""

    def __init__(self, index: int, place: types_pb2.ShardPlace, credentials: Credentials) -> None:
        self.index = index
        self.spans = spans_of(place)
        self.seen = Stamp(place.stamp.incarnation, place.stamp.clock)
        self.restored_clock = place.restored_clock
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"adamserve-shard-{index}")
        self._credentials = credentials
        self._endpoints = ("", "")
        self._grpc: GrpcCarrier | None = None
        self._direct: DirectCarrier | None = None
        self._avoid_until = 0.0
        self.move(place)

    def call(self, method: str, messages: Callable[[], Iterable[Parts]], timeout_s: float) -> Answers:
        """Make one call, as `Carrier.call`, over the better way that can be had.

        Args:
            messages: makes the call's messages; called once for each way that is tried.
        """
        direct, grpc_carrier = self._direct, self._grpc
        if direct is not None and time.monotonic() >= self._avoid_until:
            try:
                return self._noted(direct.call(method, messages(), timeout_s))
            except Unreachable:
                if self._credentials.transport == "direct":
                    raise
                self._avoid_until = time.monotonic() + AVOID_S
        if grpc_carrier is None:
            raise Unavailable(f"shard {self.index} has no direct endpoint", field="transport", fix="use grpc")
        return grpc_carrier.call(method, messages(), timeout_s)

    def _noted(self, answers: Answers) -> Answers:
        """The answers; where there is none because the shard has no place for a connection, the next try is by gRPC."""
        try:
            yield from answers
        except Full:
            if self._grpc is not None:
                self._avoid_until = time.monotonic() + AVOID_FULL_S
            raise

    def move(self, place: types_pb2.ShardPlace) -> None:
        """Talk to the shard where it is now."""
        self._move(place.endpoint, place.direct_endpoint)

    def reconnect(self) -> None:
        """Drop the connections and make others when they are needed."""
        endpoints, self._endpoints = self._endpoints, ("", "")
        avoid_until = self._avoid_until
        self._move(*endpoints)
        self._avoid_until = avoid_until

    def disconnect(self) -> None:
        """Drop the connections."""
        for carrier in (self._grpc, self._direct):
            if carrier is not None:
                carrier.close()
        self._grpc = self._direct = None

    def close(self) -> None:
        """Drop the connections, and the thread with them."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        self.disconnect()

    def _move(self, endpoint: str, direct: str) -> None:
        if (endpoint, direct) == self._endpoints:
            return
        self.disconnect()
        if direct != self._endpoints[1]:
            self._avoid_until = 0.0
        self._endpoints = (endpoint, direct)
        credentials = self._credentials
        if direct and credentials.transport != "grpc":
            self._direct = DirectCarrier(partial(credentials.connect, direct), credentials.authorization)
        if credentials.transport != "direct":
            self._grpc = GrpcCarrier(credentials.channel(endpoint), credentials.metadata)
