"""Brings dead shards back, each job from its newest checkpoint into a new incarnation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from adamserve import checkpoint
from adamserve.cluster.jobs import Job, JobTable
from adamserve.cluster.placement import ShardHandle, gather
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.shards import Shards
from adamserve.errors import NotFound, Unavailable
from adamserve.observe.logs import fields
from adamserve.observe.state import Rollback

log = logging.getLogger("adamserve.service")


class Healer:
    """Carries out what `healing.plan` decides about shards. One thread calls it, so that a shard is restored once."""

    def __init__(self, table: JobTable, shards: Shards, now: Callable[[], float]) -> None:
        self._table = table
        self._shards = shards
        self._now = now

    def replace(self, index: int, reason: str) -> None:
        """Start a dead shard's process anew, and restore every job on it.

        A job that cannot be restored now holds up no other: it stays lost on this shard.

        Raises:
            Unavailable: the new process did not come up; it was ended, and nothing has changed.
        """
        with self._table.opening:  # a job that was opened meanwhile would be missing
            began, handle = self._now(), self._shards.start(index)
            try:
                jobs = list(self._table)
                rollbacks = [(job, self._restore(job, index, handle, began, reason)) for job in jobs]
                [info] = gather([handle.call(ShardProcess.info)], "a shard to start")
                gather([handle.call(ShardProcess.serve)], "a shard to serve")
            except Exception:
                handle.kill()
                raise
            with self._table.lock:
                self._shards.replace(index, handle, info)
                for job, rollback in rollbacks:
                    self._note(job, rollback)

    def restore(self, name: str, index: int, reason: str) -> None:
        """Restore one job that could not be restored when its shard's process was started anew."""
        with self._table.opening:
            job = self._table.get(name)
            handle = self._shards.handles[index]
            self._note(job, self._restore(job, index, handle, self._now(), reason))

    def give_up(self, name: str, reason: str) -> None:
        """Note that a job cannot go on."""
        self._give_up(self._table.get(name), reason)

    def _restore(
        self, job: Job, index: int, handle: ShardHandle, began: float, reason: str
    ) -> Rollback | None:
        """Open a job on a shard's new process; None where that cannot be done, now or at all.

        Raises:
            Unavailable: the process is dead, or hangs.
        """
        with self._table.lock:
            job.lost.add(index)
            failed, folder = job.failed, job.folder
        if failed or folder is None:
            return None
        try:
            return self._open(job, folder, index, handle, began, reason)
        except NotFound as error:
            self._give_up(job, f"shard {index} died and cannot be restored: {error}")
        except Unavailable:
            raise
        except Exception as error:  # whatever it is, the other jobs need not wait for it
            with self._table.lock:
                job.late_at = self._now()
            log.error("job cannot be restored now: %s", error, extra=_fields(job, index))
        return None

    def _open(
        self, job: Job, folder: Path, index: int, handle: ShardHandle, began: float, reason: str
    ) -> Rollback:
        newest, manifest = checkpoint.newest(folder, on_skip=log_skipped)
        incarnation = checkpoint.new_incarnation(folder, job.incarnations[index] + 1)
        opening = handle.call(ShardProcess.open, job.config, incarnation, folder=newest)
        [stamp] = gather([opening], "a shard to be restored")
        seen = job.seen[index]
        return Rollback(
            shard=index,
            incarnation=incarnation,
            # The checkpoint may be newer than the last look.
            clock_before=max(stamp.clock, seen.stamp.clock if seen is not None else 0),
            clock_after=stamp.clock,
            checkpoint=manifest.number,
            seconds=self._now() - began,
            reason=reason,
            at=time.time(),
        )

    def _note(self, job: Job, rollback: Rollback | None) -> None:
        if rollback is None:
            return
        with self._table.lock:
            job.note(rollback)
        log.warning("shard was %s", rollback.event().reason, extra=_fields(job, rollback.shard))

    def _give_up(self, job: Job, reason: str) -> None:
        self._table.give_up(job, reason)
        log.error("job cannot go on: %s", reason, extra=fields(job=job.config.name))


def log_skipped(folder: Path, reason: str) -> None:
    """Say that a checkpoint is passed over."""
    log.error("checkpoint %s is refused: %s", folder, reason)


def _fields(job: Job, shard: int) -> dict[str, object]:
    return {**fields(job=job.config.name, shard=shard)}
