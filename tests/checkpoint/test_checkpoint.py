"""A checkpoint is read back whole onto any partition, or refused by the name of the file that is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from adamserve import checkpoint
from adamserve.checkpoint import Manifest, files
from adamserve.checkpoint import folder as folder_module
from adamserve.checkpoint.manifest import body_checksum
from adamserve.errors import CheckpointError, NotFound
from adamserve.job import JobConfig
from adamserve.shard.geometry import partition
from adamserve.values import (
    Array,
    Outcome,
    PusherState,
    Receipt,
    Segment,
    ShardState,
    Stamp,
    TensorSpec,
)

TENSORS = [
    TensorSpec("layer/0.weight", (30, 7)),
    TensorSpec("scalar", ()),
    TensorSpec("empty", (0, 4)),
    TensorSpec("é", (11,), "float64"),
]


def states(
    tensors: Sequence[TensorSpec], num_shards: int, *, seed: int = 0, updates: int = 3
) -> list[ShardState]:
    """States whose values name their own element: w counts up, m counts down."""
    found = []
    for index, spans in enumerate(partition(tensors, num_shards).shards):
        specs = {spec.name: spec for spec in tensors}
        arrays: dict[str, dict[str, Array]] = {"w": {}, "m": {}}
        for span in spans:
            dtype = specs[span.tensor].dtype
            arrays["w"][span.tensor] = np.arange(span.start, span.stop, dtype=dtype) + seed
            arrays["m"][span.tensor] = -np.arange(span.start, span.stop, dtype=dtype)
        segments = tuple(Segment(s.tensor, s.start, s.stop, updates + index) for s in spans)
        receipts = {
            9: Receipt(Outcome.APPLIED, Stamp(1, 4 + index), 2, "stale by 2 updates"),
            10: Receipt(Outcome.STALE if index else Outcome.APPLIED, Stamp(2, 5), 3, "“é”"),
            10 + index: Receipt(Outcome.STALE, Stamp(2, 5 + index), 0, "round 4 is over"),
        }
        pushers = {
            "a": PusherState(10 + index, 9, "session", "worker", receipts),
            "b": PusherState(1, 20 - index),
        }
        found.append(ShardState(index, Stamp(2, 5 + index), segments, arrays, pushers))
    return found


def write(
    root: Path, number: int, tensors: Sequence[TensorSpec] = TENSORS, num_shards: int = 2, seed: int = 0
) -> Path:
    folder = root / f"{number:08d}"
    folder.mkdir(parents=True)
    entries = [
        checkpoint.seal_shard(checkpoint.write_shard(folder, state))
        for state in states(tensors, num_shards, seed=seed)
    ]
    manifest = Manifest(
        number=number,
        created=f"2026-01-01T00:00:{number:02d}+00:00",
        config=JobConfig(
            name="job",
            tensors=tuple(tensors),
            rule={"rule": "Adam", "lr": 0.1},
            consistency={"mode": "bsp"},
            extra={"seed": 7},
        ),
        shards=tuple(entries),
    )
    checkpoint.write_manifest(folder, manifest)
    assert checkpoint.read_manifest(folder) == manifest
    return folder


def test_a_file_is_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, num_shards=1)
    arrays = load_file(folder / "shard-00000.safetensors")
    assert sorted(arrays) == sorted(f"{slot}/{spec.name}" for slot in "wm" for spec in TENSORS)
    np.testing.assert_array_equal(arrays["w/layer/0.weight"], np.arange(210, dtype=np.float32))
    assert arrays["w/é"].dtype == np.float64


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_the_same_partition_gives_the_same_state_back(tmp_path: Path, num_shards: int) -> None:
    folder = write(tmp_path, 1, num_shards=num_shards)
    manifest = checkpoint.verify(folder)
    parts = partition(TENSORS, num_shards)
    for state in states(TENSORS, num_shards):
        spans = parts.shards[state.shard]
        loaded = checkpoint.load_shard(folder, manifest, shard=state.shard, spans=spans, incarnation=3)
        assert loaded.stamp == Stamp(3, state.stamp.clock)
        assert (loaded.segments, loaded.pushers) == (state.segments, state.pushers)
        for slot, tensors in state.arrays.items():
            for name, array in tensors.items():
                assert loaded.arrays[slot][name].tobytes() == array.tobytes()


@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=5),
    before=st.integers(1, 5),
    after=st.integers(1, 5),
)
def test_any_partition_gets_every_element_and_its_count(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], before: int, after: int
) -> None:
    tensors = [TensorSpec(f"t{i}", shape) for i, shape in enumerate(shapes)]
    folder = write(tmp_path_factory.mktemp("any"), 1, tensors, before)
    manifest = checkpoint.verify(folder)
    counts = {
        (s.tensor, i): s.updates
        for old in states(tensors, before)
        for s in old.segments
        for i in range(s.start, s.stop)
    }
    for index, spans in enumerate(partition(tensors, after).shards):
        loaded = checkpoint.load_shard(folder, manifest, shard=index, spans=spans, incarnation=9)
        for span in spans:
            np.testing.assert_array_equal(loaded.arrays["w"][span.tensor], np.arange(span.start, span.stop))
            np.testing.assert_array_equal(loaded.arrays["m"][span.tensor], -np.arange(span.start, span.stop))
        for segment in loaded.segments:
            for i in range(segment.start, segment.stop):
                assert counts.pop((segment.tensor, i)) == segment.updates
    assert not counts


def test_another_partition_takes_the_largest_clock_and_seqs(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, num_shards=2)
    [spans] = partition(TENSORS, 1).shards
    loaded = checkpoint.load_shard(folder, checkpoint.verify(folder), shard=0, spans=spans, incarnation=3)
    assert loaded.stamp == Stamp(3, 6)
    a = loaded.pushers.pop("a")  # type: ignore[attr-defined] # a dict
    assert loaded.pushers == {"b": PusherState(1, 20)}
    assert (a.last_seq, a.steps, a.session, a.kind) == (11, 9, "session", "worker")
    assert {seq: receipt.outcome for seq, receipt in a.receipts.items()} == {
        9: Outcome.APPLIED,
        10: Outcome.STALE,
    }, "a seq that only one shard decided is not known to the whole"


def test_whole_tensors_have_their_shapes(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, num_shards=3)
    tensors = checkpoint.load_tensors(folder, checkpoint.verify(folder))
    assert {name: array.shape for name, array in tensors["m"].items()} == {s.name: s.shape for s in TENSORS}
    np.testing.assert_array_equal(tensors["w"]["layer/0.weight"].reshape(-1), np.arange(210))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def _swap(path: Path) -> None:
    other = path.with_name("shard-00000.safetensors")
    spare = path.with_suffix(".spare")
    path.rename(spare)
    other.rename(path)
    spare.rename(other)


def _edit(path: Path, key: str, value: object) -> None:
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, key: value}))


def _drop_shard(path: Path) -> None:
    """A manifest that is whole but names one shard only."""
    body = json.loads(path.read_text())
    body.pop("sha256")
    body["shards"] = body["shards"][:1]
    path.write_text(json.dumps({**body, "sha256": body_checksum(body)}))


SHARD = "shard-00001.safetensors"
DAMAGE: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("shard truncated", SHARD, _truncate, SHARD),
    ("shard empty", SHARD, lambda path: path.write_bytes(b""), SHARD),
    ("shard header length", SHARD, lambda path: _flip(path, 0), SHARD),
    ("shard header", SHARD, lambda path: _flip(path, 40), SHARD),
    ("shard data", SHARD, lambda path: _flip(path, -1), SHARD),
    ("shard missing", SHARD, Path.unlink, SHARD),
    ("shards swapped", SHARD, _swap, "shard-0000"),
    ("manifest truncated", "manifest.json", _truncate, "manifest.json"),
    ("manifest not JSON", "manifest.json", lambda path: path.write_text("no"), "manifest.json"),
    ("manifest a list", "manifest.json", lambda path: path.write_text("[]"), "manifest.json"),
    ("manifest edited", "manifest.json", lambda path: _edit(path, "job", "other"), "manifest.json"),
    ("manifest of a later format", "manifest.json", lambda path: _edit(path, "format", 99), "manifest.json"),
    ("manifest missing", "manifest.json", Path.unlink, "00000002"),
    ("a shard not listed", "manifest.json", _drop_shard, "00000002"),
]


@pytest.mark.parametrize(("file", "harm", "named"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_used(
    tmp_path: Path, file: str, harm: Callable[[Path], object], named: str
) -> None:
    good = write(tmp_path, 1)
    bad = write(tmp_path, 2)
    assert checkpoint.newest(tmp_path)[0] == bad
    harm(bad / file)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.verify(bad)
    assert named in caught.value.field
    skipped: list[Path] = []
    assert checkpoint.newest(tmp_path, on_skip=lambda folder, reason: skipped.append(folder))[0] == good
    assert skipped == [bad]


def test_a_file_that_the_disk_does_not_give_back_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    hashed = files.file_hash

    def failing(path: Path) -> str:
        if bad in path.parents:
            raise OSError(errno.EIO, "Input/output error")
        return hashed(path)

    monkeypatch.setattr(folder_module, "file_hash", failing)
    skipped: list[str] = []
    assert checkpoint.newest(tmp_path, on_skip=lambda _, reason: skipped.append(reason))[0] == good
    assert len(skipped) == 1
    assert "shard-00000.safetensors" in skipped[0]
    assert "Input/output error" in skipped[0]


def test_incarnations_grow_whatever_is_known(tmp_path: Path) -> None:
    assert [checkpoint.new_incarnation(tmp_path, known) for known in (2, 2, 9, 3)] == [2, 3, 9, 10]
    (tmp_path / folder_module.INCARNATION).write_text("nine")
    with pytest.raises(CheckpointError, match="largest incarnation") as caught:
        checkpoint.new_incarnation(tmp_path, 2)
    assert caught.value.field == str(tmp_path / folder_module.INCARNATION)
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoint.new_incarnation(tmp_path / "absent", 2)


def test_no_checkpoint_that_verifies_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        checkpoint.newest(tmp_path / "nothing")
    _flip(write(tmp_path, 1) / SHARD, -1)
    with pytest.raises(NotFound, match="checksum does not fit"):
        checkpoint.newest(tmp_path)


def test_every_proper_prefix_of_writing_leaves_the_one_before_it_newest(tmp_path: Path) -> None:
    """As if the process had been killed after each of the files."""
    good = write(tmp_path, 1)
    whole = write(tmp_path, 2)
    names = sorted(path.name for path in whole.iterdir())
    assert names[0] == "manifest.json"
    order = [*names[1:], names[0]]
    for count in range(len(order)):
        cut = tmp_path / f"cut{count}"
        shutil.copytree(good, cut / good.name)
        (cut / whole.name).mkdir()
        for name in order[:count]:
            shutil.copy(whole / name, cut / whole.name / name)
        assert checkpoint.newest(cut)[0].name == good.name


def test_a_full_disk_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "00000001"
    folder.mkdir()
    unsealed = checkpoint.write_shard(folder, states(TENSORS, 1)[0])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=r"shard-00000\.safetensors\.tmp: cannot be written: No space left"
    ):
        checkpoint.seal_shard(unsealed)
    assert [info.complete for info in checkpoint.list_checkpoints(tmp_path)] == [False]


def test_prune_keeps_the_newest_and_removes_unfinished_ones_before_it(tmp_path: Path) -> None:
    for number in (1, 2, 4):
        write(tmp_path, number)
    (tmp_path / "00000003").mkdir()
    (tmp_path / "00000005").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert [info.number for info in checkpoint.list_checkpoints(tmp_path)] == [2, 4, 5]
    assert checkpoint.next_number(tmp_path) == 6


def test_the_header_is_padded_to_eight_bytes(tmp_path: Path) -> None:
    path = checkpoint.write_shard(tmp_path, states(TENSORS, 1)[0])
    [length] = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0
