"""A file is read exactly as it was written, or refused with the byte at which it goes wrong."""

from __future__ import annotations

import contextlib
import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adamserve.errors import DataError
from workers.data.idx import read_idx

from .conftest import idx

GOOD = idx(np.arange(24).reshape(2, 3, 4))
PACKED = gzip.compress(GOOD, mtime=0)
BILLIONS = struct.pack(">HBB4I", 0, 8, 4, *[2**32 - 1] * 4)


@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)), packed=st.booleans())
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-idx-ubyte"  # what it holds counts, not what it is called
    path.write_bytes(gzip.compress(idx(array), 1) if packed else idx(array))
    read = read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array, strict=True)
    read[...] = 0  # the caller's own: writable


REFUSED = {
    "an empty file": (b"", "at byte 0: expected a magic number of 4 bytes, found the end of the file"),
    "a cut magic number": (GOOD[:3], "at byte 3: expected a magic number"),
    "a web page": (b"<html>not found", "at byte 0: expected an IDX file's two zero bytes, found 0x3c68"),
    "floats": (struct.pack(">HBBI", 0, 0x0D, 1, 1) + b"\0" * 4, "at byte 2: expected type code 0x08"),
    "no dimensions": (struct.pack(">HBB", 0, 8, 0) + b"\0", "at byte 3: expected 1 to 4 dimensions, found 0"),
    "too many dimensions": (
        struct.pack(">HBB", 0, 8, 255),
        "at byte 3: expected 1 to 4 dimensions, found 255",
    ),
    "cut sizes": (GOOD[:13], "at byte 13: expected 3 sizes of 4 bytes, found the end of the file"),
    "a size of 0": (
        struct.pack(">HBB3I", 0, 8, 3, 2, 0, 4),
        "at byte 8: expected a size of at least 1, found 0",
    ),
    "no data": (
        GOOD[:16],
        "at byte 16: expected 24 bytes of data for shape 2x3x4, found the end of the file",
    ),
    "cut data": (
        GOOD[:-1],
        "at byte 39: expected 24 bytes of data for shape 2x3x4, found the end of the file",
    ),
    "one byte more": (GOOD + b"\0", "at byte 40: expected the end of the file after 24 bytes of data"),
    "absurd sizes": (BILLIONS + b"\0" * 9, "at byte 29: expected 340282366604"),
    "absurd sizes, gzipped": (gzip.compress(BILLIONS), "at byte 20: expected 340282366604"),
    "gzip of one byte more": (gzip.compress(GOOD + b"\0"), "at byte 40: expected the end of the file"),
    "gzip of cut data": (gzip.compress(GOOD[:-1]), "at byte 39: expected 24 bytes of data"),
    "a cut gzip": (PACKED[:-9], f"at byte {len(PACKED) - 9}: expected more gzip data, found the end"),
    "a gzip without its checksum": (PACKED[:-8], f"at byte {len(PACKED) - 8}: expected more gzip data"),
    "only a gzip's first bytes": (PACKED[:2], "at byte 2: expected more gzip data"),
    "a gzip of another method": (PACKED[:2] + b"\7" + PACKED[3:], "expected sound gzip data, found Unknown"),
    "a gzip with a wrong checksum": (PACKED[:-8] + b"\0" * 4 + PACKED[-4:], "found CRC check failed"),
    "a gzip with a wrong body": (PACKED[:10] + b"\xff" * 8 + PACKED[18:], "expected sound gzip data, found"),
    "a gzip and then something": (PACKED + b"and more", "expected sound gzip data, found Not a gzipped file"),
}


@pytest.mark.parametrize(("content", "says"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_by_file_and_byte(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert caught.value.field == str(path)
    assert says in caught.value.problem
    assert caught.value.fix


@given(
    content=st.binary(max_size=64), head=st.sampled_from([b"", GOOD[:4], GOOD[:16], PACKED[:2], PACKED[:14]])
)
def test_no_content_gives_any_other_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(head + content)
    with contextlib.suppress(DataError):
        assert read_idx(path).size > 0


@pytest.mark.parametrize("content", [BILLIONS, gzip.compress(BILLIONS)], ids=["plain", "gzipped"])
def test_claimed_sizes_allocate_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # a read buffer or two
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [".", "missing"], ids=["a folder", "no file"])
def test_a_path_that_is_no_file_is_a_data_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read: (Is a directory|No such file or directory)"):
        read_idx(tmp_path / name)
