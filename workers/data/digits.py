"""scikit-learn's digits: 1,797 scans of 8x8 pixels that come with the package (UCI; Alpaydin 1998)."""

from __future__ import annotations

import numpy as np

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
