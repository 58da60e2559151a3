"""What the gRPC endpoints share: a server with health and reflection, answers to errors, and the watch over stalls."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from adamserve.edge.security import Limits, Security
from adamserve.errors import AdamServeError, InvalidArgument, Unavailable
from adamserve.job import host_port
from adamserve.observe.rpc_counts import Calls
from adamserve.values import Deadline
from adamserve.wire import status
from adamserve.wire.frames import Parts

log = logging.getLogger("adamserve.rpc")

Parsed = TypeVar("Parsed", bound=Message)

WATCHERS, REFLECTIONS = 8, 4
"""Callers of Health.Watch and of reflection at once: whoever they are, the other threads are left for pushes."""

ANSWER_S = 0.1
"""Seconds that an answer may take to reach its caller."""

Messages = Iterable[bytes | memoryview]
"""A call's messages; each lasts until the next one is taken."""


class Call(Protocol):
    """What a service asks about a call and does to it; grpc.ServicerContext is one."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]: ...  # such as its authorization
    def time_remaining(
        self,
    ) -> float | None: ...  # seconds that the caller will still wait; None: without end
    def peer(self) -> str: ...  # who called, for people
    def cancel(self) -> Any: ...  # end it at once, from another thread


Answer = Callable[[str, Messages, Call], Iterator[Parts]]
"""Answers a call of a method, with messages in pieces; raises an AdamServeError at once or while they are taken."""


class Endpoint:
    """A gRPC server of one service, with health and reflection; NOT_SERVING until told otherwise.

    `stalls` watches the service's streams, and is stopped with the server.
    """

    def __init__(
        self, service: ServiceDescriptor, answer: Answer, security: Security, stalls: Stalls, counts: Calls
    ) -> None:
        self.address = ""
        self._security = security
        self._stalls = stalls
        self._names = ("", service.full_name)
        limits = security.limits
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=limits.streams, thread_name_prefix="adamserve-grpc"),
            maximum_concurrent_rpcs=limits.streams,
            interceptors=[Answering(counts)],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
        )
        handlers = {method.name: _handler(method, answer) for method in service.methods}
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service.full_name, handlers)]
        )
        self._checks = health.HealthServicer(experimental_non_blocking=False)
        self._checks.Watch = _for_few(WATCHERS, self._checks.Watch)  # type: ignore[method-assign]
        health_pb2_grpc.add_HealthServicer_to_server(self._checks, self._server)
        reflecting: Any = reflection.ReflectionServicer(
            (service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        )
        reflecting.ServerReflectionInfo = _for_few(REFLECTIONS, reflecting.ServerReflectionInfo, stalls)
        add: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        add(reflecting, self._server)
        self._mark(serving=False)

    def listen(self, host: str, port: int, advertise: str = "") -> None:
        """Bind host:port (0: any free one), and start; Unavailable where it cannot be bound.

        `advertise` is the host that clients use, where it is another.
        """
        at, security = host_port(host, port), self._security
        try:
            if security.cert:
                pairs, mutual = [(security.key, security.cert)], security.client_ca or None
                tls = grpc.ssl_server_credentials(pairs, mutual, require_client_auth=mutual is not None)
                bound = self._server.add_secure_port(at, tls)
            else:
                bound = self._server.add_insecure_port(at)
        except RuntimeError:
            raise Unavailable(f"cannot listen on {at}", field="port", fix="choose another") from None
        self.address = host_port(advertise or host, bound)
        self._server.start()

    def serve(self) -> None:
        """Say that the endpoint is ready."""
        self._mark(serving=True)

    def drain(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end within `grace_s` seconds, and stop."""
        self._mark(serving=False)
        self._server.stop(grace_s).wait(grace_s + 5)
        self._stalls.stop()

    def cut(self) -> None:
        """End every call at once, and stop."""
        self._server.stop(0)
        self._stalls.stop()

    def _mark(self, *, serving: bool) -> None:
        self.serving, kind = serving, health_pb2.HealthCheckResponse
        for name in self._names:
            self._checks.set(name, kind.SERVING if serving else kind.NOT_SERVING)


def _for_few(callers: int, behaviour: Any, stalls: Stalls | None = None) -> Any:
    """A stream for a few callers at a time, as it needs no token; with `stalls`, each for as long as it moves."""
    places = threading.BoundedSemaphore(callers)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if not places.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many callers as may hold this call already")
        try:
            with stalls.watching(context) if stalls else nullcontext(lambda: None) as moved:
                for answer in behaviour(request, context):
                    yield answer
                    moved()
        finally:
            places.release()

    return stream


def _kind(streams_in: bool, streams_out: bool) -> str:
    """gRPC's word for what a method takes and gives, such as "stream_unary"."""
    return "_".join("stream" if streams else "unary" for streams in (streams_in, streams_out))


def _handler(method: MethodDescriptor, answer: Answer) -> Any:
    """A method as gRPC takes it; its messages come and go as bytes."""

    def behaviour(request: Any, context: grpc.ServicerContext) -> Any:
        answers = answer(method.name, request if method.client_streaming else [request], context)
        return map(b"".join, answers) if method.server_streaming else b"".join(next(answers))

    kind = _kind(method.client_streaming, method.server_streaming)
    return getattr(grpc, f"{kind}_rpc_method_handler")(behaviour)


class Answering(grpc.ServerInterceptor):
    """Counts calls as they come in and as they end, whichever service they are for; an AdamServeError ends its call."""

    def __init__(self, counts: Calls) -> None:
        self._counts = counts

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """As grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None:
            self._counts.started("unknown")
            self._counts.handled("unknown", grpc.StatusCode.UNIMPLEMENTED.name)
            return None
        method = handler_call_details.method.rpartition("/")[2]
        kind = _kind(handler.request_streaming, handler.response_streaming)
        behaviour = getattr(handler, kind)

        def one(request: Any, context: grpc.ServicerContext) -> Any:
            with self._counted(method, context):
                return behaviour(request, context)

        def several(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._counted(method, context):
                yield from behaviour(request, context)

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        counted = several if handler.response_streaming else one
        return make(counted, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _counted(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        self._counts.started(method)
        done = False
        try:
            yield
            done = True
        except AdamServeError as error:
            context.set_trailing_metadata(((status.DETAILS, status.details(error)),))
            context.abort(status.code_of(error), str(error)[: status.LONGEST])
        finally:
            given: Any = context.code()  # type: ignore[attr-defined] # not in the stubs
            code = "UNKNOWN" if given is None else given.name
            if not context.is_active():  # nobody waits for it any more
                code = "CANCELLED"
            elif done and given is None:
                code = "OK"
            self._counts.handled(method, code)


def parse(kind: type[Parsed], data: bytes | memoryview) -> Parsed:
    """A message from its bytes; InvalidArgument where they are not one."""
    message = kind()
    try:
        message.ParseFromString(bytes(data))
    except DecodeError:
        raise InvalidArgument(f"the bytes are not a {kind.DESCRIPTOR.name}", field="message") from None
    return message


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
