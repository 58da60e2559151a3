"""The official files, real and tiny: read from a folder or the cache, or refused by name."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamserve.errors import DataError
from workers.data import load
from workers.data.mnist import FILES, MIRRORS, load_mnist

from .conftest import Mirror, described, idx, tiny_mnist, write

TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = (file.name for file in FILES)


def test_real_files_are_read(mnist_dir: Path) -> None:
    data: Any = load("mnist", mnist_dir)
    assert (data.features, data.classes, len(data.test_y)) == (784, 10, 10_000)
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)
    assert data.test_y[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]  # the well-known first test digits


def test_official_files_have_the_published_checksums(mnist_dir: Path) -> None:
    """The shared training files are a subset; the test files are the official ones, byte for byte."""
    for file in FILES[2:]:
        assert described(file.name, (mnist_dir / file.name).read_bytes()) == file


@pytest.mark.parametrize(
    "unpacked", [(), (TRAIN_X,), tuple(tiny_mnist())], ids=["gzipped", "mixed", "unpacked"]
)
def test_gzipped_or_not_the_data_are_the_same(tmp_path: Path, unpacked: tuple[str, ...]) -> None:
    files = {
        name.removesuffix(".gz") if name in unpacked else name: gzip.decompress(content)
        if name in unpacked
        else content
        for name, content in tiny_mnist().items()
    }
    data: Any = load("mnist", write(tmp_path, files))
    assert (data.train_x.shape, data.test_x.shape) == ((12, 784), (5, 784))
    assert data.train_y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    np.testing.assert_array_equal(
        data.train_x[0], np.float32(np.arange(784) % 256) / np.float32(255), strict=True
    )


IMAGES = np.zeros((12, 28, 28))
REFUSED = {
    "a label too few": (TRAIN_Y, idx(np.zeros(11)), "expected 12 labels"),
    "labels of rank 2": (TRAIN_Y, idx(np.zeros((12, 1))), "found an array of shape (12, 1)"),
    "a label out of range": (
        TRAIN_Y,
        idx(np.arange(12)),
        "at byte 18: expected a label from 0 to 9, found 10",
    ),
    "labels for images": (
        TRAIN_X,
        idx(np.zeros(12)),
        "expected images of 28x28, found an array of shape (12,)",
    ),
    "images of another size": (TEST_X, idx(IMAGES[:5, :, :27]), "found an array of shape (5, 28, 27)"),
    "images of rank 2": (TEST_X, idx(IMAGES[:5].reshape(5, 784)), "found an array of shape (5, 784)"),
    "a cut file": (TEST_Y, idx(np.zeros(5))[:-2], "at byte 11: expected 5 bytes of data for shape 5"),
}


@pytest.mark.parametrize(("name", "content", "says"), REFUSED.values(), ids=REFUSED)
def test_files_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    folder = write(tmp_path, {**tiny_mnist(), name: gzip.compress(content)})
    with pytest.raises(DataError) as caught:
        load("mnist", folder)
    assert caught.value.field == str(folder / name)
    assert says in caught.value.problem


@pytest.mark.parametrize("name", tiny_mnist())
def test_a_missing_file_names_the_folder_the_file_and_the_fix(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, tiny_mnist())
    (folder / name).unlink()
    with pytest.raises(DataError) as caught:
        load("mnist", folder)
    assert caught.value.field == str(folder)
    assert caught.value.problem == f"holds neither {name} nor {name.removesuffix('.gz')}"
    assert all(each.removesuffix(".gz") in caught.value.fix for each in ["--data-dir", *tiny_mnist()])


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no such folder \(give --data-dir"):
        load("mnist", tmp_path / "nowhere")


def test_without_a_folder_the_cache_is_filled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[dict[str, bytes]], Mirror]
) -> None:
    monkeypatch.setenv("ADAMSERVE_CACHE_DIR", str(tmp_path))
    contents = tiny_mnist()
    mirror = serve(contents)
    files = [described(name, content) for name, content in contents.items()]
    said: list[str] = []
    first = load_mnist(None, progress=said.append, mirrors=[mirror.url], files=files)
    again = load_mnist(None, progress=said.append, mirrors=[mirror.url], files=files)
    assert mirror.asked == list(contents)
    assert len(said) == 4
    np.testing.assert_array_equal(first.test_x, again.test_x)
    assert sorted(p.name for p in (tmp_path / "data" / "mnist").iterdir()) == sorted(contents)


def test_without_a_network_the_fix_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[dict[str, bytes]], Mirror]
) -> None:
    monkeypatch.setenv("ADAMSERVE_CACHE_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"train-images.*HTTP 404.*give --data-dir a folder"):
        load_mnist(None, mirrors=[serve({}).url])


def test_the_mirrors_are_asked_over_tls() -> None:
    assert all(url.startswith("https://") and url.endswith("/") for url in MIRRORS)
