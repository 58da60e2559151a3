"""From what a service's driver observes to what people read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from adamserve.observe.exporter import Observed
from adamserve.observe.state import JobState, ShardSeen
from adamserve.shard.statistics import PusherStatistics


def state_of(observed: Observed) -> JobState:
    """How an observed job stands."""
    status, account = observed.status, observed.account
    losses = JobState(
        name=observed.job,
        healthy=False,
        loss=account.loss,
        best_loss=account.best,
        regret=account.regret if account.steps else None,
        regret_steps=account.steps,
        test_accuracy=observed.test_accuracy,
    )
    if status is None:
        return losses
    staleness: Counter[int] = Counter()
    pushers: dict[str, PusherStatistics] = {}
    for shard in status.shards:
        staleness.update(shard.staleness)
        for pusher in shard.pushers:
            pushers[pusher.name] = _newer(pusher, pushers.get(pusher.name, pusher))
    return replace(
        losses,
        healthy=status.healthy,
        failed=status.failed,
        rule=status.rule,
        rate=status.rate,
        checkpoint=status.checkpoints,
        checkpoint_age_s=status.checkpoint_age_s,
        rollbacks=len(status.rollbacks),
        shards=tuple(
            ShardSeen(
                shard.shard,
                shard.shard not in status.down,
                shard.stamp,
                shard.pushes,
                shard.waiting,
                shard.state_bytes,
            )
            for shard in status.shards
        ),
        staleness=staleness,
        pushers=tuple(pushers[name] for name in sorted(pushers)),
        events=status.events,
    )


def _newer(one: PusherStatistics, other: PusherStatistics) -> PusherStatistics:
    return max(one, other, key=lambda pusher: (pusher.seq, pusher.pushed_at or 0.0))
