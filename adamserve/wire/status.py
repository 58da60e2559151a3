"""Our errors as gRPC statuses and back.

The class, the field and the fix travel in the trailer `grpc-status-details-bin` as google.rpc.ErrorInfo and
google.rpc.BadRequest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from adamserve import errors
from adamserve.errors import AdamServeError

DOMAIN = "adamserve"

DETAILS = "grpc-status-details-bin"

LONGEST = 1024
"""Characters of a problem, field or fix that travel: trailers have a limit of 8 KiB."""

CODES: Mapping[type[AdamServeError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BadSequence: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFinite: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CheckpointError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}
"""Of the errors that share a status, the first is what that status stands for without our details."""

KINDS: Mapping[str, type[AdamServeError]] = {kind.__name__: kind for kind in CODES}

BY_CODE: Mapping[grpc.StatusCode, type[AdamServeError]] = {
    **{code: kind for kind, code in reversed([*CODES.items()])},
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
}
"""What a status without our details stands for; any other is Unavailable."""

UNCONNECTED = ("failed to connect", "DNS resolution", "Name or service not known", "Connection refused")
"""How gRPC and sockets say that there is no connection."""

BUSY = "Concurrent RPC limit exceeded!"
"""What grpcio says, as RESOURCE_EXHAUSTED, while as many calls are under way as a server takes."""


def code_of(error: AdamServeError) -> grpc.StatusCode:
    """The status of an error."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.UNKNOWN)


def details(error: AdamServeError) -> bytes:
    """An error as a google.rpc.Status."""
    problem, field, fix = (text[:LONGEST] for text in (error.problem, error.field, error.fix))
    number: int = code_of(error).value[0]
    answer = status_pb2.Status(code=number, message=problem)
    said = {"problem": problem, "field": field, "fix": fix}
    info = error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN, metadata=said)
    answer.details.add().Pack(info)
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
        answer.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    packed: bytes = answer.SerializeToString()
    return packed


def error_of(call: Any) -> AdamServeError:
    """The error behind a failed call: ours where its details say so, else the one its status stands for."""
    ours = from_details(dict(call.trailing_metadata() or ()).get(DETAILS, b""))
    if ours is not None:
        return ours
    code, text = call.code(), call.details() or ""
    # Where it is busy, there will be a place soon.
    kind = errors.Unavailable if text == BUSY else BY_CODE.get(code, errors.Unavailable)
    return kind(f"{code.name}: {text}"[:LONGEST])


def from_details(status: bytes) -> AdamServeError | None:
    """The error in a google.rpc.Status; None where it holds none of ours."""
    info = error_details_pb2.ErrorInfo()
    with suppress(DecodeError):
        any(detail.Unpack(info) for detail in status_pb2.Status.FromString(status).details)
    said, kind = info.metadata, KINDS.get(info.reason)
    if info.domain != DOMAIN or kind is None or not {"problem", "field", "fix"} <= said.keys():
        return None
    return kind(said["problem"], field=said["field"], fix=said["fix"])


def connection_failed(error: AdamServeError) -> bool:
    """Whether an error is that no connection could be made."""
    return any(words in error.problem for words in UNCONNECTED)
