"""Writes checkpoints: one consistent cut a shard, and a manifest that completes them."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime

from adamserve import checkpoint
from adamserve.cluster.jobs import JobTable
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.shards import Shards
from adamserve.errors import Unavailable
from adamserve.observe.logs import fields

log = logging.getLogger("adamserve.service")


def write(table: JobTable, shards: Shards, name: str) -> int:
    """Write a checkpoint of a job, while pushes go on; one at a time.

    Returns:
        Its number; 0 where the service keeps none.

    Raises:
        NotFound: there is no such job, or it was deleted meanwhile.
        CheckpointError: the disk refuses.
        Unavailable: a shard died, or was restored meanwhile. In all these cases no file is left.
    """
    job = table.get(name)
    if job.folder is None:
        return 0
    began = table.now()
    with table.lock:
        job.tried_at = began
    with table.writing:
        table.check_held(job)
        number = checkpoint.next_number(job.folder)
        folder = job.folder / f"{number:08d}"
        folder.mkdir(parents=True)
        try:
            handles = shards.handles
            entries = shards.ask("the shards to be written", ShardProcess.write, name, folder)
            # Nothing is restored between this look and the manifest: a later restore from this checkpoint would
            # undo the updates made since.
            with table.opening:
                table.check_held(job)
                written = [entry.stamp.incarnation for entry in entries]
                present = [stamp.incarnation for stamp in job.began]
                if shards.handles != handles or written != present:
                    raise Unavailable("a shard was restored meanwhile", fix="try again")
                created = datetime.now(UTC).isoformat(timespec="seconds")
                manifest = checkpoint.Manifest(
                    number=number, created=created, config=job.config, shards=tuple(entries)
                )
                checkpoint.write_manifest(folder, manifest)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with table.lock:
            job.checkpoint = number
            job.written_at = table.now()
            job.checkpoint_seconds = job.written_at - began
            job.written_clocks = tuple(entry.stamp.clock for entry in entries)
        seconds = round(job.checkpoint_seconds, 3)
        log.info("checkpoint was written", extra=fields(job=name, checkpoint=number, seconds=seconds))
        checkpoint.prune(job.folder, keep=job.config.checkpoints_kept)
        return number
