"""A job's checkpoints in its folder: which there are, which verify, which go, and its incarnations."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adamserve.checkpoint.cuts import shard_header
from adamserve.checkpoint.files import file_hash, reading, write_text
from adamserve.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from adamserve.errors import CheckpointError, NotFound

INCARNATION = "incarnation"
"""File in a job's folder with the largest incarnation that was handed out."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint's folder, as `list_checkpoints` finds it; `problem` is empty where the manifest reads well."""

    number: int
    folder: Path
    complete: bool
    problem: str
    job: str = ""
    created: str = ""
    clocks: tuple[int, ...] = ()
    nbytes: int = 0


def new_incarnation(root: Path, at_least: int) -> int:
    """An incarnation, from `at_least` on, that no shard of the job in the folder `root` has ever been in.

    What was handed out is on disk before it is used: a crash between a restore and the next checkpoint would otherwise
    make two histories that look alike to their pushers.

    Raises:
        CheckpointError: the record cannot be read or written; names it.
    """
    named = (root / INCARNATION, root / "epoch")  # as format 1 called it
    path = next((path for path in named if path.exists()), named[0])
    try:
        last = int(path.read_text())
    except FileNotFoundError:
        last = 0
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", field=str(path), fix="write the largest incarnation in use into it"
        ) from None
    incarnation = max(at_least, last + 1)
    write_text(root / INCARNATION, f"{incarnation}\n")
    return incarnation


def list_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Every checkpoint below a job's folder, oldest first, unfinished and unreadable ones too."""
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [_info(folder) for folder in folders if folder.is_dir() and folder.name.isdecimal()]


def _info(folder: Path) -> CheckpointInfo:
    number = int(folder.name)
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        problem = str(error) if (folder / MANIFEST).exists() else "unfinished: it has no manifest"
        return CheckpointInfo(number, folder, False, problem)
    clocks = tuple(entry.stamp.clock for entry in manifest.shards)
    nbytes = sum(entry.nbytes for entry in manifest.shards)
    return CheckpointInfo(number, folder, True, "", manifest.config.name, manifest.created, clocks, nbytes)


def list_jobs(root: Path) -> list[str]:
    """Every job with a checkpoint below a service's folder; one whose first was cut short has none yet."""
    jobs = sorted(root.iterdir()) if root.is_dir() else []
    return [job.name for job in jobs if job.is_dir() and any(info.complete for info in list_checkpoints(job))]


def next_number(root: Path) -> int:
    """One more than the largest number there is, finished or not."""
    return max((info.number for info in list_checkpoints(root)), default=0) + 1


def newest(
    root: Path, *, on_skip: Callable[[Path, str], object] = lambda folder, reason: None
) -> tuple[Path, Manifest]:
    """The newest checkpoint that verifies; one that does not is passed over, and `on_skip` is told why.

    Raises:
        NotFound: no checkpoint under `root` verifies.
    """
    reasons = []
    for info in reversed(list_checkpoints(root)):
        try:
            return info.folder, verify(info.folder)
        except CheckpointError as error:
            reasons.append(str(error))
            on_skip(info.folder, str(error))
    why = f": {'; '.join(reasons)}" if reasons else ""
    raise NotFound(f"there is no checkpoint that verifies{why}", field=str(root))


def prune(root: Path, *, keep: int) -> None:
    """Delete the oldest complete checkpoints beyond `keep`, and unfinished ones older than the newest complete one."""
    infos = list_checkpoints(root)
    complete = [info for info in infos if info.complete]
    newest = max((info.number for info in complete), default=0)
    cut_short = [info for info in infos if not info.complete and info.number < newest]
    for info in complete[:-keep] + cut_short:
        # The manifest goes first, so that a half-deleted folder is never taken for a checkpoint.
        (info.folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(info.folder)


def verify(folder: Path) -> Manifest:
    """Check a whole checkpoint: manifest, size and checksum of every file, every element of every tensor once.

    Raises:
        CheckpointError: names the first file that is wrong, and how.
    """
    manifest = read_manifest(folder)
    spans: dict[str, list[tuple[int, int]]] = {spec.name: [] for spec in manifest.config.tensors}
    for entry in manifest.shards:
        path = folder / entry.file
        wrong = partial(CheckpointError, field=str(path))
        with reading(path):
            if not path.is_file():
                raise wrong("is missing")
            if path.stat().st_size != entry.nbytes:
                raise wrong(f"has {path.stat().st_size} bytes, expected {entry.nbytes}")
            if file_hash(path) != entry.sha256:
                raise wrong("was altered: its checksum does not fit")
        shard = shard_header(path)
        if shard.shard != entry.shard:
            raise wrong(f"holds shard {shard.shard}, expected {entry.shard}")
        for segment in shard.segments:
            spans.setdefault(segment.tensor, []).append((segment.start, segment.stop))
    wrong = partial(CheckpointError, field=str(folder))
    for spec in manifest.config.tensors:
        reached = 0
        for start, stop in sorted(spans[spec.name]):
            if start != reached:
                raise wrong(f"elements {reached} to {start} of {spec.name!r} are not held once")
            reached = stop
        if reached != spec.numel:
            raise wrong(f"{spec.name!r} ends at element {reached} of {spec.numel}")
    return manifest
