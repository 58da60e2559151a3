"""A job's shards on disk: one safetensors file a shard and a manifest, written last.

    ROOT/00000007/shard-00000.safetensors     arrays "SLOT/TENSOR", 1-D: the shard's span of the tensor
                  shard-00001.safetensors
                  manifest.json               configuration, and the size and checksum of every file

Each file is written beside, fsynced and renamed, the manifest after all shards. A folder without a manifest is
unfinished and is never read. Restoring works onto any number of shards: every array is gathered from the files
that hold parts of it.
"""

from adamserve.checkpoint.cuts import load_shard, load_tensors, seal_shard, write_shard
from adamserve.checkpoint.folder import (
    CheckpointInfo,
    list_checkpoints,
    list_jobs,
    new_incarnation,
    newest,
    next_number,
    prune,
    verify,
)
from adamserve.checkpoint.lock import FolderLock
from adamserve.checkpoint.manifest import MANIFEST, Manifest, ShardEntry, read_manifest, write_manifest

__all__ = [
    "MANIFEST",
    "CheckpointInfo",
    "FolderLock",
    "Manifest",
    "ShardEntry",
    "list_checkpoints",
    "list_jobs",
    "load_shard",
    "load_tensors",
    "new_incarnation",
    "newest",
    "next_number",
    "prune",
    "read_manifest",
    "seal_shard",
    "verify",
    "write_manifest",
    "write_shard",
]
