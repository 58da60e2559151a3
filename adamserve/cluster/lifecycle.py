"""Jobs as they come and go: started, taken up from a checkpoint, deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adamserve import checkpoint, optim
from adamserve.cluster import trash
from adamserve.cluster.checkpointer import Checkpointer, config_of
from adamserve.cluster.healer import log_skipped
from adamserve.cluster.jobs import Job, JobTable
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.shards import Shards
from adamserve.errors import CheckpointError, Conflict, InvalidArgument, NotFound, Unavailable
from adamserve.job import JobConfig, check_name
from adamserve.observe.logs import fields
from adamserve.shard import sparse
from adamserve.shard.geometry import partition
from adamserve.values import Array

log = logging.getLogger("adamserve.service")


def finish_deletions(root: Path) -> None:
    """Finish what a crash has cut short; a folder that the disk does not let go is logged and left for another time."""
    for folder in trash.unfinished(root):
        try:
            trash.finish(folder)
        except CheckpointError as error:
            log.error("deleting a job failed: %s", error)
        else:
            log.info("job was deleted", extra=fields(job=folder.name))


class Lifecycle:
    """Starts, takes up and deletes jobs. Thread-safe.

    Args:
        root: folder of the jobs' checkpoints; None keeps none.
        now: the clock that intervals are measured by, in seconds.
    """

    def __init__(
        self,
        table: JobTable,
        shards: Shards,
        checkpointer: Checkpointer,
        root: Path | None,
        now: Callable[[], float],
    ) -> None:
        self._table = table
        self._shards = shards
        self._checkpointer = checkpointer
        self._root = root
        self._now = now

    def folder(self, name: str) -> Path | None:
        """Where a job's checkpoints are; None where none are kept."""
        check_name(name)
        return self._root / name if self._root is not None else None

    def begin(self, config: JobConfig, initial: Sequence[Any]) -> bool:
        """Start a job. Idempotent; how often checkpoints are written and how many are kept are the last call's.

        Args:
            config: the job.
            initial: each shard's spans by tensor, or a reference to them that the placement follows.

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
            self._checkpointer.write(config.name)
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
            if config != kept:
                raise Conflict(
                    f"job {config.name!r} exists with another configuration",
                    field="job",
                    fix="choose another name",
                )
            job.config = config
            return True

    def _open(self, config: JobConfig, initial: Sequence[Any]) -> None:
        optim.rules_of(config.rule, config.tensor_rules)
        folder = self.folder(config.name)
        if folder is not None and trash.is_marked(folder):
            raise Unavailable(f"job {config.name!r} is being deleted", field="job", fix="try again")
        if folder is not None and any(info.complete for info in checkpoint.list_checkpoints(folder)):
            raise Conflict(
                f"{folder} already holds checkpoints of job {config.name!r}",
                field="checkpoint_dir",
                fix="resume the job, or give another folder",
            )
        parts = iter(initial)
        try:
            stamps = self._shards.ask(
                lambda handle: handle.call(ShardProcess.open, config, 1, next(parts)),
                "the shards to open the job",
            )
        except Exception:  # what some have opened would stay with them
            self._shards.tell(lambda handle: handle.call(ShardProcess.drop, config.name), "dropping the job")
            raise
        self._table.add(Job.opened(config, folder, stamps, checkpoint=0, now=self._now()))
        log.info("job was created", extra=fields(job=config.name, shards=len(stamps)))

    def resume(self, name: str, changes: Mapping[str, Any] | None = None) -> None:
        """Take up a job from its newest checkpoint that verifies, onto this service's shards. Idempotent.

        Args:
            name: the job's.
            changes: options of its `JobConfig` in place of those in the checkpoint.

        Raises:
            NotFound: there is no checkpoint of that job that verifies.
        """
        with self._table.opening:
            if name in self._table:
                return
            folder = self.folder(name)
            if folder is None:
                raise InvalidArgument(
                    "the service keeps no checkpoints", field="checkpoint_dir", fix="give a folder"
                )
            if trash.is_marked(folder):
                raise NotFound(f"job {name!r} was deleted", field="job")
            newest, manifest = checkpoint.newest(folder, on_skip=log_skipped)
            config = replace(config_of(manifest), **(changes or {}))
            incarnation = checkpoint.new_incarnation(
                folder, 1 + max(entry.stamp.incarnation for entry in manifest.shards)
            )
            stamps = self._shards.ask(
                lambda handle: handle.call(ShardProcess.open, config, incarnation, folder=newest),
                "the shards to restore the job",
            )
            self._table.add(Job.opened(config, folder, stamps, checkpoint=manifest.number, now=self._now()))
        log.info(
            "job was taken up", extra=fields(job=name, checkpoint=manifest.number, incarnation=incarnation)
        )

    def delete(self, name: str, *, purge: bool = False) -> bool:
        """Delete a job. Its name can be used again afterwards. Idempotent.

        Args:
            name: the job's.
            purge: remove its checkpoints; without it they go to the folder `.trash`.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: the disk refuses. The job is as it was if its tombstone could not be written; otherwise it
                is gone, and its folder will be put away when this is called again, or the service is started again.
        """
        folder = self.folder(name)
        with self._table.opening:
            there = name in self._table
            if folder is not None and folder.is_dir() and not trash.is_marked(folder):
                trash.mark(folder, purge=purge)
                there = True
            self._table.remove(name)
            self._shards.tell(lambda handle: handle.call(ShardProcess.drop, name), "dropping the job")
        with self._checkpointer.writing:  # a checkpoint that is being written may be this job's
            if folder is not None and trash.is_marked(folder):
                trash.finish(folder)
                there = True
        if there:
            log.info("job was deleted", extra=fields(job=name, purge=purge))
        return there


def initial_parts(
    config: JobConfig, parameters: Mapping[str, Array], num_shards: int
) -> list[dict[str, Array]]:
    """Each shard's spans of the initial parameters, 1-D views."""
    parts = partition(config.tensors, num_shards)
    kept = {spec.name: sparse.to_places(spec, parameters[spec.name]) for spec in config.tensors}
    return [
        {span.tensor: kept[span.tensor][span.start : span.stop] for span in spans} for spans in parts.shards
    ]
