"""Worker processes that Ray places: each holds one plain object, and its methods are called from afar."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import ray

from adamserve.cluster.ray_calls import as_future

Answer = TypeVar("Answer")


@ray.remote(concurrency_groups={"work": 1, "control": 2})  # type: ignore[call-overload] # not in Ray's stubs
class WorkerActor:
    """Ray's shell around the object. No logic here."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._made = make()

    @ray.method(concurrency_group="control")
    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._made, method)(*args)

    @ray.method(concurrency_group="work")
    def work(self, method: str, *args: Any) -> Any:
        return getattr(self._made, method)(*args)


class WorkerHandle:
    """One worker process. Every call returns at once, also before the process is up.

    Futures raise `ProcessGone` once the process is dead, and otherwise what the object's method raised.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Call a method that is soon done; what `Pool.share` returned arrives as the value that it was given."""
        return as_future(self._actor.call.remote(method, *args))

    def work(self, method: str, *args: Any) -> Future[Any]:
        """Call a method that takes long, while others can be called; one at a time."""
        return as_future(self._actor.work.remote(method, *args))


class Pool:
    """Starts worker processes, spread over the nodes of the connected Ray. They end with this process, or with Ray.

    Args:
        make: makes a process's object; it is pickled.
        gpus: that Ray reserves for each process, beside a core.
    """

    def __init__(self, make: Callable[[], Any], *, gpus: float = 0.0) -> None:
        self._make = make
        self._gpus = gpus

    def start(self) -> WorkerHandle:
        """Start a process; returns before there is room for it."""
        options = WorkerActor.options(num_cpus=1, num_gpus=self._gpus, scheduling_strategy="SPREAD")  # type: ignore[attr-defined] # Ray's class has it
        return WorkerHandle(options.remote(self._make))

    def share(self, value: Any) -> Any:
        """Keep a value where every process can read it, to be given to calls in its place."""
        return ray.put(value)


def gather(futures: Sequence[Future[Answer]], timeout_s: float) -> list[Answer]:
    """Wait for the answers to calls that were all made already, `timeout_s` seconds in all.

    Raises:
        TimeoutError: they did not come in time.
        AdamServeError: what the first call that failed raised.
    """
    deadline = time.monotonic() + timeout_s
    return [future.result(timeout=max(0.0, deadline - time.monotonic())) for future in futures]
