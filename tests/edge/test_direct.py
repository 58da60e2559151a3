"""The direct carrier on real sockets: a real shard behind a real endpoint, in this process."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamserve import optim
from adamserve.client.backoff import Tries
from adamserve.client.carriers import DirectCarrier, Full, Unreachable
from adamserve.client.control_link import Place
from adamserve.client.credentials import Credentials
from adamserve.client.destination import Target
from adamserve.client.wire_link import Member, Pull, WireLink
from adamserve.edge import direct
from adamserve.edge.direct import DirectEndpoint
from adamserve.edge.publishing import EncodedPublisher
from adamserve.edge.security import Limits, Security, Tokens
from adamserve.edge.shard_service import ShardCalls
from adamserve.errors import (
    AdamServeError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from adamserve.observe.rpc_counts import Calls
from adamserve.shard.consistency import BSP, Async, Consistency
from adamserve.shard.geometry import partition
from adamserve.shard.host import ShardHost
from adamserve.shard.shard import Shard
from adamserve.v1 import direct_pb2, shard_pb2, types_pb2
from adamserve.values import Deadline, PullRequest, ShardState, Stamp, TensorSpec
from adamserve.wire import chunks, codec, status
from adamserve.wire.frames import CALL, END, MESSAGE, PREFACE, STATUS, Frames
from tests.edge.test_security import Authority

SIZE = 3_000_000
"""Elements of the tensor: 12 MB, twelve chunks, more than the system buffers."""

STALL_S = 1.0


class Live:
    """One shard of one job of one tensor, its endpoint, and who talks to it."""

    def __init__(self, stack: ExitStack, security: Security, consistency: Consistency) -> None:
        parts = partition([TensorSpec("w", (SIZE,))], 1)
        state = ShardState(0, Stamp(1, 0), (), {"w": {"w": np.zeros(SIZE, np.float32)}})
        shard = Shard(
            partition=parts, state=state, rule=optim.SGD(lr=1.0, momentum=0.0), consistency=consistency
        )
        self.host = ShardHost(shard, EncodedPublisher())
        for pusher in ("a", "b"):
            self.host.join(pusher, lease_s=600.0, session="s")
        calls = ShardCalls(self.find, security)
        self.counts = Calls()
        self.endpoint = DirectEndpoint(calls, security, self.counts)
        self.endpoint.listen("127.0.0.1", 0)
        self.stack = stack
        stack.callback(calls.stalls.stop)
        stack.callback(self.endpoint.drain, 0.0)

    def find(self, job: str) -> ShardHost:
        if job != "job":
            raise NotFound(f"no job {job!r}", field="job")
        return self.host

    def carrier(self, credentials: Credentials | None = None) -> DirectCarrier:
        made = DirectCarrier(credentials or Credentials(), self.endpoint.address)
        self.stack.callback(made.close)
        return made

    def raw(self) -> Frames:
        made = Frames(Credentials().connect(self.endpoint.address, 5.0), 2 << 20)
        made.socket.settimeout(10 * STALL_S)
        self.stack.callback(made.close)
        return made

    def messages(
        self, values: Any = None, *, pusher: str = "a", seq: int = 1
    ) -> Iterator[list[bytes | memoryview]]:
        """A whole push."""
        start = shard_pb2.PushStart(
            job="job", pusher=pusher, session="s", seq=seq, pulled=types_pb2.Stamp(incarnation=1, clock=0)
        )
        yield [shard_pb2.PushRequest(start=start).SerializeToString()]
        yield from codec.encode("w", np.ones(SIZE, np.float32) if values is None else values, 0, "float32")
        yield [COMMIT]

    def parameters(self) -> Any:
        return self.host.pull(PullRequest(), deadline=_soon()).arrays["float32"]

    @property
    def clock(self) -> int:
        return self.host.statistics().stamp.clock


COMMIT = shard_pb2.PushRequest(commit=shard_pb2.PushCommit()).SerializeToString()
PULL = shard_pb2.PullRequest(job="job").SerializeToString()


def _soon() -> Deadline:
    return Deadline.after(10.0)


@pytest.fixture
def start() -> Iterator[Callable[..., Live]]:
    with ExitStack() as stack:

        def begin(consistency: Consistency | None = None, **security: Any) -> Live:
            limits = security.pop("limits", Limits(stall_s=STALL_S))
            return Live(stack, Security(limits=limits, **security), consistency or Async())

        yield begin


@pytest.fixture
def live(start: Callable[..., Live]) -> Live:
    return start()


def pushed(carrier: DirectCarrier, live: Live, **options: Any) -> shard_pb2.PushResponse:
    [answer] = (bytes(a) for a in carrier.call("Push", live.messages(**options), 20.0))
    return shard_pb2.PushResponse.FromString(answer)


def pulled(carrier: DirectCarrier) -> Any:
    found = np.full(SIZE, np.nan, np.float32)
    for answer in carrier.call("Pull", [[PULL]], 20.0):
        for chunk in chunks.split(answer)[1]:
            codec.decode(chunk, found[chunk.start : chunk.start + chunk.length])
    return found


def received_until_the_end(raw: Frames) -> int:
    """Bytes of all frames that still come; the end may come in the middle of one. A wait without end fails."""
    received = 0
    with suppress(ConnectionError):
        while (frame := raw.get()) is not None:
            received += len(frame[1])
    return received


def test_many_calls_go_over_one_connection(live: Live) -> None:
    carrier = live.carrier()
    rng = np.random.default_rng(0)
    total = np.zeros(SIZE, np.float32)
    for clock in range(1, 4):
        values = rng.integers(-9, 9, SIZE).astype(np.float32)
        answer = pushed(carrier, live, values=values, seq=clock)
        total -= values
        assert (answer.outcome, answer.stamp.clock) == (shard_pb2.OUTCOME_APPLIED, clock)
        np.testing.assert_array_equal(pulled(carrier), total)
    assert len(carrier._free) == 1


def test_calls_at_the_same_time_have_connections_of_their_own(start: Callable[..., Live]) -> None:
    """In bsp a push is answered when the other one has come, so that these two have to be under way at once."""
    live = start(BSP())
    carrier, answers = live.carrier(), []
    first = threading.Thread(target=lambda: answers.append(pushed(carrier, live)))
    first.start()
    answers.append(pushed(carrier, live, pusher="b"))
    first.join(20.0)
    assert [answer.stamp.clock for answer in answers] == [1, 1]
    assert len(carrier._free) == 2


def test_calls_are_counted_by_their_code(live: Live) -> None:
    pushed(live.carrier(), live)
    pulled(live.carrier())
    with pytest.raises(NotFound):
        list(live.carrier().call("Drop", [[PULL]], 20.0))
    with pytest.raises(InvalidArgument):
        list(live.carrier().call("Pull", [[PULL], [PULL]], 20.0))
    raw = live.raw()
    raw.put(*_begun("Push"))
    raw.flush()
    ends = time.monotonic() + 10.0
    while live.counts.begun()["direct", "Push"] < 2:
        assert time.monotonic() < ends
    raw.close()
    expected = {
        ("direct", "Push", "OK"): 1,
        ("direct", "Pull", "OK"): 1,
        ("direct", "unknown", "NOT_FOUND"): 1,
        ("direct", "Pull", "INVALID_ARGUMENT"): 1,
        ("direct", "Push", "CANCELLED"): 1,
    }
    while live.counts.answered() != expected:
        assert time.monotonic() < ends, live.counts.answered()
    assert live.counts.begun() == {("direct", "Push"): 2, ("direct", "Pull"): 2, ("direct", "unknown"): 1}


def _begun(method: str) -> tuple[int, list[bytes]]:
    return CALL, [direct_pb2.Call(method=method).SerializeToString()]


def call(method: str = "Push", **fields: Any) -> tuple[int, bytes]:
    return CALL, direct_pb2.Call(method=method, **fields).SerializeToString()


PUSH = call()[1]

BAD: dict[str, tuple[list[tuple[int, bytes]], type[AdamServeError], str]] = {
    "no call": ([(MESSAGE, PULL), (END, b"")], InvalidArgument, "frame"),
    "a call in a call": ([call(), call()], InvalidArgument, "frame"),
    "an unknown kind": ([call(), (77, b"")], InvalidArgument, "frame"),
    "a status": ([call(), (STATUS, b"")], InvalidArgument, "frame"),
    "an unknown method": ([call("Drop"), (END, b"")], NotFound, "method"),
    "a method with a path": ([call("../Push"), (END, b"")], NotFound, "method"),
    "no protobuf": ([(CALL, b"\xff\xff")], InvalidArgument, "message"),
    "a pull without a request": ([call("Pull"), (END, b"")], InvalidArgument, "message"),
    "a pull with two": ([call("Pull"), (MESSAGE, PULL), (MESSAGE, PULL)], InvalidArgument, "message"),
    "a push without anything": ([call(), (END, b"")], InvalidArgument, "commit"),
    "a message that is cut": ([call(), (MESSAGE, b"\x0a\x7f")], InvalidArgument, "message"),
}


@pytest.mark.parametrize(("frames", "kind", "field"), BAD.values(), ids=BAD)
def test_a_bad_call_is_answered_with_its_error(
    live: Live, frames: list[tuple[int, bytes]], kind: type[AdamServeError], field: str
) -> None:
    raw = live.raw()
    for number, content in frames:
        raw.put(number, [content])
    raw.flush()
    found, content_ = raw.get() or (0, memoryview(b""))
    error = status.from_details(bytes(content_))
    assert (found, type(error), error and error.field) == (STATUS, kind, field)
    assert raw.get() is None  # and the connection ends
    assert live.clock == 0
    assert pushed(live.carrier(), live).outcome == shard_pb2.OUTCOME_APPLIED


def test_a_message_of_3_gib_is_refused_by_its_length(live: Live) -> None:
    raw = live.raw()
    raw.put(CALL, [PUSH])
    raw.flush()
    raw.socket.sendall(struct.pack("<BI", MESSAGE, 3 << 30) + bytes(1000))
    kind, content = raw.get() or (0, memoryview(b""))
    error = status.from_details(bytes(content))
    assert (kind, type(error)) == (STATUS, LimitExceeded)
    assert "3221225472 bytes" in str(error)


def test_the_sender_of_an_endless_push_sees_why_it_ends(live: Live) -> None:
    def endless() -> Iterator[list[bytes | memoryview]]:
        whole = [*live.messages()]
        yield from whole[:-1]
        while True:
            yield from whole[1:-1]

    with pytest.raises(InvalidArgument, match="came twice"):
        list(live.carrier().call("Push", endless(), 20.0))
    assert live.clock == 0


@pytest.mark.parametrize(
    "begun",
    [b"", PREFACE, PREFACE + b"\x01", PREFACE + struct.pack("<BI", CALL, 100) + b"x"],
    ids=["nothing", "a preface", "half a header", "half a frame"],
)
def test_a_silent_peer_is_cut_and_holds_nobody(live: Live, begun: bytes, monkeypatch: Any) -> None:
    monkeypatch.setattr(direct, "GREETING_S", STALL_S)
    monkeypatch.setattr(direct, "IDLE_S", STALL_S)
    host, _, port = live.endpoint.address.rpartition(":")
    with socket.create_connection((host, int(port)), 5.0) as silent:
        silent.sendall(begun)
        assert pushed(live.carrier(), live).outcome == shard_pb2.OUTCOME_APPLIED
        silent.settimeout(20 * STALL_S)
        assert silent.recv(1) == b""  # ended by the other side


def test_a_push_that_stalls_is_cut(live: Live) -> None:
    raw = live.raw()
    whole = [*live.messages()]
    raw.put(CALL, [PUSH])
    for parts in whole[:3]:
        raw.put(MESSAGE, parts)
    raw.flush()
    assert received_until_the_end(raw) == 0
    assert live.clock == 0
    assert pushed(live.carrier(), live).outcome == shard_pb2.OUTCOME_APPLIED


def test_a_client_that_stops_reading_is_cut(live: Live) -> None:
    raw = live.raw()
    raw.put(CALL, [call("Pull")[1]])
    raw.put(MESSAGE, [PULL])
    raw.put(END)
    raw.flush()
    assert pushed(live.carrier(), live).outcome == shard_pb2.OUTCOME_APPLIED
    threading.Event().wait(3 * STALL_S)  # its silence is what is tested
    assert received_until_the_end(raw) < 4 * SIZE


def test_connections_have_a_limit(start: Callable[..., Live]) -> None:
    live = start(limits=Limits(streams=2))
    raws = [live.raw(), live.raw()]
    with pytest.raises((Unavailable, Unreachable)):
        pushed(live.carrier(), live)
    raws[0].close()
    deadline = _soon()
    while deadline.remaining():
        try:
            assert pushed(live.carrier(), live).outcome == shard_pb2.OUTCOME_APPLIED
            return
        except Unavailable:
            continue  # the server has not seen the end of the other one yet
    pytest.fail("a place that was given free was never given to another")


def test_a_drain_lets_the_running_call_end_and_takes_no_new_one(start: Callable[..., Live]) -> None:
    live = start(BSP())
    carrier, answers = live.carrier(), []
    first = threading.Thread(target=lambda: answers.append(pushed(carrier, live)))
    first.start()
    deadline = _soon()
    while live.host.statistics().waiting == 0 and deadline.remaining():
        pass
    draining = threading.Thread(target=live.endpoint.drain, args=(10.0,))
    draining.start()
    while not live.endpoint._draining and deadline.remaining():
        pass
    with pytest.raises(Unavailable):
        pulled(live.carrier())
    live.host.leave("b", "s")  # the round is complete without it
    first.join(20.0)
    draining.join(20.0)
    assert not draining.is_alive()
    assert answers[0].outcome == shard_pb2.OUTCOME_APPLIED


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("direct"), "authority")


@pytest.fixture
def secured(start: Callable[..., Live], authority: Authority) -> Live:
    """Mutual TLS and a token."""
    cert, key = authority.issue("server")
    tokens = authority.folder / "tokens"
    tokens.write_text("job right\n")
    return start(
        cert=cert.read_bytes(),
        key=key.read_bytes(),
        client_ca=authority.path.read_bytes(),
        tokens=Tokens.read(tokens),
    )


def credentials(
    authority: Authority, *, days: int = 1, issuer: Authority | None = None, **fields: Any
) -> Any:
    cert, key = (issuer or authority).issue("client", days=days)
    known = {
        "ca": authority.path.read_bytes(),
        "cert": cert.read_bytes(),
        "key": key.read_bytes(),
        "token": "right",
    }
    return Credentials(**{**known, **fields})


def test_tls_and_token(secured: Live, authority: Authority) -> None:
    carrier = secured.carrier(credentials(authority))
    assert pushed(carrier, secured).outcome == shard_pb2.OUTCOME_APPLIED
    assert pulled(carrier).max() == -1.0
    assert len(carrier._free) == 1


def test_a_refusal_comes_through_tls_while_the_push_is_sent(secured: Live, authority: Authority) -> None:
    def endless() -> Iterator[list[bytes | memoryview]]:
        whole = [*secured.messages()]
        while True:
            yield from whole[:-1]

    with pytest.raises(InvalidArgument, match="came twice"):
        list(secured.carrier(credentials(authority)).call("Push", endless(), 20.0))


DENIED: dict[str, tuple[dict[str, Any], type[AdamServeError]]] = {
    "no token": ({"token": ""}, Unauthenticated),
    "wrong token": ({"token": "wrong"}, Unauthenticated),
    "no certificate": ({"cert": b"", "key": b""}, Unavailable),
    "an expired certificate": ({"days": -1}, Unavailable),
    "plain text": ({"ca": b"", "cert": b"", "key": b""}, Unavailable),
    "another server's name": ({"server_name": "elsewhere"}, Unavailable),
}


@pytest.mark.parametrize(("fields", "kind"), DENIED.values(), ids=DENIED)
def test_without_them_nothing_is_applied(
    secured: Live, authority: Authority, fields: dict[str, Any], kind: type[AdamServeError]
) -> None:
    with pytest.raises(kind):
        pushed(secured.carrier(credentials(authority, **fields)), secured)
    assert secured.clock == 0


def test_a_foreign_certificate_is_refused(secured: Live, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    with pytest.raises(Unavailable):
        pushed(secured.carrier(credentials(authority, issuer=stranger)), secured)
    with pytest.raises(Unavailable):
        pushed(secured.carrier(credentials(authority, ca=stranger.path.read_bytes())), secured)
    assert secured.clock == 0


@pytest.fixture(scope="module")
def shared() -> Iterator[Live]:
    with ExitStack() as stack:
        yield Live(stack, Security(), Async())


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.binary(max_size=60)) | st.just(call()) | st.just((MESSAGE, PULL)),
        max_size=6,
    ),
    st.binary(max_size=20),
)
def test_whatever_comes_nothing_changes(shared: Live, frames: list[tuple[int, bytes]], rest: bytes) -> None:
    """Frames in any order, then any bytes, then the end; the endpoint answers or hangs up, and serves the next one."""
    raw = shared.raw()
    try:
        for kind, content in frames:
            raw.put(kind, [content])
        raw.flush()
        raw.socket.sendall(rest)
        raw.socket.shutdown(socket.SHUT_WR)
        while raw.get() is not None:
            pass
    except (ConnectionError, LimitExceeded):
        pass
    finally:
        raw.close()
    assert shared.clock == 0


@pytest.mark.parametrize(
    "begun", [b"", PREFACE + struct.pack("<BI", CALL, 60_000)], ids=["the preface", "the first frame"]
)
def test_before_its_token_nobody_holds_a_connection_for_long(
    live: Live, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However steadily bytes come: at a byte a tenth of a second the preface would take 1.2 s, the frame 6000 s."""
    monkeypatch.setattr(direct, "GREETING_S", 0.4)
    host, _, port = live.endpoint.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(begun)
        slow.settimeout(0.1)
        sent, began = 0, time.monotonic()
        with suppress(ConnectionError):
            while True:
                slow.sendall(PREFACE[sent : sent + 1] or b"x")
                sent += 1
                with suppress(TimeoutError):
                    if not slow.recv(1):
                        break
        assert 0.3 < time.monotonic() - began < 5
        assert sent < len(PREFACE)
    assert pushed(live.carrier(), live).outcome == shard_pb2.OUTCOME_APPLIED


def test_a_first_frame_is_short(live: Live) -> None:
    """Longer ones are for calls that have shown their token."""
    raw = live.raw()
    raw.socket.sendall(struct.pack("<BI", CALL, direct.CALL_BYTES + 1))
    with suppress(ConnectionError):
        assert raw.get() is None


def test_a_connection_that_cannot_be_taken_costs_only_itself() -> None:
    """In a process of its own, which has no descriptor left for a while."""
    code = "from tests.edge.test_direct import without_descriptors; without_descriptors()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def without_descriptors() -> None:
    """The process has no descriptor left when the connection comes, and some when the next one does."""
    with ExitStack() as stack:
        live = Live(stack, Security(limits=Limits(stall_s=STALL_S)), Async())
        _without_descriptors(live)


def _without_descriptors(live: Live) -> None:
    host, _, port = live.endpoint.address.rpartition(":")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    waiting = socket.socket()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 4, hard))
        with suppress(OSError):
            while len(held) < 1000:
                held.append(os.dup(0))
        assert len(held) < 1000
        waiting.connect((host, int(port)))
        waiting.settimeout(0.5)
        with pytest.raises(TimeoutError):  # the endpoint tries again and again
            waiting.recv(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
    waiting.close()
    assert pushed(live.carrier(), live).outcome == shard_pb2.OUTCOME_APPLIED


def test_a_shard_that_is_full_is_said_to_be_so_at_once(start: Callable[..., Live]) -> None:
    live = start(limits=Limits(streams=1, stall_s=STALL_S))
    kept = live.carrier()
    pulled(kept)
    with pytest.raises(Full, match=r"before the answer|connection failed"):
        pulled(live.carrier())
    np.testing.assert_array_equal(pulled(kept), np.zeros(SIZE))
    live.endpoint.drain(0.0)
    with pytest.raises(Unavailable) as caught:
        pulled(kept)
    assert not isinstance(caught.value, Full), "it had answered before"


def once(link: WireLink, tries: Tries, error: AdamServeError) -> None:
    """Let every call fail at its first try."""
    raise error


def test_a_client_that_finds_the_shard_full_uses_grpc_for_a_while(start: Callable[..., Live]) -> None:
    """gRPC is not there either, and says so: that is how it is seen to have been asked."""
    live = start(limits=Limits(streams=1, stall_s=STALL_S))
    kept = live.carrier()
    pulled(kept)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        grpc_at = f"127.0.0.1:{closed.getsockname()[1]}"
        place = Place(0, grpc_at, live.endpoint.address, 1, 0, live.host.partition.shards[0])

        def link(**options: Any) -> WireLink:
            made = WireLink(place, Member("job", "a", "s", "trainer", 60.0), Credentials(**options), once)
            live.stack.callback(made.close)
            return made

        def error_of(way: WireLink) -> BaseException | None:
            target = Target(live.host.partition.specs)
            return way.pull(
                Pull(target, Deadline.after(5.0), "float32", training=False), here=True
            ).exception()

        both, alone = link(), link(transport="direct")
        assert isinstance(error_of(both), Full)
        both.reconnect()
        assert "Connection refused" in str(error_of(both))
        assert [type(error_of(alone)) for _ in range(2)] == [Full, Full]
        # A lease is renewed beside whatever has the only place: by gRPC at once, and what that says counts.
        for way, says in ((both, "Connection refused"), (alone, "ended before")):
            with pytest.raises(Unavailable, match=f"{says}|connection failed"):
                way.join(0, 5.0)


def test_a_shard_that_was_not_meant_answers_nothing_else(live: Live) -> None:
    """Its port may have been another's: the caller is to ask where the shard that it means is now."""
    place = Place(3, "", live.endpoint.address, 1, 0, live.host.partition.shards[0])
    member = Member("job", "a", "s", "trainer", 60.0)
    link = WireLink(place, member, Credentials(transport="direct"), once)
    live.stack.callback(link.close)
    target = Target(live.host.partition.specs)
    error = link.pull(Pull(target, _soon(), "float32"), here=True).exception()
    assert str(error) == "shard: this is shard 0, not 3 (ask the topology)"
    for call in (lambda: link.join(0, 5.0), lambda: link.leave(5.0)):
        with pytest.raises(Unavailable, match="this is shard 0, not 3"):
            call()
