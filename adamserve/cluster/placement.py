"""Where shard processes run, as the controller sees it: it starts them and calls them, whatever carries the calls."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from adamserve.checkpoint import ShardEntry
from adamserve.cluster.config import CALL_TIMEOUT_S
from adamserve.cluster.process import ProcessInfo
from adamserve.errors import Unavailable
from adamserve.job import JobConfig
from adamserve.shard.statistics import ShardStatistics
from adamserve.values import Array, Stamp

Answer = TypeVar("Answer")


class ProcessGone(Unavailable):
    """A process is dead; a shard's is being replaced."""


class ShardHandle(Protocol):
    """One shard's process. A call returns at once.

    Its future raises `ProcessGone` once the process is known to be dead, and otherwise what `ShardProcess` raised.
    """

    def open(
        self,
        config: JobConfig,
        incarnation: int,
        initial: Mapping[str, Array] | Any = None,
        folder: Path | None = None,
    ) -> Future[Stamp]:
        """As `ShardProcess.open`; `initial` may also be a reference that the placement knows how to follow."""

    def drop(self, job: str) -> Future[None]:
        """As `ShardProcess.drop`."""

    def write(self, job: str, folder: Path) -> Future[ShardEntry]:
        """As `ShardProcess.write`."""

    def statistics(self) -> Future[Mapping[str, ShardStatistics]]:
        """As `ShardProcess.statistics`."""

    def info(self) -> Future[ProcessInfo]:
        """As `ShardProcess.info`."""

    def serve(self) -> Future[None]:
        """As `ShardProcess.serve`."""

    def drain(self, grace_s: float) -> Future[None]:
        """As `ShardProcess.drain`."""

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
