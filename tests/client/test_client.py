"""`adamserve.connect` against a real service."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import adamserve
from adamserve import optim
from adamserve.client.client import Client
from adamserve.client.credentials import Credentials
from adamserve.cluster.serving import Ready
from adamserve.errors import Conflict, InvalidArgument, NotFinite, NotFound, Unavailable
from adamserve.regret import RECENT
from adamserve.values import Clocks, Outcome, SparseRows, Stamp
from tests.served import Connect, ones, zeros


@pytest.fixture(params=["direct", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_pushed_is_what_is_pulled(counting: Client) -> None:
    before, clock = counting.pull()
    rng = np.random.default_rng(0)
    gradients = {name: rng.integers(-9, 9, a.shape).astype(a.dtype) for name, a in zeros().items()}
    receipt = counting.push(gradients, clock)
    after, clock = counting.pull()
    assert receipt.outcome is Outcome.APPLIED
    assert [stamp.clock for stamp in clock] == [1, 1]
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(after[name], before[name] - gradient)


def test_a_push_that_is_given_up_ends_at_once(connect: Connect) -> None:
    """Long before its deadline, and nothing of it counts."""
    client = connect(timeout_s=1000.0)
    client.create(zeros(), optim.SGD(lr=1.0, momentum=0.0))
    _, clock = client.pull()
    with client.stream(clock, into=zeros()) as push:
        push.add("w", ones()["w"])
    assert push.done()
    client.push(ones(), clock)
    assert float(client.pull()[0]["w"].sum()) == -20.0


def test_create_is_idempotent_and_refuses_another_rule(connect: Connect) -> None:
    client = connect()
    rule = optim.Adam(lr=1e-3)
    assert client.create(zeros(), rule) is True
    assert client.create(ones(), rule) is False
    assert float(client.pull()[0]["w"].sum()) == 0.0
    with pytest.raises(Conflict, match=r"another configuration: rule: lr is 0.001, not 0.01"):
        client.create(zeros(), optim.Adam(lr=1e-2))
    with pytest.raises(Conflict, match="another configuration"):
        client.create({"w": np.zeros(3, np.float32)}, rule)


def test_a_clock_of_plain_tuples_is_one_and_what_is_none_takes_no_place(counting: Client) -> None:
    broken: Any = [(1,), (1,)]
    for _ in range(6):  # more than may be under way
        with pytest.raises(InvalidArgument, match="clock: holds what is no stamp"):
            counting.push(ones(), broken)
    _, clock = counting.pull()
    plain: Any = [tuple(stamp) for stamp in clock]  # as JSON has it
    counting.push(ones(), plain)
    assert counting.seq == 1


def test_a_service_of_other_shards_is_not_taken_for_the_old_one(counting: Client) -> None:
    counting.pull()
    session = counting._session
    places = session.control.topology(counting.job, session.control.deadline()).places
    session.note(places)
    with pytest.raises(Conflict, match=r"the service has 1 shards now, where it had 2.*connect again"):
        session.note(places[:1])
    with pytest.raises(Conflict, match="connect again"):
        session.note(places[::-1])
    counting.pull()


def test_pushes_that_are_not_waited_for_all_arrive_in_order(counting: Client) -> None:
    _, clock = counting.pull()
    handles = [counting.push(ones(2.0**i), clock, wait=False) for i in range(12)]
    assert [handle.result().outcome for handle in handles] == [Outcome.APPLIED] * 12
    assert all(handle.done() for handle in handles)
    pulled, clock = counting.pull()
    assert {float(array.min()) for array in pulled.values()} == {-4095.0}
    assert {float(array.max()) for array in pulled.values()} == {-4095.0}


def test_a_gradient_may_be_reused_while_its_push_is_under_way(counting: Client) -> None:
    _, clock = counting.pull()
    gradients = ones()
    handle = counting.push(gradients, clock, wait=False)
    for gradient in gradients.values():
        gradient.fill(1000.0)
    handle.result()
    assert float(counting.pull()[0]["large"].min()) == -1.0


def test_push_pull_is_a_push_and_a_pull(counting: Client) -> None:
    into, clock = counting.pull()
    receipt, arrays, clock = counting.push_pull(ones(), clock, into=into)
    assert receipt.outcome is Outcome.APPLIED
    assert all(arrays[name] is array for name, array in into.items())
    assert [stamp.clock for stamp in clock] == [1, 1]
    assert float(into["large"].min()) == float(into["large"].max()) == -1.0


def test_rates_of_a_push_replace_the_rule_s(counting: Client) -> None:
    _, clock = counting.pull()
    counting.push(ones(), clock, lr=0.5, rates={"large": 4.0})
    pulled, _ = counting.pull()
    assert (float(pulled["w"][0, 0]), float(pulled["large"][0, 0]), float(pulled["s"])) == (-0.5, -4.0, -0.5)


@pytest.mark.parametrize("wire_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", [optim.Adam(lr=0.1), optim.Nesterov(lr=0.1)], ids=lambda r: type(r).__name__)
def test_a_narrow_push_pull_returns_what_a_wide_pull_does_rounded(
    connect: Connect, rule: optim.Rule, wire_dtype: str
) -> None:
    """Of all tensors, of one only, and with another pusher's update between; in bfloat16 the update wrote the first."""
    client, wide, other = connect(wire_dtype=wire_dtype), connect(), connect(pusher="other")
    start = {name: array for name, array in zeros().items() if array.dtype == np.float32}
    client.create(start, rule)
    rng = np.random.default_rng(2)

    def drawn() -> dict[str, Any]:
        return {name: rng.standard_normal(array.shape, np.float32) for name, array in start.items()}

    def rounded(arrays: Mapping[str, Any]) -> dict[str, Any]:
        dtype = getattr(torch, wire_dtype)
        return {name: torch.from_numpy(array).to(dtype).float().numpy() for name, array in arrays.items()}

    _, clock = client.pull()
    for gradients in (drawn(), {"w": drawn()["w"]}, drawn()):
        _, arrays, clock = client.push_pull(gradients, clock)
        expected, at = wide.pull()
        assert at == clock
        for name, array in rounded(expected).items():
            np.testing.assert_array_equal(arrays[name], array)
        other.push(drawn(), at)
        arrays, clock = client.pull()
        for name, array in rounded(wide.pull()[0]).items():
            np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("wire_dtype", ["bfloat16", "float16", "int8"])
def test_narrow_gradients_arrive_as_they_round(connect: Connect, wire_dtype: str) -> None:
    """Integers of 7 bits are exact in each; int8 has 127 as every block's largest, so its scale is 1."""
    client = connect(wire_dtype=wire_dtype)
    client.create(zeros(), optim.SGD(lr=1.0, momentum=0.0))
    _, clock = client.pull()
    rng = np.random.default_rng(1)
    gradients = {name: rng.integers(-127, 128, a.shape).astype(a.dtype) for name, a in zeros().items()}
    for array in gradients.values():
        array.reshape(-1)[::64] = 127
    client.push(gradients, clock)
    pulled, _ = client.pull()
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(pulled[name], -gradient)


def test_int8_feeds_its_error_back(connect: Connect) -> None:
    """Of n equal gradients the sum is right to one quantum, not n of them."""
    client = connect(wire_dtype="int8")
    client.create({"w": np.zeros(256, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
    gradient = np.linspace(-1, 1, 256, dtype=np.float32) ** 3
    _, clock = client.pull()
    for _ in range(50):
        client.push({"w": gradient}, clock)
    pulled, _ = client.pull()
    quantum = 1 / 127
    once = np.abs(np.rint(gradient * 127) / 127 - gradient).max() * 50
    assert float(np.abs(pulled["w"] + 50 * gradient).max()) < 1.1 * quantum < once


@pytest.mark.parametrize("wire_dtype", ["float16", "int8"])
def test_float64_parameters_are_pushed_exactly(connect: Connect, wire_dtype: str) -> None:
    """Whatever float32 ones travel as; and a float32 gradient of theirs has no error to feed back."""
    client = connect(wire_dtype=wire_dtype)
    client.create({"d": np.zeros(300)}, optim.SGD(lr=1.0, momentum=0.0))
    wide = np.linspace(-1e6, 1e6, 300)
    narrow = (np.linspace(-1, 1, 300) ** 3).astype(np.float32)
    for gradient in (wide, narrow, narrow):
        client.push({"d": gradient}, client.pull()[1])
    np.testing.assert_array_equal(client.pull()[0]["d"], -wide - narrow - narrow)


def test_rows_too_large_for_the_wire_are_refused_before_any_shard_has_them(connect: Connect) -> None:
    client = connect(wire_dtype="float16")
    client.create({"t": np.zeros((64, 8), np.float32)}, optim.SGD(lr=1.0, momentum=0.0), tables=["t"])
    values = np.ones((2, 8), np.float32)
    values[1, 3] = 1e5
    with pytest.raises(NotFinite, match="too large for the wire"):
        client.push({"t": SparseRows(np.array([0, 63]), values)}, client.pull()[1])
    arrays, clock = client.pull()
    assert [stamp.clock for stamp in clock] == [0, 0]
    assert not arrays["t"].any()


def test_a_push_that_is_not_waited_for_and_fails_spoils_no_later_one(connect: Connect) -> None:
    client = connect()
    client.create({"w": np.zeros(1, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))  # all of it on one shard
    one, bad = {"w": np.ones(1, np.float32)}, {"w": np.ones(2, np.float32)}
    _, clock = client.pull()
    handles = [client.push(one, clock, wait=False)]
    with pytest.raises(InvalidArgument):
        client.push(bad, clock, wait=False)
    ahead = Clocks(Stamp(stamp.incarnation, stamp.clock + 1000) for stamp in clock)
    failed = client.push(one, ahead, wait=False)
    while not failed.done():
        pass
    handles += [client.push(one, clock, wait=False) for _ in range(3)]
    assert [handle.result().outcome for handle in handles] == [Outcome.APPLIED] * 4
    with pytest.raises(InvalidArgument, match="clock"):
        failed.result()
    assert float(client.pull()[0]["w"][0]) == -4.0


def test_a_rate_that_is_no_number_costs_nothing(connect: Connect) -> None:
    client = connect(max_in_flight=1)
    client.create(zeros(), optim.SGD(lr=1.0, momentum=0.0))
    _, clock = client.pull()
    for _ in range(3):
        with pytest.raises(TypeError):
            client.push(ones(), clock, lr="0.1")  # type: ignore[call-overload]
    assert client.push(ones(), clock).outcome is Outcome.APPLIED
    assert client.seq == 1


def test_a_live_name_belongs_to_its_session(connect: Connect, counting: Client) -> None:
    _, clock = counting.pull()
    counting.push(ones(), clock)
    other = connect(pusher="a")
    with pytest.raises(Conflict, match="another client's session"):
        other.pull()
    assert other.pull(training=False)[1] == counting.pull()[1]
    counting.close()
    assert other.pull()[1][0].clock == 1
    assert other.seq == 1
    other.push(ones(), other.pull()[1])
    assert float(other.pull()[0]["s"]) == -2.0


def test_a_taken_over_client_cannot_push(connect: Connect, counting: Client) -> None:
    """A client whose lease ran out is fenced off once another has its name."""
    first = connect(pusher="b", lease_s=0.3)
    _, clock = first.pull()
    first._session._closed.set()  # stop its heartbeat, as a hung process does
    second = connect(pusher="b")
    deadline = time.monotonic() + 30
    while True:
        try:
            second.pull()
            break
        except Conflict:
            assert time.monotonic() < deadline, "the lease does not run out"
    first._session._closed.clear()
    with pytest.raises(Conflict, match="another client's session"):
        first.push(ones(), clock)
    assert float(second.pull()[0]["large"].max()) == 0.0


def test_status_report_and_checkpoint(counting: Client) -> None:
    _, clock = counting.pull()
    counting.push(ones(), clock)
    counting.report(2.0)
    counting.report(1.0)
    status = counting.status()
    assert (status.state, status.loss, [p.name for p in status.pushers]) == ("healthy", 1.5, ["a"])
    assert [stamp.clock for stamp in status.clocks] == [1, 1]
    assert counting.checkpoint() == status.checkpoint + 1
    with pytest.raises(InvalidArgument, match="loss: must be finite"):
        counting.report(float("nan"))


def test_regret_is_the_sum_of_losses_above_the_comparator_s(counting: Client) -> None:
    counting.report(3.0)
    status = counting.status()
    assert (status.regret, status.regret_steps, status.best_loss) == (None, 0, None)
    for _ in range(RECENT):
        counting.report(2.0, comparator_loss=0.5)
    with pytest.raises(InvalidArgument, match="comparator_loss: must be finite"):
        counting.report(1.0, comparator_loss=float("inf"))
    status = counting.status()
    assert (status.regret, status.regret_steps, status.best_loss) == (1.5 * RECENT, RECENT, 2.0)


def test_a_reader_needs_no_name_and_can_wait_for_a_clock(connect: Connect, counting: Client) -> None:
    reader = connect()
    _, clock = counting.pull()
    handle = counting.push(ones(), clock, wait=False)
    arrays, seen = reader.pull(training=False, at_least=1)
    assert float(arrays["large"][0, 0]) == -1.0
    assert [stamp.clock for stamp in seen] == [1, 1]
    handle.result()
    assert [pusher.name for pusher in reader.status().pushers] == ["a"]


def test_asyncio(service: Ready, counting: Client) -> None:
    async def train() -> float:
        async with adamserve.connect_async(service.target, counting.job) as client:
            _, clock = await client.pull()
            await client.push(ones(), clock)
            _, arrays, clock = await client.push_pull(ones(), clock)
            await client.report(1.0)
            assert (await client.status()).loss == 1.0
            return float(arrays["s"])

    assert asyncio.run(train()) == -2.0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown tensor": ({"nope": np.zeros(3)}, "nope: the job has no such tensor"),
    "shape": ({"w": np.zeros((5, 4), np.float32)}, r"w: a gradient of shape \(5, 4\) for \(4, 5\)"),
    "dtype": ({"w": np.zeros((4, 5), np.int32)}, "w: a gradient of dtype int32"),
    "wider": ({"w": np.zeros((4, 5))}, "w: a gradient of dtype float64"),
    "NaN": ({"w": np.full((4, 5), np.nan, np.float32)}, "w: the gradient holds NaN"),
}


@pytest.mark.parametrize(("gradients", "says"), BAD.values(), ids=BAD)
def test_bad_gradients_are_refused_before_anything_is_sent(
    counting: Client, gradients: dict[str, Any], says: str
) -> None:
    _, clock = counting.pull()
    with pytest.raises((InvalidArgument, NotFound), match=says):
        counting.push({"large": ones()["large"], **gradients}, clock)
    assert counting.seq == 0
    assert float(counting.pull()[0]["large"].max()) == 0.0
    counting.push(ones(), clock)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "wire_dtype": ({"wire_dtype": "float4"}, "wire_dtype: 'float4' is not a wire dtype"),
    "max_in_flight": ({"max_in_flight": 0}, "max_in_flight: must be at least 1"),
    "ca": ({"ca": "/nope.pem"}, "ca: /nope.pem cannot be read"),
}


@pytest.mark.parametrize(("options", "says"), OPTIONS.values(), ids=OPTIONS)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        adamserve.connect("127.0.0.1:1", "job", **options)


def test_no_service_is_said_within_the_timeout() -> None:
    with (
        adamserve.connect("127.0.0.1:1", "job", timeout_s=1.0) as client,
        pytest.raises(Unavailable, match="gave up after 1 s"),
    ):
        client.pull()


def test_no_job(connect: Connect) -> None:
    with pytest.raises(NotFound, match="job: the service has no job"):
        connect(job="absent").pull()


class Counted(Credentials):
    """Counts the direct connections that are made."""

    def connect(self, endpoint: str, timeout_s: float) -> socket.socket:
        MADE.append(endpoint)
        return super().connect(endpoint, timeout_s)


MADE: list[str] = []


def test_one_connection_a_shard_serves_all_calls(service: Ready, counting: Client) -> None:
    MADE.clear()
    with Client(service.target, counting.job, credentials=Counted(transport="direct")) as client:
        for _ in range(3):
            _, clock = client.pull()
            client.push(ones(), clock)
            client.push(ones(), clock, wait=False).result()
            client.push_pull(ones(), clock)
    assert len(MADE) == len(set(MADE)) == 2


class Blocked(Credentials):
    """A network that lets gRPC through and nothing else."""

    def connect(self, endpoint: str, timeout_s: float) -> socket.socket:
        raise ConnectionRefusedError(111, "blocked")


def test_grpc_is_used_where_no_direct_connection_can_be_made(service: Ready, counting: Client) -> None:
    with Client(service.target, counting.job, credentials=Blocked(), timeout_s=20.0) as client:
        client.push(ones(), client.pull()[1])
        assert float(client.pull()[0]["s"]) == -1.0
    with (
        Client(
            service.target, counting.job, credentials=Blocked(transport="direct"), timeout_s=1.0
        ) as client,
        pytest.raises(Unavailable, match="blocked"),
    ):
        client.pull()


def test_numbers_too_large_for_the_wire_are_refused_on_every_shard(connect: Connect) -> None:
    """70000 is finite in float32 and infinite in float16: one of two shards would refuse its part alone."""
    client = connect(wire_dtype="float16")
    client.create(zeros(), optim.SGD(lr=1.0, momentum=0.0))
    gradients = ones()
    gradients["large"][0, 0] = 70_000.0
    with pytest.raises(NotFinite, match="too large for the wire"):
        client.push(gradients, client.pull()[1])
    arrays, clock = client.pull()
    assert [stamp.clock for stamp in clock] == [0, 0]
    assert not any(array.any() for array in arrays.values())


def test_asynchronous_options_are_the_jobs(connect: Connect) -> None:
    """They come over the wire, count at the shards, and belong to another mode by name."""
    client = connect(pusher="a")
    rule = optim.SGD(lr=1.0, momentum=0.0)
    assert client.create(zeros(), rule, max_staleness=0, staleness_lr="inverse", delay_compensation=0.5)
    assert not client.create(zeros(), rule, max_staleness=0, staleness_lr="inverse", delay_compensation=0.5)
    with pytest.raises(Conflict, match="consistency: max_staleness is 0, not 3"):
        client.create(zeros(), rule, max_staleness=3, staleness_lr="inverse", delay_compensation=0.5)
    _, clock = client.pull()
    client.push(ones(), clock)
    late = client.push(ones(), clock)
    assert (late.outcome, "at most 0 are allowed" in late.reason) == (Outcome.STALE, True)
    with pytest.raises(InvalidArgument, match="max_staleness: is an option of async, not of 'bsp'"):
        connect(job="another").create(zeros(), rule, consistency="bsp", max_staleness=3)
