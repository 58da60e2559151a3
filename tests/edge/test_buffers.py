"""Buffers are used again, and never while anything can still read them."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from adamserve.edge import buffers as module
from adamserve.edge.buffers import KEPT, Buffers

LARGE = module.LARGE // 4


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_one_that_nothing_refers_to_is_lent_again_in_any_dtype() -> None:
    buffers = Buffers()
    first = buffers.take(LARGE, "<f4")
    assert first.shape == (LARGE,)
    assert first.dtype == np.float32
    at = address(first)
    other = buffers.take(LARGE, "<f4")
    assert address(other) != at
    del first
    again = buffers.take(LARGE * 2, "<u2")
    assert address(again) == at
    again[...] = 7


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[3:5],
        lambda array: array[3:5].view(np.uint8)[1:].data,
        lambda array: memoryview(array).cast("B")[8:16],
        lambda array: array.reshape(2, -1).T,
    ],
    ids=["slice", "bytes of a slice", "memoryview", "transposed"],
)
def test_a_view_keeps_it(view: object) -> None:
    assert callable(view)
    buffers = Buffers()
    array = buffers.take(LARGE, "<f4")
    array[...] = np.arange(LARGE)
    at, seen = address(array), view(array)
    before = np.array(seen)
    del array
    gc.collect()
    other = buffers.take(LARGE, "<f4")
    other[...] = -1.0
    assert address(other) != at
    np.testing.assert_array_equal(np.array(seen), before)
    del seen
    assert address(buffers.take(LARGE, "<f4")) == at


def test_few_are_kept_and_small_ones_never() -> None:
    buffers = Buffers()
    lent = [buffers.take(LARGE + i, "<f4") for i in range(KEPT + 2)]
    lent.append(buffers.take(4, "<f4"))
    del lent
    assert len(buffers._free) == KEPT
    assert buffers.take(LARGE, "<f4").size == LARGE  # of another size: fresh, and the others stay
    assert len(buffers._free) == KEPT
