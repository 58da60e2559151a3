"""Bytes on disk that stay there: synced, hashed, and named when something goes wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from adamserve.errors import CheckpointError


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, make it durable, and give it its name.

    Raises:
        CheckpointError: the disk refuses; names the file.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with naming(path):
        temporary.write_text(text)
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what is wrong with a file into an error that names it."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = error if isinstance(error, OSError) else repr(error)
        raise CheckpointError(f"cannot be read: {problem}", field=str(path)) from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot be written: {error.strerror or error}",
            field=str(path),
            fix="free some space, or give another folder",
        ) from error
