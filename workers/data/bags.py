"""Bags of words: which words each example has, without order or count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError


@dataclass(frozen=True)
class Bags:
    """Examples as the numbers of the words in them; the sparse form of a [examples, features] matrix of ones.

    Attributes:
        starts: [examples + 1] int64: example i has words[starts[i]:starts[i + 1]].
        words: int32, from 0 to `features` - 1.
        features: number of words there are.

    Raises:
        DataError: the arrays do not fit together.
    """

    starts: NDArray[np.int64]
    words: NDArray[np.int32]
    features: int

    def __post_init__(self) -> None:
        if self.starts.dtype != np.int64 or self.words.dtype != np.int32:
            raise DataError(f"has {self.starts.dtype} and {self.words.dtype}", field="bags")
        if not len(self.starts) or self.starts[0] != 0 or self.starts[-1] != len(self.words):
            raise DataError("the examples do not cover the words", field="bags")
        if (np.diff(self.starts) < 0).any():
            raise DataError("an example ends before it starts", field="bags")
        if len(self.words) and not (self.words.min() >= 0 and self.words.max() < self.features):
            raise DataError(f"words run from {self.words.min()} to {self.words.max()}", field="bags")

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.features

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> Bags:
        """Some of the examples."""
        which = np.arange(len(self))[chosen]
        lengths = self.starts[which + 1] - self.starts[which]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        # Word j of the result is word j - starts[i] of its example i.
        places = np.arange(starts[-1]) + np.repeat(self.starts[which] - starts[:-1], lengths)
        return Bags(starts, self.words[places], self.features)

    def thinned(self, keep: float, random: np.random.Generator) -> Bags:
        """Each word of each example left out with probability 1 - `keep`: dropout on the features."""
        kept = random.random(len(self.words)) < keep
        counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        return Bags(counts[self.starts], self.words[kept], self.features)
