"""`Client.set` and a push's constants, over bare connections and gRPC, on two shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adamserve import SparseRows, optim
from adamserve.client.client import Client
from adamserve.errors import InvalidArgument
from adamserve.values import Outcome
from tests.served import Connect, ones, zeros


@pytest.fixture(params=["direct", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def same(found: Any, expected: Any) -> None:
    assert {name: array.tolist() for name, array in found.items()} == {
        name: np.asarray(array).tolist() for name, array in expected.items()
    }


def test_what_is_set_is_pulled_and_pushed_onto(counting: Client, connect: Connect) -> None:
    _, clock = counting.pull()
    values = {name: np.full_like(array, 3.0) for name, array in zeros().items()}
    receipt = counting.set(values)
    assert receipt.outcome is Outcome.APPLIED
    assert [stamp.clock for stamp in receipt.clock] == [1, 1]
    same(connect(pusher="b").pull()[0], values)
    counting.push(ones(), clock)
    same(counting.pull()[0], ones(2.0))


def test_rows_and_single_tensors(counting: Client) -> None:
    rows = np.array([650, 3, 3 + 340])
    counting.set({"large": SparseRows(rows, np.arange(3000, dtype=np.float32).reshape(3, 1000))})
    counting.set({"s": np.array(7.0)})
    found, _ = counting.pull()
    assert found["s"] == 7.0
    assert found["large"][rows].reshape(-1).tolist() == list(range(3000))
    assert not np.delete(found["large"], rows, axis=0).any()
    assert not found["w"].any()


def test_values_travel_whole_whatever_gradients_travel_as(counting: Client, connect: Connect) -> None:
    value = np.full((4, 5), 1.0 + 2.0**-20, np.float32)
    connect(pusher="narrow", wire_dtype="bfloat16").set({"w": value})
    assert np.array_equal(counting.pull()[0]["w"], value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "infinity": ({"values": {"s": np.array(np.inf)}}, "s: the values hold NaN or infinity"),
    "a dtype": ({"values": {"w": np.zeros((4, 5))}}, "w: values of dtype float64"),
    "a slot": ({"values": {"s": np.array(1.0)}, "slot": "m"}, "assign: the job's rule has no slot 'm'"),
    "a row twice": (
        {"values": {"w": SparseRows(np.array([1, 1]), np.zeros((2, 5), np.float32))}},
        "w: a row is assigned twice",
    ),
}


@pytest.mark.parametrize(("given", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(counting: Client, given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        counting.set(**given)
    assert [stamp.clock for stamp in counting.pull()[1]] == [0, 0]
    assert counting.set({"s": np.array(2.0)}).outcome is Outcome.APPLIED, "the client goes on"


def test_constants_travel_by_tensor(connect: Connect) -> None:
    client = connect(pusher="a")
    client.create(zeros(), optim.SGD(lr=1.0, momentum=0.0))
    _, clock = client.pull()
    constants = {"w": {"lr": 0.5}, "large": {"lr": 0.25, "weight_decay": 0.5}}
    _, found, clock = client.push_pull(ones(), clock, constants=constants)
    assert {name: array.reshape(-1)[0] for name, array in found.items()} == {
        "w": -0.5,
        "large": -0.25,
        "s": -1.0,
    }
    with client.stream(clock) as push:
        push.add("large", ones()["large"])
        _, found, clock = push.commit(constants=constants)
    assert found["large"][0, 0] == np.float32(-0.25 + 0.25 * 0.5 * 0.25 - 0.25)
    with pytest.raises(InvalidArgument, match="weight_decay: must be a number in"):
        client.push(ones(), clock, constants={"w": {"weight_decay": -1.0}})


def test_slots_and_counts_of_a_job(connect: Connect) -> None:
    """Moments that are brought by hand: as if the job had made the updates itself."""
    one, two = connect(job="slots-one", pusher="a"), connect(job="slots-two", pusher="a")
    for client in (one, two):
        client.create(zeros(), optim.Adam(lr=0.1))
    _, clock = one.pull()
    for _ in range(3):
        _, parameters, clock = one.push_pull(ones(), clock)
    moment = {name: np.full_like(a, 1 - 0.9**3) for name, a in zeros().items()}
    square = {name: np.full_like(a, 1 - 0.999**3) for name, a in zeros().items()}
    two.set(dict(parameters), updates=dict.fromkeys(parameters, 3))
    two.set(moment, slot="m")
    two.set(square, slot="v")
    _, found, _ = two.push_pull(ones(), two.pull()[1])
    _, expected, _ = one.push_pull(ones(), clock)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5)
