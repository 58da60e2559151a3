"""Memory that large messages are put together in, used again: fresh memory costs a page fault every 4 KiB."""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from adamserve.values import Array

KEPT = 4
"""Free buffers that an endpoint keeps."""

LARGE = 1 << 20
"""Bytes from which on an array is worth it."""


class Buffers:
    """Lends arrays; thread-safe, and without a lock, for an array may end in any thread and at any time."""

    def __init__(self) -> None:
        self._free: deque[Array] = deque(maxlen=KEPT)

    def take(self, size: int, dtype: np.dtype[Any] | str) -> Array:
        """A flat array with anything in it.

        A large one's memory serves again when neither it nor a view of it is left, such as one that is being sent.
        """
        nbytes = size * np.dtype(dtype).itemsize
        if nbytes < LARGE:
            return np.empty(size, dtype)
        memory = self._find(nbytes)
        # Views of an array over a memoryview refer to that array; views of a view would refer to the memory only.
        lent = np.frombuffer(memory.data, dtype)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent

    def _find(self, nbytes: int) -> Array:
        with suppress(IndexError):  # another thread took it
            for _ in range(len(self._free)):
                memory = self._free.popleft()
                if memory.nbytes == nbytes:
                    return memory
                self._free.append(memory)
        return np.empty(nbytes, np.uint8)
