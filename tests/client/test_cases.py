"""What a client promises, whatever carries it: the same cases over bare connections and over gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

import adamserve
from adamserve import SparseRows, optim
from adamserve.client import backoff, wire_link
from adamserve.client.client import Client
from adamserve.client.credentials import Credentials
from adamserve.edge.security import Limits, Security
from adamserve.errors import Conflict, InvalidArgument, LimitExceeded, NotFound, RolledBack, Unavailable
from adamserve.shard.consistency import Async
from adamserve.values import Array, Outcome
from tests.client.proxy import Proxied, Proxy
from tests.client.service import Service

Serve = Callable[..., Service]
Connect = Callable[..., Client]


@pytest.fixture(params=["direct", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    """How tensors travel. Never "auto", which would hide a failure."""
    return str(request.param)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opens, closed at its end."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def serve(stack: ExitStack) -> Serve:
    """Starts services."""
    return lambda **options: stack.enter_context(Service(**options))


@pytest.fixture
def connect(stack: ExitStack, transport: str) -> Connect:
    """Connects clients to a service's job."""

    def begin(service: Service, pusher: str = "", **options: Any) -> Client:
        options = {"timeout_s": 20.0, "transport": transport, **options}
        return stack.enter_context(adamserve.connect(service.target, "job", pusher=pusher, **options))

    return begin


SGD = optim.SGD(lr=1.0, momentum=0.0)

SPLIT = 300_000
"""Elements of a tensor that is in several chunks, and on every shard."""


def zeros() -> dict[str, Array]:
    return {"large": np.zeros(SPLIT, np.float32), "w": np.zeros((4, 5), np.float32), "s": np.zeros(())}


def ones(scale: float = 1.0) -> dict[str, Any]:
    return {name: np.full_like(array, scale) for name, array in zeros().items()}


def started(client: Client, **options: Any) -> Client:
    client.create(zeros(), SGD, **options)
    return client


def value(client: Client) -> float:
    """The value of every element, which all shards and tensors have to agree on."""
    arrays, _ = client.pull(training=False)
    [found] = {float(x) for array in arrays.values() for x in (array.min(), array.max())}
    return found


def until(what: Callable[[], bool]) -> None:
    """Wait until something is so, for a while."""
    ends, tick = time.monotonic() + 20.0, threading.Event()
    while not what():
        assert time.monotonic() < ends
        tick.wait(0.01)


# ---- push and pull


def test_push_then_pull(serve: Serve, connect: Connect) -> None:
    client = started(connect(serve()))
    _, clock = client.pull()
    receipt = client.push(ones(), clock)
    assert (receipt.outcome, receipt.clock.newest) == (Outcome.APPLIED, 1)
    into = zeros()
    receipt, arrays, clock = client.push_pull(ones(2.0), clock, into=into)
    assert (clock.newest, receipt.staleness, client.seq) == (2, 1, 2)
    assert all(arrays[name] is into[name] for name in into)
    assert value(client) == -3.0


def test_a_push_that_is_too_old_is_stale_and_counts(serve: Serve, connect: Connect) -> None:
    service = serve(mode=Async(max_staleness=1))
    client = started(connect(service))
    _, clock = client.pull()
    outcomes = [client.push(ones(), clock).outcome for _ in range(4)]
    assert outcomes == [Outcome.APPLIED, Outcome.APPLIED, Outcome.STALE, Outcome.STALE]
    assert client.push(ones(), client.pull()[1]).outcome is Outcome.APPLIED
    assert (value(client), client.seq) == (-3.0, 5)


def test_rows_travel_alone(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = connect(service)
    client.create({"t": np.zeros((1000, 8), np.float32)}, SGD, tables=["t"])
    _, clock = client.pull()
    before = [service.statistics(shard).bytes_in for shard in (0, 1)]
    rows = np.array([999, 3, 500])
    client.push({"t": SparseRows(rows, np.arange(24, dtype=np.float32).reshape(3, 8))}, clock)
    grown = sum(service.statistics(shard).bytes_in for shard in (0, 1)) - sum(before)
    arrays, _ = client.pull(rows={"t": np.array([500, 999, 0])})
    np.testing.assert_array_equal(arrays["t"][:, 0], [-16.0, -0.0, 0.0])
    assert grown == 3 * (8 * 4 + 4)


def test_a_round_of_bsp_is_one_mean(serve: Serve, connect: Connect) -> None:
    service = serve()
    first, second = connect(service, "a"), connect(service, "b")
    started(first, consistency="bsp")
    first.join()
    second.join()
    _, clock = first.pull()
    handle = first.push(ones(1.0), clock, wait=False)
    assert second.push(ones(3.0), second.pull()[1]).outcome is Outcome.APPLIED
    assert handle.result().clock.newest == 1
    assert value(first) == -2.0


def test_ssp_holds_back_a_pull_that_is_steps_ahead(serve: Serve, connect: Connect) -> None:
    service = serve()
    fast, slow = connect(service, "fast", timeout_s=1.0), connect(service, "slow")
    started(slow, consistency="ssp:1")
    slow.join()
    for _ in range(2):
        fast.push(ones(), fast.pull()[1])
    with pytest.raises(Unavailable, match=r"slow|gave up"):
        fast.pull()
    slow.push(ones(), slow.pull()[1])
    assert fast.pull()[1].newest == 3


def test_a_deleted_job_is_gone_and_its_name_free(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = started(connect(service))
    client.push(ones(), client.pull()[1])
    assert client.delete() is True
    assert client.delete(purge=True) is False
    with pytest.raises(NotFound, match="job"):
        connect(service, timeout_s=1.0).pull()
    again = started(connect(service))
    assert value(again) == 0.0


# ---- restores, and answers that are lost


def test_a_push_after_a_restore_is_rolled_back_once(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = started(connect(service, "a"))
    for _ in range(3):
        client.push(ones(), client.pull()[1])
    _, clock = client.pull()
    service.kill(0)
    service.restore(0)  # from before the first push
    with pytest.raises(RolledBack) as caught:
        client.push(ones(), clock)
    assert caught.value.before == ((1, 3), (1, 3))
    assert caught.value.after == ((2, 0), (1, 4))
    _, clock = client.pull()  # which does not say it again
    assert [tuple(stamp) for stamp in clock] == [(2, 0), (1, 4)]
    assert client.push(ones(), clock).outcome is Outcome.APPLIED
    assert sorted({float(x) for a in client.pull()[0].values() for x in a.reshape(-1)}) == [-5.0, -1.0]
    assert client.seq == 5


@pytest.mark.parametrize("training", [True, False], ids=["a pusher", "a reader"])
def test_a_pull_after_a_restore_says_what_is_lost_once(
    serve: Serve, connect: Connect, training: bool
) -> None:
    service = serve()
    client, other = started(connect(service, "a")), connect(service, "b")
    for _ in range(3):
        other.push(ones(), other.pull()[1])
    client.pull(training=training)
    service.kill(1)
    service.restore(1)
    with pytest.raises(RolledBack, match="updates that this client saw are lost") as caught:
        client.pull(training=training)
    assert (caught.value.before, caught.value.after) == (((1, 3), (1, 3)), ((1, 3), (2, 0)))
    _, clock = client.pull(training=training)
    assert [tuple(stamp) for stamp in clock] == [(1, 3), (2, 0)]


def test_a_restore_that_lost_nothing_is_no_news(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = started(connect(service, "a"))
    client.push(ones(), client.pull()[1])
    _, clock = client.pull()
    assert client.checkpoint() == 1
    service.kill(0)
    service.restore(0)
    client.pull()
    with pytest.raises(RolledBack):  # its gradient may be of parameters that are lost
        client.push(ones(), clock)
    assert client.push(ones(), client.pull()[1]).outcome is Outcome.APPLIED


def test_a_call_waits_for_a_shard_to_be_restored(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = started(connect(service, "a"))
    _, clock = client.pull()
    service.kill(0)
    handle = client.push(ones(), clock, wait=False)
    reader = connect(service)
    pulled: list[Any] = []
    reading = threading.Thread(target=lambda: pulled.append(reader.pull(training=False)))
    reading.start()
    assert not handle.done()
    service.restore(0)
    with pytest.raises(RolledBack):
        handle.result()
    reading.join(20.0)
    assert pulled[0][1][0].incarnation == 2


def test_a_push_that_waits_survives_the_restore_of_another_shard(serve: Serve, connect: Connect) -> None:
    service = serve()
    first, second = connect(service, "a"), connect(service, "b")
    started(first, consistency="bsp")
    first.join()
    second.join()
    _, clock = first.pull()
    handle = first.push(ones(), clock, wait=False)
    until(lambda: service.statistics(1).waiting == 1)
    service.kill(0)
    service.restore(0)
    for pusher in (second,):
        with pytest.raises(RolledBack):
            pusher.push(ones(), clock)
    with pytest.raises(RolledBack):
        handle.result()
    handle = first.push(ones(), first.pull()[1], wait=False)
    second.push(ones(), second.pull()[1])
    assert handle.result().outcome is Outcome.APPLIED


def test_a_push_is_applied_once_however_its_connections_fail(
    serve: Serve, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    service, proxies = serve(), dict[str, Proxy]()
    monkeypatch.setattr(backoff, "FIRST_S", 0.002)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.1)

    @stack.callback
    def close() -> None:
        for proxy in proxies.values():
            proxy.close()

    client = stack.enter_context(
        Client(
            service.target,
            "job",
            credentials=Proxied(proxies, 3, transport),
            timeout_s=30.0,
            lease_s=60.0,
        )
    )
    started(client)
    rng, total = np.random.default_rng(0), 0.0
    while sum(proxy.faults for proxy in proxies.values()) < 60:
        step = float(rng.integers(-8, 9))
        receipt = client.push(ones(step), client.pull()[1])
        assert receipt.outcome is not Outcome.STALE
        total += step
        for link in client._session.links:
            link.reconnect()  # a connection that works stays; a new one meets the next fault
    for proxy in proxies.values():
        proxy.quiet.set()
    assert value(client) == -total


# ---- names, leases and seqs


def test_joining_tells_the_last_seq_and_the_kind(serve: Serve, connect: Connect) -> None:
    service = serve()
    first = started(connect(service, "a", kind="worker"))
    assert (first.join(), first.seq) == (0, 0)
    connect(service, "t").join()
    assert service.kinds() == [(1, ("a", "t"))] * 2
    for _ in range(3):
        first.push(ones(), first.pull()[1])
    first.close()
    assert service.kinds() == [(1, ("t",))] * 2
    again = connect(service, "a")
    assert (again.join(), again.join(), again.seq) == (3, 3, 3)
    again.push(ones(), again.pull()[1])
    assert value(again) == -4.0


def test_shards_that_know_different_seqs_are_made_to_agree(serve: Serve, connect: Connect) -> None:
    service = serve()
    first = started(connect(service, "a"))
    for _ in range(2):
        first.push(ones(), first.pull()[1])
    first.close()
    service.kill(1)
    service.restore(1)  # which knows of no push
    again = connect(service, "a")
    assert again.join() == 2
    assert again.push(ones(), again.pull()[1]).outcome is Outcome.APPLIED
    assert again.seq == 3


def test_a_lease_is_kept_without_calls_and_ends_with_the_client(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = started(connect(service, "a", lease_s=0.6))
    client.join()
    begun = [service.calls[0].begun().get((way, "Join"), 0) for way in ("direct", "grpc")]
    until(
        lambda: (
            sum(service.calls[0].begun().get((w, "Join"), 0) for w in ("direct", "grpc")) >= sum(begun) + 5
        )
    )
    assert service.kinds() == [(1, ("a",))] * 2
    assert service.statistics().lease_expiries == 0
    client.close()
    assert service.kinds() == [(0, ())] * 2


def test_a_client_that_pushes_need_not_renew(serve: Serve, connect: Connect) -> None:
    service = serve(shards=1)
    client = started(connect(service, "a", lease_s=3.0))
    ends = time.monotonic() + 3.0
    while time.monotonic() < ends:
        client.push(ones(), client.pull()[1])
    joins = sum(service.calls[0].begun().get((way, "Join"), 0) for way in ("direct", "grpc"))
    assert joins == 1


def test_an_idle_client_is_live_on_a_restored_shard_again(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = started(connect(service, "a", lease_s=1.0))
    client.join()
    service.kill(0)
    service.restore(0)
    until(lambda: service.statistics(0).live == ("a",))
    client.pull()  # nothing of what it saw is lost


def test_a_pusher_that_has_as_many_names_as_it_likes_is_stopped(serve: Serve, connect: Connect) -> None:
    service = serve(security=Security(limits=Limits(pushers=2)))
    started(connect(service, "a")).join()
    connect(service, "b").join()
    with pytest.raises(LimitExceeded, match="the job has had 2 pushers"):
        connect(service, "c").join()
    connect(service, "a", timeout_s=1.0)


def test_a_name_belongs_to_its_session_while_it_lives(serve: Serve, connect: Connect) -> None:
    service = serve()
    first, second = started(connect(service, "a")), connect(service, "a")
    first.join()
    with pytest.raises(Conflict, match="another client's session"):
        second.join()
    first.close()
    assert second.join() == 0


def test_who_knows_that_a_process_is_dead_takes_its_place_at_once(
    serve: Serve, stack: ExitStack, connect: Connect, transport: str
) -> None:
    """Although its lease runs, and a push of its waits for the round: sent again, that push is applied once."""
    service = serve()
    dead, other = connect(service, "a", lease_s=60.0), connect(service, "b")
    started(dead, consistency="bsp")
    dead.join()
    other.join()
    dead.push(ones(), dead.pull()[1], wait=False)
    until(lambda: service.statistics(0).waiting == service.statistics(1).waiting == 1)
    session, credentials = dead._session.member.session, Credentials(transport=transport)
    heir = stack.enter_context(
        Client(service.target, "job", pusher="a", session=session, credentials=credentials, timeout_s=20.0)
    )
    assert heir.join() == 0
    again = heir.push(ones(), heir.pull()[1], wait=False)
    assert other.push(ones(3.0), other.pull()[1]).outcome is Outcome.APPLIED
    assert again.result().outcome in (Outcome.APPLIED, Outcome.DUPLICATE)
    assert (value(other), heir.seq) == (-2.0, 1)


# ---- streams


def test_a_stream_sends_gradients_as_they_come(serve: Serve, connect: Connect) -> None:
    client = started(connect(serve()))
    into, clock = client.pull()
    with client.stream(clock, into=into) as push:
        for name, gradient in ones().items():
            assert push.alive
            push.add(name, gradient)
        receipt, arrays, clock = push.commit(rates={"w": 1.0})
    assert (receipt.outcome, clock.newest, client.seq) == (Outcome.APPLIED, 1, 1)
    assert all(arrays[name] is into[name] for name in into)
    assert value(client) == -1.0


def test_a_stream_that_is_left_is_given_up(serve: Serve, connect: Connect) -> None:
    service = serve()
    client = started(connect(service, timeout_s=1000.0))
    _, clock = client.pull()
    with client.stream(clock) as push:
        push.add("large", ones()["large"])
    assert (push.done(), push.aborted, client.seq) == (True, True, 0)
    with pytest.raises(NotFound), client.stream(clock) as push:
        push.add("no such tensor", ones()["large"])
    with pytest.raises(Unavailable, match="given up"):
        push.commit()
    assert client.push(ones(), clock).outcome is Outcome.APPLIED
    assert (value(client), client.seq) == (-1.0, 1)
    assert service.calls[0].begun().get(("direct", "Join"), 0) <= 1, "nothing was to be agreed on"


def test_what_is_wrong_with_a_stream_is_told(serve: Serve, connect: Connect) -> None:
    client = started(connect(serve()))
    _, clock = client.pull()
    with client.stream(clock) as push:
        push.add("w", ones()["w"])
        for name, gradient, says in (
            ("w", ones()["w"], "w: its gradient was added before"),
            ("no", ones()["w"], "no: the job has no such tensor"),
            ("s", np.zeros(2), r"s: a gradient of shape \(2,\) for \(\)"),
            ("large", np.full(SPLIT, np.nan, np.float32), "large: the gradient holds NaN"),
        ):
            with pytest.raises((InvalidArgument, NotFound), match=says):
                push.add(name, gradient)
        with pytest.raises(InvalidArgument, match="stream: a stream is open"):
            client.push(ones(), clock)
        with pytest.raises(InvalidArgument, match="lr: must be finite"):
            push.commit(lr=-1.0)
        push.add("s", np.ones(()))
        push.commit()
    arrays, _ = client.pull()
    assert (float(arrays["w"].sum()), float(arrays["s"]), float(arrays["large"].max())) == (-20.0, -1.0, 0.0)


def test_a_stream_ends_at_its_deadline(serve: Serve, connect: Connect) -> None:
    client = started(connect(serve(), timeout_s=1.0))
    _, clock = client.pull()
    push = client.stream(clock)
    push.add("w", ones()["w"])
    until(lambda: not push.alive)
    with pytest.raises(Unavailable, match="given up before its commit"):
        push.commit()
    assert client.push(ones(), clock).outcome is Outcome.APPLIED
    assert client.seq == 1


def test_a_stream_of_a_shard_that_died_is_sent_again_from_its_beginning(
    serve: Serve, connect: Connect
) -> None:
    service = serve()
    client = started(connect(service, "a"))
    _, clock = client.pull()
    push = client.stream(clock)
    push.add("large", ones()["large"])
    service.kill(0)
    service.restore(0)
    for name in ("w", "s"):
        push.add(name, ones()[name])
    with pytest.raises(RolledBack):
        push.commit()
    assert client.push(ones(), client.pull()[1]).outcome is Outcome.APPLIED


def test_an_int8_stream_that_is_given_up_leaves_no_error_to_feed_back(serve: Serve, connect: Connect) -> None:
    client = connect(serve(shards=1), wire_dtype="int8")
    client.create({"w": np.zeros(256, np.float32)}, SGD)
    gradient = np.linspace(-1, 1, 256, dtype=np.float32) ** 3
    _, clock = client.pull()
    for i in range(50):
        if i % 2:
            client.stream(clock).abort()
            with client.stream(clock) as push:
                push.add("w", gradient * 0.3)
        with client.stream(clock) as push:
            push.add("w", gradient)
            push.commit()
    arrays, _ = client.pull()
    assert float(np.abs(arrays["w"] + 50 * gradient).max()) < 1.1 / 127


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve()


def test_pushes_under_way_are_bounded_and_in_order(service: Service, connect: Connect) -> None:
    client = started(connect(service, max_in_flight=2))
    _, clock = client.pull()
    handles = [client.push(ones(2.0**i), clock, wait=False) for i in range(8)]
    assert sum(not handle.done() for handle in handles) <= 2
    assert [handle.result().clock.newest for handle in handles] == [*range(1, 9)]
    assert value(client) == -255.0


def test_ctrl_c_in_a_push_spoils_no_later_one(
    service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the last shard, whose part the caller's own thread does, has just answered."""
    client = started(connect(service))
    _, clock = client.pull()
    client.push(ones(), clock)

    def interrupted(answers: Any) -> bytes:
        answer = b"".join(map(bytes, answers))
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(wire_link, "_only", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.push(ones(), clock)
    assert client.push(ones(), client.pull()[1]).outcome is Outcome.APPLIED
    assert client.seq == 3
