"""scikit-learn's digits: 1,797 scans of 8x8 pixels that come with the package."""

from __future__ import annotations

import numpy as np

from workers.data import Dataset

TEST_SHARE = 5
"""One example in this many is a test example."""

SPLIT_SEED = 20151018
"""Seed of the split: the same for every run, so that their test accuracies can be compared."""


def load_digits() -> Dataset:
    """Pixels scaled to [0, 1], split 4:1 within each class."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    x = (bunch.data / 16.0).astype(np.float32)
    y = bunch.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
    test = np.zeros(len(y), dtype=bool)
    for digit in range(10):
        members = order[y[order] == digit]
        test[members[: len(members) // TEST_SHARE]] = True
    return Dataset("digits", x[~test], y[~test], x[test], y[test], classes=10)
