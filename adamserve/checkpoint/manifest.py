"""A checkpoint's manifest: what it holds, and the size and checksum of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adamserve.checkpoint.files import naming, reading, sync, write_text
from adamserve.errors import CheckpointError
from adamserve.job import JobConfig
from adamserve.values import Stamp, TensorSpec

FORMAT = 2
"""Version of what is written. Format 1, which is read too, had neither sessions nor receipts."""

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
        created: ISO time, UTC.
        shards: in shard order.
    """

    number: int
    created: str
    config: JobConfig
    shards: tuple[ShardEntry, ...]
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """The manifest as it is written, the job's configuration among its own fields; without its checksum."""
        body = asdict(self)
        config = body.pop("config")
        return {"job": config.pop("name"), **config, **body}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which completes the checkpoint.

    Raises:
        CheckpointError: the disk refuses; the checkpoint stays unfinished.
    """
    body = manifest.to_json()
    write_text(folder / MANIFEST, json.dumps({**body, "sha256": body_checksum(body)}, indent=1))
    with naming(folder):
        sync(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest, and check it against its own checksum.

    Raises:
        CheckpointError: it is missing, altered, or of a version that this code does not read.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError("is unfinished: it has no manifest", field=str(folder))
    with reading(path):
        body = json.loads(path.read_text())
        claimed, given = body.pop("sha256"), body.get("format")
        if given not in (1, FORMAT):
            problem = f"is of format {given!r}, this version reads 1 to {FORMAT}"
            raise CheckpointError(problem, field=str(path))
        if claimed != body_checksum(body):
            raise CheckpointError("was altered: its checksum does not fit", field=str(path))
        tensors = tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in body.pop("tensors"))
        shards = tuple(
            ShardEntry(**{**entry, "stamp": Stamp(*entry["stamp"])}) for entry in body.pop("shards")
        )
        own = {key: body.pop(key) for key in ("number", "created", "format")}
        config = JobConfig(name=body.pop("job"), tensors=tensors, **body)
        return Manifest(config=config, shards=shards, **own)


def body_checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
