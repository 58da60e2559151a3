"""Data sets by name: `digits` (embedded) and `mnist` (official files)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError, InvalidArgument

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Dataset:
    """A classification data set in memory.

    Attributes:
        name: as `load` knows it.
        train_x, test_x: [examples, features] float32.
        train_y, test_y: [examples] int64, from 0 to `classes` - 1.
        classes: number of classes.
    """

    name: str
    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]
    classes: int

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if x.dtype != np.float32 or x.ndim != 2 or y.dtype != np.int64 or y.ndim != 1:
                raise DataError(f"the {part} set is not float32 rows with int64 labels", field=self.name)
            if len(x) != len(y) or len(x) == 0:
                raise DataError(f"the {part} set has {len(x)} examples and {len(y)} labels", field=self.name)
            if not (0 <= y.min() and y.max() < self.classes):
                raise DataError(
                    f"the {part} set's labels run from {y.min()} to {y.max()}, not 0 to {self.classes - 1}",
                    field=self.name,
                )
        if self.train_x.shape[1] != self.test_x.shape[1]:
            raise DataError("training and test examples differ in length", field=self.name)

    @property
    def features(self) -> int:
        """Numbers in one example."""
        return int(self.train_x.shape[1])


def load(name: str, data_dir: Path | None = None, *, progress: Progress | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: one of `NAMES`.
        data_dir: folder with its official files, for those that have some.
        progress: told about anything slow.

    Raises:
        InvalidArgument: there is no data set of that name.
        DataError: its files are missing or damaged; names the file.
    """
    loader = NAMES.get(name)
    if loader is None:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InvalidArgument(f"there is no data set {name!r}", field="dataset", fix=f"{hint}choose {' or '.join(NAMES)}")
    return loader(data_dir, progress or (lambda message: None))


def _digits(data_dir: Path | None, progress: Progress) -> Dataset:
    from workers.data.digits import load_digits

    return load_digits()


def _mnist(data_dir: Path | None, progress: Progress) -> Dataset:
    from workers.data.mnist import load_mnist

    return load_mnist(data_dir, progress=progress)


NAMES: Mapping[str, Callable[[Path | None, Progress], Dataset]] = {"digits": _digits, "mnist": _mnist}
"""Every data set's loader."""
