"""A strict reader of the IDX format in which MNIST is distributed.

Format (LeCun et al., http://yann.lecun.com/exdb/mnist/): two zero bytes, a type code, the number of dimensions,
each dimension as a big-endian 32-bit integer, then the elements, last dimension fastest.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError

UBYTE = 0x08
"""Type code of unsigned bytes, the only one that MNIST uses."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes, gzipped (by its first bytes, not its name) or not.

    Raises:
        DataError: names the file, the byte offset in the unpacked data, what was expected and what was found.
    """
    data = _unpacked(path)

    def fail(offset: int, expected: str, found: str) -> DataError:
        return DataError(
            f"at byte {offset}: expected {expected}, found {found}", field=str(path), fix="fetch the file again"
        )

    if len(data) < 4:
        raise fail(len(data), "a 4-byte magic number", f"the end of the file after {len(data)} bytes")
    zero, code, rank = struct.unpack(">HBB", data[:4])
    if zero != 0 or code != UBYTE:
        raise fail(0, "magic number 0x000008NN (IDX of unsigned bytes)", f"0x{data[:4].hex()}")
    if not 1 <= rank <= 4:
        raise fail(3, "1 to 4 dimensions", str(rank))
    start = 4 + 4 * rank
    if len(data) < start:
        raise fail(len(data), f"{rank} sizes of 4 bytes", "the end of the file")
    shape = struct.unpack(f">{rank}I", data[4:start])
    expected = math.prod(shape)
    if len(data) - start != expected:
        kind = "the end of the file" if len(data) - start < expected else "more"
        raise fail(
            min(len(data), start + expected),
            f"{expected} bytes of data for shape {'x'.join(map(str, shape))}",
            f"{kind} after {len(data) - start}",
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _unpacked(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the gzip data is damaged: {error}", field=str(path), fix="fetch the file again") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", field=str(path)) from None
