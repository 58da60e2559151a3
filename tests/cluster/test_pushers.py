"""Several pushers of one job: nothing is lost or doubled, and waits end with an answer that says why."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adamserve import optim
from adamserve.errors import Unavailable
from adamserve.values import Outcome
from tests.cluster.conftest import Start


@pytest.mark.parametrize("mode", ["async", "ssp:2"])
def test_concurrent_pushes_are_neither_lost_nor_doubled(start: Start, mode: str) -> None:
    pushers, pushes, shards = 4, 25, 2
    service = start(shards=shards)
    rng = np.random.default_rng(3)
    gradients = [rng.integers(-5, 6, size=(50, 3)).astype(np.float32) for _ in range(pushers)]
    with service.client("job") as reader:
        reader.create({"w": np.zeros((50, 3), np.float32)}, optim.SGD(lr=1.0, momentum=0.0), consistency=mode)

        def hammer(index: int) -> set[Outcome]:
            with service.client("job", pusher=f"p{index}") as client:
                return {client.push({"w": gradients[index]}, client.pull()[1]).outcome for _ in range(pushes)}

        with ThreadPoolExecutor(pushers) as pool:
            assert list(pool.map(hammer, range(pushers))) == [{Outcome.APPLIED}] * pushers
        final, clocks = reader.pull(training=False)
    np.testing.assert_array_equal(final["w"], -pushes * np.sum(gradients, axis=0))
    assert [stamp.clock for stamp in clocks] == [pushers * pushes] * shards


def test_bsp_steps_once_for_one_push_of_everyone(start: Start) -> None:
    service = start(shards=2)
    clients = [service.client("job", pusher=name) for name in "abc"]
    clients[0].create({"w": np.zeros(6, np.float32)}, optim.SGD(lr=1.0, momentum=0.0), consistency="bsp")
    pulled = [client.pull()[1] for client in clients]  # everyone is live before anyone pushes

    def push(index: int) -> Outcome:
        gradient = np.full(6, float(3**index), np.float32)
        return clients[index].push({"w": gradient}, pulled[index]).outcome

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(push, range(3))) == [Outcome.APPLIED] * 3
    final, clocks = clients[0].pull(training=False)
    np.testing.assert_array_equal(final["w"], np.full(6, -13 / 3, np.float32))
    assert [stamp.clock for stamp in clocks] == [1, 1]
    for client in clients:
        client.close()


def test_a_turn_that_does_not_come_is_unavailable_and_can_be_asked_for_again(start: Start) -> None:
    service = start(shards=2)
    with (
        service.client("job", pusher="a", timeout_s=1.0) as alone,
        service.client("job", pusher="b") as other,
    ):
        alone.create({"w": np.zeros(2, np.float32)}, optim.SGD(lr=1.0, momentum=0.0), consistency="bsp")
        other.pull()
        _, clock = alone.pull()
        with pytest.raises(Unavailable):
            alone.push({"w": np.ones(2, np.float32)}, clock)
        other.close()
        assert alone.push({"w": np.ones(2, np.float32)}, alone.pull()[1]).outcome is Outcome.APPLIED


def test_a_pull_can_wait_for_a_clock(start: Start) -> None:
    service = start(shards=2)
    with (
        service.client("job", pusher="a") as client,
        service.client("job", timeout_s=0.3) as hasty,
        service.client("job") as patient,
    ):
        client.create({"w": np.zeros(2, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
        with pytest.raises(Unavailable):
            hasty.pull(at_least=1, training=False)
        reached: list[int] = []
        thread = threading.Thread(
            target=lambda: reached.append(patient.pull(at_least=1, training=False)[1].newest)
        )
        thread.start()
        client.push({"w": np.ones(2, np.float32)}, client.pull()[1])
        thread.join(timeout=20)
        assert reached == [1]
