"""The bags of words that need no files."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from workers.data import load
from workers.data.zipf import LENGTH, WORDS, separator


def test_the_known_vector_separates_every_example() -> None:
    data: Any = load("zipf")
    weights, border = separator()
    for bags, labels in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        scores = np.add.reduceat(weights[bags.words], bags.starts[:-1]) - border
        np.testing.assert_array_equal(scores > 0, labels == 1)
        assert np.abs(scores).min() > 0.1 * np.sqrt(LENGTH)
    assert 0.4 < data.train_y.mean() < 0.6


def test_words_follow_zipf() -> None:
    """Of 80 draws, word k is among them with probability 1 - (1 - p_k)^80; but for the few examples left out."""
    data: Any = load("zipf")
    p = 1.0 / np.arange(1, WORDS + 1)
    expected = 1.0 - (1.0 - p / p.sum()) ** LENGTH
    found = np.bincount(data.train_x.words, minlength=WORDS) / len(data.train_y)
    np.testing.assert_allclose(found, expected, atol=0.04)  # five standard deviations of 4,000 examples
    assert found[0] > 0.99


def test_it_is_always_the_same() -> None:
    data: Any = load("zipf")
    digest = hashlib.sha256(data.train_x.words.tobytes() + data.test_y.tobytes()).hexdigest()
    assert digest[:16] == "86a70a63b2f0d841"
