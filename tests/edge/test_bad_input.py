"""What comes over the wire is refused with its status and field, and changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamserve import optim
from adamserve.client.carriers import DirectCarrier, GrpcCarrier
from adamserve.client.client import Client
from adamserve.client.credentials import Credentials
from adamserve.cluster.serving import Ready
from adamserve.edge.assembly import Assembly
from adamserve.edge.buffers import Buffers
from adamserve.edge.grpc_server import parse
from adamserve.errors import AdamServeError
from adamserve.shard.geometry import partition
from adamserve.v1 import control_pb2, control_pb2_grpc, shard_pb2, types_pb2
from adamserve.values import SparseRows, TensorSpec
from adamserve.wire import chunks, codec, status
from tests.served import STALL_S, Connect

Code = grpc.StatusCode


class Raw:
    """One job of one tensor of six elements on shard 0, spoken to in bare messages."""

    def __init__(self, service: Ready, client: Client) -> None:
        self.job = client.job
        self.client = client
        client.create(
            {"w": np.zeros(6, np.float32), "x": np.zeros(6, np.float32)}, optim.SGD(lr=1.0, momentum=0.0)
        )
        _, clock = client.pull()
        self.incarnation = clock[0].incarnation
        self.session = client._session.member.session
        self.channel: Any = grpc.insecure_channel(service.shards[0])
        self.control_channel: Any = grpc.insecure_channel(service.target)
        self.control: Any = control_pb2_grpc.ControlServiceStub(self.control_channel)
        self.method: Any = self.channel.stream_unary("/adamserve.v1.ShardService/Push")
        found = self.control.GetTopology(control_pb2.GetTopologyRequest(job=self.job))
        self.direct = DirectCarrier(Credentials(), found.shards[0].direct_endpoint)

    def start(self, **fields: Any) -> bytes:
        known = {"job": self.job, "pusher": self.client.pusher, "session": self.session, "seq": 1}
        stamp = fields.pop("pulled", types_pb2.Stamp(incarnation=self.incarnation, clock=0))
        start = shard_pb2.PushStart(**{**known, **fields}, pulled=stamp)
        return shard_pb2.PushRequest(start=start).SerializeToString()

    def push(self, *messages: bytes) -> Any:
        return self.method(iter(messages), timeout=20)

    def refused(self, way: str, *messages: bytes) -> tuple[Code, AdamServeError]:
        """A push that has to be refused; returns its status and error."""
        if way == "grpc":
            with pytest.raises(grpc.RpcError) as caught:
                self.push(*messages)
            error: Any = caught.value
            return error.code(), status.error_of(error)
        with pytest.raises(AdamServeError) as ours:
            list(self.direct.call("Push", ([message] for message in messages), 20.0))
        return status.code_of(ours.value), ours.value


COMMIT = shard_pb2.PushRequest(commit=shard_pb2.PushCommit()).SerializeToString()


def chunk(values: Any = (1, 2, 3, 4, 5, 6), start: int = 0, tensor: str = "w", **fields: Any) -> bytes:
    data = np.asarray(values, "<f4").tobytes()
    length = fields.pop("length", len(data) // 4)
    known = {"encoding": 1, "sum32": codec.sum32(fields.get("data", data)), "data": data}
    part = types_pb2.Chunk(tensor=tensor, start=start, length=length, **{**known, **fields})
    return shard_pb2.PushRequest(chunks=[part]).SerializeToString()


def rows(*numbers: int, value: float = 1.0, **fields: Any) -> bytes:
    """A gradient of some of w's rows, which have one element each."""
    named = np.array(numbers, "<u4").tobytes()
    data = np.full(len(numbers), value, "<f4").tobytes()
    total = codec.sum32(data) + codec.sum32(named) & 0xFFFF_FFFF
    return chunk([value] * len(numbers), **{"sum32": total, "rows": named, **fields})


@pytest.fixture
def raw(service: Ready, connect: Connect) -> Iterator[Raw]:
    made = Raw(service, connect(lease_s=60.0))
    yield made
    made.direct.close()
    made.channel.close()


Messages = Callable[[Raw], list[bytes]]

BAD: dict[str, tuple[Messages, Code, str]] = {
    "unknown job": (lambda r: [r.start(job="no"), chunk(), COMMIT], Code.NOT_FOUND, "job"),
    "unknown pusher": (lambda r: [r.start(pusher="no"), chunk(), COMMIT], Code.NOT_FOUND, "pusher"),
    "other session": (lambda r: [r.start(session="no"), chunk(), COMMIT], Code.FAILED_PRECONDITION, "pusher"),
    "unknown tensor": (lambda r: [r.start(), chunk(tensor="no"), COMMIT], Code.NOT_FOUND, "no"),
    "another shard's tensor": (lambda r: [r.start(), chunk(tensor="x"), COMMIT], Code.NOT_FOUND, "x"),
    "too long": (lambda r: [r.start(), chunk(range(7)), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "before the start": (lambda r: [r.start(), chunk(start=-1), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "negative length": (lambda r: [r.start(), chunk(length=-1), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "byte count": (lambda r: [r.start(), chunk(length=5), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "dtype": (
        lambda r: [r.start(), chunk(encoding=2, length=3), COMMIT],
        Code.INVALID_ARGUMENT,
        "w",
    ),
    "no encoding": (lambda r: [r.start(), chunk(encoding=0), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "unknown encoding": (lambda r: [r.start(), chunk(encoding=77), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "checksum": (lambda r: [r.start(), chunk(sum32=1), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "NaN": (lambda r: [r.start(), chunk([1, np.nan, 3, 4, 5, 6]), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "infinity": (lambda r: [r.start(), chunk([1, 2, 3, 4, 5, -np.inf]), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "missing slice": (lambda r: [r.start(), chunk([1, 2, 3]), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "missing in the middle": (
        lambda r: [r.start(), chunk([1, 2]), chunk([4, 5, 6], start=3), COMMIT],
        Code.INVALID_ARGUMENT,
        "w",
    ),
    "overlap": (
        lambda r: [r.start(), chunk([4, 5, 6], start=3), chunk([1, 2, 3, 4]), COMMIT],
        Code.INVALID_ARGUMENT,
        "w",
    ),
    "sent twice": (lambda r: [r.start(), chunk(), chunk(), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "negative seq": (lambda r: [r.start(seq=-1), chunk(), COMMIT], Code.INVALID_ARGUMENT, "seq"),
    "seq 0": (lambda r: [r.start(seq=0), chunk(), COMMIT], Code.INVALID_ARGUMENT, "seq"),
    "skipped seq": (lambda r: [r.start(seq=3), chunk(), COMMIT], Code.INVALID_ARGUMENT, "seq"),
    "future clock": (
        lambda r: [r.start(pulled=types_pb2.Stamp(incarnation=r.incarnation, clock=5)), chunk(), COMMIT],
        Code.INVALID_ARGUMENT,
        "clock",
    ),
    "future incarnation": (
        lambda r: [r.start(pulled=types_pb2.Stamp(incarnation=99, clock=0)), chunk(), COMMIT],
        Code.INVALID_ARGUMENT,
        "clock",
    ),
    "rate": (
        lambda r: [
            r.start(),
            shard_pb2.PushRequest(commit=shard_pb2.PushCommit(lr=float("nan"))).SerializeToString(),
        ],
        Code.INVALID_ARGUMENT,
        "lr",
    ),
    "rate of a tensor": (
        lambda r: [
            r.start(),
            shard_pb2.PushRequest(commit=shard_pb2.PushCommit(rates={"w": -1.0})).SerializeToString(),
        ],
        Code.INVALID_ARGUMENT,
        "rates[w]",
    ),
    "row beyond the end": (lambda r: [r.start(), rows(6), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "negative row": (lambda r: [r.start(), rows(2**32 - 1), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "rows of another width": (
        lambda r: [r.start(), chunk([1, 2, 3], rows=b"\0" * 8), COMMIT],
        Code.INVALID_ARGUMENT,
        "w",
    ),
    "half a row number": (
        lambda r: [r.start(), chunk([1], rows=b"\0" * 6), COMMIT],
        Code.INVALID_ARGUMENT,
        "w",
    ),
    "rows and elements": (lambda r: [r.start(), chunk(), rows(1), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "elements and rows": (lambda r: [r.start(), rows(1), chunk(), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "NaN in a row": (lambda r: [r.start(), rows(1, value=np.nan), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "a row number's checksum": (lambda r: [r.start(), rows(1, sum32=0), COMMIT], Code.INVALID_ARGUMENT, "w"),
    "more rows than the table": (
        lambda r: [r.start(), rows(*[1] * 4), rows(*[2] * 3), COMMIT],
        Code.RESOURCE_EXHAUSTED,
        "w",
    ),
    "another shard's rows": (lambda r: [r.start(), rows(1, tensor="x"), COMMIT], Code.NOT_FOUND, "x"),
    "no start": (lambda r: [chunk(), COMMIT], Code.INVALID_ARGUMENT, "start"),
    "two starts": (lambda r: [r.start(), r.start(), chunk(), COMMIT], Code.INVALID_ARGUMENT, "start"),
    "no commit": (lambda r: [r.start(), chunk()], Code.INVALID_ARGUMENT, "commit"),
    "after the commit": (lambda r: [r.start(), COMMIT, chunk()], Code.INVALID_ARGUMENT, "commit"),
    "nothing": (lambda r: [], Code.INVALID_ARGUMENT, "commit"),
    "not protobuf": (lambda r: [b"\xff\xff\xff"], Code.INVALID_ARGUMENT, "message"),
    "cut short": (lambda r: [(r.start() + chunk())[:-3]], Code.INVALID_ARGUMENT, "message"),
    "a long message": (lambda r: [r.start(), b"\0" * (8 << 20)], Code.RESOURCE_EXHAUSTED, ""),
}


@pytest.mark.parametrize("way", ["grpc", "direct"])
def test_refusals_are_counted_and_seen_with_their_reason(raw: Raw, way: str) -> None:
    for name, messages in BAD.items():
        if name in ("NaN", "infinity", "missing slice", "skipped seq"):
            raw.refused(way, *messages[0](raw))
    state = raw.client.status()
    [event] = state.events
    assert (event.kind, event.pusher, event.shards, event.count) == ("invalid", raw.client.pusher, (0,), 4)
    assert event.reason.startswith("seq: 3 skips 1")
    assert [shard.pushes.get("INVALID", 0) for shard in state.shards] == [4, 0]


@pytest.mark.parametrize("way", ["grpc", "direct"])
@pytest.mark.parametrize(("messages", "code", "field"), BAD.values(), ids=BAD)
def test_a_bad_push_is_refused_and_nothing_changes(
    raw: Raw, way: str, messages: Messages, code: Code, field: str
) -> None:
    found, error = raw.refused(way, *messages(raw))
    assert (found, error.field) == (code, field)
    arrays, clock = raw.client.pull()
    assert arrays["w"].tobytes() + arrays["x"].tobytes() == bytes(48)
    assert [stamp.clock for stamp in clock] == [0, 0]
    raw.push(raw.start(), chunk(), COMMIT)
    assert raw.client.pull()[0]["w"].tolist() == [-1, -2, -3, -4, -5, -6]


def test_chunks_may_come_in_any_order_and_a_push_twice(raw: Raw) -> None:
    messages = [raw.start(), chunk([5, 6], start=4), chunk([1, 2]) + chunk([3, 4], start=2), COMMIT]
    answers = [shard_pb2.PushResponse.FromString(raw.push(*messages)) for _ in range(3)]
    assert [answer.outcome for answer in answers] == [
        shard_pb2.OUTCOME_APPLIED,
        shard_pb2.OUTCOME_DUPLICATE,
        shard_pb2.OUTCOME_DUPLICATE,
    ]
    assert {answer.stamp.clock for answer in answers} == {1}
    assert raw.client.pull()[0]["w"].tolist() == [-1, -2, -3, -4, -5, -6]


def test_a_stalled_sender_is_cut_and_holds_nobody(raw: Raw) -> None:
    """It sends its start and half a tensor, and then nothing; others push meanwhile."""

    def stalls() -> Iterator[bytes]:
        yield raw.start()
        yield chunk([1, 2, 3])
        ended.wait(60)

    ended = threading.Event()
    call = raw.method.future(stalls(), timeout=60)
    raw.client.push({"w": np.ones(6, np.float32)}, raw.client.pull()[1])
    with pytest.raises(grpc.RpcError) as caught:
        call.result(timeout=10 * STALL_S)
    ended.set()
    error: Any = caught.value
    assert error.code() is Code.CANCELLED
    assert raw.client.pull()[0]["w"].tolist() == [-1] * 6


def test_an_endless_stream_ends_at_the_tensor_s_end(raw: Raw) -> None:
    def endless() -> Iterator[bytes]:
        yield raw.start()
        while True:
            yield chunk()

    with pytest.raises(grpc.RpcError) as caught:
        raw.method(endless(), timeout=20)
    assert status.error_of(caught.value).problem == "elements 0 to 6 came twice"
    assert raw.client.pull()[1][0].clock == 0


def test_a_client_that_stops_reading_is_cut_and_holds_nobody(service: Ready, connect: Connect) -> None:
    client = connect()
    client.create({"w": np.zeros(32 << 20, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
    channel: Any = grpc.insecure_channel(service.shards[0])
    request = shard_pb2.PullRequest(job=client.job).SerializeToString()
    call = channel.unary_stream("/adamserve.v1.ShardService/Pull")(request, timeout=60)
    next(call)
    client.push({"w": np.ones(32 << 20, np.float32)}, client.pull()[1])
    threading.Event().wait(3 * STALL_S)  # its silence is what is tested
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    error: Any = caught.value
    assert error.code() is Code.CANCELLED
    channel.close()


def tensor(name: str, shape: list[int], dtype: int) -> types_pb2.TensorSpec:
    return types_pb2.TensorSpec(name=name, shape=shape, dtype=dtype)  # type: ignore[arg-type] # an enum's number


JOBS: dict[str, tuple[dict[str, Any], Code, str]] = {
    "no tensors": ({"tensors": []}, Code.INVALID_ARGUMENT, "tensors"),
    "a name like a path": ({"name": "../up"}, Code.INVALID_ARGUMENT, "job"),
    "no name": ({"name": ""}, Code.INVALID_ARGUMENT, "job"),
    "unknown rule": ({"rule_json": '{"rule": "Adum"}'}, Code.INVALID_ARGUMENT, "rule"),
    "constant": ({"rule_json": '{"rule": "Adam", "beta1": 2}'}, Code.INVALID_ARGUMENT, "beta1"),
    "not JSON": ({"rule_json": "import os"}, Code.INVALID_ARGUMENT, "rule_json"),
    "nested JSON": ({"rule_json": "[" * 100_000}, Code.INVALID_ARGUMENT, "rule_json"),
    "mode": ({"consistency": "eventual"}, Code.INVALID_ARGUMENT, "consistency"),
    "name twice": (
        {"tensors": [tensor(name="a", shape=[1], dtype=1)] * 2},
        Code.INVALID_ARGUMENT,
        "tensors",
    ),
    "long name": (
        {"tensors": [tensor(name="a" * 257, shape=[1], dtype=1)]},
        Code.INVALID_ARGUMENT,
        "tensors.name",
    ),
    "many tensors": (
        {"tensors": [tensor(name=str(i), shape=[1], dtype=1) for i in range(10_001)]},
        Code.RESOURCE_EXHAUSTED,
        "tensors",
    ),
    "a million tensors": (
        {"tensors": [tensor(name=str(i), shape=[1], dtype=1) for i in range(1_000_000)]},
        Code.RESOURCE_EXHAUSTED,
        "",
    ),
    "more memory than there is": (
        {"tensors": [tensor(name="a", shape=[1 << 40, 1 << 20], dtype=1)]},
        Code.RESOURCE_EXHAUSTED,
        "tensors",
    ),
    "values missing": ({}, Code.INVALID_ARGUMENT, "w"),
    "dtype": ({"tensors": [tensor(name="w", shape=[6], dtype=3)]}, Code.INVALID_ARGUMENT, "w"),
    "rule of no tensor": (
        {"tensor_rules_json": {"no": '{"rule": "SGD", "lr": 2}'}},
        Code.NOT_FOUND,
        "no",
    ),
}


@pytest.mark.parametrize(("fields", "code", "field"), JOBS.values(), ids=JOBS)
def test_a_bad_job_is_refused(raw: Raw, fields: dict[str, Any], code: Code, field: str) -> None:
    known = {
        "name": f"{raw.job}-new",
        "tensors": [tensor(name="w", shape=[6], dtype=1)],
        "rule_json": '{"rule": "SGD", "lr": 1.0}',
    }
    spec = control_pb2.JobSpec(**{**known, **fields})
    with pytest.raises(grpc.RpcError) as caught:
        raw.control.CreateJob(iter([control_pb2.CreateJobRequest(start=spec)]), timeout=20)
    error: Any = caught.value
    assert (error.code(), status.error_of(error).field) == (code, field)
    jobs = raw.control.GetStatus(control_pb2.GetStatusRequest(), timeout=20).jobs
    assert f"{raw.job}-new" not in {job.job for job in jobs}


CONTROL: dict[str, tuple[Callable[[Raw], Any], Code, str]] = {
    "topology of no job": (
        lambda r: r.control.GetTopology(control_pb2.GetTopologyRequest(job="no")),
        Code.NOT_FOUND,
        "job",
    ),
    "status of no job": (
        lambda r: r.control.GetStatus(control_pb2.GetStatusRequest(job="no")),
        Code.NOT_FOUND,
        "job",
    ),
    "checkpoint of no job": (
        lambda r: r.control.Checkpoint(control_pb2.CheckpointRequest(job="../..")),
        Code.NOT_FOUND,
        "job",
    ),
    "infinite loss": (
        lambda r: r.control.Report(
            control_pb2.ReportRequest(job=r.job, losses=[control_pb2.Loss(loss=float("inf"))])
        ),
        Code.INVALID_ARGUMENT,
        "loss",
    ),
    "number that is none": (
        lambda r: r.control.Report(control_pb2.ReportRequest(job=r.job, numbers={"x": float("nan")})),
        Code.INVALID_ARGUMENT,
        "x",
    ),
    "no message": (
        lambda r: r.control_channel.unary_unary("/adamserve.v1.ControlService/Report")(b"\xff\xff"),
        Code.INVALID_ARGUMENT,
        "message",
    ),
    "nameless number": (
        lambda r: r.control.Report(control_pb2.ReportRequest(job=r.job, numbers={"": 1.0})),
        Code.INVALID_ARGUMENT,
        "numbers",
    ),
    "too many numbers": (
        lambda r: r.control.Report(
            control_pb2.ReportRequest(job=r.job, numbers={str(i): 1.0 for i in range(65)})
        ),
        Code.RESOURCE_EXHAUSTED,
        "numbers",
    ),
}


@pytest.mark.parametrize(("call", "code", "field"), CONTROL.values(), ids=CONTROL)
def test_a_bad_control_call_is_refused(raw: Raw, call: Callable[[Raw], Any], code: Code, field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(raw)
    error: Any = caught.value
    assert (error.code(), status.error_of(error).field) == (code, field)


JOINS: dict[str, tuple[dict[str, Any], Code, str]] = {
    "an unknown job": ({"job": "no"}, Code.NOT_FOUND, "job"),
    "no name": ({"pusher": ""}, Code.INVALID_ARGUMENT, "pusher"),
    "a long name": ({"pusher": "p" * 257}, Code.INVALID_ARGUMENT, "pusher"),
    "no session": ({"session": ""}, Code.INVALID_ARGUMENT, "session"),
    "no lease": ({"lease_s": 0.0}, Code.INVALID_ARGUMENT, "lease_s"),
    "an endless lease": ({"lease_s": float("inf")}, Code.INVALID_ARGUMENT, "lease_s"),
    "a negative seq": ({"last_seq": -1}, Code.INVALID_ARGUMENT, "last_seq"),
    "an unknown kind": ({"kind": "visitor"}, Code.INVALID_ARGUMENT, "kind"),
    "another shard": ({"shard": 1}, Code.UNAVAILABLE, "shard"),
}


@pytest.mark.parametrize("way", ["grpc", "direct"])
@pytest.mark.parametrize(("fields", "code", "field"), JOINS.values(), ids=JOINS)
def test_a_bad_join_is_refused_and_nobody_has_joined(
    raw: Raw, way: str, fields: dict[str, Any], code: Code, field: str
) -> None:
    request = shard_pb2.JoinRequest(
        **{"job": raw.job, "pusher": "p", "session": "s", "lease_s": 60.0, **fields}
    )
    carrier = raw.direct if way == "direct" else GrpcCarrier(raw.channel, ())
    with pytest.raises(AdamServeError) as caught:
        list(carrier.call("Join", iter([[request.SerializeToString()]]), 20.0))
    assert (status.code_of(caught.value), caught.value.field) == (code, field)
    assert [pusher.name for pusher in raw.client.status().pushers] == [raw.client.pusher]


PARTS = partition([TensorSpec("w", (6,)), TensorSpec("d", (4,), "float64")], 1)

FUZZED = 100_000
"""Inputs that the decoders take altogether: half of them any bytes, half of them damaged messages."""


def _take(message: bytes) -> None:
    """What the server does with a message before the shard is asked; only our own errors may come out."""
    assembly = Assembly(PARTS, 0, Buffers())
    try:
        inner, _ = chunks.inside(message, 1)
        for one in (message, inner):
            rest, pieces = chunks.split(one)
            parse(shard_pb2.PushRequest, rest)
            for each in pieces:
                assembly.add(each)
        for array in assembly.gradients().values():
            assert isinstance(array, SparseRows) or array.size in (4, 6)
    except AdamServeError:
        pass


@pytest.mark.slow
@settings(max_examples=FUZZED // 4, deadline=1000)
@given(st.binary(max_size=500))
def test_any_bytes_do_no_harm(message: bytes) -> None:
    _take(message)
    _take(chunk()[:8] + message)


def test_damaged_messages_do_no_harm() -> None:
    """Every message of a good push, with bytes changed, cut out and put in; a fixed seed."""
    rng = np.random.default_rng(0)
    good = [chunk(), chunk([1, 2, 3], start=2), rows(1, 4), COMMIT, b"".join(chunks.embedded(1, [chunk()]))]
    good += [
        b"".join(next(codec.encode("w", np.ones(6, np.float32), 0, name)))
        for name in ("bfloat16", "float16", "int8")
    ]
    for i in range(FUZZED // 2):
        message = bytearray(good[i % len(good)])
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(message)))
            match rng.integers(3):
                case 0:
                    message[at] = int(rng.integers(256))
                case 1:
                    del message[at : at + int(rng.integers(1, 9))]
                case 2:
                    message[at:at] = rng.bytes(int(rng.integers(1, 9)))
            if not message:
                break
        _take(bytes(message))
