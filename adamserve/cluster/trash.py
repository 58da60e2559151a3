"""How a job's folder is deleted: marked first, then moved to the trash, then purged if that was asked for.

    ROOT/JOB/deleted          the tombstone, "keep" or "purge": whoever finds it finishes the deletion
    ROOT/.trash/JOB-1         the folder afterwards, while it is kept

Each step is on disk before the next begins, so that a crash between two of them loses none.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from adamserve.checkpoint.files import sync, write_text
from adamserve.errors import CheckpointError

TOMBSTONE = "deleted"
"""File in a job's folder that says that the job is deleted."""

TRASH = ".trash"
"""Folder beside the jobs' own."""

_PURGE = "purge"


def mark(folder: Path, *, purge: bool) -> None:
    """Say in a job's folder that the job is deleted; from now on it is never taken up again.

    Raises:
        CheckpointError: the disk refuses; the job is as it was.
    """
    write_text(folder / TOMBSTONE, _PURGE if purge else "keep")


def is_marked(folder: Path) -> bool:
    """Whether a job's folder is to be deleted."""
    return (folder / TOMBSTONE).exists()


def unfinished(root: Path) -> list[Path]:
    """The folders below a service's folder whose deletion was begun and not finished."""
    jobs = [folder for folder in (root.iterdir() if root.is_dir() else ()) if is_marked(folder)]
    kept = [folder for folder in (root / TRASH).glob("*") if _purges(folder)]
    return sorted(jobs) + sorted(kept)


def finish(folder: Path) -> None:
    """Finish the deletion of a marked folder: its name is free afterwards.

    Raises:
        CheckpointError: the disk refuses; try again.
    """
    try:
        if folder.parent.name != TRASH:
            folder = _put_away(folder)
        if _purges(folder):
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != TOMBSTONE:  # which goes last
                    entry.unlink()
            (folder / TOMBSTONE).unlink()
            folder.rmdir()
    except OSError as error:
        raise CheckpointError(f"cannot be deleted: {error.strerror or error}", field=str(folder)) from error


def _put_away(folder: Path) -> Path:
    trash = folder.parent / TRASH
    trash.mkdir(exist_ok=True)
    there = next(path for n in itertools.count(1) if not (path := trash / f"{folder.name}-{n}").exists())
    folder.rename(there)
    sync(trash)
    sync(folder.parent)
    return there


def _purges(folder: Path) -> bool:
    path = folder / TOMBSTONE
    return path.exists() and path.read_text() == _PURGE
