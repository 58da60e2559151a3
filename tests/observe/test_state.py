"""Events are few and bounded, whatever happens; a job's state survives JSON and the wire."""

from __future__ import annotations

import json
from itertools import count

import pytest

from adamserve.observe.exporter import Observed
from adamserve.observe.state import JobState, as_json, from_json
from adamserve.observe.summary import state_of
from adamserve.observe.terminal import blocks, sparkline
from adamserve.shard.events import EVENTS_KEPT, Event, Events, merged
from adamserve.wire.states import received, sent
from tests.observe.test_exporter import ACCOUNT, STATUS

FULL = state_of(Observed(job="job", status=STATUS, account=ACCOUNT, test_accuracy=None))


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


@pytest.mark.parametrize("job", [FULL, JobState(name="new", healthy=False)], ids=["full", "new"])
def test_a_state_survives_json_and_the_wire(job: JobState) -> None:
    assert from_json(json.loads(json.dumps(as_json(job)))) == job
    assert received(type(sent(job)).FromString(sent(job).SerializeToString())) == job


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "starting"),
        ({"shards": FULL.shards}, "healthy"),
        ({"shards": FULL.shards, "healthy": False}, "restoring"),
        ({"shards": FULL.shards, "healthy": False, "failed": "no checkpoints"}, "failed"),
    ],
)
def test_a_state_is_one_word(fields: dict[str, object], state: str) -> None:
    assert JobState(name="job", **fields).state == state  # type: ignore[arg-type] # fields of several types


def test_curves_of_characters() -> None:
    assert sparkline([1.0, 10.0, 100.0]) == "▁▅█"  # logarithmic
    assert sparkline([-1.0, 0.0, 1.0]) == "▁▅█"
    assert sparkline([2.0]) == "▁"
    assert len(sparkline([float(i + 1) for i in range(1000)])) == 40
    assert blocks([0.0, 1.0, 4.0], low=0.0) == "▁▃█"
