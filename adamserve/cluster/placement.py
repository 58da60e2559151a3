"""Processes as their callers see them: each holds one object, whose methods are called, whatever carries the calls."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from adamserve.cluster.config import CALL_TIMEOUT_S
from adamserve.cluster.process import ShardProcess
from adamserve.errors import Unavailable

Given = ParamSpec("Given")
Answer = TypeVar("Answer")
Made_co = TypeVar("Made_co", covariant=True)


class ProcessGone(Unavailable):
    """A process is dead; a shard's is being replaced."""


class Handle(ABC, Generic[Made_co]):
    """One process, and the object in it."""

    @abstractmethod
    def send(self, method: str, *args: Any, **options: Any) -> Future[Any]:
        """As `call`, by the method's name."""

    @abstractmethod
    def kill(self) -> None:
        """End the process at once."""

    def call(
        self,
        method: Callable[Concatenate[Made_co, Given], Answer],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Future[Answer]:
        """Call a method of the object, as in `handle.call(ShardProcess.drop, "job")`.

        It returns at once, also before the process is up. The future raises `ProcessGone` once the process is known to
        be dead, and otherwise what the method raised.
        """
        return self.send(method.__name__, *args, **options)


Placement = Callable[[int], Handle[ShardProcess]]
"""Starts a shard's process; returns before it is up."""


def gather(futures: Sequence[Future[Answer]], timeout_s: float = CALL_TIMEOUT_S) -> list[Answer]:
    """Wait for the answers to calls that were all made already, `timeout_s` seconds in all.

    Raises:
        TimeoutError: they did not come in time.
        AdamServeError: what the first call that failed raised.
    """
    deadline = time.monotonic() + timeout_s
    return [future.result(timeout=max(0.0, deadline - time.monotonic())) for future in futures]
