"""CIFAR-10's official formats, whole and damaged."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamserve.errors import DataError
from workers.data import load
from workers.data.cifar import BINARY, FEATURES, PYTHON, RECORD, load_cifar10
from workers.task import NetworkTask


def records(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    made = np.random.default_rng(seed).integers(0, 256, (n, RECORD), dtype=np.uint8)
    made[:, 0] = np.arange(n) % 10
    return made


def write_binary(path: Path) -> Path:
    folder = path / BINARY
    folder.mkdir()
    for i in (1, 2):
        records(6, i).tofile(folder / f"data_batch_{i}.bin")
    records(4, 9).tofile(folder / "test_batch.bin")
    return folder


def write_python(path: Path, protocol: int = 2) -> Path:
    folder = path / PYTHON
    folder.mkdir()
    for name, made in (
        ("data_batch_1", records(6, 1)),
        ("data_batch_2", records(6, 2)),
        ("test_batch", records(4, 9)),
    ):
        batch = {b"data": made[:, 1:], b"labels": made[:, 0].tolist(), b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


@pytest.mark.parametrize("write", [write_binary, write_python])
def test_both_formats_hold_the_same(write: Any, tmp_path: Path) -> None:
    folder = write(tmp_path)
    for where in (tmp_path, folder):
        data: Any = load("cifar10", where)
        assert (data.train_x.shape, data.test_x.shape, data.classes) == ((12, FEATURES), (4, FEATURES), 10)
        assert data.train_y.tolist() == [0, 1, 2, 3, 4, 5] * 2
        np.testing.assert_array_equal(
            data.train_x[6], records(6, 2)[0, 1:].astype(np.float32) / np.float32(255), strict=True
        )


class Evil:
    """A pickle that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def damage(name: str, change: Any) -> Any:
    def damaged(path: Path) -> Path:
        folder = write_binary(path) if name.endswith(".bin") else write_python(path)
        file = folder / name
        file.write_bytes(change(file.read_bytes()))
        return file

    return damaged


def relabelled(content: bytes) -> bytes:
    return content[:RECORD] + bytes([10]) + content[RECORD + 1 :]


DAMAGED: dict[str, tuple[Any, str]] = {
    "truncated": (
        damage("data_batch_2.bin", lambda b: b[:-1]),
        f"at byte {6 * RECORD - 1}: expected a record of 3073 bytes, found the end of the file after 3072",
    ),
    "empty": (damage("test_batch.bin", lambda b: b""), "at byte 0: expected a record of 3073 bytes"),
    "mislabelled": (
        damage("data_batch_1.bin", relabelled),
        f"at byte {RECORD}: expected a label from 0 to 9, found 10",
    ),
    "truncated pickle": (damage("data_batch_1", lambda b: b[:-20]), "cannot be read"),
    "empty pickle": (damage("data_batch_1", lambda b: b""), "at or before byte 0: cannot be read: EOFError"),
    "not a pickle": (damage("test_batch", lambda b: b"CIFAR" + b), "cannot be read"),
    "other keys": (damage("test_batch", lambda b: pickle.dumps({b"x": 1})), "cannot be read"),
    "labels missing": (
        damage(
            "test_batch", lambda b: pickle.dumps({b"data": records(4, 1)[:, 1:], b"labels": [1]}, protocol=2)
        ),
        "4 images and labels of shape",
    ),
    "mislabelled pickle": (
        damage(
            "test_batch", lambda b: pickle.dumps({b"data": records(1, 1)[:, 1:], b"labels": [-1]}, protocol=2)
        ),
        "image 0: expected a label from 0 to 9, found -1",
    ),
    "labels that are no numbers": (
        damage(
            "test_batch",
            lambda b: pickle.dumps({b"data": records(1, 1)[:, 1:], b"labels": [b"a"]}, protocol=2),
        ),
        "has labels of |S1, expected whole numbers",
    ),
    "labels that are not whole": (
        damage(
            "test_batch",
            lambda b: pickle.dumps({b"data": records(1, 1)[:, 1:], b"labels": [1.7]}, protocol=2),
        ),
        "has labels of float64, expected whole numbers",
    ),
    "images of another size": (
        damage("test_batch", lambda b: pickle.dumps({b"data": records(1, 1), b"labels": [1]}, protocol=2)),
        "no images of 3072 bytes",
    ),
}


@pytest.mark.parametrize(("prepare", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_batch_is_named(prepare: Any, problem: str, tmp_path: Path) -> None:
    file = prepare(tmp_path)
    with pytest.raises(DataError) as caught:
        load_cifar10(tmp_path)
    assert caught.value.field == str(file)
    assert problem in caught.value.problem


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    (write_python(tmp_path) / "test_batch").write_bytes(pickle.dumps({b"data": Evil(tmp_path / "made")}))
    with pytest.raises(DataError, match=rf"asks for {os.name}\.mkdir") as caught:
        load_cifar10(tmp_path)
    assert caught.value.field == str(tmp_path / PYTHON / "test_batch")
    assert not (tmp_path / "made").exists()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        load("cifar10")
    with pytest.raises(DataError, match="holds neither"):
        load("cifar10", tmp_path)
    (write_binary(tmp_path) / "data_batch_1.bin").unlink()
    (tmp_path / BINARY / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"holds no data_batch_\*\.bin"):
        load("cifar10", tmp_path)


def test_the_network_of_the_slide(tmp_path: Path) -> None:
    write_binary(tmp_path)
    model = NetworkTask(network="cnn", data=load("cifar10", tmp_path)).model()
    assert sum(p.numel() for p in model.parameters()) == 1_475_266
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert shapes == [(64, 3, 5, 5), (64, 64, 5, 5), (128, 64, 5, 5), (1000, 1152), (10, 1000)]
