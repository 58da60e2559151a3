"""How a job stands, as people and programs see it: the status page, `adamserve status` and `adamserve top`.

Plain values; a client without Ray or torch reads them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adamserve.shard.events import Event
from adamserve.shard.statistics import PusherStatistics
from adamserve.values import Clocks, Stamp


@dataclass(frozen=True, slots=True)
class ShardSeen:
    """One shard of a job: whether its process lives, its moment, and its counts."""

    shard: int
    up: bool
    stamp: Stamp
    pushes: Mapping[str, int]
    waiting: int
    state_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """How a job stands.

    Attributes:
        failed: why it cannot go on; "" where it can.
        rule, rate: the rule's name, and its rate now by its schedule.
        loss, best_loss: mean of the last 50 losses reported, and the lowest that it has been.
        regret, regret_steps: R(T), and T, over the losses reported with a comparator; see `Client.report`.
        test_accuracy: at the last evaluation, where the job's driver makes one.
        checkpoint, checkpoint_age_s: number of the newest one, 0 for none, and seconds since it was written.
        rollbacks: how often a shard was restored.
        staleness: decided pushes by staleness in updates, over all shards.
        pushers: those whose lease runs, by name.
        events: the newest ones, oldest first.
    """

    name: str
    healthy: bool = True
    failed: str = ""
    rule: str = ""
    rate: float = 0.0
    loss: float | None = None
    best_loss: float | None = None
    regret: float | None = None
    regret_steps: int = 0
    test_accuracy: float | None = None
    checkpoint: int = 0
    checkpoint_age_s: float | None = None
    rollbacks: int = 0
    shards: tuple[ShardSeen, ...] = ()
    staleness: Mapping[int, int] = field(default_factory=dict)
    pushers: tuple[PusherStatistics, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def clocks(self) -> Clocks:
        """Every shard's moment."""
        return Clocks(shard.stamp for shard in self.shards)

    @property
    def live(self) -> tuple[str, ...]:
        """The pushers' names."""
        return tuple(pusher.name for pusher in self.pushers)

    @property
    def state(self) -> Literal["healthy", "starting", "restoring", "failed"]:
        """In one word."""
        if self.failed:
            return "failed"
        if not self.shards:
            return "starting"
        return "healthy" if self.healthy else "restoring"

    @property
    def average_regret(self) -> float | None:
        """R(T)/T."""
        return None if self.regret is None else self.regret / self.regret_steps


def as_json(job: JobState) -> dict[str, Any]:
    """A job's state as every `--format json` and `/status.json` write it."""
    return {
        "job": job.name,
        "state": job.state,
        "failed": job.failed,
        "rule": job.rule,
        "rate": job.rate,
        "loss": job.loss,
        "best_loss": job.best_loss,
        "regret": job.regret,
        "regret_steps": job.regret_steps,
        "average_regret": job.average_regret,
        "test_accuracy": job.test_accuracy,
        "checkpoint": job.checkpoint,
        "checkpoint_age_s": job.checkpoint_age_s,
        "rollbacks": job.rollbacks,
        "shards": [
            {
                "shard": shard.shard,
                "up": shard.up,
                "incarnation": shard.stamp.incarnation,
                "clock": shard.stamp.clock,
                "pushes": dict(shard.pushes),
                "waiting": shard.waiting,
                "state_bytes": shard.state_bytes,
            }
            for shard in job.shards
        ],
        "staleness": {str(updates): count for updates, count in sorted(job.staleness.items())},
        "pushers": [{"name": p.name, "seq": p.seq, "pushed_at": p.pushed_at} for p in job.pushers],
        "events": [
            {
                "at": event.at,
                "kind": event.kind,
                "shards": list(event.shards),
                "pusher": event.pusher,
                "reason": event.reason,
                "count": event.count,
            }
            for event in job.events
        ],
    }


def from_json(found: Mapping[str, Any]) -> JobState:
    """The state that `as_json` has written."""
    same = "failed rule rate loss best_loss regret regret_steps test_accuracy checkpoint checkpoint_age_s rollbacks"
    return JobState(
        name=found["job"],
        healthy=found["state"] == "healthy",
        **{name: found[name] for name in same.split()},
        shards=tuple(
            ShardSeen(
                s["shard"],
                s["up"],
                Stamp(s["incarnation"], s["clock"]),
                s["pushes"],
                s["waiting"],
                s["state_bytes"],
            )
            for s in found["shards"]
        ),
        staleness={int(updates): count for updates, count in found["staleness"].items()},
        pushers=tuple(PusherStatistics(**pusher) for pusher in found["pushers"]),
        events=tuple(Event(**{**event, "shards": tuple(event["shards"])}) for event in found["events"]),
    )
