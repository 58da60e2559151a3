"""One shard's cut as a safetensors file: written between two updates, sealed beside them, read by any partition."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from adamserve.checkpoint.files import file_hash, naming, reading, sync
from adamserve.checkpoint.manifest import Manifest, ShardEntry
from adamserve.shard.sparse import in_order
from adamserve.values import Array, Outcome, PusherState, Receipt, Segment, ShardState, Span, Stamp


def write_shard(folder: Path, state: ShardState) -> Path:
    """Write a shard's state beside its final place, into the page cache; call `seal_shard` on what it returns.

    The arrays go straight from their buffers to the file, as the shard's writer is held meanwhile. (The safetensors
    library would copy every array first.)

    Raises:
        CheckpointError: the file cannot be written; names it.
    """
    header: dict[str, Any] = {
        "__metadata__": {
            "shard": str(state.shard),
            "stamp": json.dumps(state.stamp),
            "segments": json.dumps([[s.tensor, s.start, s.stop, s.updates] for s in state.segments]),
            "pushers": json.dumps({name: _pusher_json(p) for name, p in state.pushers.items()}),
            "constants": json.dumps({name: dict(given) for name, given in state.constants.items()}),
        }
    }
    arrays: list[Array] = []
    end = 0
    for slot, tensors in state.arrays.items():
        for tensor, array in tensors.items():
            start, end = end, end + array.nbytes
            header[f"{slot}/{tensor}"] = {
                "dtype": f"F{8 * array.itemsize}",
                "shape": [array.size],
                "data_offsets": [start, end],
            }
            arrays.append(array)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / f"shard-{state.shard:05d}.safetensors.tmp"
    with naming(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return path


def seal_shard(path: Path) -> ShardEntry:
    """Make a file of `write_shard` durable, reckon its checksum, and give it its name.

    Raises:
        CheckpointError: the disk refuses; names the file.
    """
    final = path.with_name(path.name.removesuffix(".tmp"))
    with naming(path):
        sync(path)
        digest = file_hash(path)
        path.rename(final)
        sync(final.parent)
    header = shard_header(final)
    return ShardEntry(header.shard, final.name, final.stat().st_size, digest, header.stamp)


def load_shard(
    folder: Path, manifest: Manifest, *, shard: int, spans: Sequence[Span], incarnation: int
) -> ShardState:
    """Gather the state of shard number `shard`, which owns `spans`, for any partition of the job.

    A piece keeps the update count that it had. Where the spans are those of a shard in the checkpoint, clock
    and pushers are that shard's; else they are the largest among all shards, with the receipts on which they agree.

    Raises:
        CheckpointError: a file cannot be read.
    """
    held = shard_headers(folder, manifest)
    same = [old for old in held.values() if old.shard == shard and old.spans == list(spans)]
    sources = same or list(held.values())
    pushers: dict[str, PusherState] = {}
    for old in sources:
        for name, state in old.pushers.items():
            pushers[name] = _merged(pushers.get(name, state), state)
    segments = [segment for span in spans for segment in _cut(span, held.values())]
    clock = max(old.stamp.clock for old in sources)
    arrays = _gather(manifest, spans, held)
    given = {name: constants for old in sources for name, constants in old.constants.items()}
    own = {span.tensor: given[span.tensor] for span in spans if span.tensor in given}
    return ShardState(shard, Stamp(incarnation, clock), tuple(segments), arrays, pushers, own)


def load_tensors(folder: Path, manifest: Manifest) -> dict[str, dict[str, Array]]:
    """Every slot's (and "w"'s) whole tensors, in their shapes."""
    spans = [Span(spec.name, 0, spec.numel) for spec in manifest.config.tensors]
    gathered = _gather(manifest, spans, shard_headers(folder, manifest))
    return {
        slot: {spec.name: in_order(spec, arrays[spec.name]) for spec in manifest.config.tensors}
        for slot, arrays in gathered.items()
    }


def update_counts(folder: Path, manifest: Manifest) -> dict[str, list[int]]:
    """By tensor, the update counts of its pieces."""
    counts: dict[str, list[int]] = {spec.name: [] for spec in manifest.config.tensors}
    for old in shard_headers(folder, manifest).values():
        for segment in old.segments:
            counts[segment.tensor].append(segment.updates)
    return counts


def last_constants(folder: Path, manifest: Manifest) -> dict[str, Mapping[str, float]]:
    """By tensor, the constants that its last push brought, where it brought any; the rate is "lr"."""
    held = shard_headers(folder, manifest).values()
    return {name: given for old in held for name, given in old.constants.items()}


def shard_header(path: Path) -> ShardState:
    """A file's state without its arrays, of which there are the slots; raises CheckpointError if it cannot be read."""
    with reading(path), safe_open(path, framework="numpy") as file:
        meta = file.metadata()
        return ShardState(
            int(meta["shard"]),
            Stamp(*json.loads(meta["stamp"])),
            tuple(Segment(*segment) for segment in json.loads(meta["segments"])),
            {key.partition("/")[0]: {} for key in file.keys()},  # noqa: SIM118 - no mapping
            {name: _pusher(state) for name, state in json.loads(meta["pushers"]).items()},
            json.loads(meta.get("constants", "{}")),
        )


def shard_headers(folder: Path, manifest: Manifest) -> dict[Path, ShardState]:
    """The `shard_header` of each of a checkpoint's files."""
    return {path: shard_header(path) for path in (folder / entry.file for entry in manifest.shards)}


def _pusher_json(pusher: PusherState) -> list[Any]:
    receipts = [[seq, r.outcome, *r.stamp, r.staleness, r.reason] for seq, r in pusher.receipts.items()]
    return [pusher.last_seq, pusher.steps, pusher.session, pusher.kind, receipts]


def _pusher(state: Sequence[Any]) -> PusherState:
    """What `_pusher_json` wrote, or format 1, which ends after the steps."""
    padded: list[Any] = [*state, "", "trainer", ()]
    last_seq, steps, session, kind, known = padded[:5]
    receipts = {
        seq: Receipt(Outcome(outcome), Stamp(incarnation, clock), staleness, reason)
        for seq, outcome, incarnation, clock, staleness, reason in known
    }
    return PusherState(last_seq, steps, session, kind, receipts)


def _merged(one: PusherState, other: PusherState) -> PusherState:
    """What two shards remember of a pusher; of receipts, those with one outcome on both."""
    ahead, behind = sorted((one, other), key=lambda state: state.last_seq, reverse=True)
    receipts = {
        seq: receipt
        for seq, receipt in ahead.receipts.items()
        if seq in behind.receipts and behind.receipts[seq].outcome is receipt.outcome
    }
    return replace(ahead, steps=max(one.steps, other.steps), receipts=receipts)


def _cut(span: Span, held: Iterable[ShardState]) -> list[Segment]:
    """The pieces of a span, each with its update count; neighbours of one count are joined."""
    pieces = sorted(
        (max(s.start, span.start), min(s.stop, span.stop), s.updates)
        for old in held
        for s in old.segments
        if s.tensor == span.tensor
        and ((s.start < span.stop and s.stop > span.start) or span.numel == 0 == s.stop - s.start)
    )
    joined: list[Segment] = []
    for start, stop, updates in pieces:
        if joined and joined[-1].updates == updates:
            joined[-1] = Segment(span.tensor, joined[-1].start, stop, updates)
        else:
            joined.append(Segment(span.tensor, start, stop, updates))
    return joined


def _gather(
    manifest: Manifest, spans: Sequence[Span], held: Mapping[Path, ShardState]
) -> dict[str, dict[str, Array]]:
    dtypes = {spec.name: spec.dtype for spec in manifest.config.tensors}
    arrays: dict[str, dict[str, Array]] = {
        slot: {span.tensor: np.empty(span.numel, dtypes[span.tensor]) for span in spans}
        for slot in dict.fromkeys(slot for old in held.values() for slot in old.arrays)
    }
    for path, old in held.items():
        owned = {span.tensor: span for span in old.spans}
        with reading(path), safe_open(path, framework="numpy") as file:
            for span in spans:
                source = owned.get(span.tensor, Span(span.tensor, 0, 0))
                start, stop = max(span.start, source.start), min(span.stop, source.stop)
                for slot in old.arrays if start < stop else ():
                    part = file.get_slice(f"{slot}/{span.tensor}")[start - source.start : stop - source.start]
                    arrays[slot][span.tensor][start - span.start : stop - span.start] = part
    return arrays
