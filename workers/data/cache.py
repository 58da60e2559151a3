"""Arrays that took long to make, kept in the cache's folder under a name that says what they were made from."""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def read(path: Path) -> Arrays | None:
    """What is kept there; None where nothing is, or it was cut short."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def keep(path: Path, arrays: Arrays, progress: Callable[[str], None]) -> None:
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
