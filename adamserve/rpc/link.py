"""One client's connection to one shard, and the push that goes over it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from adamserve import sparse
from adamserve.v1 import types_pb2
from adamserve.values import Clocks, Deadline, Gradient, Receipt, Span, Stamp

SMALL_BYTES = 1 << 18
"""A push of no more than this goes as one message, which gRPC handles as a plain call."""

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
    """

    token: str = field(default="", repr=False)
    ca: bytes = field(default=b"", repr=False)
    cert: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    server_name: str = ""

    def channel(self, endpoint: str) -> grpc.Channel:
        """A connection of its own to an endpoint; made when it is first used."""
        if not self.ca:
            return grpc.insecure_channel(endpoint, OPTIONS)
        options = [*OPTIONS]
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))  # type: ignore[arg-type]
        secure = grpc.ssl_channel_credentials(self.ca, self.key or None, self.cert or None)
        return grpc.secure_channel(endpoint, secure, options)

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


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
                    self.aborted = not self._changed.wait(self._deadline.remaining())
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

    def small(self, shard: Link) -> bool:
        """Whether everything for a shard is here and fits one message."""
        if self.tail is None:
            return False
        owned = (span for span in shard.spans if span.tensor in self.gradients)
        return sum(sparse.part(self.gradients[span.tensor], span).nbytes for span in owned) <= SMALL_BYTES


class Link:
    """The connection to one shard."""

    def __init__(self, index: int, place: types_pb2.ShardPlace, credentials: Credentials) -> None:
        self.index = index
        self.spans = [Span(span.tensor, span.start, span.stop) for span in place.spans]
        self.seen = Stamp(place.stamp.epoch, place.stamp.clock)
        self.restored_clock = place.restored_clock
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"adamserve-shard-{index}")
        self._credentials = credentials
        self._endpoint = ""
        self._channel: grpc.Channel | None = None
        self.move(place.endpoint)

    def move(self, endpoint: str) -> None:
        """Talk to this endpoint from now on."""
        if endpoint == self._endpoint:
            return
        self.disconnect()
        self._endpoint = endpoint
        channel: Any = self._credentials.channel(endpoint)
        self._channel = channel
        service = "/adamserve.v1.ShardService"
        # One message on a stream is a plain call: the same bytes, fewer steps.
        self.push_small = channel.unary_unary(f"{service}/Push")
        self.push = channel.stream_unary(f"{service}/Push")
        self.pull = channel.unary_stream(f"{service}/Pull")
        self.push_pull = channel.stream_stream(f"{service}/PushPull")

    def reconnect(self) -> None:
        """Drop the connection and make another when it is needed."""
        endpoint, self._endpoint = self._endpoint, ""
        self.move(endpoint)

    def disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)
        self.disconnect()
