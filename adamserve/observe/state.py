"""How a job stands: one shape, from the shards to the page, `adamserve top`, the metrics, the wire and JSON.

Plain values; a client without Ray or torch reads them too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adamserve.observe.plain import to_plain
from adamserve.shard.events import Event
from adamserve.shard.statistics import PusherStatistics, ShardStatistics
from adamserve.values import Clocks


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """A shard that died and was restored from a checkpoint.

    Attributes:
        incarnation, clock_after: those that it is in since.
        clock_before: its clock before, as last seen or checkpointed.
        checkpoint: number of the checkpoint that it was restored from.
        seconds: time that the restore took.
        reason: why the shard was replaced.
        at: when it was done, in seconds since 1970.
    """

    shard: int
    incarnation: int
    clock_before: int
    clock_after: int
    checkpoint: int
    seconds: float
    reason: str
    at: float = 0.0

    def event(self) -> Event:
        """For people."""
        text = (
            f"restored from checkpoint {self.checkpoint} into incarnation {self.incarnation},"
            f" clock {self.clock_before} to {self.clock_after}, in {self.seconds:.1f} s: {self.reason}"
        )
        return Event(self.at, "rollback", (self.shard,), "", text)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """How a job stands.

    Attributes:
        failed: why it cannot go on; empty where it can.
        consistency: its mode, as `consistency.parse` reads it.
        rate: the rule's rate at the slowest shard's clock; a push may bring its own.
        loss: mean of the last 50 losses reported; None before the first.
        best_loss: lowest that `loss` has been.
        losses_not_finite: losses that were NaN or infinite, and refused.
        regret: R(T), the sum of losses above the comparator's; None where none was reported with a comparator's.
        regret_steps: T, losses reported together with a comparator's.
        numbers: what else was reported of the job, by name, such as test_accuracy.
        checkpoint: number of the newest checkpoint; 0 for none.
        checkpoint_age_s: seconds since it was written, or since the job began if there is none yet; None where no
            checkpoints are kept.
        checkpoint_seconds: seconds that it took to write.
        unsaved_updates: most updates that a shard has applied since; None where no checkpoints are kept.
        clock_skew: updates between the shard that is farthest ahead and the last one, all asked at once.
        updates_per_s: updates of the slowest shard in a second, lately; None until it is known.
        down: shards that do not hold the job now: their process is gone, or their restore failed.
        rollbacks: restores of shards, oldest first.
        shards: those that were seen, in shard order.
        events: the newest ones of all shards, oldest first.
    """

    job: str
    failed: str = ""
    consistency: str = ""
    rule: str = ""
    rate: float = 0.0
    loss: float | None = None
    best_loss: float | None = None
    losses_not_finite: int = 0
    regret: float | None = None
    regret_steps: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)
    checkpoint: int = 0
    checkpoint_age_s: float | None = None
    checkpoint_seconds: float | None = None
    unsaved_updates: int | None = None
    clock_skew: int | None = None
    updates_per_s: float | None = None
    down: tuple[int, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    shards: tuple[ShardStatistics, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def state(self) -> Literal["healthy", "starting", "restoring", "failed"]:
        """The job in one word."""
        if self.failed:
            return "failed"
        if not self.shards:
            return "starting"
        return "restoring" if self.down else "healthy"

    @property
    def clocks(self) -> Clocks:
        """Every shard's stamp."""
        return Clocks(shard.stamp for shard in self.shards)

    @property
    def average_regret(self) -> float | None:
        """R(T)/T."""
        return None if self.regret is None else self.regret / self.regret_steps

    @property
    def staleness(self) -> Mapping[int, int]:
        """Decided pushes by staleness in updates, over all shards."""
        total: Counter[int] = Counter()
        for shard in self.shards:
            total.update(shard.staleness)
        return total

    @property
    def pushers(self) -> tuple[PusherStatistics, ...]:
        """Pushers whose lease runs on some shard, by name, each as the shard that saw most of it has it."""
        latest: dict[str, PusherStatistics] = {}
        for shard in self.shards:
            for pusher in shard.pushers:
                before = latest.get(pusher.name, pusher)
                latest[pusher.name] = max(before, pusher, key=lambda p: (p.seq, p.pushed_at or 0.0))
        return tuple(latest[name] for name in sorted(latest))


DERIVED = ("state", "average_regret", "staleness", "pushers")
"""What JSON has besides the fields."""


def as_json(job: JobState) -> dict[str, Any]:
    """A job's state as every `--format json` and `/status.json` write it; NaN and infinity are text.

    `plain.from_plain` reads it back, whatever version wrote it.
    """
    derived = {name: to_plain(getattr(job, name), _json_number) for name in DERIVED}
    return {**to_plain(job, _json_number), **derived}


def _json_number(value: Any) -> Any:
    """JSON has no number that is not finite: those are the texts "NaN", "Infinity" and "-Infinity", as protobuf's."""
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value
