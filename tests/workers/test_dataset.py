"""Data sets by name, and what a data set refuses to be."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamserve.errors import DataError, InvalidArgument
from workers.data import NAMES, Dataset, load
from workers.data.bags import Bags

X = np.zeros((4, 3), np.float32)
Y = np.arange(4, dtype=np.int64)
GOOD = {"train_x": X, "train_y": Y, "test_x": X[:2], "test_y": Y[:2], "classes": 4}

REFUSED = {
    "examples of float64": (
        {"train_x": X.astype(np.float64)},
        "train set has float64 of rank 2, expected float32",
    ),
    "labels of int32": ({"test_y": Y[:2].astype(np.int32)}, "test set has int32 of rank 1, expected int64"),
    "images": ({"train_x": X[:, :, None]}, "float32 of rank 3, expected float32 of rank 2"),
    "one-hot labels": ({"train_y": np.eye(4, dtype=np.int64)}, "int64 of rank 2, expected int64 of rank 1"),
    "a label too few": ({"train_y": Y[:3]}, "train set has examples of shape (4, 3) and 3 labels"),
    "no test set": ({"test_x": X[:0], "test_y": Y[:0]}, "examples of shape (0, 3) and 0 labels"),
    "no features": ({"train_x": X[:, :0]}, "examples of shape (4, 0)"),
    "a NaN": ({"train_x": np.full_like(X, np.nan)}, "train set's examples are not all finite"),
    "an infinity": ({"test_x": X[:2] - np.float32(np.inf)}, "test set's examples are not all finite"),
    "a label too high": ({"classes": 3}, "train set's labels run from 0 to 3, not 0 to 2"),
    "a negative label": ({"test_y": Y[:2] - 1}, "test set's labels run from -1 to 0"),
    "features that differ": ({"test_x": X[:2, :2]}, "training examples have 3 features, test examples 2"),
}


def test_a_part_of_a_sorted_set_has_every_label() -> None:
    """IMDB's reviews are all the negative ones, then all the positive ones."""
    x, y = np.arange(20, dtype=np.float32)[:, None], np.repeat(np.arange(2), 10)

    def made(labels: np.ndarray[Any, Any]) -> Dataset:
        return Dataset(
            name="made-up", train_x=x, train_y=labels, test_x=x[::10], test_y=labels[::10], classes=2
        )

    data = made(y)
    part = data.first(4)
    assert part.train_y.tolist() == [0, 0, 1, 1]
    assert np.asarray(part.train_x).ravel().tolist() == [0, 5, 10, 15]
    assert data.first(None) is data
    assert data.first(20) is data
    mixed = made(y[::-1].copy())
    assert np.asarray(mixed.first(4).train_x).ravel().tolist() == [0, 1, 2, 3]


def test_a_digest_tells_data_sets_apart() -> None:
    bags = Bags(np.array([0, 2, 3]), np.array([0, 1, 1], np.int32), 3)
    others = [
        Dataset("any", **{**GOOD, **change})  # type: ignore[arg-type]
        for change in (
            {},
            {"classes": 5},
            {"train_x": X + 1},
            {"test_x": X[:2] + 2},
            {"train_y": Y[::-1].copy()},
            {"test_y": Y[1::-1].copy()},
            {"train_x": X[:2], "train_y": Y[:2]},
            {"train_x": bags, "test_x": bags, "train_y": Y[:2]},
            {"train_x": bags, "test_x": bags[np.array([1, 0])], "train_y": Y[:2]},
        )
    ]
    assert len({data.digest() for data in others}) == len(others)
    assert others[0].digest() == Dataset("any", **GOOD).digest()  # type: ignore[arg-type]
    assert others[0].digest() != Dataset("other", **GOOD).digest()  # type: ignore[arg-type]


def test_a_data_set_knows_its_features() -> None:
    assert Dataset("any", **GOOD).features == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_array_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        Dataset("any", **{**GOOD, **change})
    assert caught.value.field == "any"
    assert says in caught.value.problem


ALL = "choose digits or digits32 or mnist or imdb or cifar10 or zipf"


@pytest.mark.parametrize(("name", "fix"), [("mnits", f"did you mean mnist? {ALL}"), ("", ALL)])
def test_an_unknown_name_lists_the_known(name: str, fix: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load(name)
    assert (caught.value.field, caught.value.fix) == ("dataset", fix)


def test_digits_need_no_folder_and_fill_the_unit_interval(tmp_path: Path) -> None:
    data: Any = load("digits", tmp_path / "unread")
    assert (data.name, data.features, data.classes) == ("digits", 64, 10)
    assert (len(data.train_y), len(data.test_y)) == (1437, 360)
    assert (data.train_x.min(), data.train_x.max(), data.test_x.min(), data.test_x.max()) == (0, 1, 0, 1)


def test_digits_are_split_in_proportion_and_no_example_is_lost_or_shared() -> None:
    from sklearn.datasets import load_digits

    data = load("digits")
    shares = np.bincount(data.test_y) / np.bincount(np.concatenate([data.train_y, data.test_y]))
    np.testing.assert_allclose(shares, 0.2, atol=0.005)
    rows = np.concatenate([data.train_x, data.test_x]) * 16
    assert sorted(map(bytes, rows)) == sorted(map(bytes, load_digits().data.astype(np.float32)))


def test_the_split_is_always_the_same() -> None:
    """Else test accuracies of runs with different versions of scikit-learn could not be compared."""
    data: Any = load("digits")
    digest = hashlib.sha256(data.test_x.tobytes() + data.test_y.tobytes()).hexdigest()
    assert digest[:16] == "8110e5c2c9d024b5"


def test_without_scikit_learn_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # how Python marks a module that is not there
    with pytest.raises(DataError, match=r"scikit-learn.*pip install 'adamserve\[train\]'"):
        load("digits")


def test_importing_the_package_loads_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, workers.data; print({'torch', 'sklearn', 'ray', 'urllib.request'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_every_name_has_a_loader() -> None:
    assert list(NAMES) == ["digits", "digits32", "mnist", "imdb", "cifar10", "zipf"]
