"""The service on a real Ray: processes that die come back, and what Ray is told is what it does.

What does not depend on Ray is tested without it, in tests/cluster.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import adamserve
from adamserve import checkpoint
from adamserve.client.client import Client
from adamserve.client.credentials import Credentials
from adamserve.cluster.probe import probe
from adamserve.cluster.service import Service
from adamserve.errors import Conflict, InvalidArgument, NotFound, RolledBack, Unavailable
from adamserve.values import Array, Outcome
from tests.cluster.conftest import until
from tests.cluster.test_controller import ONES, ZEROS, clocks, config, push

pytestmark = pytest.mark.ray

Start = Callable[..., Service]


@pytest.fixture
def begin(local_ray: None, tmp_path: Path) -> Iterator[Start]:
    """Starts services over one folder for checkpoints; all of them are stopped at the end."""
    with ExitStack() as stack:

        def start(**options: Any) -> Service:
            options = {"checkpoint_dir": tmp_path, "name": f"test-{uuid.uuid4().hex}", **options}
            service = Service.start(**options)
            stack.callback(service.stop)
            return service

        yield start


def kill(service: Service, shard: int) -> None:
    os.kill(service.processes()[shard].pid, signal.SIGKILL)


class _Hog:
    """Holds CPUs for as long as it lives."""


Hog: Any = ray.remote(_Hog)


@ray.remote(num_cpus=0)
def hammer(target: str, credentials: Credentials, pusher: str, gradient: Array, pushes: int) -> set[Outcome]:
    """Push from a process that Ray has placed, as a worker does."""
    with Client(target, "job", pusher=pusher, credentials=credentials) as client:
        return {client.push({"w": gradient}, client.pull()[1]).outcome for _ in range(pushes)}


def test_workers_push_and_pull_as_everybody_does(begin: Start) -> None:
    service = begin(shards=2)
    assert service.create(config(), ZEROS)
    assert not service.create(config(), ZEROS)
    probe(service.target, service.processes(), service.credentials, node="here")
    gradients = [np.full(8, float(3**i), np.float32) for i in range(3)]
    outcomes = ray.get(
        [
            hammer.remote(service.target, service.credentials, f"p{i}", gradient, 20)
            for i, gradient in enumerate(gradients)
        ],
        timeout=100,
    )
    assert outcomes == [{Outcome.APPLIED}] * 3
    with adamserve.connect(service.target, job="job") as outside:
        final, stamps = outside.pull(training=False)
    np.testing.assert_array_equal(final["w"], np.full(8, -20.0 * 13))
    assert [stamp.clock for stamp in stamps] == [60, 60]


def test_a_killed_shard_comes_back_in_a_new_incarnation_at_its_checkpoint(begin: Start) -> None:
    """Although somebody's tasks have taken every CPU meanwhile: the service holds its own."""
    service = begin(shards=2)
    service.create(config(), ZEROS)
    with service.client("job", pusher="a") as client:
        push(client, 3)
        assert service.checkpoint("job") == 2
        push(client, 2)
        service.status()
        _, before = client.pull()
        free = ray.available_resources()["CPU"]
        hogs = [
            Hog.options(num_cpus=share).remote() for share in (free - int(free), *[1] * int(free)) if share
        ]
        ray.get([hog.__ray_ready__.remote() for hog in hogs], timeout=60)
        kill(service, 1)
        with pytest.raises(RolledBack):
            client.push(ONES, before)
        assert clocks(client) == [(1, 6), (2, 3)]
        push(client)
        for hog in hogs:
            ray.kill(hog)
    [state] = service.status()
    [rollback] = state.rollbacks
    assert (rollback.shard, rollback.incarnation, rollback.clock_before, rollback.clock_after) == (1, 2, 5, 3)


def test_two_shards_killed_at_once_come_back_once_each(begin: Start) -> None:
    service = begin(shards=2)
    service.create(config(), ZEROS)
    before = [process.pid for process in service.processes()]
    for shard in (0, 1):
        kill(service, shard)
    until(lambda: all(n > 1 for n in service.topology("job").incarnations), "not restored", timeout_s=60)
    with service.client("job", pusher="a") as client:
        push(client, 5)
        np.testing.assert_array_equal(client.pull()[0]["w"], -5 * ONES["w"])
    [state] = service.status()
    assert sorted(rollback.shard for rollback in state.rollbacks) == [0, 1]
    assert not {process.pid for process in service.processes()} & set(before)


def test_a_shard_killed_without_checkpoints_is_an_error_that_says_so(begin: Start) -> None:
    service = begin(checkpoint_dir=None)
    service.create(config(), ZEROS)
    kill(service, 0)
    until(lambda: service.status()[0].failed, "not given up", timeout_s=60)
    assert "keeps no checkpoints" in service.status()[0].failed


def test_what_a_service_raises_is_raised_here(begin: Start) -> None:
    service = begin()
    with pytest.raises(NotFound, match="no job 'else'"):
        service.checkpoint("else")
    with pytest.raises(InvalidArgument, match="is not a job name"):
        service.delete("../else")
    service.create(config(), ZEROS)
    with pytest.raises(Conflict, match="another configuration"):
        service.create(config(sparse="lazy"), ZEROS)
    assert service.delete("job", purge=True)
    assert service.status() == []


def test_a_service_is_found_by_its_name(begin: Start) -> None:
    service = begin(name="test-found")
    service.create(config(), ZEROS)
    with Service.attach("test-found") as found:
        assert (found.target, found.credentials) == (service.target, service.credentials)
        assert [state.job for state in found.status()] == ["job"]
    assert service.checkpoint("job") == 2, "it goes on when who had found it leaves"
    with pytest.raises(NotFound, match="runs no service 'else'"):
        Service.attach("else")
    with pytest.raises(Conflict, match="test-found"):
        begin(name="test-found")


def test_at_the_end_everything_is_saved_and_gone(begin: Start, tmp_path: Path) -> None:
    with begin(shards=2) as service:
        service.create(config(), ZEROS)
        with service.client("job", pusher="a") as client:
            push(client, 3)
        pids = [process.pid for process in service.processes()]
    [*_, newest] = checkpoint.list_checkpoints(tmp_path / "job")
    assert newest.clocks == (3, 3)
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "still there", timeout_s=60)
    with pytest.raises(Unavailable, match="the service is not there"):
        service.status()
    again = begin(shards=3)
    assert [place.incarnation for place in again.resume("job").places] == [2, 2, 2]
    with again.client("job") as client:
        np.testing.assert_array_equal(client.pull()[0]["w"], -3 * ONES["w"])


def test_more_gpus_than_there_are_is_said_at_once(begin: Start) -> None:
    with pytest.raises(InvalidArgument, match="ask for 64 GPUs"):
        begin(gpus_per_shard=64)
