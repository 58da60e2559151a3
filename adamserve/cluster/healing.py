"""What a controller does next about its shards and jobs: a pure decision, each action with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adamserve.cluster.jobs import Job

LATE_EVERY_S = 5.0
"""How often a job is tried again that could not be restored with its shard, as where the disk is full."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop trying to bring a job back."""

    job: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Start a dead shard's process anew, and restore every job on it."""

    shard: int
    reason: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Restore one job on a shard whose process lives."""

    job: str
    shard: int
    reason: str


@dataclass(frozen=True, slots=True)
class Write:
    """Write a checkpoint."""

    job: str
    reason: str


Action = GiveUp | Replace | Restore | Write


def plan(now: float, dead: Mapping[int, str], jobs: Iterable[Job]) -> list[Action]:
    """Decide what to do, in this order; `dead` are the shards whose process is gone, and why."""
    alive = {job.config.name: job for job in jobs if not job.failed}
    hopeless = {
        name: min(gone) for name, job in alive.items() if job.folder is None and (gone := {*dead, *job.lost})
    }
    actions: list[Action] = [
        GiveUp(name, f"shard {shard} died, and the service keeps no checkpoints to restore it from")
        for name, shard in hopeless.items()
    ]
    actions += [Replace(shard, reason) for shard, reason in sorted(dead.items())]
    for name, job in alive.items():
        if name in hopeless:
            continue
        late = sorted(job.lost - dead.keys())
        if late and now - job.late_at >= LATE_EVERY_S:
            actions += [Restore(name, shard, "a restore before had failed") for shard in late]
        every_s, waited = job.config.checkpoint_every_s, now - max(job.written_at, job.tried_at)
        whole = not dead and not job.lost and job.folder is not None
        if whole and every_s is not None and waited >= every_s and job.moved:
            actions.append(Write(name, f"updates were made, and {waited:.1f} s have passed"))
    return actions
