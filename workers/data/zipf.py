"""Bags of words made up on the spot: words of Zipf's distribution, labels from a vector that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.data import Dataset, Progress
from workers.data.bags import Bags

WORDS, TRAIN, TEST = 2000, 4000, 1000
LENGTH = 80
"""Words drawn for an example; some are drawn twice, and count once."""

SEED = 20151018

_COUNTS = 1.0 / np.arange(1, WORDS + 1)
_FREQUENCIES: NDArray[np.float64] = _COUNTS / _COUNTS.sum()
"""The chance of each word at each draw."""


def load_zipf(data_dir: Path | None = None, *, progress: Progress = lambda message: None) -> Dataset:
    """A sparse classification problem that needs no files; the same at every call.

    Word k is drawn with probability proportional to 1/(k + 1). Each word has a weight, drawn once from a normal
    distribution, and an example is positive where its words' weights sum to more than they would on average: a linear
    model separates the classes. Examples nearer to the border than a tenth of the typical sum are left out.
    """
    examples, labels = _draw(np.random.default_rng(SEED + 1))
    train, test = slice(0, TRAIN), slice(TRAIN, TRAIN + TEST)
    return Dataset("zipf", examples[train], labels[train], examples[test], labels[test], classes=2)


def separator() -> tuple[NDArray[np.float64], float]:
    """The words' weights, [words], and the sum of an example's weights at which its label changes."""
    weights = np.random.default_rng(SEED).standard_normal(WORDS)
    return weights, float(weights @ (1.0 - (1.0 - _FREQUENCIES) ** LENGTH))


def _draw(random: np.random.Generator) -> tuple[Bags, NDArray[np.int64]]:
    weights, border = separator()
    cumulative = np.cumsum(_FREQUENCIES)
    margin = 0.1 * np.sqrt(LENGTH)
    bags: list[NDArray[np.int32]] = []
    labels: list[bool] = []
    while len(bags) < TRAIN + TEST:
        drawn = np.searchsorted(cumulative, random.random(LENGTH) * cumulative[-1])
        words = np.unique(drawn).astype(np.int32)
        score = float(weights[words].sum()) - border
        if abs(score) > margin:
            bags.append(words)
            labels.append(score > 0)
    starts = np.cumsum([0, *map(len, bags)], dtype=np.int64)
    return Bags(starts, np.concatenate(bags), WORDS), np.array(labels, np.int64)
