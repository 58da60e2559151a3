"""Exactly once, through a network that fails and shards that die: integer gradients whose sum must be exact."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamserve import checkpoint, optim, testing
from adamserve.client import backoff
from adamserve.client.client import Client
from adamserve.errors import RolledBack
from adamserve.values import Outcome, Receipt, Stamp
from tests.client.proxy import FAULTS, Proxied, Proxy

pytestmark = pytest.mark.timeout(420)

TRAINERS = 4
SIZE = 60_000
"""Elements of the one tensor: 240 kB in two shards, so a push is many packets."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[testing.Service]:
    """A service of two shards that is this test's alone."""
    with testing.Service(shards=2, checkpoint_dir=tmp_path) as service:
        yield service


@pytest.fixture
def proxies() -> Iterator[dict[str, Proxy]]:
    found: dict[str, Proxy] = {}
    yield found
    for proxy in found.values():
        proxy.close()


@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_no_push_is_lost_or_doubled_over_500_faults(
    transport: str, service: testing.Service, proxies: dict[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.005)
    with Client(service.target, "sum", pusher="first") as first:
        first.create({"w": np.zeros(SIZE, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
    credentials = Proxied(proxies, 5, transport)
    sums = np.zeros((TRAINERS, SIZE))
    failed: list[BaseException] = []

    def faults() -> int:
        return sum(proxy.faults for proxy in list(proxies.values()))

    def train(trainer: int) -> None:
        rng = np.random.default_rng(trainer)
        try:
            with Client(
                service.target,
                "sum",
                pusher=f"trainer-{trainer}",
                credentials=credentials,
                timeout_s=60,
                lease_s=60,
            ) as client:
                while faults() < 500:
                    _, clock = client.pull()
                    gradient = rng.integers(-8, 9, SIZE).astype(np.float32)
                    receipt = client.push({"w": gradient}, clock)
                    assert receipt.outcome is not Outcome.STALE
                    sums[trainer] += gradient
                    # A connection that works stays; a new one meets the next fault.
                    for shard in client._session.links:
                        shard.reconnect()
                for proxy in proxies.values():
                    proxy.quiet.set()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=train, args=(i,)) for i in range(TRAINERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    with Client(service.target, "sum") as reader:
        arrays, clock = reader.pull(training=False)
    np.testing.assert_array_equal(arrays["w"], -sums.sum(axis=0))
    happened = {kind: sum(proxy.happened[kind] for proxy in proxies.values()) for kind in FAULTS}
    assert all(happened.values()), happened
    print(f"{transport}: {sum(happened.values())} faults {happened}, {clock.newest} updates a shard")


def test_after_a_kill_the_sum_is_exact_from_the_checkpoint_on(
    service: testing.Service, tmp_path: Path
) -> None:
    """Receipts alone tell which pushes survive: those of an incarnation up to the clock that the next began at."""
    with Client(service.target, "sum", pusher="first") as first:
        first.create({"w": np.zeros(SIZE, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
    applied: list[tuple[int, Stamp, np.ndarray[Any, Any]]] = []
    rolled: list[RolledBack] = []
    failed: list[BaseException] = []
    rounds = threading.Barrier(TRAINERS + 1)
    kills = 3

    def train(trainer: int) -> None:
        rng = np.random.default_rng(trainer)
        try:
            with Client(
                service.target, "sum", pusher=f"trainer-{trainer}", timeout_s=60, lease_s=60
            ) as client:
                for _ in range(kills):
                    rounds.wait(60)
                    done = 0
                    while done < 12:
                        try:
                            _, clock = client.pull()
                            gradient = rng.integers(-8, 9, SIZE).astype(np.float32)
                            handle = client.push({"w": gradient}, clock, wait=False)
                            answers = [_answer(future) for future in handle.futures]
                            for shard, answer in enumerate(answers):
                                span = client._session.links[shard].spans[0]
                                if answer.outcome is Outcome.STALE:
                                    continue
                                stamp = answer.stamp
                                if (
                                    stamp.incarnation > clock[shard].incarnation
                                ):  # its answer was lost, and a checkpoint has it
                                    stamp = Stamp(stamp.incarnation, 0)
                                applied.append((shard, stamp, gradient[span.start : span.stop]))
                            handle.result()
                            done += 1
                        except RolledBack as error:
                            rolled.append(error)
        except BaseException as error:
            failed.append(error)
            rounds.abort()

    threads = [threading.Thread(target=train, args=(i,)) for i in range(TRAINERS)]
    for thread in threads:
        thread.start()
    for kill in range(kills):
        rounds.wait(60)
        if kill == 1:
            service.checkpoint("sum")
        service.kill(kill % 2)
    for thread in threads:
        thread.join()
    assert not failed, failed
    [status] = service.status()
    assert len(status.rollbacks) == kills
    assert rolled, "a rollback was said to no trainer"
    for said in rolled:
        assert any(b[0] < a[0] for b, a in zip(said.before, said.after, strict=True)), said
    ends: dict[tuple[int, int], int] = {(r.shard, r.incarnation - 1): r.clock_after for r in status.rollbacks}
    with Client(service.target, "sum") as reader:
        arrays, _ = reader.pull(training=False)
        spans = [shard.spans[0] for shard in reader._session.links]
    expected = np.zeros(SIZE)
    for shard, stamp, part in applied:
        later = [
            end for (s, incarnation), end in ends.items() if s == shard and incarnation >= stamp.incarnation
        ]
        if all(stamp.clock <= end for end in later):
            expected[spans[shard].start : spans[shard].stop] -= part
    np.testing.assert_array_equal(arrays["w"], expected)
    assert checkpoint.list_checkpoints(tmp_path / "sum")


def _answer(future: Any) -> Receipt:
    receipt: Receipt = future.result().receipt
    return receipt
