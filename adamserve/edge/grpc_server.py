"""What the gRPC endpoints share: a server with health and reflection, answers to errors, and the watch over stalls."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from adamserve.edge.counting import Counting
from adamserve.edge.security import Limits, Security
from adamserve.errors import AdamServeError, InvalidArgument, Unavailable
from adamserve.job import host_port
from adamserve.observe.rpc_counts import Calls
from adamserve.values import Deadline
from adamserve.wire import status

log = logging.getLogger("adamserve.rpc")

Parsed = TypeVar("Parsed", bound=Message)

WATCHERS, REFLECTIONS = 8, 4
"""Callers of Health.Watch and of reflection at once: whoever they are, the other threads are left for pushes."""


def serve(
    limits: Limits, name: str, handler: grpc.GenericRpcHandler, stalls: Stalls, calls: Calls
) -> Endpoint:
    """A gRPC server with this service, health and reflection; not bound, not started, NOT_SERVING.

    Its calls are counted in `calls`.
    """
    server = grpc.server(
        ThreadPoolExecutor(max_workers=limits.streams, thread_name_prefix="adamserve-grpc"),
        maximum_concurrent_rpcs=limits.streams,
        interceptors=[Counting(calls)],
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ],
    )
    server.add_generic_rpc_handlers([handler])
    checks = Health()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = (name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    add: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(Reflection(names, stalls), server)
    endpoint = Endpoint(server, checks, ("", name), stalls)
    endpoint.mark(serving=False)
    return endpoint


class Health(health.HealthServicer):
    """Health, which needs no token; Watch, which may go on for ever, for a few callers at a time."""

    def __init__(self) -> None:
        super().__init__(experimental_non_blocking=False)
        self._places = threading.BoundedSemaphore(WATCHERS)

    def Watch(self, request: Any, context: Any, send: Any = None) -> Any:
        """As in health.proto."""
        with _place(self._places, context):
            yield from super().Watch(request, context)


class Reflection(reflection.ReflectionServicer):
    """Reflection, which needs no token, for a few callers at a time, each for as long as it goes on asking."""

    def __init__(self, names: Iterable[str], stalls: Stalls) -> None:
        super().__init__(names)
        self._stalls = stalls
        self._places = threading.BoundedSemaphore(REFLECTIONS)

    def ServerReflectionInfo(self, requests: Any, context: Any) -> Iterator[Any]:
        """As in reflection.proto."""
        with _place(self._places, context), self._stalls.watching(context) as moved:
            for answer in super().ServerReflectionInfo(requests, context):
                yield answer
                moved()


@contextmanager
def _place(places: threading.BoundedSemaphore, context: grpc.ServicerContext) -> Iterator[None]:
    """One of the threads that calls without a token may hold."""
    if not places.acquire(blocking=False):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many callers as may hold this call already")
    try:
        yield
    finally:
        places.release()


class Call(Protocol):
    """What the service asks about a call and does to it; grpc.ServicerContext is one."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """What came with it, such as its authorization."""

    def time_remaining(self) -> float | None:
        """Seconds that the caller will still wait; None without end."""

    def peer(self) -> str:
        """Who called, for people."""

    def cancel(self) -> Any:
        """End it at once, from another thread."""


class Endpoint:
    """A gRPC server that listens; its health follows what it is told."""

    def __init__(
        self, server: grpc.Server, checks: health.HealthServicer, names: tuple[str, ...], stalls: Stalls
    ) -> None:
        self.server = server
        self.address = ""
        self.serving = False
        self._checks = checks
        self._names = names
        self._stalls = stalls

    def listen(self, host: str, port: int, security: Security, advertise: str = "") -> None:
        """Bind host:port (0: any free one), and start; `advertise` is the host that clients use, where it is another.

        Raises:
            Unavailable: the port cannot be bound.
        """
        try:
            bound = security.bind(self.server, host, port)
        except RuntimeError:
            raise Unavailable(
                f"cannot listen on {host_port(host, port)}", field="port", fix="choose another"
            ) from None
        self.address = host_port(advertise or host, bound)
        self.server.start()

    def mark(self, *, serving: bool) -> None:
        """Set the health of every service."""
        self.serving, kind = serving, health_pb2.HealthCheckResponse
        for name in self._names:
            self._checks.set(name, kind.SERVING if serving else kind.NOT_SERVING)

    def serve(self) -> None:
        """Say that the endpoint is ready."""
        self.mark(serving=True)

    def drain(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end within `grace_s` seconds, and stop."""
        self.mark(serving=False)
        self.server.stop(grace_s).wait(grace_s + 5)
        self._stalls.stop()

    def cut(self) -> None:
        """End every call at once, and stop."""
        self.server.stop(0)
        self._stalls.stop()


def abort(context: grpc.ServicerContext, error: AdamServeError) -> None:
    """End a call with our error."""
    context.set_trailing_metadata(((status.DETAILS, status.details(error)),))
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


ANSWER_S = 0.1
"""Seconds that an answer may take to reach its caller."""


def deadline_of(call: Call, limits: Limits) -> Deadline:
    """A little before the call's own deadline, so that the caller hears why; or the service's longest."""
    remaining = call.time_remaining()
    if remaining is None:
        return Deadline.after(limits.call_s)
    return Deadline.after(min(remaining - min(ANSWER_S, remaining / 10), limits.call_s))


class Stalls:
    """Cuts streams on which nothing has moved for `stall_s` seconds."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._moved: dict[Call, float] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="adamserve-stalls", daemon=True).start()

    @contextmanager
    def watching(self, call: Call) -> Iterator[Callable[[], None]]:
        """Watch a call; call what it yields whenever something has moved."""

        def moved() -> None:
            self._moved[call] = time.monotonic()

        with self._lock:
            moved()
        try:
            yield moved
        finally:
            with self._lock:
                self._moved.pop(call, None)

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._stall_s / 4)):
            late = time.monotonic() - self._stall_s
            with self._lock:
                stalled = [call for call, at in self._moved.items() if at < late]
            for call in stalled:
                log.warning("cut a call from %s: nothing moved for %g s", call.peer(), self._stall_s)
                call.cancel()
