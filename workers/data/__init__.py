"""Data sets by name: `digits`, `digits32` and `zipf` (embedded); `mnist`, `imdb` and `cifar10` (official files).

A further data set is a module with a loader, and a row in `NAMES`. Importing this package loads numpy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError, unknown
from workers.data.bags import Bags

Progress = Callable[[str], None]
"""Told, in a line for people, about anything slow."""


@dataclass(frozen=True)
class Dataset:
    """A classification data set in memory, checked when it is made. It shares its arrays and copies none.

    Attributes:
        name: as `load` knows it.
        train_x, test_x: [examples, features] float32, finite; or both `Bags`.
        train_y, test_y: [examples] int64, from 0 to `classes` - 1.
        classes: number of classes.

    Raises:
        DataError: an array is of another dtype or rank, is empty, does not fit the others, or holds a value
            out of range.
    """

    name: str
    train_x: NDArray[np.float32] | Bags
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float32] | Bags
    test_y: NDArray[np.int64]
    classes: int

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise DataError(problem, field=self.name)

    def _problems(self) -> Iterator[str]:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            for array, dtype, rank in ((x, np.float32, 2), (y, np.int64, 1)):
                if isinstance(array, Bags):
                    continue  # checked when it was made
                if array.dtype != dtype or array.ndim != rank:
                    found = f"{array.dtype} of rank {array.ndim}"
                    yield f"the {part} set has {found}, expected {np.dtype(dtype)} of rank {rank}"
            if len(x) != len(y) or 0 in x.shape:
                yield f"the {part} set has examples of shape {x.shape} and {len(y)} labels"
            # Both are NaN where any element is.
            if not isinstance(x, Bags) and not (np.isfinite(x.min()) and np.isfinite(x.max())):
                yield f"the {part} set's examples are not all finite"
            if y.min() < 0 or y.max() >= self.classes:
                yield f"the {part} set's labels run from {y.min()} to {y.max()}, not 0 to {self.classes - 1}"
        if self.train_x.shape[1] != self.test_x.shape[1]:
            yield f"training examples have {self.features} features, test examples {self.test_x.shape[1]}"

    def first(self, examples: int | None) -> Dataset:
        """The same with `examples` of the training examples only; None for all.

        The first ones; of a set that is sorted by label, as IMDB's, as many from all over it.
        """
        if examples is None or examples >= len(self.train_y):
            return self
        chosen: slice | NDArray[np.int64] = slice(examples)
        if (self.train_y[1:] >= self.train_y[:-1]).all():
            chosen = np.linspace(0, len(self.train_y), examples, endpoint=False).astype(np.int64)
        return replace(self, train_x=self.train_x[chosen], train_y=self.train_y[chosen])

    def digest(self) -> str:
        """SHA-256 over all examples and labels, which tells two parts of one data set apart."""
        found = hashlib.sha256(f"{self.name} {self.features} {self.classes}".encode())
        for x, y in ((self.train_x, self.train_y), (self.test_x, self.test_y)):
            for array in (x.starts, x.words, y) if isinstance(x, Bags) else (x, y):
                found.update(f" {array.dtype} {array.shape} ".encode() + array.tobytes())
        return found.hexdigest()

    @property
    def features(self) -> int:
        """Numbers in one example."""
        return int(self.train_x.shape[1])

    @property
    def sparse(self) -> bool:
        """Whether examples are `Bags`."""
        return isinstance(self.train_x, Bags)


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    whiten: bool = False,
    progress: Progress = lambda message: None,
) -> Dataset:
    """Load a data set.

    Args:
        name: one of `NAMES`.
        data_dir: folder with its official files; an embedded data set leaves it unread.
        whiten: normalise contrast and whiten, as `workers.data.whiten` does.

    Raises:
        InvalidArgument: there is no data set of that name.
        DataError: its files are missing or damaged; names the file.
    """
    data = lookup(name)(data_dir, progress=progress)
    if whiten:
        from workers.data.whiten import whitened

        data = whitened(data, progress=progress)
    return data


def lookup(name: str) -> Callable[..., Dataset]:
    """The data set's loader, which takes the folder, and `progress` by keyword; an InvalidArgument if there is none."""
    if name not in NAMES:
        raise unknown("data set", name, NAMES, field="dataset")
    module = import_module(f"{__name__}.{name.rstrip('0123456789')}")
    loader: Callable[..., Dataset] = getattr(module, f"load_{name}")
    return loader


NAMES = ("digits", "digits32", "mnist", "imdb", "cifar10", "zipf")
"""Every data set; `load_NAME` loads it, in the module here that is called so too, without the number."""
