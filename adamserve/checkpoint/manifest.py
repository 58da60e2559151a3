"""A checkpoint's manifest: what it holds, and the size and checksum of every file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adamserve.checkpoint.files import naming, sync_folder
from adamserve.errors import CheckpointError
from adamserve.values import Config, Stamp, TensorSpec

FORMAT = 2
"""Version of what is written. Format 1, which is read too, had neither sessions nor receipts."""

READABLE = (1, 2)
"""Versions that are read."""

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard's file, as the manifest names it."""

    shard: int
    file: str
    nbytes: int
    sha256: str
    stamp: Stamp


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        number: grows with every checkpoint of the job; also the folder's name.
        job: the job's name.
        created: ISO time, UTC.
        tensors: the job's, in order.
        rule, consistency: JSON objects, as `optim.to_dict` and `consistency.to_dict` write them.
        shards: in shard order.
        tensor_rules: by tensor, a rule other than the job's.
        extra: free JSON of whoever created the job.
        sparse, checkpoint_every_s, checkpoints_kept: as in `JobConfig`.
    """

    number: int
    job: str
    created: str
    tensors: tuple[TensorSpec, ...]
    rule: Config
    consistency: Config
    shards: tuple[ShardEntry, ...]
    extra: Config = field(default_factory=dict)
    tensor_rules: Mapping[str, Config] = field(default_factory=dict)
    sparse: str = "exact"
    checkpoint_every_s: float | None = 30.0
    checkpoints_kept: int = 3
    format: int = FORMAT


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest, which completes the checkpoint.

    Raises:
        CheckpointError: the disk refuses; the checkpoint stays unfinished.
    """
    body = asdict(manifest)
    path = folder / MANIFEST
    temporary = folder / f"{MANIFEST}.tmp"
    with naming(path):
        with temporary.open("w") as file:
            json.dump({**body, "sha256": body_checksum(body)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(folder)
        sync_folder(folder.parent)
    return path


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest, and check it against its own checksum.

    Raises:
        CheckpointError: it is missing, altered, or of a version that this code does not read.
    """
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text())
        claimed = body.pop("sha256")
        if body.get("format") not in READABLE:
            raise CheckpointError(
                f"is of format {body.get('format')!r}, this version reads 1 to {FORMAT}", field=str(path)
            )
        if claimed != body_checksum(body):
            raise CheckpointError("was altered: its checksum does not fit", field=str(path))
        body["tensors"] = tuple(
            TensorSpec(t["name"], tuple(t["shape"]), t["dtype"], t.get("stride", 1)) for t in body["tensors"]
        )
        body["shards"] = tuple(
            ShardEntry(**{**entry, "stamp": Stamp(*entry["stamp"])}) for entry in body["shards"]
        )
        return Manifest(**body)
    except FileNotFoundError:
        raise CheckpointError("is unfinished: it has no manifest", field=str(folder)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot be read: {error!r}", field=str(path)) from None


def body_checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
