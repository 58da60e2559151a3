"""Our errors as gRPC statuses and back.

    error             status                 error             status
    InvalidArgument   INVALID_ARGUMENT       LimitExceeded     RESOURCE_EXHAUSTED
    BadSequence       INVALID_ARGUMENT       Unauthenticated   UNAUTHENTICATED
    NotFinite         INVALID_ARGUMENT       Unavailable       UNAVAILABLE
    NotFound          NOT_FOUND              CheckpointError   FAILED_PRECONDITION
    Conflict          FAILED_PRECONDITION

The class, the field and the fix travel in the trailer `grpc-status-details-bin` as google.rpc.ErrorInfo and
google.rpc.BadRequest. They are a few text fields, read and written here, so that a client needs no package for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc

from adamserve import errors
from adamserve.errors import AdamServeError
from adamserve.wire import chunks

DOMAIN = "adamserve"

DETAILS = "grpc-status-details-bin"

LONGEST = 1024
"""Characters of a problem, field or fix that travel: trailers have a limit of 8 KiB."""

CODES: Mapping[type[AdamServeError], grpc.StatusCode] = {
    errors.BadSequence: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFinite: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CheckpointError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

KINDS: Mapping[str, type[AdamServeError]] = {kind.__name__: kind for kind in CODES}

BY_CODE: Mapping[grpc.StatusCode, type[AdamServeError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitExceeded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
}
"""What a status without our details stands for; any other is Unavailable."""

BUSY = "Concurrent RPC limit exceeded!"
"""What grpcio says, as RESOURCE_EXHAUSTED, while as many calls are under way as a server takes."""

_ERROR_INFO = b"type.googleapis.com/google.rpc.ErrorInfo"
_BAD_REQUEST = b"type.googleapis.com/google.rpc.BadRequest"


def code_of(error: AdamServeError) -> grpc.StatusCode:
    """The status of an error."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.UNKNOWN)


def details(error: AdamServeError) -> bytes:
    """An error as a google.rpc.Status."""
    problem, field, fix = (value[:LONGEST].encode() for value in (error.problem, error.field, error.fix))
    info = chunks.text(1, type(error).__name__.encode()) + chunks.text(2, DOMAIN.encode())
    for key, value in ((b"problem", problem), (b"field", field), (b"fix", fix)):
        info += chunks.text(3, chunks.text(1, key) + chunks.text(2, value))
    found = [chunks.text(1, _ERROR_INFO) + chunks.text(2, info)]
    if field:
        violation = chunks.text(1, chunks.text(1, field) + chunks.text(2, problem))
        found.append(chunks.text(1, _BAD_REQUEST) + chunks.text(2, violation))
    code: int = code_of(error).value[0]
    return (
        b"\x08"
        + chunks.varint(code)
        + chunks.text(2, problem)
        + b"".join(chunks.text(3, any_) for any_ in found)
    )


def error_of(call: Any) -> AdamServeError:
    """The error behind a failed call: ours where its details say so, else the one its status stands for."""
    code, text = call.code(), call.details() or ""
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS:
            ours = from_details(value)
            if ours is not None:
                return ours
    kind = BY_CODE.get(code, errors.Unavailable)
    if text == BUSY:  # there will be a place soon
        kind = errors.Unavailable
    return kind(f"{code.name}: {text}"[:LONGEST])


def from_details(status: bytes) -> AdamServeError | None:
    """The error in a google.rpc.Status; None where it holds none of ours."""
    try:
        for any_ in _all(status, 3):
            if _ERROR_INFO not in _all(any_, 1):
                continue
            [info] = _all(any_, 2)
            [reason], [domain] = _all(info, 1), _all(info, 2)
            if domain.decode() != DOMAIN or reason.decode() not in KINDS:
                return None
            pairs = [(_all(entry, 1), _all(entry, 2)) for entry in _all(info, 3)]
            said = {key.decode(): value.decode(errors="replace") for [key], [value] in pairs}
            return KINDS[reason.decode()](said["problem"], field=said["field"], fix=said["fix"])
    except (ValueError, KeyError):
        pass
    return None


def _all(message: bytes, field: int) -> list[bytes]:
    return [content for number, content in chunks.texts(message) if number == field]


def metadata(error: AdamServeError) -> Iterable[tuple[str, bytes]]:
    """The trailer that carries an error."""
    return ((DETAILS, details(error)),)
