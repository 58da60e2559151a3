"""CIFAR-10 (Krizhevsky 2009) from its official batches, binary or python.

https://www.cs.toronto.edu/~kriz/cifar.html: 60,000 colour images of 32 by 32 in ten classes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError
from workers.data import Dataset, Progress

FEATURES = 3 * 32 * 32
RECORD = 1 + FEATURES
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
FIX = f"give --data-dir a folder that holds {BINARY} or {PYTHON}, unpacked"

_ALLOWED = {
    *(("numpy.core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


def load_cifar10(data_dir: Path | None, *, progress: Progress = lambda message: None) -> Dataset:
    """Load CIFAR-10, pixels scaled to [0, 1], 3,072 features: the red, green and blue planes, row by row.

    `data_dir` holds `cifar-10-batches-bin` or `cifar-10-batches-py`, or is one of them, with as many of the training
    batches as there are.

    Raises:
        DataError: a batch is missing or damaged; names the file and, where there is one, the byte.
    """
    folder, suffix = _find(data_dir)
    parts = []
    for stem in ("data_batch_*", "test_batch"):
        paths = sorted(folder.glob(stem + suffix))
        if not paths:
            raise DataError(f"holds no {stem}{suffix}", field=str(folder), fix=FIX)
        batches = []
        for path in paths:
            progress(f"reading {path.name}")
            try:
                batches.append(_binary(path) if suffix else _python(path))
            except OSError as error:
                raise DataError(f"cannot be read: {error.strerror}", field=str(path)) from None
        pixels, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        parts += [np.divide(pixels, 255, dtype=np.float32), labels.astype(np.int64)]
    train_x, train_y, test_x, test_y = parts
    return Dataset("cifar10", train_x, train_y, test_x, test_y, classes=10)


def _find(data_dir: Path | None) -> tuple[Path, str]:
    """The folder of the batches, and what their names end in."""
    if data_dir is None:
        raise DataError("CIFAR-10 is not fetched from the network", field="data_dir", fix=FIX)
    for folder in (data_dir / BINARY, data_dir / PYTHON, data_dir):
        for suffix in (".bin", ""):
            if (folder / f"test_batch{suffix}").is_file():
                return folder, suffix
    raise DataError(f"holds neither {BINARY} nor {PYTHON}", field=str(data_dir), fix=FIX)


def _binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A binary batch: records of one label byte and 3,072 pixel bytes."""
    data = np.fromfile(path, np.uint8)
    rest = data.size % RECORD
    if rest or not data.size:
        found = f"the end of the file after {rest}"
        problem = f"at byte {data.size}: expected a record of {RECORD} bytes, found {found}"
        raise DataError(problem, field=str(path), fix="fetch the file again")
    records = data.reshape(-1, RECORD)
    return records[:, 1:], _labels(path, records[:, 0], lambda at: f"at byte {at * RECORD}")


def _python(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A python batch: a pickled dictionary, of which nothing but numbers, texts and arrays is made."""
    with path.open("rb") as file:
        try:
            found = _Plain(file, encoding="bytes").load()
            pixels, labels = found[b"data"], np.asarray(found[b"labels"])
        except Exception as error:  # whatever a damaged pickle makes of itself
            where = f"at or before byte {file.tell()}"
            raise DataError(f"{where}: cannot be read: {error!r}", field=str(path)) from None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (FEATURES,):
        raise DataError(f"holds no images of {FEATURES} bytes", field=str(path))
    if labels.shape != (len(pixels),) or not len(pixels):
        raise DataError(f"has {len(pixels)} images and labels of shape {labels.shape}", field=str(path))
    return pixels, _labels(path, labels, lambda at: f"image {at}")


def _labels(path: Path, labels: NDArray[Any], where: Callable[[int], str]) -> NDArray[np.uint8]:
    if labels.dtype.kind not in "iu":
        raise DataError(f"has labels of {labels.dtype}, expected whole numbers", field=str(path))
    bad = np.flatnonzero((labels < 0) | (labels > 9))
    if bad.size:
        at = int(bad[0])
        raise DataError(f"{where(at)}: expected a label from 0 to 9, found {labels[at]}", field=str(path))
    return labels.astype(np.uint8)


class _Plain(pickle.Unpickler):
    """Makes arrays, and calls nothing else that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
