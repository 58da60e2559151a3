"""Many trainers that come, push and go for a minute: nothing lost, nothing kept."""

from __future__ import annotations

import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from adamserve import optim
from adamserve.client.client import Client
from adamserve.cluster.ray_runtime import NAMESPACE
from adamserve.cluster.serving import ServeConfig, serving

TRAINERS = 64
SECONDS = 60.0
SIZE = 20_000

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


def memory(pids: list[int]) -> int:
    """Resident bytes of these processes."""
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return sum(pages) * 4096


def test_64_trainers_come_and_go(local_ray: None) -> None:
    name = f"soak-{uuid.uuid4().hex[:8]}"
    counts = np.zeros(TRAINERS, dtype=np.int64)
    failed: list[BaseException] = []
    halfway: list[int] = []
    with serving(ServeConfig(name=name, port=0, shards=2, grace_s=1.0)) as (ready, _):
        controller = ray.get_actor(name, namespace=NAMESPACE)
        processes: Any = ray.get(controller.call.remote("processes"), timeout=60)
        pids = [process.pid for process in processes]
        with Client(ready.target, "soak", pusher="first") as first:
            first.create({"w": np.zeros(SIZE, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
        ends = time.monotonic() + SECONDS

        def train(trainer: int) -> None:
            rng = random.Random(trainer)
            gradient = {"w": np.ones(SIZE, np.float32)}
            try:
                while time.monotonic() < ends:
                    with Client(
                        ready.target, "soak", pusher=f"t{trainer}", timeout_s=60, lease_s=60
                    ) as client:
                        _, clock = client.pull()
                        handles = [
                            client.push(gradient, clock, wait=False) for _ in range(rng.randrange(1, 20))
                        ]
                        for handle in handles:
                            handle.result()
                            counts[trainer] += 1
                    if trainer == 0 and not halfway and time.monotonic() > ends - SECONDS / 2:
                        halfway.append(memory(pids))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=train, args=(i,)) for i in range(TRAINERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed[:3]
        with Client(ready.target, "soak") as reader:
            arrays, clock = reader.pull(training=False)
            assert reader.status().pushers == ()
        grown = memory(pids) / halfway[0] - 1
    assert {stamp.clock for stamp in clock} == {int(counts.sum())}
    np.testing.assert_array_equal(arrays["w"], -float(counts.sum()))
    print(f"{counts.sum()} pushes by {TRAINERS} trainers, memory grew by {grown:.1%} in the second half")
    assert grown < 0.05
