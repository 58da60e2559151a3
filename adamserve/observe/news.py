"""What has happened to the jobs since the last look, as log lines of the process that looks."""

from __future__ import annotations

import logging

from adamserve.observe.logs import fields
from adamserve.observe.state import JobState
from adamserve.shard.events import Event

log = logging.getLogger("adamserve.jobs")


class News:
    """Logs each job that comes, goes or fails, and each event once."""

    def __init__(self) -> None:
        self._jobs: dict[str, str] = {}
        self._events: dict[tuple[str, str, str, tuple[int, ...]], Event] = {}

    def show(self, *jobs: JobState) -> None:
        """Take in the jobs as they are now."""
        for job in jobs:
            if job.job not in self._jobs:
                log.info("job is served", extra=fields(job=job.job, rule=job.rule))
            if job.failed and self._jobs.get(job.job) != job.failed:
                log.error("job cannot go on: %s", job.failed, extra=fields(job=job.job))
            for event in job.events:
                self._tell(job.job, event)
        for name in self._jobs.keys() - {job.job for job in jobs}:
            log.info("job has gone", extra=fields(job=name))
        self._jobs = {job.job: job.failed for job in jobs}

    def _tell(self, job: str, event: Event) -> None:
        own = event.shards if event.kind == "rollback" else ()
        before = self._events.get((job, event.kind, event.pusher, own))
        if before is not None and before.at >= event.at:
            return
        self._events[job, event.kind, event.pusher, own] = event
        known = {"job": job, "shard": event.shards[0] if len(event.shards) == 1 else list(event.shards)}
        if event.pusher:
            known["pusher"] = event.pusher
        times = event.count - (before.count if before is not None else 0)
        if times > 1:
            known["times"] = times
        log.warning(f"{event.kind}: %s", event.reason, extra=fields(**known))
