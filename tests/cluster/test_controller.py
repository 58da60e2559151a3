"""The controller with shards in this process: jobs come and go, a killed shard comes back, checkpoints are written."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamserve import checkpoint, optim, testing
from adamserve.client.client import Client
from adamserve.cluster.healing import GiveUp, Replace, Restore, Write
from adamserve.cluster.jobs import Mark, updates_per_s
from adamserve.errors import Conflict, InvalidArgument, LimitExceeded, NotFound, RolledBack, Unavailable
from adamserve.job import JobConfig
from adamserve.regret import Loss
from adamserve.shard import consistency
from adamserve.shard.consistency import Async
from adamserve.shard.geometry import partition
from adamserve.shard.shard import Shard
from adamserve.shard.sparse import spec_of
from adamserve.values import Array, Outcome, Push, ShardState, Stamp, TensorSpec
from tests.cluster.conftest import Start, until

ONES = {"w": np.ones(8, np.float32)}
ZEROS = {"w": np.zeros(8, np.float32)}


def config(job: str = "job", parameters: Mapping[str, Array] = ZEROS, **fields: Any) -> JobConfig:
    return JobConfig(
        name=job,
        tensors=tuple(spec_of(name, array, ()) for name, array in parameters.items()),
        rule=optim.to_dict(fields.pop("rule", optim.SGD(lr=1.0, momentum=0.0))),
        consistency=consistency.to_dict(Async()),
        **{"checkpoint_every_s": None, **fields},
    )


def push(client: Client, times: int = 1) -> None:
    for _ in range(times):
        assert client.push(ONES, client.pull()[1]).outcome is Outcome.APPLIED


def clocks(client: Client) -> list[tuple[int, int]]:
    return [(stamp.incarnation, stamp.clock) for stamp in client.pull(training=False)[1]]


# ---- jobs


def test_creating_is_idempotent_and_another_configuration_is_refused(start: Start) -> None:
    service = start(shards=2)
    assert service.create(config(), ZEROS)
    assert not service.create(config(), ONES)
    with pytest.raises(Conflict, match="another configuration"):
        service.create(config(rule=optim.Adam(lr=0.1)), ZEROS)
    with service.client("job") as client:
        np.testing.assert_array_equal(client.pull()[0]["w"], ZEROS["w"])
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda _: service.create(config("other"), ZEROS), range(4)))
    assert sorted(at_once) == [False, False, False, True], "one of them has created it"
    with pytest.raises(NotFound, match=r"no job 'else'.*it has job, other"):
        service.controller.topology("else")


def test_how_checkpoints_are_kept_is_the_last_call_s(start: Start) -> None:
    service = start()
    for every in (30.0, 7.0):
        service.create(config(checkpoint_every_s=every, checkpoints_kept=2), ZEROS)
        assert service.controller.topology("job").config.checkpoint_every_s == every


def test_a_folder_with_checkpoints_is_resumed_and_not_overwritten(start: Start) -> None:
    start().create(config(), ZEROS)
    again = start()
    with pytest.raises(Conflict, match="already holds checkpoints"):
        again.create(config(), ZEROS)
    again.resume("job")
    with again.client("job") as client:
        assert clocks(client) == [(2, 0)]
    with pytest.raises(InvalidArgument, match="keeps no checkpoints"):
        start(checkpoint_dir=None).resume("job")


def test_a_job_that_one_shard_cannot_open_is_on_none(start: Start) -> None:
    service = start(shards=2, watch_every_s=None)
    service.kill(1)
    with pytest.raises(Unavailable, match="a shard died while waiting for the shards to open the job"):
        service.create(config(), ZEROS)
    assert service.status() == []
    service.controller.step()
    assert service.create(config(), ZEROS)


def test_a_job_is_taken_up_on_another_number_of_shards_bit_for_bit(start: Start) -> None:
    """Two shards to the checkpoint, three after it, against one shard alone."""
    rng = np.random.default_rng(0)
    parameters: dict[str, Array] = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in {"a": (40, 30), "scalar": (), "empty": (0, 3), "c": (3, 5, 11, 2)}.items()
    }
    parameters["double"] = rng.normal(size=(13, 3))
    gradients = [
        {n: rng.normal(size=a.shape).astype(a.dtype) for n, a in parameters.items()} for _ in range(12)
    ]
    rule = optim.NesterovRMSProp(lr=0.01, momentum=0.9)
    before = start(shards=2)
    before.create(config(parameters=parameters, rule=rule), parameters)
    with before.client("job", pusher="a") as client:
        for gradient in gradients[:6]:
            client.push(gradient, client.pull()[1])
    before.checkpoint("job")
    after = start(shards=3)
    after.resume("job")
    with after.client("job", pusher="a") as client:
        for gradient in gradients[6:]:
            client.push(gradient, client.pull()[1])
        assert client.seq == 12
        assert clocks(client) == [(2, 12)] * 3
        final, _ = client.pull(training=False)
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
    assert {name: array.tobytes() for name, array in final.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_losses_and_numbers_are_accounted(start: Start) -> None:
    service = start()
    service.create(config(), ZEROS)
    with pytest.raises(InvalidArgument, match="must be finite"):
        service.controller.report("job", [Loss(1.0, 0.5), Loss(math.nan), Loss(3.0)], {"test_accuracy": 0.5})
    [status] = service.status()
    assert (status.loss, status.regret, status.regret_steps, status.losses_not_finite) == (2.0, 0.5, 1, 1)
    assert status.numbers == {"test_accuracy": 0.5}
    with pytest.raises(InvalidArgument, match="late: must be finite"):
        service.controller.report("job", [], {"late": math.inf, "test_accuracy": 0.75})
    with pytest.raises(LimitExceeded, match="numbers: a job has at most 64"):
        service.controller.report("job", [Loss(1.0)], {str(i): 0.0 for i in range(64)})
    [status] = service.status()
    assert status.numbers == {"test_accuracy": 0.75}


# ---- shards that die


def test_a_killed_shard_comes_back_in_a_new_incarnation_at_its_checkpoint(start: Start) -> None:
    service = start(shards=2)
    service.create(config(), ZEROS)
    with service.client("job", pusher="a", timeout_s=20.0) as client:
        push(client, 3)
        service.checkpoint("job")
        push(client, 2)
        service.status()
        _, before = client.pull()
        service.kill(1)
        with pytest.raises(RolledBack):
            client.push(ONES, before)
        values, _ = client.pull()
        np.testing.assert_array_equal(values["w"], [-6.0] * 4 + [-3.0] * 4)
        assert clocks(client) == [(1, 6), (2, 3)]
        push(client)
    [status] = service.status()
    [rollback] = status.rollbacks
    assert (rollback.shard, rollback.incarnation, rollback.clock_before, rollback.clock_after) == (1, 2, 5, 3)
    assert rollback.reason == "shard 1 was killed"
    assert "rollback" in [event.kind for event in status.events]
    assert (status.state, status.down, status.unsaved_updates, status.clock_skew) == ("healthy", (), 4, 3)


def test_everything_that_was_told_of_a_dead_shard_is_kept(start: Start) -> None:
    """Its events; and that it is down, until it is back."""
    service = start(watch_every_s=None)
    service.create(config(), ZEROS)
    with service.client("job", pusher="a", timeout_s=20.0) as client:
        push(client)
        with pytest.raises(InvalidArgument):
            client.push({"w": np.full(8, np.nan, np.float32)}, client.pull()[1])
        push(client)
    service.status()
    service.kill(0)
    [status] = service.status()
    assert (status.down, status.state) == ((0,), "restoring")
    assert service.controller.step() == [Replace(0, "shard 0 was killed")]
    [status] = service.status()
    assert (status.down, status.state) == ((), "healthy")
    assert [event.kind for event in status.events] == ["invalid", "rollback"]


def test_two_shards_killed_at_once_come_back_once_each_whoever_looks(start: Start) -> None:
    """Everyone who asks for the status looks at the shards; only one of them restores."""
    service = start(shards=2)
    service.create(config(), ZEROS)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            service.status()

    lookers = [threading.Thread(target=look, daemon=True) for _ in range(3)]
    for looker in lookers:
        looker.start()
    for shard in (0, 1):
        service.kill(shard)
    with service.client("job", pusher="a", timeout_s=20.0) as client:
        until(lambda: all(n > 1 for n in service.controller.topology("job").incarnations), "not restored")
        restored = clocks(client)
        push(client, 20)
        done.set()
        for looker in lookers:
            looker.join(timeout=20)
        np.testing.assert_array_equal(client.pull()[0]["w"], np.full(8, -20.0))
        assert clocks(client) == [(incarnation, 20) for incarnation, _ in restored]
    [status] = service.status()
    assert sorted(rollback.shard for rollback in status.rollbacks) == [0, 1]


def test_a_job_that_cannot_be_restored_now_holds_up_no_other_and_is_restored_later(
    start: Start, tmp_path: Path
) -> None:
    """Its record of incarnations cannot be written, until somebody mends that."""
    clock = testing.ManualClock()
    service = start(watch_every_s=None, now=clock)
    for name in ("well", "ill"):
        service.create(config(name), ZEROS)
    with service.client("ill", pusher="a") as client:
        push(client)
    service.checkpoint("ill")
    (tmp_path / "ill" / "incarnation").unlink(missing_ok=True)
    (tmp_path / "ill" / "incarnation").mkdir()
    service.kill(0)
    assert service.controller.step() == [Replace(0, "shard 0 was killed")]
    with service.client("well", pusher="a") as client:
        push(client)
    states = {status.job: status for status in service.status()}
    assert (states["well"].down, states["ill"].down, states["ill"].failed) == ((), (0,), "")
    (tmp_path / "ill" / "incarnation").rmdir()
    clock.advance(4.0)
    assert service.controller.step() == []
    clock.advance(1.0)
    assert service.controller.step() == [Restore("ill", 0, "a restore before had failed")]
    assert service.controller.topology("ill").incarnations == (2,)
    with service.client("ill", pusher="a") as client:
        np.testing.assert_array_equal(client.pull()[0]["w"], -ONES["w"])
    [rollback] = next(status for status in service.status() if status.job == "ill").rollbacks
    assert rollback.reason == "a restore before had failed"


@pytest.mark.parametrize(
    ("marks", "rate"),
    [
        ((), None),
        (((1.0, 7),), None),
        (((1.0, 7), (1.0, 9)), None),
        (((1.0, 7), (3.0, 7)), 0.0),
        (((1.0, 7), (2.0, 8), (3.0, 17)), 5.0),
        (((1.0, 70), (2.0, 7), (4.0, 17)), 5.0),  # restored at 2
        (((1.0, 70), (2.0, 80), (3.0, 7)), None),
        (((1.0, 9), (2.0, 5), (3.0, 8), (4.0, 2), (6.0, 4)), 1.0),
    ],
)
def test_updates_in_a_second_are_the_slowest_shard_s_since_a_restore(
    marks: Sequence[Mark], rate: float | None
) -> None:
    assert updates_per_s(marks) == rate


def test_the_watch_counts_updates_in_a_second(start: Start) -> None:
    clock = testing.ManualClock()
    service = start(shards=2, watch_every_s=None, now=clock)
    service.create(config(), ZEROS)

    def seen() -> float | None:
        service.controller.step()
        [job] = service.controller.status()
        return job.updates_per_s

    assert seen() is None
    with service.client("job", pusher="a") as client:
        clock.advance(2.0)
        push(client, times=10)
        assert seen() == 5.0
        clock.advance(2.0)
        assert seen() == 2.5
        assert client.status().updates_per_s == 2.5
        clock.advance(4.0)  # the pushes were more than 5 seconds ago
        assert seen() == 0.0


def test_a_checkpoint_that_does_not_read_is_passed_over(start: Start, tmp_path: Path) -> None:
    service = start(watch_every_s=None)
    service.create(config(), ZEROS)
    with service.client("job", pusher="a", timeout_s=20.0) as client:
        push(client)
        service.checkpoint("job")
        [file] = (tmp_path / "job" / "00000002").glob("shard-*.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        service.kill(0)
        service.controller.step()
    [status] = service.status()
    assert [(r.checkpoint, r.clock_after) for r in status.rollbacks] == [(1, 0)]


@pytest.mark.parametrize("kept", [True, False], ids=["no checkpoint that verifies", "no checkpoints"])
def test_a_shard_that_cannot_be_restored_is_an_error_that_says_so(
    start: Start, tmp_path: Path, kept: bool
) -> None:
    service = start(watch_every_s=None, **({} if kept else {"checkpoint_dir": None}))
    service.create(config(), ZEROS)
    if kept:
        (tmp_path / "job" / "00000001" / "manifest.json").unlink()
    service.kill(0)
    actions = service.controller.step()
    assert actions[-1] == Replace(0, "shard 0 was killed")
    assert kept or actions[0] == GiveUp(
        "job", "shard 0 died, and the service keeps no checkpoints to restore it from"
    )
    [status] = service.status()
    expected = "cannot be restored: .*no checkpoint that verifies" if kept else "keeps no checkpoints"
    assert re.search(expected, status.failed)
    assert service.controller.step() == [], "it is given up once"


def test_no_incarnation_comes_twice(start: Start) -> None:
    """Neither in a service that is taken up again before its next checkpoint, nor in a shard of it."""
    start().create(config(checkpoint_every_s=7.0, checkpoints_kept=9), ZEROS)
    incarnations: list[int] = []
    for _ in range(2):
        service = start(watch_every_s=None)
        service.resume("job")
        topology = service.controller.topology("job")
        incarnations += topology.incarnations
        assert (topology.config.checkpoint_every_s, topology.config.checkpoints_kept) == (7.0, 9)
    service.kill(0)
    service.controller.step()
    incarnations += service.controller.topology("job").incarnations
    last = start()
    last.resume("job")
    incarnations += last.controller.topology("job").incarnations
    assert incarnations == [2, 3, 4, 5]


# ---- checkpoints


def test_checkpoints_are_written_when_they_are_due(start: Start, tmp_path: Path) -> None:
    clock = testing.ManualClock()
    service = start(watch_every_s=None, now=clock)
    service.create(config(checkpoint_every_s=10.0), ZEROS)
    clock.advance(10.0)
    assert service.controller.step() == [], "nothing has moved"
    with service.client("job", pusher="a") as client:
        push(client)
    assert service.controller.step() == [Write("job", "updates were made, and 10.0 s have passed")]
    assert service.controller.step() == []
    [status] = service.status()
    assert (status.checkpoint, status.checkpoint_age_s, status.unsaved_updates) == (2, 0.0, 0)
    assert [info.clocks for info in checkpoint.list_checkpoints(tmp_path / "job")] == [(0,), (1,)]


def test_a_checkpoint_that_cannot_be_written_costs_no_other_job_its_own(start: Start, tmp_path: Path) -> None:
    service = start()
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(OSError, match="a/00000001"):
        service.create(config("a"), ZEROS)
    service.create(config("b"), ZEROS)
    with pytest.raises(OSError, match="a/00000001"):
        service.drain()
    assert [info.number for info in checkpoint.list_checkpoints(tmp_path / "b")] == [1, 2]
    (tmp_path / "a").unlink()
    again = start()
    again.create(config("a"), ZEROS)
    assert [info.complete for info in checkpoint.list_checkpoints(tmp_path / "a")] == [True]


def test_checkpoints_are_taken_while_pushes_go_on(start: Start, tmp_path: Path) -> None:
    service = start(shards=2)
    large = {"w": np.zeros(20_000, np.float32)}
    service.create(config(parameters=large), large)
    stop = threading.Event()

    def hammer() -> None:
        with service.client("job", pusher="a") as client:
            while not stop.is_set():
                client.push({"w": np.ones(20_000, np.float32)}, client.pull()[1])

    pushing = threading.Thread(target=hammer)
    pushing.start()
    until(lambda: all(stamp.clock for stamp in service.status()[0].clocks), "no push has come")
    numbers = [service.checkpoint("job") for _ in range(3)]
    stop.set()
    pushing.join(timeout=20)
    assert numbers == [2, 3, 4]
    for number in numbers[-2:]:
        folder = tmp_path / "job" / f"{number:08d}"
        manifest = checkpoint.verify(folder)
        values = checkpoint.load_tensors(folder, manifest)["w"]["w"]
        first, second = (entry.stamp.clock for entry in manifest.shards)
        assert set(values[:10_000]) == {-float(first)}, "a cut shows half an update"
        assert set(values[10_000:]) == {-float(second)}


def test_a_checkpoint_of_a_dead_shard_leaves_no_files(start: Start, tmp_path: Path) -> None:
    service = start(shards=2, watch_every_s=None)
    service.create(config(), ZEROS)
    service.kill(1)
    with pytest.raises(Unavailable, match="a shard died while waiting for the shards to be written"):
        service.checkpoint("job")
    assert [folder.name for folder in sorted((tmp_path / "job").glob("0*"))] == ["00000001"]


def test_a_service_without_a_folder_keeps_no_checkpoints(start: Start) -> None:
    service = start(checkpoint_dir=None)
    service.create(config(), ZEROS)
    assert service.checkpoint("job") == 0
    assert service.status()[0].unsaved_updates is None


def test_a_drained_service_answers_no_more_and_has_saved_everything(start: Start) -> None:
    service = start(shards=2)
    service.create(config(), ZEROS)
    with service.client("job", pusher="a", timeout_s=1.0) as client:
        push(client, 3)
        service.drain()
        with pytest.raises(Unavailable):
            client.pull()
    again = start(shards=2)
    again.resume("job")
    with again.client("job") as client:
        assert clocks(client) == [(2, 3)] * 2
