"""MNIST from its four official IDX files: in a folder, in the cache, or fetched once into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError
from workers.data import Dataset, Progress
from workers.data.cache import RemoteFile, cache_dir, fetch
from workers.data.idx import read_idx

_PUBLISHED = """
train-images-idx3-ubyte.gz 9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
train-labels-idx1-ubyte.gz 28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
t10k-images-idx3-ubyte.gz 1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
t10k-labels-idx1-ubyte.gz 4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
"""

FILES = tuple(
    RemoteFile(name, int(nbytes), sha256)
    for name, nbytes, sha256 in map(str.split, _PUBLISHED.strip().splitlines())
)
"""The official files: training images and labels, test images and labels."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Where the files are fetched from, in this order."""

FIX = "give --data-dir a folder with the four official MNIST files"


def load_mnist(
    data_dir: Path | None,
    *,
    progress: Progress = lambda message: None,
    mirrors: Sequence[str] = MIRRORS,
    files: Sequence[RemoteFile] = FILES,
) -> Dataset:
    """Load MNIST, pixels scaled to [0, 1], 784 features (28 rows of 28).

    Args:
        data_dir: folder with the four files, gzipped or not, of all MNIST or a part in the same format; None takes the
            cache's `data/mnist`, and fills it from the network.
        mirrors, files: where to fetch what.

    Raises:
        DataError: a file is missing, cannot be fetched, is damaged, or does not fit the others; names it or the folder.
    """
    if data_dir is None:
        folder = cache_dir() / "data" / "mnist"
        paths = [fetch(file, folder, mirrors, progress=progress, fix=FIX) for file in files]
    else:
        paths = [_find(data_dir, file.name) for file in files]
    return Dataset("mnist", *_pair(*paths[:2]), *_pair(*paths[2:]), classes=10)


def _find(folder: Path, packed: str) -> Path:
    if not folder.is_dir():
        raise DataError("there is no such folder", field=str(folder), fix=FIX)
    plain = packed.removesuffix(".gz")
    for name in (packed, plain):
        if (folder / name).is_file():
            return folder / name
    names = ", ".join(f"{file.name.removesuffix('.gz')}[.gz]" for file in FILES)
    raise DataError(f"holds neither {packed} nor {plain}", field=str(folder), fix=f"{FIX}: {names}")


def _pair(images: Path, labels: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images as rows and their labels, checked against each other."""
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or x.shape[1:] != (28, 28):
        raise DataError(f"expected images of 28x28, found an array of shape {x.shape}", field=str(images))
    if y.ndim != 1 or len(y) != len(x):
        expected = f"{len(x)} labels, one an image of {images.name}"
        raise DataError(f"expected {expected}, found an array of shape {y.shape}", field=str(labels))
    if y.max() > 9:
        at = int((y > 9).argmax())
        raise DataError(f"at byte {8 + at}: expected a label from 0 to 9, found {y[at]}", field=str(labels))
    return np.divide(x.reshape(len(x), -1), 255, dtype=np.float32), y.astype(np.int64)
