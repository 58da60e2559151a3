"""Elements to bytes and back, a chunk at a time.

Smaller dtypes halve or quarter what travels: bfloat16 and float16 round to nearest even; int8 keeps one float32 scale
for each block of 256 elements, max|x| / 127, so an element's error is at most half its block's scale, and the client
adds that error to its next gradient (error feedback; Seide et al. 2014, "1-bit stochastic gradient descent").
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from adamserve.errors import InvalidArgument
from adamserve.optim.engine import build
from adamserve.values import Array
from adamserve.wire import chunks

log = logging.getLogger("adamserve.rpc")

CHUNK_BYTES = 1 << 20
"""Bytes of elements that a sender puts into one chunk."""

MAX_CHUNK_BYTES = 4 << 20
"""Bytes that a receiver takes in one chunk."""

BLOCK = 256
"""Elements that share a scale in int8."""

_SIGNATURES = {
    "sum_words": 1,
    "digest_words": 2,
    "take_float32": 3,
    "take_bfloat16": 3,
    "keep_bfloat16": 3,
    "keep_float16": 3,
    "give_bfloat16": 2,
}
"""Pointers that each compiled loop takes after the number of elements."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One member of adamserve.v1.Encoding: its number, the numpy dtype of its items, and what it may carry."""

    number: int
    item: np.dtype[Any]
    gradients: tuple[str, ...]


ENCODINGS: Mapping[str, Encoding] = {
    "float32": Encoding(1, np.dtype("<f4"), ("float32", "float64")),
    "float64": Encoding(2, np.dtype("<f8"), ("float64",)),
    "bfloat16": Encoding(3, np.dtype("<u2"), ("float32", "float64")),
    "float16": Encoding(4, np.dtype("<f2"), ("float32", "float64")),
    "int8": Encoding(5, np.dtype("i1"), ("float32", "float64")),
}
"""By name; `gradients` are the dtypes of the parameters whose gradients it may carry."""

BY_NUMBER: Mapping[int, str] = {encoding.number: name for name, encoding in ENCODINGS.items()}


def encoding_name(number: int, *, field: str) -> str:
    """The name of an encoding's number; InvalidArgument where there is none, or it is not set."""
    try:
        return BY_NUMBER[number]
    except KeyError:
        known = ", ".join(f"{n} ({name})" for n, name in BY_NUMBER.items())
        raise InvalidArgument(f"{number} is not an encoding", field=field, fix=f"one of {known}") from None


@cache
def library() -> ctypes.CDLL | None:
    """The loops of native.c, compiled at the first call (a fifth of a second) and kept on disk.

    They move, sum and test elements in one pass. Without a compiler it is None, and numpy does the same in several.
    """
    try:
        built = build.build(build.text("adamserve.wire", "native.c"))
    except build.BuildError as error:
        log.debug("tensors are coded by numpy: %s", error)
        return None
    for name, pointers in _SIGNATURES.items():
        built.function(name, ctypes.c_longlong, *[ctypes.c_void_p] * pointers, returns=ctypes.c_uint32)
    return built.library


def _loops(nbytes: int) -> ctypes.CDLL | None:
    """The compiled loops, where they are worth their call."""
    return library() if nbytes >= 4096 else None


def sum32(data: memoryview | bytes) -> int:
    """A chunk's checksum: the sum, modulo 2^32, of its little-endian 32-bit words, the last padded with zeros.

    A CRC would cost as much as the whole transfer does without it, and TCP and TLS have checks of their own; this one
    catches what they do not see, a sender or receiver that mixes up its buffers.
    """
    whole = len(data) & ~3
    loops = _loops(whole)
    words = np.frombuffer(data[:whole], "<u4")
    total = loops.sum_words(words.size, words.ctypes.data) if loops else int(words.sum(dtype=np.uint32))
    return total + int.from_bytes(data[whole:], "little") & 0xFFFF_FFFF


def finite(values: Array) -> bool:
    """Whether every element is finite: one fast sum, and a second look where that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def fits(values: Array, name: str) -> bool:
    """Whether every element is finite, and stays so in an encoding."""
    largest = _LARGEST.get(name)
    if largest is None or not values.size:
        return finite(values)
    return bool(-largest < values.min() and values.max() < largest)


_LARGEST: Mapping[str, float] = {"bfloat16": 2.0**128 - 2.0**119, "float16": 65520.0}
"""Half a step above the largest number: from here on elements are rounded to infinity."""


def convert(values: Array, name: str, out: Array) -> int | None:
    """Write contiguous elements as the items of any encoding but int8, rounded to nearest even; bfloat16 as its bits.

    Returns their `sum32`, where it came with them.
    """
    if name == "bfloat16" and values.dtype == np.float32 and (loops := _loops(values.nbytes)):
        return int(loops.give_bfloat16(values.size, values.ctypes.data, out.ctypes.data))
    if name in _LARGEST and (torch := sys.modules.get("torch")) is not None:
        # uint16 is what torch knows least of: it sees the same bytes as int16 first.
        torch.from_numpy(out.view("<i2")).view(getattr(torch, name)).copy_(torch.from_numpy(values))
    elif name == "bfloat16":
        bits = values.astype("<f4", copy=False).view("<u4")
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        # The carry of a NaN's low bits would run into its exponent.
        out[...] = np.where(np.isnan(values), 0x7FC0, rounded)
    else:
        with np.errstate(over="ignore"):
            out[...] = values
    return None


def _read(items: Array, name: str, out: Array) -> None:
    """Write an encoding's items into float elements; the opposite of `convert`."""
    torch = sys.modules.get("torch") if name in _LARGEST else None
    if torch is not None and items.size:
        from adamserve.shard.gradients import borrow

        torch.from_numpy(out).copy_(borrow(items.view("<i2")).view(getattr(torch, name)))
    elif name == "bfloat16":
        bits = items.astype("<u4")
        bits <<= 16
        out[...] = bits.view("<f4")
    else:
        out[...] = items


def quantize(values: Array) -> tuple[Array, Array]:
    """float elements as int8 and one float32 scale a block."""
    count = -(-values.size // BLOCK)
    padded = np.zeros(count * BLOCK, np.float32)
    padded[: values.size] = values
    blocks = padded.reshape(count, BLOCK)
    scales = np.abs(blocks).max(axis=1) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scales[:, None] > 0, blocks / scales[:, None], 0)
    return np.clip(np.rint(scaled), -127, 127).astype("i1").reshape(-1)[: values.size], scales.astype("<f4")


def dequantize(items: Array, scales: Array, out: Array) -> None:
    """Write int8 items, scaled by their blocks, into float elements."""
    full = np.repeat(scales, BLOCK)[: items.size]
    np.multiply(items, full, out=out, casting="same_kind", dtype=np.float32)


def encode(tensor: str, values: Array, start: int, name: str) -> Iterator[list[bytes | memoryview]]:
    """A run of a tensor's elements, from number `start` on, as chunks in an encoding; each is parts of a message.

    `values` are 1-D and contiguous; of the encoding's own dtype, or float32 (float64 for "float64").
    """
    encoding = ENCODINGS[name]
    grain = CHUNK_BYTES // encoding.item.itemsize
    for begin in range(0, values.size, grain):
        part = values[begin : begin + grain]
        data, total = items_of(part, name)
        yield chunks.Chunk(tensor, start + begin, part.size, encoding.number, total, data).parts()


def encode_rows(tensor: str, rows: Array, values: Array, name: str) -> Iterator[list[bytes | memoryview]]:
    """Some rows of a tensor as chunks, at least one; each is parts of a message.

    Args:
        rows: their numbers in the tensor, of shape (n,), below 2^32.
        values: of shape (n, width), contiguous; float32 or float64.
    """
    encoding = ENCODINGS[name]
    grain = max(1, CHUNK_BYTES // (values.shape[1] * encoding.item.itemsize + 4))
    for begin in range(0, max(1, len(rows)), grain):
        numbers = rows[begin : begin + grain].astype("<u4").tobytes()
        part = values[begin : begin + grain].reshape(-1)
        data, total = items_of(part, name)
        total = total + sum32(numbers) & 0xFFFF_FFFF
        yield chunks.Chunk(tensor, 0, part.size, encoding.number, total, data, numbers).parts()


def decode_rows(chunk: chunks.Chunk, width: int) -> tuple[Array, Array, bool]:
    """As `decode`, for a chunk of rows.

    Returns:
        Their numbers, int64; their values of shape (n, width), float32 or float64; whether these are finite.
    """
    data = chunk.rows or b""
    if len(data) % 4 or chunk.length != len(data) // 4 * width or chunk.start:
        raise InvalidArgument(
            f"{len(data)} bytes of row numbers for {chunk.length} elements from {chunk.start}",
            field=chunk.tensor,
            fix=f"4 bytes a row, {width} elements a row, start 0",
        )
    dtype = "float64" if chunk.encoding == ENCODINGS["float64"].number else "float32"
    values = np.empty((len(data) // 4, width), dtype)
    all_finite = decode(chunk, values.reshape(-1))
    return np.frombuffer(data, "<u4").astype(np.int64), values, all_finite


def items_of(part: Array, name: str) -> tuple[memoryview, int]:
    """The bytes of a run of elements in an encoding, a view where nothing changes; and their `sum32`."""
    if name == "int8":
        items, scales = quantize(part)
        data = memoryview(scales.tobytes() + items.tobytes())
        return data, sum32(data)
    item, total = ENCODINGS[name].item, None
    if part.dtype != item:
        items = np.empty(part.size, item)
        total = convert(part, name, items)
        part = items
    data = memoryview(part.view(np.uint8).data)
    return data, sum32(data) if total is None else total


def decode(chunk: chunks.Chunk, out: Array) -> bool:
    """Check a chunk's bytes and write its elements into `out`, 1-D of its length; returns whether all are finite.

    `out` is float32 or float64; for bfloat16 and float16 also the items themselves (ml_dtypes' bfloat16, float16).

    Raises:
        InvalidArgument: unknown encoding, wrong number of bytes, or a checksum that does not fit; `out` may then hold
            anything.
    """
    name = encoding_name(chunk.encoding, field=chunk.tensor)
    expected = chunk.length * ENCODINGS[name].item.itemsize
    if name == "int8":
        expected += 4 * -(-chunk.length // BLOCK)
    if len(chunk.data) != expected:
        raise InvalidArgument(
            f"{chunk.length} elements of {name} take {expected} bytes, got {len(chunk.data)}",
            field=chunk.tensor,
        )
    rows = 0 if chunk.rows is None else sum32(chunk.rows)
    total, all_finite = _take(name, chunk.data, out)
    if total + rows & 0xFFFF_FFFF != chunk.sum32:
        raise InvalidArgument(
            f"the checksum of elements {chunk.start} to {chunk.start + chunk.length} does not fit",
            field=chunk.tensor,
            fix="send the sum of the chunk's 32-bit words",
        )
    return all_finite


_TAKES = {
    ("float32", "float32"): "take_float32",
    ("bfloat16", "float32"): "take_bfloat16",
    ("bfloat16", "bfloat16"): "keep_bfloat16",
    ("float16", "float16"): "keep_float16",
}
"""The compiled loop for an encoding and what it is written to."""


def _take(name: str, data: memoryview, out: Array) -> tuple[int, bool]:
    """Write elements into `out`; returns the bytes' `sum32`, and whether every element is finite."""
    loops, loop = _loops(len(data)), _TAKES.get((name, out.dtype.name))
    if loops and loop:
        good = ctypes.c_int(1)
        source = np.frombuffer(data, np.uint8)
        total: int = getattr(loops, loop)(out.size, source.ctypes.data, out.ctypes.data, ctypes.byref(good))
        return total, bool(good.value)
    if out.itemsize == 2:
        items = np.frombuffer(data, "<u2")
        out.view("<u2")[...] = items
        exponent = 0x7F80 if name == "bfloat16" else 0x7C00
        return sum32(data), not (items & exponent == exponent).any()
    with np.errstate(over="ignore", invalid="ignore"):  # nothing is known of these bytes yet
        if name == "int8":
            cut = 4 * -(-out.size // BLOCK)
            dequantize(np.frombuffer(data[cut:], "i1"), np.frombuffer(data[:cut], "<f4"), out)
        else:
            _read(np.frombuffer(data, ENCODINGS[name].item), name, out)
    return sum32(data), finite(out)
