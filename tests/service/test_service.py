"""The service on a real Ray: sharding is invisible, nothing is lost or doubled, a killed shard comes back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from adamserve import checkpoint, optim
from adamserve.cluster.cluster_client import ClusterClient
from adamserve.cluster.lifecycle import initial_parts
from adamserve.cluster.ray_calls import own_error
from adamserve.errors import Conflict, InvalidArgument, NotFound, Unavailable
from adamserve.shard.consistency import BSP, SSP, Async, Consistency
from adamserve.shard.geometry import partition
from adamserve.shard.shard import Shard
from adamserve.values import Array, Outcome, Push, ShardState, Stamp, TensorSpec
from tests.service.conftest import create, random_parameters

pytestmark = pytest.mark.ray

Start = Callable[..., Any]


def stream(parameters: Mapping[str, Array], steps: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(9)
    return [
        {n: rng.normal(size=a.shape).astype(a.dtype) for n, a in parameters.items()} for _ in range(steps)
    ]


@ray.remote(num_cpus=0)
def hammer(controller: Any, job: str, pusher: str, gradient: Array, pushes: int) -> dict[str, int]:
    """Push integer gradients as fast as they are taken; returns how often each outcome came."""
    counts: dict[str, int] = {}
    with ClusterClient(controller, job, pusher) as client:
        client.join()
        while client.seq < pushes:
            _, clock = client.pull()
            outcome = client.push({"w": gradient}, clock).outcome
            counts[outcome] = counts.get(outcome, 0) + 1
    return counts


@pytest.mark.parametrize("mode", [Async(), SSP(bound=2)], ids=str)
def test_concurrent_pushes_are_neither_lost_nor_doubled(pair: Any, job: str, mode: Consistency) -> None:
    pushers, pushes, shards = 4, 25, 2
    create(pair, {"w": np.zeros((50, 3), np.float32)}, shards=shards, mode=mode, job=job)
    rng = np.random.default_rng(3)
    gradients = [rng.integers(-5, 6, size=(50, 3)).astype(np.float32) for _ in range(pushers)]
    counts = ray.get(
        [hammer.remote(pair, job, f"p{i}", g, pushes) for i, g in enumerate(gradients)], timeout=100
    )
    assert counts == [{Outcome.APPLIED: pushes}] * pushers
    final, clocks = ClusterClient(pair, job).pull(training=False)
    np.testing.assert_array_equal(final["w"], -pushes * np.sum(gradients, axis=0))
    assert [stamp.clock for stamp in clocks] == [pushers * pushes] * shards


def test_bsp_steps_once_for_one_push_of_everyone(pair: Any, job: str) -> None:
    controller = pair
    create(controller, {"w": np.zeros(6, np.float32)}, mode=BSP(), shards=2, job=job)
    clients = [ClusterClient(controller, job, name) for name in "abc"]
    for client in clients:
        client.join()
    receipts: dict[int, Any] = {}

    def push(i: int) -> None:
        _, clock = clients[i].pull()
        receipts[i] = clients[i].push({"w": np.full(6, float(3**i), np.float32)}, clock)

    threads = [threading.Thread(target=push, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [receipts[i].outcome for i in range(3)] == [Outcome.APPLIED] * 3
    final, clocks = clients[0].pull(training=False)
    np.testing.assert_array_equal(final["w"], np.full(6, -13 / 3, np.float32))
    assert [stamp.clock for stamp in clocks] == [1, 1]
    for client in clients:
        client.leave()


def test_a_turn_that_does_not_come_is_unavailable_and_can_be_asked_again(pair: Any, job: str) -> None:
    controller = pair
    create(controller, {"w": np.zeros(2, np.float32)}, mode=BSP(), shards=2, job=job)
    with (
        ClusterClient(controller, job, "a", timeout_s=2.0) as alone,
        ClusterClient(controller, job, "b") as other,
    ):
        alone.join()
        other.join()
        _, clock = alone.pull()
        with pytest.raises(Unavailable, match="waits for b"):
            alone.push({"w": np.ones(2, np.float32)}, clock)
        other.leave()
        assert alone.push({"w": np.ones(2, np.float32)}, clock).outcome is Outcome.APPLIED


def kill_shard(controller: Any, index: int) -> None:
    """kill -9 the process of a shard, and wait until it is gone."""
    processes = ray.get(controller.processes.remote())
    os.kill(processes[index].pid, signal.SIGKILL)


def test_a_killed_shard_comes_back_in_a_new_incarnation_at_its_checkpoint(start: Start) -> None:
    controller = start(2)
    create(controller, {"w": np.zeros(8, np.float32)}, shards=2, checkpoint_every_s=None)
    one = {"w": np.ones(8, np.float32)}
    with ClusterClient(controller, "job", "a") as client:
        client.join()
        for _ in range(3):
            _, clock = client.pull()
            client.push(one, clock)
        ray.get(controller.checkpoint.remote("job"))
        for _ in range(2):
            _, clock = client.pull()
            client.push(one, clock)
        ray.get(controller.status_now.remote())
        _, before = client.pull()
        kill_shard(controller, 1)
        lost = client.push(one, before)
        assert lost.outcome is Outcome.STALE
        assert [r.outcome for r in lost.shards] == [Outcome.APPLIED, Outcome.STALE]
        assert "incarnation 2" in lost.reason
        old = client.push(one, before)
        assert old.shards[1].outcome is Outcome.STALE, (
            "gradients of the old incarnation are not applied to the new one"
        )
        values, clock = client.pull()
        np.testing.assert_array_equal(values["w"], [-7.0] * 4 + [-3.0] * 4)
        assert [tuple(stamp) for stamp in clock] == [(1, 7), (2, 3)]
        assert client.push(one, clock).outcome is Outcome.APPLIED
    [status] = ray.get(controller.status_now.remote())
    [rollback] = status.rollbacks
    assert (rollback.shard, rollback.incarnation, rollback.clock_before, rollback.clock_after) == (1, 2, 5, 3)


def test_a_job_that_cannot_be_restored_now_holds_up_no_other_and_is_restored_later(
    start: Start, tmp_path: Path
) -> None:
    """Its record of incarnations cannot be written, until somebody mends that."""
    controller = start(1, checkpoint_dir=tmp_path)
    for name in ("well", "ill"):
        create(controller, {"w": np.zeros(3, np.float32)}, job=name, checkpoint_every_s=None)
    with ClusterClient(controller, "ill", "a") as client:
        client.join()
        client.push({"w": np.ones(3, np.float32)}, client.pull()[1])
        ray.get(controller.checkpoint.remote("ill"))
    (tmp_path / "ill" / "incarnation").unlink(missing_ok=True)
    (tmp_path / "ill" / "incarnation").mkdir()
    kill_shard(controller, 0)
    with ClusterClient(controller, "well", "a", timeout_s=60) as client:
        client.join()
        assert client.push({"w": np.ones(3, np.float32)}, client.pull()[1]).outcome is Outcome.APPLIED
    states = {status.job: status for status in ray.get(controller.status_now.remote())}
    assert (states["well"].down, states["ill"].down, states["ill"].failed) == ((), (0,), "")
    (tmp_path / "ill" / "incarnation").rmdir()
    topology = ray.get(controller.await_restored.remote("ill", 0, 1, 60.0))
    assert topology.incarnations == (2,)
    with ClusterClient(controller, "ill", "a", timeout_s=60) as client:
        client.join()
        assert client.pull()[0]["w"].tolist() == [-1.0] * 3
    [rollback] = next(s for s in ray.get(controller.status_now.remote()) if s.job == "ill").rollbacks
    assert rollback.reason == "a restore before had failed"


def test_two_shards_killed_at_once_come_back_once_each_whoever_looks(start: Start) -> None:
    """Everyone who asks for the status looks at the shards; only one of them restores."""
    controller = start(2)
    create(controller, {"w": np.zeros(8, np.float32)}, shards=2, checkpoint_every_s=None)
    one, done = {"w": np.ones(8, np.float32)}, threading.Event()

    def look() -> None:
        while not done.is_set():
            ray.get(controller.status_now.remote(), timeout=60)

    lookers = [threading.Thread(target=look, daemon=True) for _ in range(3)]
    with ClusterClient(controller, "job", "a", timeout_s=60) as client:
        client.join()
        _, clock = client.pull()
        client.push(one, clock)
        for looker in lookers:
            looker.start()
        for process in ray.get(controller.processes.remote()):
            os.kill(process.pid, signal.SIGKILL)
        lost = client.push(one, clock)
        assert [r.outcome for r in lost.shards] == [Outcome.STALE] * 2
        values, clock = client.pull()
        np.testing.assert_array_equal(values["w"], np.zeros(8))
        incarnations = [stamp.incarnation for stamp in clock]
        for _ in range(20):
            assert client.push(one, client.pull()[1]).outcome is Outcome.APPLIED
        done.set()
        for looker in lookers:
            looker.join(timeout=60)
        values, clock = client.pull()
        np.testing.assert_array_equal(values["w"], np.full(8, -20.0))
        assert [stamp.incarnation for stamp in clock] == incarnations
    [status] = ray.get(controller.status_now.remote())
    assert sorted(rollback.shard for rollback in status.rollbacks) == [0, 1]
    assert [r.incarnation for r in sorted(status.rollbacks, key=lambda r: r.shard)] == incarnations


def test_no_incarnation_comes_twice(start: Start, tmp_path: Path) -> None:
    """Neither in a service that is taken up again before its next checkpoint, nor in a shard of it."""
    first = start(1, checkpoint_dir=tmp_path)
    create(first, {"w": np.zeros(2, np.float32)}, checkpoint_every_s=7.0, checkpoints_kept=9)
    incarnations = []
    for _ in range(2):
        controller = start(1, checkpoint_dir=tmp_path)
        found = ray.get(controller.resume.remote("job"))
        incarnations += found.incarnations
        assert (found.config.checkpoint_every_s, found.config.checkpoints_kept) == (7.0, 9)
    client = ClusterClient(controller, "job", timeout_s=60)
    kill_shard(controller, 0)
    incarnations.append(client.pull()[1][0].incarnation)
    incarnations += ray.get(start(1, checkpoint_dir=tmp_path).resume.remote("job")).incarnations
    assert incarnations == [2, 3, 4, 5]


def test_how_checkpoints_are_kept_is_the_last_call_s(pair: Any, job: str) -> None:
    parameters = {"w": np.zeros(2, np.float32)}
    for every in (30.0, 7.0):
        create(pair, parameters, shards=2, job=job, checkpoint_every_s=every, checkpoints_kept=2)
        assert ray.get(pair.topology.remote(job)).config.checkpoint_every_s == every


def test_a_checkpoint_that_cannot_be_written_costs_no_other_job_its_own(start: Start, tmp_path: Path) -> None:
    controller = start(1, checkpoint_dir=tmp_path)
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(Exception, match="a/00000001"):
        create(controller, {"w": np.zeros(2, np.float32)}, job="a")
    create(controller, {"w": np.zeros(2, np.float32)}, job="b")
    with pytest.raises(Exception, match="a/00000001"):
        ray.get(controller.drain.remote(1.0), timeout=60)
    assert [info.number for info in checkpoint.list_checkpoints(tmp_path / "b")] == [1, 2]
    (tmp_path / "a").unlink()
    create(controller, {"w": np.zeros(2, np.float32)}, job="a")
    assert [info.complete for info in checkpoint.list_checkpoints(tmp_path / "a")] == [True]


def test_a_shard_killed_without_checkpoints_is_an_error_that_says_so(start: Start) -> None:
    controller = start(1, checkpoint_dir=None)
    create(controller, {"w": np.zeros(2, np.float32)})
    client = ClusterClient(controller, "job", timeout_s=30)
    client.pull()
    kill_shard(controller, 0)
    with pytest.raises(Unavailable, match="keeps no checkpoints"):
        client.pull()


def test_a_job_is_taken_up_on_another_number_of_shards_bit_for_bit(pair: Any, start: Start, job: str) -> None:
    """Two shards to the checkpoint, three after it, against one shard without Ray."""
    parameters = random_parameters()
    gradients = stream(parameters, 12)
    rule = optim.NesterovRMSProp(lr=0.01, momentum=0.9)
    create(pair, parameters, shards=2, rule=rule, job=job)
    with ClusterClient(pair, job, "a") as client:
        client.join()
        for gradient in gradients[:6]:
            client.push(gradient, client.pull()[1])
    ray.get(pair.checkpoint.remote(job))
    resumed = start(3, checkpoint_dir=ray.get(pair.folder.remote(job)).parent)
    ray.get(resumed.resume.remote(job))
    with ClusterClient(resumed, job, "a") as client:
        assert client.join() == 6
        for gradient in gradients[6:]:
            client.push(gradient, client.pull()[1])
        final, clocks = client.pull(training=False)
        ahead, _ = client.pull(training=True)
    assert [tuple(stamp) for stamp in clocks] == [(2, 12)] * 3
    specs = [TensorSpec(name, a.shape, str(a.dtype)) for name, a in parameters.items()]
    alone = Shard(
        partition=partition(specs, 1),
        state=ShardState(0, Stamp(1, 0), (), {"w": parameters}),
        rule=rule,
        consistency=Async(),
    )
    alone.join("a", lease_s=60.0)
    for seq, gradient in enumerate(gradients, start=1):
        flat = {name: g.reshape(-1) for name, g in gradient.items()}
        alone.offer(alone.check(Push("a", seq, Stamp(1, seq - 1), flat)))
    expected = alone.state().arrays["w"]
    for name, array in final.items():
        assert array.shape == parameters[name].shape
        assert array.tobytes() == expected[name].tobytes(), name
    assert ahead["a"].tobytes() != final["a"].tobytes()


def test_a_pull_can_wait_for_a_clock(pair: Any, job: str) -> None:
    controller = pair
    create(controller, {"w": np.zeros(2, np.float32)}, shards=2, job=job)
    reader = ClusterClient(controller, job, timeout_s=0.2)
    with pytest.raises(Unavailable, match="clock 1, it is at 0"):
        reader.pull(at_least=1)
    patient = ClusterClient(controller, job)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(patient.pull(at_least=1)[1].newest))
    thread.start()
    with ClusterClient(controller, job, "a") as client:
        client.join()
        client.push({"w": np.ones(2, np.float32)}, client.pull()[1])
    thread.join(timeout=60)
    assert seen == [1]


def test_creating_is_idempotent_and_another_configuration_is_refused(pair: Any, job: str) -> None:
    controller = pair
    parameters = {"w": np.zeros(3, np.float32)}
    config = create(controller, parameters, shards=2, job=job)
    create(controller, parameters, shards=2, job=job)
    with pytest.raises(Conflict, match="another configuration"):
        _unwrapped(lambda: create(controller, parameters, rule=optim.Adam(lr=0.1), shards=2, job=job))
    with pytest.raises(NotFound, match="no job 'else'"):
        _unwrapped(lambda: ClusterClient(controller, "else"))
    another = replace(config, name=f"{job}-of-several")
    parts = [ray.put(part) for part in initial_parts(another, parameters, 2)]
    at_once = [controller.create.remote(another, parts) for _ in range(4)]
    assert sorted(ray.get(at_once, timeout=60)) == [False, False, False, True], "one of them has created it"


@pytest.mark.parametrize(
    ("gradients", "error", "field"),
    [
        ({"v": np.ones(3, np.float32)}, NotFound, "v"),
        ({"w": np.ones(4, np.float32)}, InvalidArgument, "w"),
        ({"w": np.ones(3, np.int64)}, InvalidArgument, "w"),
        ({"w": np.array([0, np.nan, 0], np.float32)}, InvalidArgument, "w"),
    ],
)
def test_bad_gradients_reach_no_shard(
    pair: Any, job: str, gradients: dict[str, Array], error: Any, field: str
) -> None:
    controller = pair
    create(controller, {"w": np.zeros(3, np.float32)}, shards=2, job=job)
    with ClusterClient(controller, job, "a") as client:
        client.join()
        _, clock = client.pull()
        with pytest.raises(error) as caught:
            client.push(gradients, clock)
        assert caught.value.field == field
        assert client.push({"w": np.ones(3, np.float32)}, clock).outcome is Outcome.APPLIED


def test_checkpoints_are_taken_while_pushes_go_on(pair: Any, job: str) -> None:
    create(pair, {"w": np.zeros(20_000, np.float32)}, shards=2, job=job)
    gradient = np.ones(20_000, np.float32)
    pushing = hammer.remote(pair, job, "a", gradient, 300)
    deadline = time.monotonic() + 60

    def made() -> list[int]:
        found = [status for status in ray.get(pair.status_now.remote()) if status.job == job]
        return [stamp.clock for status in found for stamp in status.clocks]

    while not all(made()):
        assert time.monotonic() < deadline, "no push has come"
    numbers = [ray.get(pair.checkpoint.remote(job)) for _ in range(3)]
    ray.get(pushing)
    assert numbers == sorted(set(numbers))
    root = ray.get(pair.folder.remote(job))
    [first] = [info for info in checkpoint.list_checkpoints(root) if info.number == numbers[0]]
    assert 0 < min(first.clocks) <= max(first.clocks) < 300, "it was not taken while pushes went on"
    for info in checkpoint.list_checkpoints(root):
        if info.complete:
            checkpoint.verify(info.folder)
            values = checkpoint.load_tensors(info.folder, checkpoint.read_manifest(info.folder))["w"]["w"]
            manifest = checkpoint.read_manifest(info.folder)
            clocks = [entry.stamp.clock for entry in manifest.shards]
            half = len(values) // 2
            assert set(values[:half]) == {-float(clocks[0])}, "a cut shows half an update"
            assert set(values[half:]) == {-float(clocks[1])}


def _unwrapped(call: Callable[[], object]) -> None:
    """Call, and raise the error that our own code raised inside an actor."""
    try:
        call()
    except ray.exceptions.RayTaskError as error:
        raise own_error(error) from None
