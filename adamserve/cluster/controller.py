"""The controller: places the shards, watches them, restores one that died, and keeps the jobs and their checkpoints.

It holds no parameters. Pushers ask its ControlService where the shards are, and ask again when one does not answer. A
shard that is restored starts a new incarnation, so that nothing pulled before the restart is applied after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from adamserve import checkpoint, optim
from adamserve.client.credentials import Credentials
from adamserve.cluster import checkpointer, trash
from adamserve.cluster.config import LOOPBACK
from adamserve.cluster.healing import Action
from adamserve.cluster.jobs import Job, JobTable
from adamserve.cluster.placement import Placement
from adamserve.cluster.process import ProcessInfo, ShardProcess
from adamserve.cluster.shards import Shards, answers
from adamserve.cluster.watch import Watch, log_skipped
from adamserve.edge.control_service import open_control
from adamserve.edge.security import Security
from adamserve.edge.shard_edge import Advertised
from adamserve.errors import CheckpointError, Conflict, InvalidArgument, NotFound, Unavailable
from adamserve.job import JobConfig, Place, Topology, check_name, difference
from adamserve.observe.logs import fields
from adamserve.observe.rpc_counts import Calls
from adamserve.observe.state import JobState
from adamserve.regret import Loss
from adamserve.shard import sparse
from adamserve.shard.geometry import partition
from adamserve.values import Array

log = logging.getLogger("adamserve.service")

WATCH_EVERY_S = 0.5
"""How often every shard is asked how it stands; a dead process is noticed within about this time."""


class Controller:
    """Places, watches and heals the shards of one service, and keeps its jobs. Thread-safe.

    Args:
        checkpoint_dir: as for `Service.start`; without it a shard that dies cannot be restored.
        security: who may call ControlService, and how.
        credentials: those of the service's own processes.
        host, port, advertise, shards_at: where ControlService listens, and what it says, as for `open_control`.
        watch_every_s: how often a thread of its own calls `step`; None leaves that to the caller.
        now: the clock that intervals are measured by, in seconds.

    Raises:
        Conflict: another service holds the folder.
        InvalidArgument: the folder cannot be written.
        Unavailable: the shards did not start, or the port cannot be bound.
    """

    def __init__(
        self,
        place: Placement,
        *,
        shards: int,
        checkpoint_dir: Path | None,
        security: Security,
        credentials: Credentials,
        host: str = LOOPBACK,
        port: int = 0,
        advertise: str = "",
        shards_at: Advertised | None = None,
        watch_every_s: float | None = WATCH_EVERY_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = checkpoint_dir
        self._lock = checkpoint.FolderLock(checkpoint_dir) if checkpoint_dir is not None else None
        for folder in trash.unfinished(checkpoint_dir) if checkpoint_dir is not None else ():
            try:
                trash.finish(folder)
            except CheckpointError as error:  # left for another time
                log.error("deleting a job failed: %s", error)
            else:
                log.info("job was deleted", extra=fields(job=folder.name))
        self._credentials = credentials
        self._calls = Calls()
        self._table = JobTable(now)
        with ExitStack() as undo:
            if self._lock is not None:
                undo.callback(self._lock.release)
            self._shards = Shards(place, shards, self._table)
            undo.callback(self._shards.kill)
            self._endpoint = open_control(
                self, security, host, port, self._calls, advertise=advertise, shards_at=shards_at
            )
            undo.pop_all()
        self._watch = Watch(self._table, self._shards, watch_every_s)

    # ---- jobs

    def create(self, config: JobConfig, parameters: Mapping[str, Array]) -> bool:
        """As `begin`, from the whole parameters."""
        return self.begin(config, initial_parts(config, parameters, len(self._shards.handles)))

    def begin(self, config: JobConfig, initial: Sequence[Any]) -> bool:
        """Start a job. Idempotent; how often checkpoints are written and how many are kept are the last call's.

        Args:
            initial: each shard's spans by tensor, or a reference to them that its handle follows.

        Returns:
            Whether this call started it; of several at once, one does.

        Raises:
            Conflict: a job of that name exists with another configuration, here or in the folder for checkpoints.
        """
        with self._table.opening:
            begun = not self.known(config)
            if begun:
                self._open(config, initial)
        if self._table.get(config.name).checkpoint == 0:  # also where writing the first one failed before
            self.checkpoint(config.name)
        return begun

    def known(self, config: JobConfig) -> bool:
        """Whether a job is there already; how its checkpoints are kept is then as in `config`.

        Raises:
            Conflict: it is there with another configuration.
        """
        with self._table.lock:
            if config.name not in self._table:
                return False
            job = self._table.get(config.name)
            kept = replace(
                job.config,
                checkpoint_every_s=config.checkpoint_every_s,
                checkpoints_kept=config.checkpoints_kept,
            )
            if different := difference(kept, config):
                raise Conflict(
                    f"job {config.name!r} exists with another configuration: {different}",
                    field="job",
                    fix="choose another name",
                )
            job.config = replace(kept, extra=config.extra)
            return True

    def _open(self, config: JobConfig, initial: Sequence[Any]) -> None:
        optim.rules_of(config.rule, config.tensor_rules)
        folder = self._folder(config.name)
        if folder is not None and trash.is_marked(folder):
            raise Unavailable(f"job {config.name!r} is being deleted", field="job", fix="try again")
        if folder is not None and any(info.complete for info in checkpoint.list_checkpoints(folder)):
            raise Conflict(
                f"{folder} already holds checkpoints of job {config.name!r}",
                field="checkpoint_dir",
                fix="resume the job, or give another folder",
            )
        parts = zip(self._shards.handles, initial, strict=True)
        try:
            opening = [handle.call(ShardProcess.open, config, 1, part) for handle, part in parts]
            stamps = answers(opening, "the shards to open the job")
        except Exception:  # what some have opened would stay with them
            self._shards.drop(config.name)
            raise
        self._table.add(Job(config, folder, stamps, written_at=self._table.now()))
        log.info("job was created", extra=fields(job=config.name, shards=len(stamps)))

    def resume(self, name: str, changes: Mapping[str, Any] | None = None) -> Topology:
        """Take up a job from its newest checkpoint that verifies; returns where its shards are. Idempotent.

        Args:
            changes: options of its `JobConfig` in place of those in the checkpoint.

        Raises:
            NotFound: there is no checkpoint of that job that verifies.
        """
        with self._table.opening:
            if name in self._table:
                return self.topology(name)
            folder = self._folder(name)
            if folder is None:
                raise InvalidArgument(
                    "the service keeps no checkpoints", field="checkpoint_dir", fix="give a folder"
                )
            if trash.is_marked(folder):
                raise NotFound(f"job {name!r} was deleted", field="job")
            newest, manifest = checkpoint.newest(folder, on_skip=log_skipped)
            rule = optim.to_dict(optim.from_dict(manifest.config.rule))  # with options that came later
            config = replace(manifest.config, **{"rule": rule, **(changes or {})})
            last = max(entry.stamp.incarnation for entry in manifest.shards)
            incarnation = checkpoint.new_incarnation(folder, last + 1)
            stamps = self._shards.ask(
                "the shards to restore the job", ShardProcess.open, config, incarnation, folder=newest
            )
            self._table.add(Job(config, folder, stamps, manifest.number, self._table.now()))
        taken_up = fields(job=name, checkpoint=manifest.number, incarnation=incarnation)
        log.info("job was taken up", extra=taken_up)
        return self.topology(name)

    def delete(self, name: str, *, purge: bool = False) -> bool:
        """Delete a job; returns whether there was one. Its name can be used again afterwards. Idempotent.

        Its checkpoints are removed where `purge`; otherwise they go to the folder `.trash`.

        Raises:
            CheckpointError: the disk refuses. The job is as it was if its tombstone could not be written; otherwise it
                is gone, and its folder will be put away when this is called again, or the service is started again.
        """
        folder = self._folder(name)
        with self._table.opening:
            there = name in self._table
            if folder is not None and folder.is_dir() and not trash.is_marked(folder):
                trash.mark(folder, purge=purge)
                there = True
            self._table.remove(name)
            self._shards.drop(name)
        with self._table.writing:  # a checkpoint that is being written may be this job's
            if folder is not None and trash.is_marked(folder):
                trash.finish(folder)
                there = True
        if there:
            log.info("job was deleted", extra=fields(job=name, purge=purge))
        return there

    def _folder(self, name: str) -> Path | None:
        """Where a job's checkpoints are; None where none are kept."""
        check_name(name)
        return self._root / name if self._root is not None else None

    def topology(self, name: str) -> Topology:
        """Where a job's shards are now."""
        with self._table.lock:
            job = self._table.get(name)
            places = [
                Place(info.endpoint, info.direct, stamp.incarnation, stamp.clock)
                for info, stamp in zip(self._shards.infos, job.began, strict=True)
            ]
            return Topology(job.config, tuple(places))

    def report(self, name: str, losses: Sequence[Loss], numbers: Mapping[str, float]) -> None:
        """As `Job.report`."""
        with self._table.lock:
            self._table.get(name).report(losses, numbers)

    def checkpoint(self, name: str) -> int:
        """As `checkpointer.write`."""
        return checkpointer.write(self._table, self._shards, name)

    def status(self) -> list[JobState]:
        """Every job, as last seen."""
        return self._table.states(self._shards.dead)

    def status_now(self) -> list[JobState]:
        """Every job, after asking every shard."""
        self._shards.look()
        return self.status()

    # ---- processes

    def target(self) -> str:
        """host:port of ControlService."""
        return self._endpoint.address

    def credentials(self) -> Credentials:
        """As `RunningService.credentials`."""
        return self._credentials

    def calls(self) -> Calls:
        """Counts of ControlService's calls."""
        return self._calls

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

    def serve(self) -> None:
        """Say at ControlService that the service is ready."""
        self._endpoint.serve()

    def drain(self, grace_s: float = 0.0) -> None:
        """As `RunningService.drain`."""
        self._endpoint.drain(grace_s)
        acts: list[Callable[[], object]] = [
            partial(self._shards.ask, "the shards to drain", ShardProcess.drain, grace_s),
            *(partial(self.checkpoint, job.config.name) for job in self._table),
        ]
        errors: list[Exception] = []
        for act in acts:
            try:
                act()
            except Exception as error:
                log.error("while draining: %s", error)
                errors.append(error)
        if errors:
            raise errors[0]

    def stop(self) -> None:
        """End everything at once; without `drain` first, updates since the last checkpoint are lost."""
        self._endpoint.cut()
        self._watch.stop()
        self._shards.kill()
        if self._lock is not None:
            self._lock.release()


def initial_parts(
    config: JobConfig, parameters: Mapping[str, Array], num_shards: int
) -> list[dict[str, Array]]:
    """Each shard's spans of the initial parameters, 1-D views."""
    parts = partition(config.tensors, num_shards)
    kept = {spec.name: sparse.to_places(spec, parameters[spec.name]) for spec in config.tensors}
    return [
        {span.tensor: kept[span.tensor][span.start : span.stop] for span in spans} for spans in parts.shards
    ]
