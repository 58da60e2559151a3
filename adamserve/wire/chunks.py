"""The messages that carry tensors, read and written by hand: the same bytes as protobuf, without its copies.

A `Chunk`'s data is most of a push or a pull. protobuf would copy it into a message and again into the serialized bytes;
here the sender joins the fields before it and the array's own memory once, and the receiver reads the array out of
the received bytes where they lie. Everything else in a message goes through protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from adamserve.errors import InvalidArgument

VARINT, I64, LEN, I32 = 0, 1, 2, 5
"""Wire types."""

_SIZES = {I32: 4, I64: 8}
"""Bytes of those that have a fixed size."""

CHUNKS = 2
"""Number of the field `chunks` in every message that has it."""

MAX_FIELDS = 1 << 16
"""Fields of one message: each costs hundreds of bytes while it is read. A mebibyte of scalar tensors has fewer."""


class Chunk(NamedTuple):
    """adamserve.v1.Chunk; its data is a view of an array, or of the message that it came in."""

    tensor: str
    start: int
    length: int
    encoding: int
    sum32: int
    data: memoryview
    rows: bytes | memoryview | None = None

    def parts(self) -> list[bytes | memoryview]:
        """The chunk as parts of a message; its data stays where it is."""
        name = self.tensor.encode()
        fields = b"".join(
            (
                b"\x0a", varint(len(name)), name,
                b"\x10", varint(self.start),
                b"\x18", varint(self.length),
                b"\x20", varint(self.encoding),
                b"\x2d", self.sum32.to_bytes(4, "little"),
                b"\x32", varint(len(self.data)),
            )
        )  # fmt: skip
        tail = [] if self.rows is None else [b"\x3a" + varint(len(self.rows)), self.rows]
        size = len(fields) + len(self.data) + sum(map(len, tail))
        return [b"\x12" + varint(size) + fields, self.data, *tail]


def embedded(field: int, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """The parts of a message as one field of another message."""
    return [varint(field << 3 | LEN) + varint(sum(len(part) for part in parts)), *parts]


def split(message: bytes | memoryview) -> tuple[bytes, list[Chunk]]:
    """Take the chunks out of a message; returns what is left, for protobuf, and the chunks.

    As everything that reads here, it raises InvalidArgument where the bytes are not a protobuf message.
    """
    rest, found = _apart(message, CHUNKS)
    return rest, [_chunk(content) for content in found]


def inside(message: bytes | memoryview, field: int) -> tuple[memoryview, bytes]:
    """Take one embedded message out of a message; returns it (empty where there is none) and what is left."""
    rest, found = _apart(message, field)
    return found[-1] if found else memoryview(b""), rest


def _apart(message: bytes | memoryview, field: int) -> tuple[bytes, list[memoryview]]:
    """A message without one of its length-delimited fields, and that field's contents."""
    rest: list[memoryview] = []
    found: list[memoryview] = []
    for number, kind, value, whole in _fields(memoryview(message)):
        if number == field and kind == LEN:
            found.append(value)
        else:
            rest.append(whole)
    return b"".join(rest), found


def varint(value: int) -> bytes:
    """A number that is not negative."""
    if value < 0x80:
        return value.to_bytes(1, "little")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _chunk(view: memoryview) -> Chunk:
    fields = {(number, kind): value for number, kind, value, _ in _fields(view)}
    start, length, encoding = (fields.get((number, VARINT), 0) for number in (2, 3, 4))
    try:
        tensor = bytes(fields.get((1, LEN), b"")).decode()
    except UnicodeDecodeError:
        raise InvalidArgument("a chunk's tensor name is not UTF-8", field="chunks.tensor") from None
    return Chunk(
        tensor,
        start - (1 << 64) if start >> 63 else start,
        length - (1 << 64) if length >> 63 else length,
        encoding,
        int.from_bytes(fields.get((5, I32), b""), "little"),
        fields.get((6, LEN), view[:0]),
        fields.get((7, LEN)),
    )


def _fields(view: memoryview) -> Iterator[tuple[int, int, Any, memoryview]]:
    """Every field of a message: number, wire type, content (a number, or a view) and the whole field with its tag."""
    at, end, count = 0, len(view), 0
    while at < end:
        begin, count = at, count + 1
        if count > MAX_FIELDS:
            raise InvalidArgument(f"it has more than {MAX_FIELDS} fields", field="message")
        tag, at = _varint(view, at)
        number, kind = tag >> 3, tag & 7
        value: int | memoryview
        if kind == VARINT:
            value, at = _varint(view, at)
        elif kind in _SIZES or kind == LEN:
            size, at = _varint(view, at) if kind == LEN else (_SIZES[kind], at)
            value = view[at : at + size]
            at += size
        else:
            raise InvalidArgument(f"wire type {kind} is not protobuf's", field="message")
        if at > end or not 0 < number < 1 << 29:
            raise InvalidArgument("the message is cut short or garbled", field="message")
        yield number, kind, value, view[begin:at]


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while at < len(view) and shift < 70:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise InvalidArgument("the message is cut short or garbled", field="message")
