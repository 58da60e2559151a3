"""The messages that carry tensors, read and written by hand: the same bytes as protobuf, without its copies.

A `Chunk`'s data is most of a push or a pull. protobuf would copy it into a message and again into the serialized bytes;
here the sender joins the fields before it and the array's own memory once, and the receiver reads the array out of
the received bytes where they lie. Everything else in a message goes through protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adamserve.errors import InvalidArgument

VARINT, I64, LEN, I32 = 0, 1, 2, 5
"""Wire types."""

CHUNKS = 2
"""Number of the field `chunks` in every message that has it."""

MAX_FIELDS = 1 << 16
"""Fields of one message: each costs hundreds of bytes while it is read. A mebibyte of scalar tensors has fewer."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """adamserve.v1.Chunk, its data a view of the message that it came in."""

    tensor: str
    start: int
    length: int
    encoding: int
    sum32: int
    data: memoryview
    rows: memoryview | None = None


def chunk_head(
    tensor: str, start: int, length: int, encoding: int, sum32: int, nbytes: int, after: int = 0
) -> bytes:
    """What stands before a chunk's data in a message: the tag and length of the chunk, and its other fields.

    `after` bytes follow the data, such as `chunk_rows`.
    """
    name = tensor.encode()
    fields = b"".join(
        (
            b"\x0a", varint(len(name)), name,
            b"\x10", varint(start),
            b"\x18", varint(length),
            b"\x20", varint(encoding),
            b"\x2d", sum32.to_bytes(4, "little"),
            b"\x32", varint(nbytes),
        )
    )  # fmt: skip
    return b"\x12" + varint(len(fields) + nbytes + after) + fields


def chunk_rows(rows: bytes) -> bytes:
    """The field `rows` of a chunk."""
    return text(7, rows)


def embedded(field: int, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """The parts of a message as one field of another message."""
    return [varint(field << 3 | LEN) + varint(sum(len(part) for part in parts)), *parts]


def split(message: bytes | memoryview) -> tuple[bytes, list[Chunk]]:
    """Take the chunks out of a message; returns what is left, for protobuf, and the chunks.

    Raises:
        InvalidArgument: the bytes are not a protobuf message.
    """
    view = memoryview(message)
    rest: list[memoryview] = []
    chunks: list[Chunk] = []
    for number, kind, value, whole in _fields(view):
        if number == CHUNKS and kind == LEN:
            chunks.append(_chunk(value))
        else:
            rest.append(whole)
    return b"".join(rest), chunks


def inside(message: bytes | memoryview, field: int) -> tuple[memoryview, bytes]:
    """Take one embedded message out of a message; returns it (empty where there is none) and what is left."""
    found = memoryview(b"")
    rest: list[memoryview] = []
    for number, kind, value, whole in _fields(memoryview(message)):
        if number == field and kind == LEN:
            found = value
        else:
            rest.append(whole)
    return found, b"".join(rest)


def texts(message: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message: numbers and contents."""
    for number, kind, value, _ in _fields(memoryview(message)):
        if kind == LEN:
            yield number, bytes(value)


def text(field: int, content: bytes) -> bytes:
    """One length-delimited field."""
    return varint(field << 3 | LEN) + varint(len(content)) + content


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
    numbers = {2: 0, 3: 0, 4: 0, 5: 0}
    tensor, data, rows = b"", view[:0], None
    for number, kind, value, whole in _fields(view):
        match number, kind:
            case 1, 2:
                tensor = bytes(value)
            case 6, 2:
                data = value
            case 7, 2:
                rows = value
            case 2 | 3 | 4, 0:
                numbers[number] = _varint(whole, _varint(whole, 0)[1])[0]
            case 5, 5:
                numbers[5] = int.from_bytes(value, "little")
    try:
        name = tensor.decode()
    except UnicodeDecodeError:
        raise InvalidArgument("a chunk's tensor name is not UTF-8", field="chunks.tensor") from None
    start, length = (n - (1 << 64) if n >> 63 else n for n in (numbers[2], numbers[3]))
    return Chunk(name, start, length, numbers[4], numbers[5], data, rows)


def _fields(view: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Every field of a message: number, wire type, content and the whole field with its tag."""
    at, end, count = 0, len(view), 0
    while at < end:
        begin, count = at, count + 1
        if count > MAX_FIELDS:
            raise InvalidArgument(f"it has more than {MAX_FIELDS} fields", field="message")
        tag, at = _varint(view, at)
        number, kind = tag >> 3, tag & 7
        content = at
        if kind == LEN:
            size, content = _varint(view, at)
            at = content + size
        elif kind == VARINT:
            _, at = _varint(view, at)
        elif kind == I32:
            at += 4
        elif kind == I64:
            at += 8
        else:
            raise InvalidArgument(f"wire type {kind} is not protobuf's", field="message")
        if at > end or not 0 < number < 1 << 29:
            raise InvalidArgument("the message is cut short or garbled", field="message")
        yield number, kind, view[content:at], view[begin:at]


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
