"""Whitened images have unit covariance, by the training set's statistics alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adamserve.errors import InvalidArgument
from workers.data import Dataset, load
from workers.data import whiten as module
from workers.data.whiten import contrast_normalised, fit, whitened

RNG = np.random.default_rng(0)


def images(n: int, features: int = 12) -> np.ndarray:
    mixing = np.random.default_rng(1).standard_normal((features, features))
    return (RNG.standard_normal((n, features)) @ mixing + 3).astype(np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAMSERVE_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_contrast_is_normalised() -> None:
    x = contrast_normalised(images(50))
    assert np.abs(x.mean(axis=1)).max() < 1e-6
    np.testing.assert_allclose(x.std(axis=1), 1.0, rtol=1e-3)  # the floor under the variance
    assert not contrast_normalised(np.full((2, 12), 0.5, np.float32)).any()


def test_the_covariance_is_one_but_for_epsilon() -> None:
    x = images(4000)
    mean, matrix = fit(x)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    found = np.cov(((x - mean) @ matrix).T, bias=True)
    variances = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), bias=True))
    # Along each principal axis the variance v becomes v / (v + EPSILON).
    expected = np.sort(variances / (variances + module.EPSILON))
    np.testing.assert_allclose(np.linalg.eigvalsh(found), expected, atol=2e-4)  # float32 sums of 4,000


def dataset(train: np.ndarray, test: np.ndarray) -> Dataset:
    return Dataset(
        "some", train, np.zeros(len(train), np.int64), test, np.zeros(len(test), np.int64), classes=1
    )


def test_the_test_set_is_not_looked_at(own_cache: Path) -> None:
    train, test = images(200), images(20)
    told: list[str] = []
    one = whitened(dataset(train, test), progress=told.append)
    other = whitened(dataset(train, 2 * test[:5]), progress=told.append)
    np.testing.assert_array_equal(one.train_x, other.train_x)
    assert told == ["fitting the whitening of 12 features"]  # once: the second time from the cache
    [kept] = (own_cache / "data" / "whitening").iterdir()
    whitened(dataset(train[:100], test), progress=told.append)
    assert len(told) == 2
    kept.write_bytes(kept.read_bytes()[:50])
    np.testing.assert_array_equal(whitened(dataset(train, test), progress=told.append).train_x, one.train_x)
    assert len(told) == 3


def test_bags_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="whiten: zipf holds bags of words"):
        load("zipf", whiten=True)


def test_digits32_are_the_digits_enlarged() -> None:
    small, large = load("digits"), load("digits32")
    assert large.features == 3072
    for part in ("train", "test"):
        x = np.asarray(getattr(large, f"{part}_x")).reshape(-1, 3, 8, 4, 8, 4)
        scans = np.asarray(getattr(small, f"{part}_x")).reshape(-1, 1, 8, 1, 8, 1)
        np.testing.assert_array_equal(x, np.broadcast_to(scans, x.shape))
