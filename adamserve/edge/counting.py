"""Counts a gRPC server's calls, whichever service they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from adamserve.observe.rpc_counts import Calls


class Counting(grpc.ServerInterceptor):
    """Counts calls as they come in and as they end."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """As grpc.ServerInterceptor: the method's handler, with its behaviour counted."""
        handler = continuation(handler_call_details)
        if handler is None:
            self._calls.started("unknown")
            self._calls.handled("unknown", grpc.StatusCode.UNIMPLEMENTED.name)
            return None
        method = handler_call_details.method.rpartition("/")[2]
        kind = (
            f"{'stream' if handler.request_streaming else 'unary'}_"
            f"{'stream' if handler.response_streaming else 'unary'}"
        )
        counted = self._streams if handler.response_streaming else self._answers
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            counted(method, getattr(handler, kind)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _answers(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            self._calls.started(method)
            done = False
            try:
                response = behaviour(request, context)
                done = True
                return response
            finally:
                self._calls.handled(method, _code(context, done))

        return answer

    def _streams(self, method: str, behaviour: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self._calls.started(method)
            done = False
            try:
                yield from behaviour(request, context)
                done = True
            finally:
                self._calls.handled(method, _code(context, done))

        return stream


def _code(context: grpc.ServicerContext, done: bool) -> str:
    """How a call ended: CANCELLED if nobody waits for it any more, else with our own code, OK, or UNKNOWN."""
    if not context.is_active():
        return "CANCELLED"
    given = context.code()  # type: ignore[attr-defined] # not in the stubs
    if given is not None:
        return str(given.name) if isinstance(given, grpc.StatusCode) else str(given)
    return "OK" if done else "UNKNOWN"
