"""ShardService's calls over bare connections: one thread each, one call after the other (direct.proto)."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from adamserve.edge.grpc_server import parse
from adamserve.edge.security import Security
from adamserve.edge.shard_service import ShardCalls
from adamserve.errors import AdamServeError, InvalidArgument, Unavailable
from adamserve.job import host_port
from adamserve.observe.rpc_counts import Calls
from adamserve.shard.host import ShardHost
from adamserve.v1 import direct_pb2
from adamserve.values import Deadline
from adamserve.wire import status
from adamserve.wire.frames import (
    CALL,
    END,
    MESSAGE,
    STATUS,
    Frames,
    local_name,
    open_local,
    peer_of,
    server_tls,
    within,
)

log = logging.getLogger("adamserve.rpc")

CARRIER = "direct"
"""What such calls are counted under."""

GREETING_S = 10.0
"""Longest that TLS and the preface may take."""

CALL_BYTES = 1 << 16
"""Longest first frame of a call: its token is looked at after it."""

PAUSE_S = 0.1
"""After a connection could not be taken, as where the process has no descriptor left."""

IDLE_S = 60.0
"""A connection on which nothing was asked for as long is closed."""

FAREWELL_S, FAREWELL_BYTES = 5.0, 64 << 20
"""How long, and how far, a refused call is read on, so that its sender sees why before the connection ends."""


@dataclass(frozen=True, eq=False, slots=True)
class DirectCall:
    """One call (`adamserve.edge.grpc_server.Call`); to cancel it ends its connection."""

    frames: Frames
    caller: str
    authorization: str
    deadline: Deadline | None
    carries: Callable[[ShardHost, str, str], None]

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return [("authorization", self.authorization)] if self.authorization else []

    def time_remaining(self) -> float | None:
        return None if self.deadline is None else self.deadline.remaining()

    def peer(self) -> str:
        return self.caller

    def cancel(self) -> None:
        self.frames.cut()


class DirectEndpoint:
    """Listens for bare connections beside a shard's gRPC endpoint.

    It takes as many as `security` allows streams. Further ones are closed at once: gRPC is left.
    """

    def __init__(self, calls: ShardCalls, security: Security, counts: Calls) -> None:
        self.address = ""
        self._counts = counts
        self._calls = calls
        self._limits = security.limits
        self._tls = server_tls(security.cert, security.key, security.client_ca) if security.cert else None
        self._changed = threading.Condition()
        self._busy: dict[socket.socket, bool] = {}
        """The connections, and whether a call is under way on them."""
        self._carried: dict[tuple[ShardHost, str, str], set[socket.socket]] = {}
        """By session of a pusher, the connections that carry it."""
        self._draining = False
        self._servers: list[socket.socket] = []

    def listen(self, host: str, port: int) -> None:
        """Bind a port (0: any free one) and take connections; Unavailable where it cannot be bound."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server(
                (host, port), family=family, backlog=self._limits.streams, dualstack_ipv6=host == "::"
            )
        except OSError as error:
            raise Unavailable(f"cannot listen on {host}: {error}", field="host") from None
        self.address = host_port(host, server.getsockname()[1])
        self._servers = [server]
        local = open_local() if self._tls is None else None
        if local is not None:
            try:
                local.bind(local_name(self.address))
                local.listen(self._limits.streams)
                self._servers.append(local)
            except OSError as error:
                log.debug("clients of this machine come over loopback: %s", error)
                local.close()
        for server in self._servers:
            accept = threading.Thread(
                target=self._accept, args=(server,), name="adamserve-direct", daemon=True
            )
            accept.start()

    def drain(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end within `grace_s` seconds, and stop."""
        with self._changed:
            self._draining = True
            for server in self._servers:
                _cut(server)
            for connected, busy in self._busy.items():
                if not busy:
                    _cut(connected)
            self._changed.wait_for(lambda: not any(self._busy.values()), grace_s)
            for connected in self._busy:
                _cut(connected)
        for server in self._servers:
            server.close()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connected, address = server.accept()
                local = server.family == socket.AF_UNIX
                caller = f"process {peer_of(connected)[0]}" if local else f"{address[0]}:{address[1]}"
            except OSError as error:
                with self._changed:
                    if self._changed.wait_for(lambda: self._draining, PAUSE_S):
                        return
                log.warning("cannot take a connection: %s", error)
                continue
            with self._changed:
                full = self._draining or len(self._busy) >= self._limits.streams
                if not full:
                    self._busy[connected] = False
            if full:
                log.warning("refused a connection from %s: %d are open", caller, self._limits.streams)
                connected.close()
                continue
            try:
                threading.Thread(
                    target=self._serve, args=(connected, caller), name="adamserve-direct-call", daemon=True
                ).start()
            except RuntimeError as error:
                log.warning("cannot serve a connection from %s: %s", caller, error)
                with self._changed:
                    del self._busy[connected]
                connected.close()

    def _serve(self, connected: socket.socket, caller: str) -> None:
        """Answer the calls of one connection until either side ends it."""
        frames: Frames | None = None

        def carries(host: ShardHost, pusher: str, session: str) -> None:
            with self._changed:
                self._carried.setdefault((host, pusher, session), set()).add(connected)

        try:
            with within(GREETING_S, lambda: _cut(connected)):
                if connected.family != socket.AF_UNIX:
                    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls:
                    plain = connected
                    # TLS takes the descriptor over into a socket of its own.
                    connected = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                    with self._changed:
                        self._busy[connected] = self._busy.pop(plain)
                    connected.do_handshake()
                frames = Frames(connected, self._limits.message_bytes)
                frames.take_preface()
            while self._answer(frames, caller, carries):
                pass
        except (OSError, AdamServeError) as error:
            log.debug("a connection from %s ended: %s", caller, error)
        finally:
            hung_up = _hung_up(connected)
            with self._changed:
                self._busy.pop(connected, None)
                ended = [key for key, by in self._carried.items() if by == {connected}]
                for by in self._carried.values():
                    by.discard(connected)
                for key in ended:
                    del self._carried[key]
                self._changed.notify_all()
            (frames or connected).close()
            for host, pusher, session in ended if hung_up else ():
                host.cut_off(pusher, session)

    def look_for(self, host: ShardHost, pusher: str) -> None:
        """Notice where the client behind a name has hung up, while a call of its waits here."""
        with self._changed:
            known = [(key[2], list(by)) for key, by in self._carried.items() if key[:2] == (host, pusher)]
        for session, connections in known:
            if all(map(_hung_up, connections)):
                host.cut_off(pusher, session)

    def _answer(self, frames: Frames, caller: str, carries: Callable[[ShardHost, str, str], None]) -> bool:
        """Wait for one call and answer it; returns whether another may follow."""
        frames.socket.settimeout(IDLE_S)
        first = frames.opening(CALL_BYTES, GREETING_S)
        if first is None:
            return False
        with self._changed:
            if self._draining:
                return False
            self._busy[frames.socket] = True
        frames.socket.settimeout(None)  # from here on `Stalls` watches
        name, code = "", "CANCELLED"
        try:
            kind, content = first
            if kind != CALL:
                raise InvalidArgument("a call begins with CALL", field="frame")
            asked = parse(direct_pb2.Call, content)
            name = asked.method if asked.method in self._calls.methods else "unknown"
            self._counts.started(name, CARRIER)
            deadline = Deadline.after(asked.timeout_ms / 1000) if asked.timeout_ms else None
            call = DirectCall(frames, caller, asked.authorization, deadline, carries)
            for parts in self._calls.answer(asked.method, _messages(frames), call):
                frames.put(MESSAGE, parts)
            # What is left is small, and `Stalls` watches no more.
            frames.socket.settimeout(self._limits.stall_s)
            frames.put(STATUS)
            frames.flush()
            code = "OK"
        except AdamServeError as error:
            code = status.code_of(error).name
            self._refuse(frames, error)
        except OSError:
            raise
        except Exception:
            code = "UNKNOWN"
            log.exception("a call from %s failed", caller)
            self._refuse(frames, Unavailable("the shard failed; its log says how"))
        finally:
            if name:
                self._counts.handled(name, code, CARRIER)
        with self._changed:
            self._busy[frames.socket] = False
            self._changed.notify_all()
            return code == "OK" and not self._draining

    def _refuse(self, frames: Frames, error: AdamServeError) -> None:
        """End a call with an error; the sender may be in the middle of it, and has to see the answer first."""
        frames.socket.settimeout(FAREWELL_S)
        frames.put(STATUS, [status.details(error)])
        frames.flush()
        frames.socket.shutdown(socket.SHUT_WR)
        with within(FAREWELL_S, frames.cut):
            frames.discard(FAREWELL_BYTES)


def _messages(frames: Frames) -> Iterator[memoryview]:
    """The messages of one call, until its end."""
    while (frame := frames.get()) is not None:
        kind, content = frame
        if kind == END:
            return
        if kind != MESSAGE:
            raise InvalidArgument(f"a frame of kind {kind} within a call", field="frame")
        yield content
    raise ConnectionResetError("the connection ended within a call")


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _hung_up(connected: socket.socket) -> bool:
    """Whether the other end has closed a connection, or its process has ended."""
    poll = select.poll()
    try:
        poll.register(connected, getattr(select, "POLLRDHUP", 0))
    except ValueError:  # it is closed here
        return True
    return bool(poll.poll(0))
