"""Threads of a client. None of them keeps its process alive: what is under way ends with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

Work = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Thread:
    """One daemon thread, begun with the first piece of work, that does what it is given in that order.

    The interpreter's end waits for the threads of `ThreadPoolExecutor`, so a push that waits for its gradients, or its
    round, would hold a script up that has failed.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._begun = self._ended = False

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """Do a piece of work after those before it."""
        future: Future[Any] = Future()
        with self._lock:
            if self._ended:
                raise RuntimeError("the thread has ended")
            if not self._begun:
                threading.Thread(target=_run, args=(self._queue,), name=self._name, daemon=True).start()
                self._begun = True
            self._queue.put((future, work, args, options))
        return future

    def shutdown(self, *, cancel_futures: bool = False) -> None:
        """End the thread after the work that was given to it, or cancel what has not begun."""
        with self._lock:
            self._ended = True
        with suppress(Empty):
            while cancel_futures:
                if (waiting := self._queue.get_nowait()) is not None:
                    waiting[0].cancel()
        self._queue.put(None)


def do_here(work: Callable[..., Any], /, *args: Any) -> Future[Any]:
    """Do a piece of work at once, in the caller's thread."""
    future: Future[Any] = Future()
    try:
        future.set_result(work(*args))
    except Exception as error:
        future.set_exception(error)
    return future


def _run(queue: SimpleQueue[Work | None]) -> None:
    while (work := queue.get()) is not None:
        future, function, args, options = work
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*args, **options))
            except BaseException as error:
                future.set_exception(error)
        del work, future, function, args, options  # so that nothing is kept alive meanwhile
