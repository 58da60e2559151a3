"""Every status value survives JSON and the wire, whatever is in it; a newer or older peer is understood."""

from __future__ import annotations

import functools
import json
import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamserve.errors import InvalidArgument
from adamserve.observe.plain import from_plain
from adamserve.observe.state import DERIVED, JobState, Rollback, as_json
from adamserve.regret import Loss
from adamserve.shard.durations import Times
from adamserve.shard.events import Event
from adamserve.shard.statistics import PusherStatistics, Seen, ShardStatistics
from adamserve.v1 import control_pb2, shard_pb2
from adamserve.values import Joined
from adamserve.wire.records import from_message, to_message
from tests.observe.test_exporter import JOB

MESSAGES: dict[Any, Any] = {
    JobState: control_pb2.JobState,
    Rollback: control_pb2.Rollback,
    ShardStatistics: control_pb2.ShardStatistics,
    PusherStatistics: control_pb2.PusherStatistics,
    Times: control_pb2.Times,
    Seen: control_pb2.Seen,
    Event: control_pb2.Event,
    Loss: control_pb2.Loss,
    Joined: shard_pb2.JoinResponse,
}
LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**31), 2**31 - 1),  # some are of 32 bits on the wire
    float: st.floats(),
    str: st.text(max_size=5),
}


@functools.cache
def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that a record has."""
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return st.builds(kind, **{name: values(hint) for name, hint in get_type_hints(kind).items()})
    match get_origin(kind), get_args(kind):
        case (types.UnionType, (either, _)):
            return st.none() | values(either)
        case (origin, (item, _)) if origin is tuple:
            return st.lists(values(item), max_size=1).map(tuple)
        case (origin, (key, item)) if origin is Mapping:
            return st.dictionaries(values(key), values(item), max_size=1)
    return LEAVES[kind] if kind in LEAVES else st.from_type(kind)


def same(one: Any, other: Any) -> bool:
    """Equal, with NaN equal to itself."""
    return repr(one) == repr(other)


def through_json(job: JobState) -> JobState:
    return from_plain(JobState, json.loads(json.dumps(as_json(job), allow_nan=False)))


def through_wire(value: Any) -> Any:
    message = to_message(value, MESSAGES[type(value)])
    return from_message(type(value), type(message).FromString(message.SerializeToString()))


@settings(max_examples=20)
@given(values(JobState))
def test_a_job_s_state_survives_json_and_the_wire(job: JobState) -> None:
    assert same(through_json(job), job)
    assert same(through_wire(job), job)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=20)
@given(data=st.data())
def test_every_record_survives_the_wire(kind: Any, data: st.DataObject) -> None:
    value = data.draw(values(kind))
    assert same(through_wire(value), value)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_a_message_has_the_fields_of_its_record_and_no_others(kind: Any) -> None:
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else list(kind._fields)
    assert sorted(MESSAGES[kind].DESCRIPTOR.fields_by_name) == sorted(names)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 0.0, None])
def test_numbers_that_json_does_not_have_are_text(number: float | None) -> None:
    job = JobState(job="j", loss=number)
    text = json.dumps(as_json(job), allow_nan=False)
    assert same(from_plain(JobState, json.loads(text)), job)
    assert same(through_wire(job), job)


def test_what_a_newer_peer_adds_is_ignored_and_what_an_older_one_lacks_is_left_as_it_is() -> None:
    record = as_json(JOB)
    assert set(DERIVED) < set(record)
    newer = record | {"tomorrow": [1], "events": [{**event, "kind": "new"} for event in record["events"]]}
    assert {event.kind for event in from_plain(JobState, newer).events} == {"new"}
    older = {name: value for name, value in record.items() if name not in ("regret", "shards", "numbers")}
    assert from_plain(JobState, older) == from_plain(
        JobState, {**record, "regret": None, "shards": [], "numbers": {}}
    )
    message = to_message(JOB, control_pb2.JobState)
    unknown = b"\xfa\x3f\x03new"  # field 1023
    assert (
        from_message(JobState, control_pb2.JobState.FromString(message.SerializeToString() + unknown)) == JOB
    )


def test_a_message_without_a_field_that_is_needed_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"a ShardStatistics is not whole: .*'stamp'"):
        from_message(ShardStatistics, control_pb2.ShardStatistics(shard=1))


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        "job",
        {},
        {"job": 1},
        {"job": "j", "loss": "much"},
        {"job": "j", "loss": []},
        {"job": "j", "down": "12"},
        {"job": "j", "down": 3},
        {"job": "j", "down": ["x"]},
        {"job": "j", "numbers": [1]},
        {"job": "j", "shards": [7]},
        {"job": "j", "shards": [{"shard": 1}]},
        {"job": "j", "checkpoint": None},
    ],
    ids=str,
)
def test_what_is_no_record_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_plain(JobState, wrong)
