"""The shards' processes: who is at each place now, and who is dead."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

from adamserve.cluster.placement import Placement, ProcessGone, ShardHandle, gather
from adamserve.cluster.process import ProcessInfo, ShardProcess
from adamserve.errors import AdamServeError
from adamserve.observe.logs import fields
from adamserve.shard.statistics import ShardStatistics

log = logging.getLogger("adamserve.service")

Answer = TypeVar("Answer")

LOOK_S = 5.0
"""Longest that a look at how the shards stand waits for them; one that hangs is passed over."""


class Shards:
    """The processes of one service. Thread-safe.

    Args:
        placement: starts them.
        count: how many.
        lock: guards who they are; the job table's, so that both can be looked at in one moment.

    Raises:
        Unavailable: they did not start; those that did are ended.
    """

    def __init__(self, placement: Placement, count: int, lock: threading.RLock) -> None:
        self._placement = placement
        self._lock = lock
        self._dead: dict[int, str] = {}
        self._handles: list[ShardHandle] = []
        try:
            for index in range(count):
                self._handles.append(placement.start(index))
            self._infos = gather(
                [handle.call(ShardProcess.info) for handle in self._handles], "the shards to start"
            )
            gather([handle.call(ShardProcess.serve) for handle in self._handles], "the shards to serve")
        except Exception:
            self.kill()
            raise

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def handles(self) -> tuple[ShardHandle, ...]:
        """In shard order; those of dead processes too."""
        with self._lock:
            return tuple(self._handles)

    @property
    def infos(self) -> tuple[ProcessInfo, ...]:
        """Who each process is, or was."""
        with self._lock:
            return tuple(self._infos)

    @property
    def dead(self) -> Mapping[int, str]:
        """The shards whose process is gone, and why."""
        with self._lock:
            return dict(self._dead)

    def ask(self, call: Callable[[ShardHandle], Future[Answer]], what: str) -> list[Answer]:
        """Call every shard at once, and wait for all; as `gather`."""
        return gather([call(handle) for handle in self.handles], what)

    def tell(self, call: Callable[[ShardHandle], Future[None]], what: str) -> None:
        """As `ask`, but a shard that is dead or hangs is only logged."""
        futures = [call(handle) for handle in self.handles]
        wait(futures, timeout=LOOK_S)
        for index, future in enumerate(futures):
            error = future.exception() if future.done() else f"no answer in {LOOK_S:.0f} s"
            if error is not None:
                log.warning("%s failed: %s", what, error, extra=fields(shard=index))

    def look(self, note: Callable[[Sequence[Mapping[str, ShardStatistics] | None]], None]) -> None:
        """Ask every shard how it stands, note which are dead, and hand `note` what the others told."""
        handles = self.handles
        futures = [handle.call(ShardProcess.statistics) for handle in handles]
        wait(futures, timeout=LOOK_S)
        with self._lock:
            told = [
                self._look(index, handle, future)
                for index, (handle, future) in enumerate(zip(handles, futures, strict=True))
            ]
            note(told)

    def _look(
        self, index: int, handle: ShardHandle, future: Future[Mapping[str, ShardStatistics]]
    ) -> Mapping[str, ShardStatistics] | None:
        """What a shard told; nothing of one that was replaced meanwhile."""
        if self._handles[index] is not handle:
            return None
        if not future.done():
            log.warning("shard has not answered for %.0f s", LOOK_S, extra=fields(shard=index))
            return None
        try:
            return future.result()
        except ProcessGone as error:
            self._dead.setdefault(index, error.problem)
        except AdamServeError as error:  # it will soon be known whether it is dead
            log.warning("shard cannot be reached: %s", error, extra=fields(shard=index))
        return None

    def start(self, index: int) -> ShardHandle:
        """Start a process that may replace a dead one; see `replace`."""
        return self._placement.start(index)

    def replace(self, index: int, handle: ShardHandle, info: ProcessInfo) -> None:
        """Put a process in the place of a dead one."""
        with self._lock:
            self._handles[index] = handle
            self._infos[index] = info
            self._dead.pop(index, None)

    def kill(self) -> None:
        """End every process."""
        for handle in self.handles:
            handle.kill()
