"""A job's state on the wire: `adamserve.jobs` to and from control.proto."""

from __future__ import annotations

from typing import cast

from adamserve.observe.state import JobState, ShardSeen
from adamserve.shard.events import Event, Kind
from adamserve.shard.statistics import PusherStatistics
from adamserve.v1 import control_pb2, types_pb2
from adamserve.values import Stamp


def sent(job: JobState) -> control_pb2.JobStatus:
    """As a message."""
    return control_pb2.JobStatus(
        job=job.name,
        stamps=[_stamp(shard.stamp) for shard in job.shards],
        healthy=job.healthy,
        failed=job.failed,
        live=job.live,
        rollbacks=job.rollbacks,
        checkpoint=job.checkpoint,
        loss=job.loss,
        best_loss=job.best_loss,
        regret_steps=job.regret_steps,
        regret=job.regret,
        rule=job.rule,
        rate=job.rate,
        checkpoint_age_s=job.checkpoint_age_s,
        shards=[
            control_pb2.ShardStatus(
                shard=s.shard,
                up=s.up,
                stamp=_stamp(s.stamp),
                pushes=s.pushes,
                waiting=s.waiting,
                state_bytes=s.state_bytes,
            )
            for s in job.shards
        ],
        staleness=job.staleness,
        pushers=[
            control_pb2.PusherStatus(name=p.name, seq=p.seq, pushed_at=p.pushed_at) for p in job.pushers
        ],
        events=[
            control_pb2.Event(
                at=e.at, kind=e.kind, shards=e.shards, pusher=e.pusher, reason=e.reason, count=e.count
            )
            for e in job.events
        ],
    )


def received(message: control_pb2.JobStatus) -> JobState:
    """From a message."""

    def known(name: str) -> float | None:
        return getattr(message, name) if message.HasField(name) else None

    return JobState(
        name=message.job,
        healthy=message.healthy,
        failed=message.failed,
        rule=message.rule,
        rate=message.rate,
        loss=known("loss"),
        best_loss=known("best_loss"),
        regret=known("regret"),
        regret_steps=message.regret_steps,
        checkpoint=message.checkpoint,
        checkpoint_age_s=known("checkpoint_age_s"),
        rollbacks=message.rollbacks,
        shards=tuple(
            ShardSeen(
                s.shard,
                s.up,
                Stamp(s.stamp.incarnation, s.stamp.clock),
                dict(s.pushes),
                s.waiting,
                s.state_bytes,
            )
            for s in message.shards
        ),
        staleness=dict(message.staleness),
        pushers=tuple(
            PusherStatistics(p.name, p.seq, p.pushed_at if p.HasField("pushed_at") else None)
            for p in message.pushers
        ),
        events=tuple(
            Event(e.at, cast("Kind", e.kind), tuple(e.shards), e.pusher, e.reason, e.count)
            for e in message.events
        ),
    )


def _stamp(stamp: Stamp) -> types_pb2.Stamp:
    return types_pb2.Stamp(incarnation=stamp.incarnation, clock=stamp.clock)
