"""The controller: places the shards, watches them, restores one that died, and keeps the jobs and their checkpoints.

It holds no parameters. Pushers ask it where the shards are, and ask again when one does not answer. A shard that is
restored starts a new incarnation, so that nothing pulled before the restart is applied after it.

This is the facade. What it knows is in `jobs` and `shards`, what it decides in `healing`, and how it acts in
`lifecycle`, `healer` and `checkpointer`; `watch` brings these together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adamserve.cluster.checkpointer import Checkpointer
from adamserve.cluster.healing import Action
from adamserve.cluster.jobs import JobTable
from adamserve.cluster.lifecycle import Lifecycle, finish_deletions, initial_parts
from adamserve.cluster.placement import Placement
from adamserve.cluster.process import ProcessInfo, ShardProcess
from adamserve.cluster.shards import Shards
from adamserve.cluster.watch import Watch
from adamserve.job import JobConfig, Place, Topology
from adamserve.observe.state import JobState
from adamserve.regret import Loss
from adamserve.values import Array

log = logging.getLogger("adamserve.service")

WATCH_EVERY_S = 0.5
"""How often every shard is asked how it stands; a dead process is noticed within about this time."""


class Controller:
    """Places, watches and heals the shards of one service, and keeps its jobs. Thread-safe.

    Args:
        placement: starts the shards' processes.
        shards: how many.
        checkpoint_dir: where checkpoints go, one folder a job; None keeps none, and a shard that dies cannot be
            restored. On several nodes it is a folder that all of them share.
        watch_every_s: how often a thread of its own calls `step`; None leaves that to the caller.
        now: the clock that intervals are measured by, in seconds.

    Raises:
        Unavailable: the shards did not start.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        shards: int = 1,
        checkpoint_dir: Path | None = None,
        watch_every_s: float | None = WATCH_EVERY_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if checkpoint_dir is not None:
            finish_deletions(checkpoint_dir)
        self._table = JobTable(now)
        self._shards = Shards(placement, shards, self._table.lock)
        self._checkpointer = Checkpointer(self._table, self._shards, now)
        self._lifecycle = Lifecycle(self._table, self._shards, self._checkpointer, checkpoint_dir, now)
        self._watch = Watch(self._table, self._shards, self._checkpointer, now)
        if watch_every_s is not None:
            self._watch.start(watch_every_s)

    # ---- jobs

    def create(self, config: JobConfig, parameters: Mapping[str, Array]) -> bool:
        """Start a job from its initial parameters; as `Lifecycle.begin`."""
        return self.begin(config, initial_parts(config, parameters, len(self._shards)))

    def begin(self, config: JobConfig, initial: Sequence[Any]) -> bool:
        """As `Lifecycle.begin`."""
        return self._lifecycle.begin(config, initial)

    def known(self, config: JobConfig) -> bool:
        """As `Lifecycle.known`."""
        return self._lifecycle.known(config)

    def resume(self, name: str, changes: Mapping[str, Any] | None = None) -> Topology:
        """As `Lifecycle.resume`; returns where the job's shards are."""
        self._lifecycle.resume(name, changes)
        return self.topology(name)

    def delete(self, name: str, *, purge: bool = False) -> bool:
        """As `Lifecycle.delete`."""
        return self._lifecycle.delete(name, purge=purge)

    def topology(self, name: str) -> Topology:
        """Where a job's shards are now."""
        with self._table.lock:
            job = self._table.get(name)
            places = zip(self._shards.infos, job.incarnations, job.restored, strict=True)
            return Topology(
                job.config,
                tuple(Place(info.endpoint, info.direct, number, clock) for info, number, clock in places),
            )

    def report(
        self,
        name: str,
        losses: Sequence[Loss],
        numbers: Mapping[str, float],
    ) -> None:
        """As `JobTable.report`."""
        self._table.report(name, losses, numbers)

    def checkpoint(self, name: str) -> int:
        """As `Checkpointer.write`."""
        return self._checkpointer.write(name)

    def status(self) -> list[JobState]:
        """Every job, as last seen."""
        return self._table.states(self._shards.dead)

    def status_now(self) -> list[JobState]:
        """Every job, after asking every shard."""
        self._shards.look(self._table.see)
        return self.status()

    def folder(self, name: str) -> Path | None:
        """As `Lifecycle.folder`."""
        return self._lifecycle.folder(name)

    # ---- shards

    def processes(self) -> list[ProcessInfo]:
        """Who each shard's process is."""
        return list(self._shards.infos)

    def metrics(self) -> dict[int, str]:
        """Where the metrics of each shard are whose process lives: host:port by shard."""
        with self._table.lock:
            infos, dead = self._shards.infos, self._shards.dead
        return {i: info.metrics for i, info in enumerate(infos) if info.metrics and i not in dead}

    def step(self) -> list[Action]:
        """As `Watch.step`."""
        return self._watch.step()

    def drain(self, grace_s: float) -> None:
        """Let the shards' calls end, and write a last checkpoint of every job.

        Raises:
            AdamServeError: what went wrong first; everything else was tried all the same.
        """
        errors: list[Exception] = []

        def tried(act: Callable[[], object]) -> None:
            try:
                act()
            except Exception as error:
                log.error("while draining: %s", error)
                errors.append(error)

        tried(
            partial(
                self._shards.ask,
                lambda handle: handle.call(ShardProcess.drain, grace_s),
                "the shards to drain",
            )
        )
        for job in self._table:
            tried(partial(self.checkpoint, job.config.name))
        if errors:
            raise errors[0]

    def stop(self) -> None:
        """Stop watching and end the shards; a job's last checkpoint is the caller's to ask for."""
        self._watch.stop()
        self._shards.kill()
