"""scikit-learn's digits: 1,797 scans of 8x8 pixels that come with the package (UCI; Alpaydin 1998)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError
from workers.data import Dataset, Progress
from workers.data.bags import Bags


def load_digits(data_dir: Path | None = None, *, progress: Progress = lambda message: None) -> Dataset:
    """Load the digits: pixels scaled to [0, 1], 64 features, split 4:1 with the classes in proportion.

    The split is scikit-learn's own with random_state 0, whatever the job's seed, so that test accuracies of
    different runs can be compared: 1,437 training and 360 test examples. A DataError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        problem = f"comes with scikit-learn, which cannot be imported: {error}"
        raise DataError(problem, field="digits", fix="pip install 'adamserve[train]'") from None
    x, y = bundled(return_X_y=True)
    x, y = (x / 16.0).astype(np.float32), y.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return Dataset("digits", train_x, train_y, test_x, test_y, classes=10)


def load_digits32(data_dir: Path | None = None, *, progress: Progress = lambda message: None) -> Dataset:
    """The digits as colour images of 32 by 32: each pixel a square of 4 by 4, in three equal planes; 3,072 features.

    A stand-in for CIFAR-10 where its files are not at hand.
    """

    def enlarged(x: NDArray[np.float32] | Bags) -> NDArray[np.float32]:
        images = np.kron(np.asarray(x).reshape(-1, 8, 8), np.ones((1, 4, 4), np.float32))
        return np.tile(images.reshape(len(x), -1), 3)

    digits = load_digits()
    return replace(digits, name="digits32", train_x=enlarged(digits.train_x), test_x=enlarged(digits.test_x))
