"""One shard's cut as a safetensors file: written between two updates, sealed beside them, read by any partition."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from adamserve.checkpoint.files import naming, sync_and_hash, sync_folder, write_all
from adamserve.checkpoint.manifest import Manifest, ShardEntry
from adamserve.errors import CheckpointError
from adamserve.shard.sparse import in_order
from adamserve.values import (
    Array,
    Constants,
    Outcome,
    PusherState,
    Receipt,
    Segment,
    ShardState,
    Span,
    Stamp,
)

DTYPES: Mapping[str, str] = {"float32": "F32", "float64": "F64"}
"""safetensors' names of the dtypes."""


def write_shard(folder: Path, state: ShardState) -> Path:
    """Write a shard's state beside its final place, into the page cache; call `seal_shard` on what it returns.

    The arrays go straight from their buffers to the file, so this takes one copy's time and no memory, which
    matters because the shard's writer is held meanwhile. (The safetensors library would make a copy of
    every array first.)

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
                "dtype": DTYPES[str(array.dtype)],
                "shape": [array.size],
                "data_offsets": [start, end],
            }
            arrays.append(array)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / f"shard-{state.shard:05d}.safetensors.tmp"
    with naming(path), path.open("wb", buffering=0) as file:
        write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
        for array in arrays:
            write_all(file.fileno(), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return path


def seal_shard(path: Path) -> ShardEntry:
    """Make a file of `write_shard` durable, reckon its checksum, and give it its name.

    Raises:
        CheckpointError: the disk refuses; names the file.
    """
    final = path.with_name(path.name.removesuffix(".tmp"))
    with naming(path):
        digest = sync_and_hash(path)
        path.rename(final)
        sync_folder(final.parent)
    _, meta = shard_header(final)
    return ShardEntry(
        int(meta["shard"]), final.name, final.stat().st_size, digest, Stamp(*json.loads(meta["stamp"]))
    )


def load_shard(
    folder: Path, manifest: Manifest, *, shard: int, spans: Sequence[Span], incarnation: int
) -> ShardState:
    """Gather a shard's state for any partition of the job.

    A piece keeps the update count that it had. Where the spans are those of a shard in the checkpoint, clock
    and pushers are that shard's; else they are the largest among all shards, with the receipts on which they agree.

    Args:
        shard: the new shard's index.
        spans: what it owns.
        incarnation: the incarnation that it starts.

    Raises:
        CheckpointError: a file cannot be read.
    """
    held = [shard_header(folder / entry.file)[0] for entry in manifest.shards]
    same = next((old for old in held if old.shard == shard and _spans(old) == list(spans)), None)
    sources = held if same is None else [same]
    pushers: dict[str, PusherState] = {}
    for old in sources:
        for name, state in old.pushers.items():
            pushers[name] = _merged(pushers.get(name, state), state)
    segments = [segment for span in spans for segment in _cut(span, held)]
    arrays = _gather(folder, manifest, spans, held)
    clock = max(old.stamp.clock for old in sources)
    constants = {name: given for old in sources for name, given in old.constants.items()}
    own = {span.tensor: constants[span.tensor] for span in spans if span.tensor in constants}
    return ShardState(shard, Stamp(incarnation, clock), tuple(segments), arrays, pushers, own)


def load_tensors(folder: Path, manifest: Manifest) -> dict[str, dict[str, Array]]:
    """Every slot's (and "w"'s) whole tensors, in their shapes."""
    spans = [Span(spec.name, 0, spec.numel) for spec in manifest.tensors]
    held = [shard_header(folder / entry.file)[0] for entry in manifest.shards]
    gathered = _gather(folder, manifest, spans, held)
    specs = {spec.name: spec for spec in manifest.tensors}
    return {
        slot: {name: in_order(specs[name], a) for name, a in arrays.items()}
        for slot, arrays in gathered.items()
    }


def update_counts(folder: Path, manifest: Manifest) -> dict[str, list[int]]:
    """By tensor, the update counts of its pieces."""
    counts: dict[str, list[int]] = {spec.name: [] for spec in manifest.tensors}
    for entry in manifest.shards:
        for segment in shard_header(folder / entry.file)[0].segments:
            counts[segment.tensor].append(segment.updates)
    return counts


def last_constants(folder: Path, manifest: Manifest) -> dict[str, Mapping[str, float]]:
    """By tensor, the constants that its last push brought, where it brought any; the rate is "lr"."""
    held = [shard_header(folder / entry.file)[0] for entry in manifest.shards]
    return {name: given for shard in held for name, given in shard.constants.items()}


# ---- inside


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What one file's header says."""

    shard: int
    stamp: Stamp
    segments: tuple[Segment, ...]
    pushers: Mapping[str, PusherState]
    slots: tuple[str, ...]
    constants: Constants


def shard_header(path: Path) -> tuple[ShardHeader, Mapping[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            meta: Mapping[str, str] = file.metadata()
            slots = dict.fromkeys(key.partition("/")[0] for key in file.keys())  # noqa: SIM118 - no mapping
        held = ShardHeader(
            int(meta["shard"]),
            Stamp(*json.loads(meta["stamp"])),
            tuple(Segment(*segment) for segment in json.loads(meta["segments"])),
            {name: _pusher(state) for name, state in json.loads(meta["pushers"]).items()},
            tuple(slots),
            json.loads(meta.get("constants", "{}")),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path)) from None
    return held, meta


def _pusher_json(pusher: PusherState) -> list[Any]:
    receipts = [[seq, r.outcome, *r.stamp, r.staleness, r.reason] for seq, r in pusher.receipts.items()]
    return [pusher.last_seq, pusher.steps, pusher.session, pusher.kind, receipts]


def _pusher(state: Sequence[Any]) -> PusherState:
    """What `_pusher_json` wrote, or format 1, which ends after the steps."""
    last_seq, steps, *rest = state
    if not rest:
        return PusherState(last_seq, steps)
    session, kind, receipts = rest
    return PusherState(
        last_seq,
        steps,
        session,
        kind,
        {
            seq: Receipt(Outcome(outcome), Stamp(incarnation, clock), staleness, reason)
            for seq, outcome, incarnation, clock, staleness, reason in receipts
        },
    )


def _merged(one: PusherState, other: PusherState) -> PusherState:
    """What two shards remember of a pusher; of receipts, those with one outcome on both."""
    ahead, behind = sorted((one, other), key=lambda state: state.last_seq, reverse=True)
    receipts = {
        seq: receipt
        for seq, receipt in ahead.receipts.items()
        if seq in behind.receipts and behind.receipts[seq].outcome is receipt.outcome
    }
    return replace(ahead, steps=max(one.steps, other.steps), receipts=receipts)


def _spans(held: ShardHeader) -> list[Span]:
    """A shard's spans, from its segments (a tensor's are adjacent)."""
    spans: dict[str, Span] = {}
    for s in held.segments:
        first = spans.get(s.tensor)
        spans[s.tensor] = Span(s.tensor, first.start if first else s.start, s.stop)
    return list(spans.values())


def _cut(span: Span, held: Sequence[ShardHeader]) -> list[Segment]:
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
    folder: Path, manifest: Manifest, spans: Sequence[Span], held: Sequence[ShardHeader]
) -> dict[str, dict[str, Array]]:
    dtypes = {spec.name: spec.dtype for spec in manifest.tensors}
    slots = dict.fromkeys(slot for old in held for slot in old.slots)
    arrays: dict[str, dict[str, Array]] = {
        slot: {span.tensor: np.empty(span.numel, dtypes[span.tensor]) for span in spans} for slot in slots
    }
    for entry, old in zip(manifest.shards, held, strict=True):
        owned = {span.tensor: span for span in _spans(old)}
        try:
            with safe_open(folder / entry.file, framework="numpy") as file:
                for span in spans:
                    source = owned.get(span.tensor)
                    if source is None:
                        continue
                    start, stop = max(span.start, source.start), min(span.stop, source.stop)
                    if start >= stop:
                        continue
                    for slot in old.slots:
                        part = file.get_slice(f"{slot}/{span.tensor}")[
                            start - source.start : stop - source.start
                        ]
                        arrays[slot][span.tensor][start - span.start : stop - span.start] = part
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot be read: {error}", field=str(folder / entry.file)) from None
    return arrays
