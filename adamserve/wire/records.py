"""Frozen dataclasses to and from protobuf messages whose fields have the same names."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from adamserve.errors import InvalidArgument
from adamserve.observe.plain import from_plain, to_plain

Record = TypeVar("Record")
Sent = TypeVar("Sent", bound=Message)


def to_message(record: Any, kind: type[Sent]) -> Sent:
    """A dataclass or a named tuple as a message of type `kind`, which has all its fields; what is None is left out."""
    return kind(**to_plain(record))


def from_message(kind: type[Record], message: Message) -> Record:
    """The dataclass or named tuple that a message holds.

    Fields that `kind` does not have are ignored, as they come from a newer peer; what is left out takes its default.

    Raises:
        InvalidArgument: a field that has no default is left out.
    """
    plain = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    try:
        return from_plain(kind, plain)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"a {message.DESCRIPTOR.name} is not whole: {error}") from None
