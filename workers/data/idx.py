"""A strict reader of the IDX format in which MNIST is distributed.

Format (LeCun et al., http://yann.lecun.com/exdb/mnist/): two zero bytes, a type code, the number of
dimensions, each size as a big-endian 32-bit integer, then the elements, last dimension fastest.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError

MAX_RANK = 4
"""Most dimensions read: images, rows, columns, channels."""

CHUNK_BYTES = 1 << 20


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes, gzipped (by its first bytes, not its name) or not.

    Memory grows with the bytes that are there, never with the sizes that the header claims.

    Returns:
        An array of the shape in the header, 1 to `MAX_RANK` dimensions, none of them 0; the caller's own.

    Raises:
        DataError: the file cannot be read, or is not exactly one IDX array. Names what was expected and found, and the
            byte: of the unpacked data, or of the file where gzip is at fault.
    """
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] != b"\x1f\x8b":
                return _parse(file, path)
            try:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return _parse(unpacked, path)
            except EOFError:
                raise _bad(path, f"at byte {file.tell()}", "more gzip data", "the end of the file") from None
            except (gzip.BadGzipFile, zlib.error) as error:
                raise _bad(path, f"at or before byte {file.tell()}", "sound gzip data", str(error)) from None
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise DataError(problem, field=str(path), fix="give a file that can be read") from None


def _parse(stream: BinaryIO | gzip.GzipFile, path: Path) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise _bad(path, f"at byte {len(magic)}", "a magic number of 4 bytes", "the end of the file")
    zero, code, rank = struct.unpack(">HBB", magic)
    if zero != 0:
        raise _bad(path, "at byte 0", "an IDX file's two zero bytes", f"0x{magic[:2].hex()}")
    if code != 0x08:  # the only one that MNIST uses
        raise _bad(path, "at byte 2", "type code 0x08 (unsigned bytes)", f"0x{code:02x}")
    if not 1 <= rank <= MAX_RANK:
        raise _bad(path, "at byte 3", f"1 to {MAX_RANK} dimensions", str(rank))
    start = 4 + 4 * rank
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise _bad(path, f"at byte {4 + len(sizes)}", f"{rank} sizes of 4 bytes", "the end of the file")
    shape = struct.unpack(f">{rank}I", sizes)
    if 0 in shape:
        raise _bad(path, f"at byte {4 + 4 * shape.index(0)}", "a size of at least 1", "0")
    expected = math.prod(shape)
    data = bytearray()
    while len(data) < expected and (chunk := stream.read(min(CHUNK_BYTES, expected - len(data)))):
        data += chunk
    wanted = f"{expected} bytes of data for shape {'x'.join(map(str, shape))}"
    if len(data) < expected:
        raise _bad(path, f"at byte {start + len(data)}", wanted, f"the end of the file after {len(data)}")
    if stream.read(1):  # for gzip, this also reads and checks the checksum at the end
        raise _bad(path, f"at byte {start + expected}", f"the end of the file after {wanted}", "more bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _bad(path: Path, where: str, expected: str, found: str) -> DataError:
    problem = f"{where}: expected {expected}, found {found}"
    return DataError(problem, field=str(path), fix="fetch the file again")
