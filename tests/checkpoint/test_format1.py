"""A checkpoint that an earlier version wrote is read, restored onto any number of shards, and trained on.

`format1/expected.json` names the commit that wrote `format1/digits`. The job has two shards, Adam, a tensor with a
rule of its own and one with a stride. Its shards are uneven: the second was once restored on its own, and lacks the
last push.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adamserve import checkpoint, testing
from adamserve.shard.geometry import partition
from adamserve.values import Outcome
from tests.bits import schedule
from tests.bits.shards import Replay

ROOT = Path(__file__).with_name("format1")
JOB = ROOT / "digits"
EXPECTED = json.loads((ROOT / "expected.json").read_text())


def restored(num_shards: int) -> Replay:
    """The job taken up by so many shards, as a service that starts does it."""
    folder, manifest = checkpoint.newest(JOB)
    case = schedule.Case(
        rule=manifest.config.rule,
        mode=manifest.config.consistency,
        tensors=[schedule.Tensor(t.name, t.shape, t.dtype, t.stride) for t in manifest.config.tensors],
        steps=(),
        tensor_rules=manifest.config.tensor_rules,
        sparse=manifest.config.sparse,
    )
    states = [
        checkpoint.load_shard(folder, manifest, shard=shard, spans=spans, incarnation=3)
        for shard, spans in enumerate(partition(manifest.config.tensors, num_shards).shards)
    ]
    return Replay(case, states)


def test_the_manifest_says_what_it_said() -> None:
    folder, manifest = checkpoint.newest(JOB)
    assert folder == JOB / "00000003"
    assert (manifest.number, manifest.config.name, manifest.created, manifest.config.extra) == (
        3,
        "digits",
        "2026-01-01T00:00:00+00:00",
        {"seed": 7},
    )
    assert [tuple(entry.stamp) for entry in manifest.shards] == [(1, 36), (2, 30)]
    assert (manifest.config.checkpoint_every_s, manifest.config.checkpoints_kept) == (12.5, 4)


def test_incarnations_go_on_after_the_recorded_one(tmp_path: Path) -> None:
    shutil.copytree(JOB, tmp_path / "digits")
    assert (JOB / "epoch").read_text() == "2\n"
    assert [checkpoint.new_incarnation(tmp_path / "digits", 1) for _ in range(2)] == [3, 4]


@pytest.mark.parametrize("num_shards", [2, 3])
def test_it_is_restored_to_the_bit(num_shards: int) -> None:
    replay = restored(num_shards)
    assert replay.digest(clocks=False) == EXPECTED["restored"]
    assert [shard.stamp.clock for shard in replay.shards] == EXPECTED["clocks"][str(num_shards)]
    for shard, pushers in zip(replay.shards, EXPECTED["pushers"][str(num_shards)], strict=True):
        known = {name: [p.last_seq, p.steps] for name, p in shard.state().pushers.items()}
        assert known == pushers


@pytest.mark.skipif(
    schedule.library() != EXPECTED["library"],
    reason="this machine's mathematical library rounds otherwise than the one that the digests were made with",
)
@pytest.mark.parametrize("num_shards", [2, 3])
def test_it_goes_on_to_the_bit(num_shards: int) -> None:
    replay = restored(num_shards)
    assert {name: replay.join(name) for name in schedule.PUSHERS} == EXPECTED["last_seqs"]
    further = schedule.steps(schedule.TENSORS, seed=EXPECTED["seed"])
    replay.run(schedule.until(further, EXPECTED["pushes"]))
    assert replay.digest() == EXPECTED["further"][str(num_shards)]
    assert replay.digest(clocks=False) == EXPECTED["further"]["any"]


def test_a_whole_service_takes_it_up(tmp_path: Path) -> None:
    shutil.copytree(JOB, tmp_path / "digits")
    folder, manifest = checkpoint.newest(JOB)
    before = checkpoint.load_tensors(folder, manifest)["w"]
    with testing.Service(shards=3, checkpoint_dir=tmp_path) as service:
        service.resume("digits")
        for pusher, seq in EXPECTED["last_seqs"].items():
            with service.client("digits", pusher=pusher) as client:
                assert client.join() == seq
                parameters, _ = client.pull()
                assert {name: array.tobytes() for name, array in parameters.items()} == {
                    name: array.tobytes() for name, array in before.items()
                }
        with service.client("digits", pusher="new") as client:
            gradient = {name: np.ones_like(array) for name, array in before.items()}
            assert client.push(gradient, client.pull()[1]).outcome is Outcome.APPLIED
            after, _ = client.pull()
        same = {name for name in before if (after[name] == before[name]).all()}
        assert same <= {"empty", "table"}, "one has no elements, and one is updated every few pushes only"
        assert service.checkpoint("digits") == 4
    written = json.loads((tmp_path / "digits" / "00000004" / "manifest.json").read_text())
    assert written["format"] == 2
