"""The shards' processes: who is at each place now, and who is dead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Concatenate

from adamserve.cluster.config import CALL_TIMEOUT_S
from adamserve.cluster.jobs import JobTable
from adamserve.cluster.placement import Answer, Given, Handle, Placement, ProcessGone, gather
from adamserve.cluster.process import ProcessInfo, ShardProcess
from adamserve.errors import AdamServeError, Unavailable
from adamserve.observe.logs import fields
from adamserve.shard.statistics import ShardStatistics

log = logging.getLogger("adamserve.service")

LOOK_S = 5.0
"""Longest that a look at how the shards stand waits for them; one that hangs is passed over."""


class Shards:
    """The processes of one service. Thread-safe.

    `table` is told how they stand; its lock guards who they are, so that both can be looked at in one moment.

    Attributes (each is replaced as a whole):
        handles: in shard order; those of dead processes too.
        infos: who each process is, or was.
        dead: the shards whose process is gone, and why.

    Raises:
        Unavailable: they did not start; those that did are ended.
    """

    def __init__(self, place: Placement, count: int, table: JobTable) -> None:
        self.place = place
        self._table = table
        self.dead: Mapping[int, str] = {}
        self.handles: tuple[Handle[ShardProcess], ...] = ()
        try:
            for index in range(count):
                self.handles = (*self.handles, place(index))
            self.infos = tuple(self.ask("the shards to start", ShardProcess.serve))
        except Exception:
            self.kill()
            raise

    def ask(
        self,
        what: str,
        method: Callable[Concatenate[ShardProcess, Given], Answer],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> list[Answer]:
        """Call every shard at once, and wait for all; as `answers`."""
        return answers([handle.call(method, *args, **options) for handle in self.handles], what)

    def drop(self, job: str) -> None:
        """Let every shard forget a job; one that is dead or hangs is only logged."""
        futures = [handle.call(ShardProcess.drop, job) for handle in self.handles]
        wait(futures, timeout=LOOK_S)
        for index, future in enumerate(futures):
            error = future.exception() if future.done() else f"no answer in {LOOK_S:.0f} s"
            if error is not None:
                log.warning("dropping the job failed: %s", error, extra=fields(shard=index))

    def look(self) -> None:
        """Ask every shard how it stands, and note which are dead, and what the others told."""
        handles = self.handles
        futures = [handle.call(ShardProcess.statistics) for handle in handles]
        wait(futures, timeout=LOOK_S)
        with self._table.lock:
            told = [
                # Nothing of one that was replaced meanwhile.
                self._told(index, future) if self.handles[index] is handle else None
                for index, (handle, future) in enumerate(zip(handles, futures, strict=True))
            ]
            self._table.see(told)

    def _told(
        self, index: int, future: Future[Mapping[str, ShardStatistics]]
    ) -> Mapping[str, ShardStatistics] | None:
        if not future.done():
            log.warning("shard has not answered for %.0f s", LOOK_S, extra=fields(shard=index))
            return None
        try:
            return future.result()
        except ProcessGone as error:
            self.dead = {index: error.problem, **self.dead}
        except AdamServeError as error:  # it will soon be known whether it is dead
            log.warning("shard cannot be reached: %s", error, extra=fields(shard=index))
        return None

    def replace(self, index: int, handle: Handle[ShardProcess], info: ProcessInfo) -> None:
        """Put a process in the place of a dead one."""
        with self._table.lock:
            self.handles = (*self.handles[:index], handle, *self.handles[index + 1 :])
            self.infos = (*self.infos[:index], info, *self.infos[index + 1 :])
            self.dead = {shard: reason for shard, reason in self.dead.items() if shard != index}

    def kill(self) -> None:
        """End every process."""
        for handle in self.handles:
            handle.kill()


def answers(futures: Iterable[Future[Answer]], what: str) -> list[Answer]:
    """Wait for the answers of shards that were all asked already.

    Raises:
        Unavailable: one died, or did not answer in time; `what` says what was waited for.
        AdamServeError: what the first call that failed raised.
    """
    try:
        return gather(list(futures))
    except TimeoutError:
        raise Unavailable(f"{CALL_TIMEOUT_S:.0f} s passed while waiting for {what}") from None
    except ProcessGone as error:
        raise Unavailable(f"a shard died while waiting for {what}", fix="try again") from error
