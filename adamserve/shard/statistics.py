"""What a shard tells of itself: counts, times, and a look at one update. Who reads it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adamserve.shard.durations import Times
from adamserve.shard.events import Event
from adamserve.values import Stamp

STALENESS_CAP = 1024
"""Staleness above this is counted as this."""


@dataclass(frozen=True, slots=True)
class PusherStatistics:
    """A live pusher: the seq of its last decided push, and when that was (seconds since 1970, None before it)."""

    name: str
    seq: int
    pushed_at: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """One update, as `probe.Probe` saw it.

    Attributes:
        gradient_norm: Euclidean norm of the gradient on this shard, as applied: exact if all elements were looked at,
            otherwise their mean square times the number of elements.
        step: largest |w after - w before| among the elements looked at; None if the update was by rows only.
        step_bound: what the rule bounds every such step by; None where it has no bound.
    """

    gradient_norm: float
    step: float | None
    step_bound: float | None


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """What a shard has done so far, and how it stands.

    Attributes:
        pushes: by outcome; refusals for bad input are counted as INVALID.
        staleness: number of decided pushes by staleness in updates, capped at `STALENESS_CAP`.
        apply_seconds: time inside the rule, an update each.
        push_seconds, queue_seconds, waiting: as in `Shard`.
        bytes_in, bytes_out: gradients taken and parameters given out.
        state_bytes: parameters and slots together.
        trainers: how many of the `live` come from outside the cluster; those have a session.
        silent: pushers whose lease ran out of late, as `Ledger.silent`.
        lease_expiries: leases that ran out.
        seen: a look at one update, where one was asked for.
        pushers: those in `live`, with their last push.
        events: the newest ones.
    """

    shard: int
    stamp: Stamp
    pushes: Mapping[str, int]
    staleness: Mapping[int, int]
    apply_seconds: Times
    push_seconds: Times
    queue_seconds: Times
    bytes_in: int
    bytes_out: int
    state_bytes: int
    live: tuple[str, ...]
    kernel: str
    trainers: int = 0
    silent: int = 0
    lease_expiries: int = 0
    seen: Seen | None = None
    waiting: int = 0
    pushers: tuple[PusherStatistics, ...] = ()
    events: tuple[Event, ...] = ()
