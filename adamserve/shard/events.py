"""Events of a shard that an operator should see, those alike folded into one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

EVENTS_KEPT = 32
"""Events that a shard keeps, and that a job shows: the newest ones."""

Kind = Literal["stale", "invalid", "silent", "rollback"]
"""A push refused as STALE or INVALID; a pusher whose lease ran out; a shard restored from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that an operator should see, or the last of several alike.

    Attributes:
        at: seconds since 1970.
        shards: where.
        pusher: whose; "" where it is nobody's.
        reason: in words.
        count: how many alike: of the same kind and pusher, on the shard that saw most of them.
    """

    at: float
    kind: Kind
    shards: tuple[int, ...]
    pusher: str
    reason: str
    count: int = 1


class Events:
    """The newest events of one shard, those alike folded into one. Not thread-safe."""

    def __init__(self, shard: int, now: Callable[[], float]) -> None:
        self._shard = shard
        self._now = now
        self._kept: OrderedDict[tuple[Kind, str], Event] = OrderedDict()

    def add(self, kind: Kind, pusher: str, reason: str) -> None:
        before = self._kept.pop((kind, pusher), None)
        count = 1 if before is None else before.count + 1
        self._kept[kind, pusher] = Event(self._now(), kind, (self._shard,), pusher, reason, count)
        if len(self._kept) > EVENTS_KEPT:
            self._kept.popitem(last=False)

    def recent(self) -> tuple[Event, ...]:
        """Oldest first."""
        return tuple(self._kept.values())


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """The newest events of all shards, oldest first; what a pusher met on several of them is one."""
    found: dict[tuple[Kind, str, tuple[int, ...]], Event] = {}
    for event in sorted(events, key=lambda event: event.at):
        own = event.shards if event.kind == "rollback" else ()
        before = found.pop((event.kind, event.pusher, own), None)
        if before is not None:
            shards = tuple(sorted({*before.shards, *event.shards}))
            count = before.count + 1 if own else max(before.count, event.count)
            event = replace(event, shards=shards, count=count)
        found[event.kind, event.pusher, own] = event
    return tuple(found.values())[-EVENTS_KEPT:]
