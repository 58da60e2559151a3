"""Arrays that took long to make, kept in the cache's folder under a name that says what they were made from."""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError

Arrays = dict[str, NDArray[Any]]


Made = TypeVar("Made")


def kept(
    path: Path,
    make: Callable[[], Arrays],
    read: Callable[[Arrays], Made],
    progress: Callable[[str], None],
) -> Made:
    """What `read` makes of the arrays that are kept there; they are made anew where it can make nothing of them."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return read(dict(arrays))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, DataError):
        made = make()
    _keep(path, made, progress)
    return read(made)


def _keep(path: Path, arrays: Arrays, progress: Callable[[str], None]) -> None:
    """Keep arrays, whole or not at all; where the folder cannot be written, say so and do without."""
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        progress(f"{path} cannot be kept: {error.strerror}")
