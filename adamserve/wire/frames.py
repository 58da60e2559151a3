"""Frames on a bare connection: how ShardService's messages travel without HTTP/2 (proto/adamserve/v1/direct.proto)."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from adamserve.errors import InvalidArgument, LimitExceeded

PREFACE = b"adamserve/1\n"

CALL, MESSAGE, END, STATUS = 1, 2, 3, 4
"""Kinds of frames."""

Parts = Sequence[bytes | memoryview]
"""A message in pieces, sent one after the other."""

_HEAD = struct.Struct("<BI")

_BUFFER_BYTES = 1 << 16
"""Small frames are collected up to this, both to be sent and to be read."""

_PIECES = 512
"""Pieces that one system call takes; the least that Linux allows is 1024."""


LOCAL_BYTES = 4 << 20
"""What a Unix socket may hold; the system may allow less."""


def local_name(address: str) -> str:
    """The name of the Unix socket beside a bare endpoint, for clients of its machine: twice as fast as loopback.

    It is in Linux's abstract namespace: no file is left behind, and no other network namespace sees it.
    """
    return f"\0adamserve/{address}"


def open_local() -> socket.socket | None:
    """A Unix socket to bind or connect to a `local_name`; None where the system has no such names."""
    if sys.platform != "linux":
        return None
    local = socket.socket(socket.AF_UNIX)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        local.setsockopt(socket.SOL_SOCKET, buffer, LOCAL_BYTES)
    return local


def peer_of(local: socket.socket) -> tuple[int, int]:
    """The process at the other end of a Unix socket, and its user."""
    process, user, _ = struct.unpack("3i", local.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user


@contextmanager
def within(seconds: float, cut: Callable[[], object]) -> Iterator[None]:
    """Call `cut`, in another thread, unless the block ends in time, however slowly bytes come."""
    last = threading.Timer(seconds, cut)
    last.daemon = True
    last.start()
    try:
        yield
    finally:
        last.cancel()


class Frames:
    """One end of a connection. One thread sends and receives; another may `cut` it.

    Args:
        connected: a connected socket, or one with TLS around it; owned from now on. Its timeout bounds each wait.
        longest: bytes of the longest frame that is taken.
    """

    def __init__(self, connected: socket.socket, longest: int) -> None:
        self.socket = connected
        self._reader = connected.makefile("rb", _BUFFER_BYTES)
        self._longest = longest
        self._buffer = bytearray(_BUFFER_BYTES)
        self._pending: list[bytes | memoryview] = []
        self._pending_bytes = 0

    def put(self, kind: int, parts: Parts = ()) -> None:
        """Add a frame; small ones wait for `flush`. The pieces are sent from where they lie."""
        size = sum(len(part) for part in parts)
        self._pending += [_HEAD.pack(kind, size), *parts]
        self._pending_bytes += _HEAD.size + size
        if self._pending_bytes >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what was put; returns when the system has taken all of it."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if isinstance(self.socket, ssl.SSLSocket):
            self.socket.sendall(b"".join(pending))
            return
        for i in range(0, len(pending), _PIECES):
            views = [memoryview(part) for part in pending[i : i + _PIECES]]
            while views:  # a call to the system may take any share
                sent = self.socket.sendmsg(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]

    def opening(self, longest: int, within_s: float) -> tuple[int, memoryview] | None:
        """As `get`, for a frame that nobody has been asked a token for: it is short, and soon over once it begins."""
        begun = self._reader.peek(1)  # type: ignore[attr-defined]
        if len(begun) >= _HEAD.size and len(begun) >= _HEAD.size + _HEAD.unpack_from(begun)[1]:
            return self.get(longest)
        with within(within_s, self.cut):
            return self.get(longest)

    def get(self, longest: int | None = None) -> tuple[int, memoryview] | None:
        """The next frame's kind and content, which stays there until the next call; None at the end of the connection.

        Raises:
            LimitExceeded: it has more than `longest` bytes, or than a message may have; nothing of it was read.
            ConnectionError: the connection ended within it.
        """
        head = self._reader.read(_HEAD.size)
        if not head:
            return None
        if len(head) < _HEAD.size:
            raise ConnectionResetError("the connection ended within a frame")
        kind, size = _HEAD.unpack(head)
        if size > (most := self._longest if longest is None else longest):
            raise LimitExceeded(
                f"a frame of {size} bytes, at most {most} are taken", fix="send several messages"
            )
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        content = memoryview(self._buffer)[:size]
        if self._reader.readinto(content) < size:  # type: ignore[attr-defined]
            raise ConnectionResetError("the connection ended within a frame")
        return kind, content

    def take_preface(self) -> None:
        """Read what a client begins with, or raise InvalidArgument."""
        if self._reader.read(len(PREFACE)) != PREFACE:
            raise InvalidArgument("the connection does not begin with adamserve/1", field="preface")

    def discard(self, most: int) -> None:
        """Read on without looking until the other side ends, or this many bytes have come."""
        while most > 0:
            read = self._reader.readinto(self._buffer)  # type: ignore[attr-defined]
            if not read:
                return
            most -= read

    def cut(self) -> None:
        """End the connection in both directions; whoever waits on it is woken."""
        with suppress(OSError):  # it has ended already
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection back to the system."""
        self._reader.close()
        self.socket.close()


def server_tls(cert: bytes, key: bytes, client_ca: bytes) -> ssl.SSLContext:
    """TLS for a server: PEM certificate chain and key; b"", or the authorities that clients' certificates come from."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, cert, key)
    context.num_tickets = 0  # what the server sends first is then an answer, which a client may look for
    if client_ca:
        context.load_verify_locations(cadata=client_ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_tls(ca: bytes, cert: bytes, key: bytes) -> ssl.SSLContext:
    """TLS for a client: PEM authorities that the server's certificate must come from; its own chain and key, or b""."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    if cert:
        _load(context, cert, key)
    return context


def _load(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Python takes certificates from files only: this one is memory, and no key touches a disk."""
    with os.fdopen(os.memfd_create("adamserve-tls", os.MFD_CLOEXEC), "wb") as file:
        file.write(cert.rstrip() + b"\n" + key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
