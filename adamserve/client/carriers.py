"""What carries a client's messages to a shard: gRPC, or frames on bare connections where the shard takes them."""

from __future__ import annotations

import itertools
import select
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import grpc

from adamserve.client.credentials import Credentials
from adamserve.errors import Unavailable
from adamserve.v1 import direct_pb2
from adamserve.values import Deadline
from adamserve.wire import status
from adamserve.wire.frames import CALL, END, MESSAGE, STATUS, Frames, Parts

SERVICE = "/adamserve.v1.ShardService"

LONGEST_ANSWER = 8 << 20
"""Bytes of the longest message that a client takes."""


class GrpcCarrier:
    """ShardService as gRPC knows it."""

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._channel = channel
        self._closed = False
        self._metadata = metadata
        self._push = channel.stream_unary(f"{SERVICE}/Push")
        self._push_pull = channel.stream_stream(f"{SERVICE}/PushPull")
        self._pull = channel.unary_stream(f"{SERVICE}/Pull")
        self._one = {name: channel.unary_unary(f"{SERVICE}/{name}") for name in ("Push", "Join", "Leave")}

    def call(self, method: str, messages: Iterable[Parts], timeout_s: float) -> Iterator[bytes | memoryview]:
        """Make one call of ShardService; thread-safe.

        Args:
            messages: the call's, in pieces.
            timeout_s: for everything until the last answer.

        Returns:
            The answers, which may raise AdamServeError; each stays where it is until the next one is taken.
        """
        options: dict[str, Any] = {"timeout": timeout_s, "metadata": self._metadata}
        whole = map(b"".join, messages)
        try:
            if method == "PushPull":
                yield from self._push_pull(whole, **options)
                return
            first = next(whole)
            if method == "Pull":
                yield from self._pull(first, **options)
            elif method == "Push" and (second := next(whole, None)) is not None:
                yield self._push(itertools.chain((first, second), whole), **options)
            else:  # of a push, the same bytes as a stream of one message, in fewer steps
                yield self._one[method](first, **options)
        except grpc.RpcError as error:
            raise status.error_of(error) from None
        except ValueError:
            if not self._closed:
                raise
            raise Unavailable("the connection was closed meanwhile") from None

    def close(self) -> None:
        """Disconnect; calls under way fail."""
        self._closed = True
        self._channel.close()


class Unreachable(Unavailable):
    """No direct connection can be made; nothing was sent."""


class Full(Unavailable):
    """A new connection was ended before anything came over it, as by a shard that has no place for another."""


class DirectCarrier:
    """ShardService over bare connections (direct.proto): one for each call under way, kept for the next."""

    def __init__(self, credentials: Credentials, endpoint: str) -> None:
        self._credentials = credentials
        self._endpoint = endpoint
        self._free: list[Frames] = []
        self._used: set[Frames] = set()
        self._lock = threading.Lock()
        self._closed = False

    def call(self, method: str, messages: Iterable[Parts], timeout_s: float) -> Iterator[bytes | memoryview]:
        """As `GrpcCarrier.call`. The connection is made, or found, at once; `Unreachable` where there is none."""
        deadline = Deadline.after(timeout_s)
        frames, fresh = self._take(timeout_s)
        asked = direct_pb2.Call(
            method=method,
            authorization=self._credentials.authorization,
            timeout_ms=max(1, int(timeout_s * 1000)),
        )
        return self._exchange(frames, asked, messages, deadline, fresh=fresh)

    def close(self) -> None:
        """Disconnect; calls under way fail."""
        with self._lock:
            self._closed = True
            for frames in self._used:
                frames.cut()
            for frames in self._free:
                frames.close()
            self._free.clear()

    def _exchange(
        self,
        frames: Frames,
        asked: direct_pb2.Call,
        messages: Iterable[Parts],
        deadline: Deadline,
        *,
        fresh: bool,
    ) -> Iterator[memoryview]:
        answered, silent = False, fresh
        try:
            with suppress(ConnectionError):  # it may have been refused already: the answer says why
                self._send(frames, asked, messages, deadline)
            while True:
                frames.socket.settimeout(max(0.001, deadline.remaining()))
                frame = frames.get()
                if frame is None:
                    raise (Full if silent else Unavailable)("the connection ended before the answer")
                silent = False
                kind, content = frame
                if kind == STATUS:
                    if content:
                        unread = Unavailable("the shard answered with an error that cannot be read")
                        raise status.from_details(bytes(content)) or unread
                    answered = True
                    return
                if kind != MESSAGE:
                    raise Unavailable(f"the shard sent a frame of kind {kind}")
                yield content
        except OSError as error:
            kind_of = Full if silent and isinstance(error, ConnectionError) else Unavailable
            raise kind_of(f"the connection failed: {error or type(error).__name__}") from None
        finally:
            self._give(frames, whole=answered)

    def _send(
        self, frames: Frames, asked: direct_pb2.Call, messages: Iterable[Parts], deadline: Deadline
    ) -> None:
        """Send a whole call, or what the shard takes of it."""
        frames.put(CALL, [asked.SerializeToString()])
        for parts in messages:
            frames.socket.settimeout(max(0.001, deadline.remaining()))
            frames.put(MESSAGE, parts)
            if _readable(frames.socket):
                break  # it was refused in the middle
        frames.put(END)
        frames.flush()

    def _take(self, timeout_s: float) -> tuple[Frames, bool]:
        """A connection that nobody uses, and whether it is new."""
        with self._lock:
            while self._free:
                frames = self._free.pop()
                if not _readable(frames.socket):
                    self._used.add(frames)
                    return frames, False
                frames.close()  # nothing comes between calls but the connection's end
        try:
            frames = Frames(self._credentials.connect(self._endpoint, timeout_s), LONGEST_ANSWER)
        except OSError as error:
            raise Unreachable(f"cannot connect: {error or type(error).__name__}") from None
        with self._lock:
            if self._closed:
                frames.close()
                raise Unreachable("the client is closed")
            self._used.add(frames)
        return frames, True

    def _give(self, frames: Frames, *, whole: bool) -> None:
        """Keep a connection whose call was answered; close any other."""
        with self._lock:
            self._used.discard(frames)
            if whole and not self._closed:
                self._free.append(frames)
                return
        frames.close()


def _readable(connected: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(0))
