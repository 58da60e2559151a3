"""The status page of a service that has much to show."""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

import adamserve
from adamserve import optim
from adamserve.client.client import Client
from adamserve.cluster.serving import Ready
from tests.served import served

pytestmark = pytest.mark.timeout(240)

JOBS, PUSHERS, LOOKS = 3, 200, 15

ANSWER_S = 0.3


@pytest.fixture
def busy() -> Iterator[tuple[Ready, list[Client]]]:
    """A service of two shards with three jobs and 200 pushers, each of which has pushed."""
    w = np.ones(10_000, np.float32)
    with ExitStack() as open_:
        service = open_.enter_context(served(shards=2))
        clients = []
        for i in range(PUSHERS):
            client = adamserve.connect(
                service.target, job=f"job-{i % JOBS}", pusher=f"trainer-{i:03}", lease_s=120, timeout_s=60
            )
            clients.append(open_.enter_context(client))
            client.create({"w": w}, optim.Adam())
            _, clock = client.pull()
            client.push({"w": w}, clock)
            client.report(1.0 / (1 + i))
        yield service, clients


def test_three_jobs_with_200_pushers_answer_quickly_while_they_are_pushed_to(
    busy: tuple[Ready, list[Client]],
) -> None:
    service, clients = busy
    ended = threading.Event()

    def pushing() -> None:
        while not ended.is_set():
            for client in clients[:JOBS]:
                _, clock = client.pull()
                client.push({"w": np.ones(10_000, np.float32)}, clock)

    def get(path: str) -> str:
        with urllib.request.urlopen(service.status + path, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    def counted() -> list[int]:
        return [int(n) for n in re.findall(r"<h3>(\d+) pushers</h3>", get(""))]

    def have_pushed() -> list[int]:
        pushers = [job["pushers"] for job in json.loads(get("status.json"))]
        return [sum(each["seq"] >= 1 and each["pushed_at"] is not None for each in job) for job in pushers]

    ends = time.monotonic() + 30
    while sum(have_pushed()) < PUSHERS or sum(counted()) < PUSHERS:  # the controller looks once a second
        assert time.monotonic() < ends, (have_pushed(), counted())
    pusher = threading.Thread(target=pushing)
    pusher.start()
    try:
        seconds = []
        for path in ["", "status.json"] * LOOKS:
            began = time.perf_counter()
            get(path)
            seconds.append(time.perf_counter() - began)
    finally:
        ended.set()
        pusher.join()
    assert statistics.median(seconds[::2]) < ANSWER_S, seconds
    assert statistics.median(seconds[1::2]) < ANSWER_S, seconds
    assert counted() == have_pushed() == [67, 67, 66]
    print(f"median of {LOOKS} answers: {1000 * statistics.median(seconds[::2]):.1f} ms")
