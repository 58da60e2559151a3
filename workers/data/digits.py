"""scikit-learn's digits: 1,797 scans of 8x8 pixels that come with the package (UCI; Alpaydin 1998)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError
from workers.data import Dataset

TEST_SHARE = 0.2
"""Share of the examples that are test examples."""


def load_digits() -> Dataset:
    """Load the digits: pixels scaled to [0, 1], 64 features, split 4:1 with the classes in proportion.

    The split is scikit-learn's own with random_state 0, whatever the job's seed, so that test accuracies of
    different runs can be compared: 1,437 training and 360 test examples.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError(
            f"comes with scikit-learn, which cannot be imported: {error}",
            field="digits",
            fix="pip install 'adamserve[train]'",
        ) from None

    x, y = bundled(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        x, y, test_size=TEST_SHARE, random_state=0, stratify=y
    )
    return Dataset(
        "digits",
        (train_x / 16.0).astype(np.float32),
        train_y.astype(np.int64),
        (test_x / 16.0).astype(np.float32),
        test_y.astype(np.int64),
        classes=10,
    )


SCALE = 4
"""How many times larger `load_digits32` makes the scans each way."""


def load_digits32() -> Dataset:
    """The digits as colour images of 32 by 32: each pixel a square of 4 by 4, in three equal planes; 3,072 features.

    A stand-in for CIFAR-10 where its files are not at hand.
    """
    digits = load_digits()
    train_x, test_x = (_enlarged(np.asarray(x)) for x in (digits.train_x, digits.test_x))
    return replace(digits, name="digits32", train_x=train_x, test_x=test_x)


def _enlarged(x: NDArray[np.float32]) -> NDArray[np.float32]:
    planes = np.kron(x.reshape(-1, 8, 8), np.ones((1, SCALE, SCALE), np.float32))
    return np.ascontiguousarray(np.repeat(planes.reshape(len(x), 1, -1), 3, axis=1).reshape(len(x), -1))
