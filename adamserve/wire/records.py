"""Frozen dataclasses to and from protobuf messages whose fields have the same names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.message import Message

from adamserve.errors import InvalidArgument
from adamserve.observe.plain import from_plain, to_plain

Record = TypeVar("Record")
Sent = TypeVar("Sent", bound=Message)


def to_message(record: Any, kind: type[Sent]) -> Sent:
    """A dataclass or a named tuple as a message of type `kind`; what is None is left out.

    Raises:
        ValueError: the message has no such field.
    """
    return kind(**to_plain(record, _sent))


def from_message(kind: type[Record], message: Message) -> Record:
    """The dataclass or named tuple that a message holds.

    Fields that `kind` does not have are ignored, as they come from a newer peer; what is left out takes its default.

    Raises:
        InvalidArgument: a field that has no default is left out.
    """
    try:
        return from_plain(kind, _plain(message))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"a {message.DESCRIPTOR.name} is not whole: {error}") from None


def _sent(value: Any) -> Any:
    """A number or a text as a message has it: Outcome.STALE is OUTCOME_STALE."""
    return f"{_prefix(type(value).__name__)}{value.name}" if isinstance(value, StrEnum) else value


def _plain(message: Message) -> dict[str, Any]:
    return {
        field.name: _value(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return _plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_value(field, item) for item in value]
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name.removeprefix(_prefix(field.enum_type.name)) if known is not None else str(value)
    return value


def _prefix(enum: str) -> str:
    """What the names of a protobuf enum's values begin with."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum).upper() + "_"
