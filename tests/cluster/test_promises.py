"""What a client is promised, in one table: over bare connections and over gRPC, without Ray and with it."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import adamserve
from adamserve import SparseRows, optim, testing
from adamserve.client import backoff
from adamserve.client.client import Client
from adamserve.cluster.service import Service
from adamserve.errors import NotFound, RolledBack, Unavailable
from adamserve.job import JobConfig
from adamserve.shard import consistency
from adamserve.values import Array, Outcome, TensorSpec
from tests.client.proxy import Proxied, Proxy
from tests.cluster.conftest import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

SGD = optim.SGD(lr=1.0, momentum=0.0)

LARGE = 300_000
"""Elements of a tensor that is in several chunks, and on both shards."""


@dataclass
class At:
    """A case's place: a service, a carrier, and a job of its own."""

    service: testing.Service | Service
    transport: str
    opened: ExitStack
    job: str = field(default_factory=lambda: f"job-{uuid.uuid4().hex[:12]}")

    def client(self, pusher: str = "", **options: Any) -> Client:
        options = {"timeout_s": 30.0, "transport": self.transport, **options}
        return self.opened.enter_context(
            adamserve.connect(self.service.target, self.job, pusher=pusher, **options)
        )

    def creator(self, pusher: str = "a", **options: Any) -> Client:
        """A client that has created the job: all zeros, and SGD with rate 1."""
        client = self.client(pusher)
        client.create({name: np.zeros_like(array) for name, array in ones().items()}, SGD, **options)
        return client

    def kill(self, shard: int) -> None:
        """Kill a shard as kill -9 does, and wait until another is in its place."""
        before = self.client().status().shards[shard].stamp.incarnation
        if isinstance(self.service, testing.Service):
            self.service.kill(shard)
        else:
            os.kill(self.service.processes()[shard].pid, signal.SIGKILL)
        with self.client() as watching:
            until(
                lambda: watching.status().shards[shard].stamp.incarnation > before,
                "not restored",
                timeout_s=60,
            )


def ones(scale: float = 1.0) -> dict[str, Array]:
    return {
        "large": np.full(LARGE, scale, np.float32),
        "w": np.full((4, 5), scale, np.float32),
        "s": np.full((), scale),
    }


def values(client: Client) -> set[float]:
    """The values of all elements."""
    arrays, _ = client.pull(training=False)
    return {float(x) for array in arrays.values() for x in (array.min(), array.max())}


def push(at: At) -> None:
    client = at.creator()
    _, stamps = client.pull()
    receipt = client.push(ones(), stamps)
    assert (receipt.outcome, receipt.clock.newest) == (Outcome.APPLIED, 1)
    receipt, arrays, stamps = client.push_pull(ones(2.0), stamps)
    assert (receipt.staleness, stamps.newest, client.seq) == (1, 2, 2)
    assert {float(x) for array in arrays.values() for x in (array.min(), array.max())} == {-3.0}


def stale(at: At) -> None:
    tensors = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in ones().items())
    mode = consistency.to_dict(consistency.Async(max_staleness=1))
    config = JobConfig(name=at.job, tensors=tensors, rule=optim.to_dict(SGD), consistency=mode)
    at.service.create(config, ones(0.0))
    client = at.client("a")
    _, stamps = client.pull()
    outcomes = [client.push(ones(), stamps).outcome for _ in range(3)]
    assert outcomes == [Outcome.APPLIED, Outcome.APPLIED, Outcome.STALE]
    assert values(client) == {-2.0}


def rows(at: At) -> None:
    client = at.client("a")
    client.create({"t": np.zeros((1000, 8), np.float32)}, SGD, tables=["t"])
    _, stamps = client.pull()
    gradient = SparseRows(np.array([999, 3, 500]), np.arange(24, dtype=np.float32).reshape(3, 8))
    assert client.push({"t": gradient}, stamps).outcome is Outcome.APPLIED
    found, _ = client.pull(rows={"t": np.array([500, 999, 0])})
    np.testing.assert_array_equal(found["t"][:, 1], [-17.0, -1.0, 0.0])


def bsp(at: At) -> None:
    first, second = at.creator(consistency="bsp"), at.client("b")
    first.join()
    second.join()
    handle = first.push(ones(1.0), first.pull()[1], wait=False)
    assert second.push(ones(3.0), second.pull()[1]).outcome is Outcome.APPLIED
    assert handle.result().clock.newest == 1
    assert values(first) == {-2.0}


def ssp(at: At) -> None:
    slow, fast = at.creator(consistency="ssp:1"), at.client("fast", timeout_s=1.0)
    slow.join()
    for _ in range(2):
        fast.push(ones(), fast.pull()[1])
    with pytest.raises(Unavailable, match=r"waits|gave up"):
        fast.pull()
    slow.push(ones(), slow.pull()[1])
    assert fast.pull()[1].newest == 3


def restore(at: At) -> None:
    client = at.creator()
    client.push(ones(), client.pull()[1])
    client.checkpoint()
    at.kill(1)
    assert values(client) == {-1.0}, "a checkpoint had all of it"
    client.pull()
    assert client.push(ones(), client.pull()[1]).outcome is Outcome.APPLIED
    assert values(client) == {-2.0}
    assert client.seq == 2


def retry(at: At) -> None:
    """However connections fail, a push is applied once."""
    proxies: dict[str, Proxy] = {}
    with at.creator() as creator:
        credentials = Proxied(proxies, 3, at.transport)
        with (
            mock.patch.multiple(backoff, FIRST_S=0.002, LONGEST_S=0.1),
            Client(at.service.target, at.job, credentials=credentials, timeout_s=60, lease_s=60) as client,
        ):
            rng, total = np.random.default_rng(0), 0.0
            while sum(proxy.faults for proxy in proxies.values()) < 40:
                step = float(rng.integers(-8, 9))
                assert client.push(ones(step), client.pull()[1]).outcome is not Outcome.STALE
                total += step
                for link in client._session.links:
                    link.reconnect()  # a connection that works stays; a new one meets the next fault
            for proxy in proxies.values():
                proxy.quiet.set()
        for proxy in proxies.values():
            proxy.close()
        assert values(creator) == {-total}


def rolled_back(at: At) -> None:
    client = at.creator()
    client.push(ones(), client.pull()[1])
    client.checkpoint()
    client.push(ones(), client.pull()[1])
    _, stamps = client.pull()
    at.kill(0)
    with pytest.raises(RolledBack) as caught:
        client.push(ones(), stamps)
    [(_, before), _], [(_, after), _] = caught.value.before, caught.value.after
    assert (before, after) == (2, 1)
    assert client.push(ones(), client.pull()[1]).outcome is Outcome.APPLIED
    assert values(client) == {-2.0, -4.0}


def delete(at: At) -> None:
    client = at.creator()
    client.push(ones(), client.pull()[1])
    assert client.delete()
    assert not client.delete(purge=True)
    with pytest.raises(NotFound, match="job"):
        at.client(timeout_s=5.0).pull()
    assert values(at.creator("b", consistency="bsp")) == {0.0}
    waiting, other = at.client("c"), at.client("d")
    waiting.join()
    other.join()
    handle = waiting.push(ones(), waiting.pull()[1], wait=False)
    other.delete()
    with pytest.raises(NotFound, match="the service has no job"):
        handle.result()


CASES: tuple[Callable[[At], None], ...] = (push, stale, rows, bsp, ssp, restore, retry, rolled_back, delete)


@pytest.fixture(scope="module", params=["in process", "ray"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[testing.Service | Service]:
    """A service for all cases: each has a job of its own."""
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    if request.param == "in process":
        with testing.Service(shards=2, checkpoint_dir=folder) as local:
            yield local
    else:
        request.getfixturevalue("local_ray")
        with Service.start(shards=2, checkpoint_dir=folder, name=f"promises-{uuid.uuid4().hex}") as placed:
            placed.serve()
            yield placed


@pytest.mark.parametrize("transport", ["direct", "grpc"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_promises(case: Callable[[At], None], service: testing.Service | Service, transport: str) -> None:
    with ExitStack() as opened:
        case(At(service, transport, opened))
