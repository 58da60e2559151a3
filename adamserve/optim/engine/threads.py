"""The threads that share a long loop.

Compiled loops release Python's lock, so plain threads serve. OpenMP would not: Ray sets OMP_NUM_THREADS=1 in
its actors, and torch carries an OpenMP of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache

from adamserve.errors import InvalidArgument

ALONE = 65_536
"""Elements below which the caller's thread does all the work."""

_PARTS = 8  # for each thread
_ALIGN = 64  # elements; a cache line or more in every dtype, so that no two threads write one line

_count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(n: int) -> None:
    """Set how many threads an update of a large tensor uses, the caller's included.

    Results do not depend on it. Default: the CPUs that this process may use. Call it while no update runs.

    Raises:
        InvalidArgument: `n` is not a whole number from 1.
    """
    global _count
    if not isinstance(n, int) or isinstance(n, bool) or not n >= 1:
        raise InvalidArgument(f"must be a whole number >= 1, got {n!r}", field="n")
    _count = n
    _pool.cache_clear()


def share(n: int, part: Callable[[int, int], object]) -> None:
    """Call `part(start, stop)` for parts that cover range(n), on several threads at once; return when all are done.

    There are more parts than threads, and a thread that is done takes the next one. So if another process slows one
    core down, the other cores do more.
    """
    if n < ALONE or _count == 1:
        part(0, n)
        return
    size = max(ALONE, -(-n // (_count * _PARTS)))
    size += -size % _ALIGN
    starts = iter(range(0, n, size))
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                start = next(starts, n)
            if start >= n:
                return
            part(start, min(start + size, n))

    helpers: list[Future[None]] = []
    with suppress(RuntimeError):  # the interpreter is shutting down: no new threads
        helpers += [_pool().submit(work) for _ in range(_count - 1)]
    work()
    for helper in helpers:
        helper.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, _count - 1), thread_name_prefix="adamserve-optim")


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
