"""The controller's watch over shards and jobs: it looks, decides by `healing.plan`, and acts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from adamserve import checkpoint
from adamserve.cluster import checkpointer
from adamserve.cluster.config import CALL_TIMEOUT_S
from adamserve.cluster.healing import Action, GiveUp, Replace, Restore, Write, plan
from adamserve.cluster.jobs import Job, JobTable
from adamserve.cluster.placement import Handle
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.shards import Shards, answers
from adamserve.errors import AdamServeError, NotFound, Unavailable
from adamserve.observe.logs import fields
from adamserve.observe.state import Rollback

log = logging.getLogger("adamserve.service")


class Watch:
    """Looks at the shards again and again: brings dead ones back, and writes the checkpoints that are due.

    A thread of its own calls `step` every so many seconds; None leaves that to others.
    """

    def __init__(self, table: JobTable, shards: Shards, every_s: float | None) -> None:
        self._table = table
        self._shards = shards
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(every_s,), name="adamserve-watch", daemon=True
        )
        if every_s is not None:
            self._thread.start()

    def _run(self, every_s: float) -> None:
        while not self._stopping.wait(every_s):
            self.step()

    def stop(self) -> None:
        """End that thread, after the step under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=CALL_TIMEOUT_S)

    def step(self) -> list[Action]:
        """Look at every shard, and do what has to be done: heal the dead, write the checkpoints that are due.

        Returns what was tried. One thread at a time calls this, so that a shard is restored once. What goes wrong is
        logged, and tried again by a later call.
        """
        self._attempt(self._shards.look, "looking at the shards")
        with self._table.lock:
            actions = plan(self._table.now(), self._shards.dead, self._table)
        for action in actions:
            self._attempt(partial(self._act, action), str(action))
        return actions

    def _act(self, action: Action) -> None:
        match action:
            case GiveUp(name, reason):
                self._give_up(self._table.get(name), reason)
            case Replace(shard, reason):
                self._replace(shard, reason)
            case Restore(name, shard, reason):
                with self._table.opening:
                    job, handle = self._table.get(name), self._shards.handles[shard]
                    self._note(job, self._restore(job, shard, handle, self._table.now(), reason))
            case Write(name):
                checkpointer.write(self._table, self._shards, name)

    def _attempt(self, act: Callable[[], object], what: str) -> None:
        """The watcher must outlive whatever goes wrong once: log it and go on."""
        try:
            act()
        except (AdamServeError, OSError) as error:
            log.error("%s failed: %s", what, error)
        except Exception:
            log.exception("%s failed", what)

    def _replace(self, index: int, reason: str) -> None:
        """Start a dead shard's process anew, and restore every job on it, from its newest checkpoint.

        A job that cannot be restored now holds up no other: it stays lost on this shard.

        Raises:
            Unavailable: the new process did not come up; it was ended, and nothing has changed.
        """
        with self._table.opening:  # a job that was opened meanwhile would be missing
            began, handle = self._table.now(), self._shards.place(index)
            try:
                rollbacks = [(job, self._restore(job, index, handle, began, reason)) for job in self._table]
                [info] = answers([handle.call(ShardProcess.serve)], "a shard to start")
            except Exception:
                handle.kill()
                raise
            with self._table.lock:
                self._shards.replace(index, handle, info)
                for job, rollback in rollbacks:
                    self._note(job, rollback)

    def _restore(
        self, job: Job, index: int, handle: Handle[ShardProcess], began: float, reason: str
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
            newest, manifest = checkpoint.newest(folder, on_skip=log_skipped)
            incarnation = checkpoint.new_incarnation(folder, job.began[index].incarnation + 1)
            opening = handle.call(ShardProcess.open, job.config, incarnation, folder=newest)
            [stamp] = answers([opening], "a shard to be restored")
        except NotFound as error:
            self._give_up(job, f"shard {index} died and cannot be restored: {error}")
            return None
        except Unavailable:
            raise
        except Exception as error:  # whatever it is, the other jobs need not wait for it
            with self._table.lock:
                job.late_at = self._table.now()
            log.error("job cannot be restored now: %s", error, extra=fields(job=job.config.name, shard=index))
            return None
        seen = job.seen[index]
        return Rollback(
            shard=index,
            incarnation=incarnation,
            # The checkpoint may be newer than the last look.
            clock_before=max(stamp.clock, seen.stamp.clock if seen is not None else 0),
            clock_after=stamp.clock,
            checkpoint=manifest.number,
            seconds=self._table.now() - began,
            reason=reason,
            at=time.time(),
        )

    def _note(self, job: Job, rollback: Rollback | None) -> None:
        if rollback is None:
            return
        with self._table.lock:
            job.note(rollback)
        where = fields(job=job.config.name, shard=rollback.shard)
        log.warning("shard was %s", rollback.event().reason, extra=where)

    def _give_up(self, job: Job, reason: str) -> None:
        with self._table.lock:
            job.failed = reason
        log.error("job cannot go on: %s", reason, extra=fields(job=job.config.name))


def log_skipped(folder: Path, reason: str) -> None:
    """Say that a checkpoint is passed over."""
    log.error("checkpoint %s is refused: %s", folder, reason)
