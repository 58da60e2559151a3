"""What a real service's processes export about calls and trainers from outside, found through its discovery."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from adamserve import optim
from adamserve.cluster.serving import Ready
from adamserve.errors import NotFound
from tests.observe.test_exporter import scrape, text_of
from tests.served import Connect, ones, zeros


def everywhere(ready: Ready) -> Counter[tuple[str, str]]:
    """Samples of all processes together, by name and labels."""
    with urllib.request.urlopen(ready.discovery, timeout=10) as answer:
        groups = json.load(answer)
    assert [group["labels"]["process"] for group in groups] == ["driver", "shard", "shard"]
    found: Counter[tuple[str, str]] = Counter()
    for [address] in (group["targets"] for group in groups):
        found.update(scrape(int(address.rpartition(":")[2])))
    return found


def trainers(ready: Ready, job: str) -> dict[str, float]:
    """Live pushers of one job from outside the cluster, by shard."""
    with urllib.request.urlopen(ready.discovery, timeout=10) as answer:
        addresses = [address for group in json.load(answer) for address in group["targets"]]
    return {
        sample.labels["shard"]: sample.value
        for address in addresses
        for family in text_string_to_metric_families(text_of(int(address.rpartition(":")[2])))
        for sample in family.samples
        if sample.name == "adamserve_pushers_alive"
        and (sample.labels["job"], sample.labels["kind"]) == (job, "trainer")
    }


def grown(ready: Ready, act: Callable[[], object]) -> dict[str, int]:
    """By how much each count of calls has grown, once all that were started are handled."""
    before = everywhere(ready)
    act()
    ends = time.monotonic() + 60
    while True:
        more = everywhere(ready)
        more.subtract(before)
        calls = {
            f"{name.split('_')[2]} {what}": n for (name, what), n in more.items() if "_rpc_" in name and n
        }
        kinds = [
            sum(n for key, n in calls.items() if key.startswith(kind)) for kind in ("started", "handled")
        ]
        if kinds[0] == kinds[1]:
            return calls
        assert time.monotonic() < ends, calls


def test_a_push_and_a_pull_are_one_call_on_each_shard(service: Ready, connect: Connect) -> None:
    job = f"a-{uuid.uuid4().hex}"  # among the first by name, which are the ones that are shown
    counting = connect(job=job, lease_s=300)  # whose heartbeat is not counted beside
    counting.create(zeros(), optim.SGD(lr=1.0, momentum=0.0))
    _, clock = counting.pull()
    assert grown(service, lambda: counting.push(ones(), clock)) == {
        "started direct Push": 2,
        "handled direct OK Push": 2,
    }
    assert grown(service, counting.pull) == {
        "started direct Pull": 2,
        "handled direct OK Pull": 2,
    }
    assert trainers(service, counting.job) == {"0": 1.0, "1": 1.0}


def test_an_error_is_counted_by_its_code(service: Ready, connect: Connect) -> None:
    def ask() -> None:
        with pytest.raises(NotFound):
            connect(job="there-is-none").pull()

    assert grown(service, ask) == {"started grpc GetTopology": 1, "handled grpc NOT_FOUND GetTopology": 1}


def test_what_is_no_method_and_what_nobody_waits_for(service: Ready) -> None:
    channel: Any
    with grpc.insecure_channel(service.shards[0]) as channel:

        def unknown() -> None:
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/adamserve.v1.ShardService/Nonsense-42")(b"", timeout=5)

        assert grown(service, unknown) == {
            "started grpc unknown": 1,
            "handled grpc UNIMPLEMENTED unknown": 1,
        }

        still = threading.Event()

        def cancelled() -> None:
            """A push that the shard waits for, and that never sends anything."""
            before = everywhere(service)["adamserve_rpc_started_total", "grpc Push"]
            nothing = iter(lambda: still.wait(20) and b"", b"")
            push = channel.stream_unary("/adamserve.v1.ShardService/Push").future(nothing, timeout=20)
            ends = time.monotonic() + 60
            while everywhere(service)["adamserve_rpc_started_total", "grpc Push"] == before:
                assert time.monotonic() < ends
            push.cancel()

        # The end of the messages may be seen before the end of the call: the push is then one without a commit.
        assert grown(service, cancelled) in (
            {"started grpc Push": 1, "handled grpc CANCELLED Push": 1},
            {"started grpc Push": 1, "handled grpc INVALID_ARGUMENT Push": 1},
        )
        still.set()

        def garbage() -> None:
            pull = channel.unary_stream("/adamserve.v1.ShardService/Pull")
            with pytest.raises(grpc.RpcError):
                list(pull(b"\xff\xff", timeout=5))

        assert grown(service, garbage) == {
            "started grpc Pull": 1,
            "handled grpc INVALID_ARGUMENT Pull": 1,
        }
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert grown(service, lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=5)) == {
            "started grpc Check": 1,
            "handled grpc OK Check": 1,
        }
