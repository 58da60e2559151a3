"""Where shard processes run, as the controller sees it: it starts them and calls them, whatever carries the calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from adamserve.cluster.config import CALL_TIMEOUT_S
from adamserve.cluster.process import ShardProcess
from adamserve.errors import Unavailable

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


class ProcessGone(Unavailable):
    """A process is dead; a shard's is being replaced."""


class ShardHandle(Protocol):
    """One shard's process."""

    def call(
        self,
        method: Callable[Concatenate[ShardProcess, Given], Answer],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Future[Answer]:
        """Call a method of the process, as in `handle.call(ShardProcess.drop, "job")`; returns at once.

        The future raises `ProcessGone` once the process is known to be dead, and otherwise what the method raised.
        """

    def kill(self) -> None:
        """End the process at once."""


class Placement(Protocol):
    """Starts shard processes."""

    def start(self, index: int) -> ShardHandle:
        """Start a process for a shard; returns before it is up."""


def gather(futures: Sequence[Future[Answer]], what: str, timeout_s: float = CALL_TIMEOUT_S) -> list[Answer]:
    """Wait for every answer.

    Args:
        futures: of calls that were all made already.
        what: what is waited for, for the error.
        timeout_s: for all of them together.

    Raises:
        Unavailable: they did not come in time.
        AdamServeError: what the first call that failed raised.
    """
    deadline = time.monotonic() + timeout_s
    try:
        return [future.result(timeout=max(0.0, deadline - time.monotonic())) for future in futures]
    except TimeoutError:
        raise Unavailable(f"{timeout_s:.0f} s passed while waiting for {what}") from None
    except ProcessGone as error:
        raise ProcessGone(f"a shard died while waiting for {what}", fix="try again") from error
