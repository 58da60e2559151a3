"""MNIST from its four official IDX files: in a folder, in the cache, or fetched once into the cache."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError
from workers.data import Dataset, Progress
from workers.data.idx import read_idx

MD5: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""The official files and their checksums."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Where the files are fetched from, in this order."""

TIMEOUT_S = 10.0
"""How long a mirror may stay silent."""

MOST_BYTES = 20_000_000
"""No official file is larger."""


def load_mnist(
    data_dir: Path | None,
    *,
    progress: Progress = lambda message: None,
    mirrors: Sequence[str] = MIRRORS,
    checksums: Mapping[str, str] = MD5,
) -> Dataset:
    """Load MNIST, pixels scaled to [0, 1], 784 features.

    Args:
        data_dir: folder with the four files, gzipped or not; None takes the cache, and fills it where there is a network.
        progress: told what is fetched.
        mirrors: base addresses to fetch from.
        checksums: MD5 of each file, by name.

    Raises:
        DataError: a file is missing, damaged, or does not fit the others.
    """
    folder = data_dir if data_dir is not None else cached(mirrors, checksums, progress)
    paths = [_find(folder, name.removesuffix(".gz")) for name in MD5]
    train_x, train_y = _pair(paths[0], paths[1])
    test_x, test_y = _pair(paths[2], paths[3])
    return Dataset("mnist", train_x, train_y, test_x, test_y, classes=10)


def cached(mirrors: Sequence[str], checksums: Mapping[str, str], progress: Progress) -> Path:
    """The cache folder, with every file in it that was missing fetched and checked."""
    base = os.environ.get("ADAMSERVE_CACHE_DIR") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "adamserve"
    )
    folder = Path(base) / "data" / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name, checksum in checksums.items():
        if not (folder / name).exists():
            progress(f"fetching {name}")
            _fetch(name, checksum, folder, mirrors)
    return folder


def _fetch(name: str, checksum: str, folder: Path, mirrors: Sequence[str]) -> None:
    """Fetch one file from the first mirror that has it whole."""
    failures = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(mirror + name, timeout=TIMEOUT_S) as answer:  # noqa: S310 - fixed https mirrors
                content = answer.read(MOST_BYTES + 1)
        except (urllib.error.URLError, OSError) as error:
            failures.append(f"{mirror}: {getattr(error, 'reason', error)}")
            continue
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != checksum:
            failures.append(f"{mirror}: checksum {found}, expected {checksum}")
            continue
        temporary = folder / f"{name}.{os.getpid()}.tmp"
        temporary.write_bytes(content)
        temporary.replace(folder / name)
        return
    raise DataError(
        f"could not be fetched: {'; '.join(failures)}",
        field=name,
        fix="give --data-dir with the four official MNIST files",
    )


def _find(folder: Path, stem: str) -> Path:
    if not folder.is_dir():
        raise DataError(
            "there is no such folder", field=str(folder), fix="give --data-dir with the four official MNIST files"
        )
    for name in (f"{stem}.gz", stem):
        if (folder / name).exists():
            return folder / name
    raise DataError(
        f"neither {stem}.gz nor {stem} is in the folder", field=str(folder), fix="give --data-dir with all four files"
    )


def _pair(images: Path, labels: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images as rows and their labels, checked against each other."""
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or x.shape[1:] != (28, 28):
        raise DataError(f"expected images of 28x28, found shape {x.shape}", field=str(images))
    if y.ndim != 1 or len(y) != len(x):
        raise DataError(f"expected {len(x)} labels for {images.name}, found shape {y.shape}", field=str(labels))
    if len(y) and y.max() > 9:
        raise DataError(f"expected labels 0 to 9, found {y.max()}", field=str(labels))
    return (x.reshape(len(x), -1) / np.float32(255.0)).astype(np.float32), y.astype(np.int64)
