"""A shard's endpoints say when they can be used, and both lead to the same shard."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from adamserve.client.carriers import DirectCarrier, GrpcCarrier
from adamserve.client.credentials import Credentials
from adamserve.edge.grpc_server import REFLECTIONS, WATCHERS
from adamserve.edge.security import Limits, Security
from adamserve.edge.shard_edge import ShardEdge, ShardEndpoint
from adamserve.edge.shard_service import SERVICE
from adamserve.observe.rpc_counts import Calls
from adamserve.shard.consistency import Async
from adamserve.v1 import shard_pb2
from adamserve.wire import chunks
from tests.edge.test_direct import PULL, SIZE, Live

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def opened() -> Iterator[tuple[Live, ShardEndpoint]]:
    """As a shard's process opens it: before its jobs are restored."""
    with ExitStack() as stack:
        live = Live(stack, Security(), Async())
        endpoint = ShardEdge(Security()).open(live.find, Calls(), "127.0.0.1")
        stack.callback(endpoint.drain, 0.0)
        yield live, endpoint


@pytest.mark.timeout(60)
def test_it_serves_from_when_it_is_ready_until_it_drains(opened: tuple[Live, ShardEndpoint]) -> None:
    _, endpoint = opened
    with grpc.insecure_channel(endpoint.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watched = {
            name: stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30, wait_for_ready=True)
            for name in ("", SERVICE.full_name)
        }
        for expected, then in ((NOT_SERVING, endpoint.serve), (SERVING, partial(endpoint.drain, 1.0))):
            assert [next(stream).status for stream in watched.values()] == [expected] * 2
            then()
        assert [next(stream).status for stream in watched.values()] == [NOT_SERVING] * 2


@pytest.mark.timeout(60)
def test_callers_without_a_token_leave_threads_for_others() -> None:
    """However many of them hold a call open: reflection that asks nothing, and Watch, which goes on by its nature."""
    security = Security(limits=Limits(streams=20, stall_s=1.0))
    with ExitStack() as stack:
        live = Live(stack, security, Async())
        endpoint = ShardEdge(security).open(live.find, Calls(), "127.0.0.1")
        stack.callback(endpoint.drain, 0.0)
        endpoint.serve()
        channel = stack.enter_context(grpc.insecure_channel(endpoint.address))
        ended = threading.Event()
        stack.callback(ended.set)
        checks: Any = health_pb2_grpc.HealthStub(channel)
        reflect: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        watching = [checks.Watch(health_pb2.HealthCheckRequest()) for _ in range(WATCHERS + 3)]
        asking = [reflect.ServerReflectionInfo(_silent(ended)) for _ in range(REFLECTIONS + 3)]
        stack.callback(lambda: [call.cancel() for call in [*watching, *asking]])
        codes = [call.code() for call in _refused(watching, 3)]
        codes += [call.code() for call in _refused(asking, 3)]
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 6
        for _ in range(5):
            answer = checks.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == SERVING
        cut = [
            call for call in asking if call.code() is grpc.StatusCode.CANCELLED
        ]  # waits for the end of each
        assert len(cut) == REFLECTIONS
        [again] = reflect.ServerReflectionInfo(iter([ServerReflectionRequest(list_services="")]), timeout=10)
        assert again.list_services_response.service


def _silent(ended: threading.Event) -> Iterator[Any]:
    ended.wait(50)
    yield from ()


def _refused(calls: list[Any], count: int) -> list[Any]:
    """As many of the calls as end first; so many are waited for."""
    over: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for call in calls:
        if not call.add_callback(partial(over.put, call)):
            over.put(call)  # it has ended already
    return [over.get(timeout=10) for _ in range(count)]


def test_both_ways_lead_to_one_shard(opened: tuple[Live, ShardEndpoint]) -> None:
    live, endpoint = opened
    endpoint.serve()
    direct = DirectCarrier(Credentials(), endpoint.direct_address)
    carriers: list[DirectCarrier | GrpcCarrier] = [
        direct,
        GrpcCarrier(grpc.insecure_channel(endpoint.address), ()),
    ]
    found = []
    for seq, carrier in enumerate(carriers, start=1):
        [answer] = (bytes(a) for a in carrier.call("Push", live.messages(seq=seq), 20.0))
        assert shard_pb2.PushResponse.FromString(answer).stamp.clock == seq
    for carrier in carriers:
        data = b"".join(
            bytes(chunk.data) for a in carrier.call("Pull", [[PULL]], 20.0) for chunk in chunks.split(a)[1]
        )
        found.append(data)
        carrier.close()
    assert found[0] == found[1] == np.full(SIZE, -2.0, np.float32).tobytes()
