"""A shard's endpoints say when they can be used, and both lead to the same shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamserve.calls import Calls
from adamserve.consistency import Async
from adamserve.rpc import wire
from adamserve.rpc.carrier import Carrier, DirectCarrier, GrpcCarrier
from adamserve.rpc.edge import ShardEdge, ShardEndpoint
from adamserve.rpc.link import Credentials
from adamserve.rpc.security import Security
from adamserve.rpc.server import SERVICE
from adamserve.v1 import shard_pb2
from tests.rpc.test_direct import PULL, Live

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def opened() -> Iterator[tuple[Live, ShardEndpoint]]:
    """As a shard's process opens it: before its jobs are restored."""
    with ExitStack() as stack:
        live = Live(stack, Security(), Async())
        endpoint = ShardEdge("127.0.0.1", Security()).open(live.find, Calls())
        stack.callback(endpoint.drain, 0.0)
        yield live, endpoint


@pytest.mark.timeout(60)
def test_it_serves_from_when_it_is_ready_until_it_drains(opened: tuple[Live, ShardEndpoint]) -> None:
    _, endpoint = opened
    with grpc.insecure_channel(endpoint.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watched = {
            name: stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30, wait_for_ready=True)
            for name in ("", SERVICE)
        }
        for expected, then in ((NOT_SERVING, endpoint.serve), (SERVING, partial(endpoint.drain, 1.0))):
            assert [next(stream).status for stream in watched.values()] == [expected] * 2
            then()
        assert [next(stream).status for stream in watched.values()] == [NOT_SERVING] * 2


def test_both_ways_lead_to_one_shard(opened: tuple[Live, ShardEndpoint]) -> None:
    live, endpoint = opened
    endpoint.serve()
    direct = DirectCarrier(partial(Credentials().connect, endpoint.direct_address), "")
    carriers: list[Carrier] = [direct, GrpcCarrier(grpc.insecure_channel(endpoint.address), ())]
    found = []
    for seq, carrier in enumerate(carriers, start=1):
        [answer] = (bytes(a) for a in carrier.call("Push", live.messages(seq=seq), 20.0))
        assert shard_pb2.PushResponse.FromString(answer).stamp.clock == seq
    for carrier in carriers:
        data = b"".join(
            bytes(chunk.data) for a in carrier.call("Pull", [[PULL]], 20.0) for chunk in wire.split(a)[1]
        )
        found.append(data)
        carrier.close()
    assert found[0] == found[1] == np.full(len(found[0]) // 4, -2.0, np.float32).tobytes()
