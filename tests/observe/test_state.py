"""Events are few and bounded, whatever happens; what a job's state derives from its shards."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from adamserve.observe.state import JobState
from adamserve.observe.terminal import blocks, sparkline
from adamserve.shard.events import EVENTS_KEPT, Event, Events, merged
from adamserve.shard.statistics import PusherStatistics, ShardStatistics
from tests.observe.test_exporter import JOB, SHARD


def test_events_alike_are_one_and_the_newest_are_kept() -> None:
    ticks = count(1)
    events = Events(3, lambda: float(next(ticks)))
    for _ in range(1000):
        events.add("stale", "a", "by 9")
    events.add("invalid", "a", "NaN")
    assert events.recent() == (
        Event(1000.0, "stale", (3,), "a", "by 9", 1000),
        Event(1001.0, "invalid", (3,), "a", "NaN", 1),
    )
    for i in range(2 * EVENTS_KEPT):
        events.add("silent", f"p{i}", "gone")
    names = [event.pusher for event in events.recent()]
    assert names == [f"p{i}" for i in range(EVENTS_KEPT, 2 * EVENTS_KEPT)]


def test_what_a_pusher_met_on_several_shards_is_one() -> None:
    found = merged(
        [
            Event(5.0, "stale", (1,), "a", "by 8", 3),
            Event(4.0, "stale", (0,), "a", "by 7", 2),
            Event(1.0, "rollback", (0,), "", "first"),
            Event(6.0, "rollback", (0,), "", "second"),
            Event(2.0, "rollback", (1,), "", "other"),
        ]
    )
    assert found == (
        Event(2.0, "rollback", (1,), "", "other", 1),
        Event(5.0, "stale", (0, 1), "a", "by 8", 3),
        Event(6.0, "rollback", (0,), "", "second", 2),
    )


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"shards": (), "down": ()}, "starting"),
        ({"down": ()}, "healthy"),
        ({}, "restoring"),
        ({"failed": "no checkpoints"}, "failed"),
    ],
)
def test_a_state_is_one_word(changes: dict[str, Any], state: str) -> None:
    assert replace(JOB, **changes).state == state


def test_pushers_are_as_the_shard_that_saw_most_has_them() -> None:
    def shard(number: int, *pushers: PusherStatistics) -> ShardStatistics:
        return replace(SHARD, shard=number, pushers=pushers)

    b = PusherStatistics("b", 3, 7.0)
    shards = (
        shard(0, b, PusherStatistics("a", 0, None)),
        shard(1, replace(b, seq=2), PusherStatistics("a", 0, 5.0)),
    )
    job = replace(JOB, shards=shards)
    assert job.pushers == (PusherStatistics("a", 0, 5.0), b)
    assert job.staleness == {0: 60, 1: 14, 5: 4, 700: 2}
    assert job.average_regret == 0.125
    assert JobState(job="new").average_regret is None


def test_curves_of_characters() -> None:
    assert sparkline([1.0, 10.0, 100.0]) == "▁▅█"  # logarithmic
    assert sparkline([-1.0, 0.0, 1.0]) == "▁▅█"
    assert sparkline([2.0]) == "▁"
    assert len(sparkline([float(i + 1) for i in range(1000)])) == 40
    assert blocks([0.0, 1.0, 4.0], low=0.0) == "▁▃█"
