"""What a controller does next about its shards and jobs: a pure decision, each action with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LATE_EVERY_S = 5.0
"""How often a job is tried again that could not be restored with its shard, as where the disk is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What the plan looks at of one job.

    Attributes:
        job: its name.
        failed: it was given up.
        kept: it has a folder for checkpoints.
        lost: shards that do not hold it any more.
        late_at: when a restore of it last failed.
        moved: some shard has another clock than in the newest checkpoint.
        every_s: how often a checkpoint is due; None for never.
        tried_at: when the last one was written or tried.
    """

    job: str
    failed: bool = False
    kept: bool = True
    lost: frozenset[int] = frozenset()
    late_at: float = 0.0
    moved: bool = False
    every_s: float | None = None
    tried_at: float = 0.0


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


def plan(now: float, dead: Mapping[int, str], jobs: Iterable[Standing]) -> list[Action]:
    """Decide what to do, in this order.

    Args:
        now: the controller's clock, in seconds, as for the times of `jobs`.
        dead: shards whose process is gone, and why.
        jobs: the service's.
    """
    alive = [job for job in jobs if not job.failed]
    hopeless = {job.job: min(gone) for job in alive if not job.kept and (gone := {*dead, *job.lost})}
    actions: list[Action] = [
        GiveUp(name, f"shard {shard} died, and the service keeps no checkpoints to restore it from")
        for name, shard in hopeless.items()
    ]
    actions += [Replace(shard, reason) for shard, reason in sorted(dead.items())]
    for job in alive:
        if job.job in hopeless:
            continue
        late = sorted(job.lost - dead.keys())
        if late and now - job.late_at >= LATE_EVERY_S:
            actions += [Restore(job.job, shard, "a restore before had failed") for shard in late]
        waited = now - job.tried_at
        whole = not dead and not job.lost
        if whole and job.kept and job.moved and job.every_s is not None and waited >= job.every_s:
            actions.append(Write(job.job, f"updates were made, and {waited:.1f} s have passed"))
    return actions
