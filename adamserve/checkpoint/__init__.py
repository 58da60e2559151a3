"""A job's shards on disk: one safetensors file a shard and a manifest, written last.

    ROOT/00000007/shard-00000.safetensors     arrays "SLOT/TENSOR", 1-D: the shard's span of the tensor
                  shard-00001.safetensors
                  manifest.json               configuration, and the size and checksum of every file

Each file is written beside, fsynced and renamed, the manifest after all shards. A folder without a manifest is
unfinished and is never read. Restoring works onto any number of shards: every array is gathered from the files
that hold parts of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from adamserve.errors import CheckpointError, NotFound
from adamserve.shard.sparse import in_order
from adamserve.values import (
    Array,
    Config,
    Outcome,
    PusherState,
    Receipt,
    Segment,
    ShardState,
    Span,
    Stamp,
    TensorSpec,
)

FORMAT = 2
"""Version of what is written. Format 1, which is read too, had neither sessions nor receipts."""

READABLE = (1, 2)
"""Versions that are read."""

MANIFEST = "manifest.json"

INCARNATION = "incarnation"
"""File in a job's folder with the largest incarnation that was handed out."""

DTYPES: Mapping[str, str] = {"float32": "F32", "float64": "F64"}
"""safetensors' names of the dtypes."""


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


# ---- writing


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
    with _named(path), path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
        for array in arrays:
            _write_all(file.fileno(), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return path


def seal_shard(path: Path) -> ShardEntry:
    """Make a file of `write_shard` durable, reckon its checksum, and give it its name.

    Raises:
        CheckpointError: the disk refuses; names the file.
    """
    final = path.with_name(path.name.removesuffix(".tmp"))
    with _named(path):
        digest = _sync_and_hash(path)
        path.rename(final)
        _sync_folder(final.parent)
    _, meta = _metadata(final)
    return ShardEntry(
        int(meta["shard"]), final.name, final.stat().st_size, digest, Stamp(*json.loads(meta["stamp"]))
    )


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest, which completes the checkpoint.

    Raises:
        CheckpointError: the disk refuses; the checkpoint stays unfinished.
    """
    body = asdict(manifest)
    path = folder / MANIFEST
    temporary = folder / f"{MANIFEST}.tmp"
    with _named(path):
        with temporary.open("w") as file:
            json.dump({**body, "sha256": _checksum(body)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(folder)
        _sync_folder(folder.parent)
    return path


def new_incarnation(root: Path, at_least: int) -> int:
    """An incarnation that no shard of the job has been in, in this life of the service or an earlier one.

    What was handed out is on disk before it is used: a crash between a restore and the next checkpoint would otherwise
    make two histories that look alike to their pushers.

    Args:
        root: the job's folder.
        at_least: one more than the incarnations that are known.

    Raises:
        CheckpointError: the record cannot be read or written; names it.
    """
    path = root / INCARNATION
    if not path.exists() and (root / "epoch").exists():  # as format 1 called it
        path = root / "epoch"
    try:
        last = int(path.read_text())
    except FileNotFoundError:
        last = 0
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", field=str(path), fix="write the largest incarnation in use into it"
        ) from None
    incarnation = max(at_least, last + 1)
    path = root / INCARNATION
    temporary = root / f"{INCARNATION}.tmp"
    with _named(path):
        with temporary.open("w") as file:
            file.write(f"{incarnation}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(root)
    return incarnation


# ---- finding


def list_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Every checkpoint below a job's folder, oldest first, unfinished and unreadable ones too."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if not (folder.is_dir() and folder.name.isdecimal()):
            continue
        number = int(folder.name)
        if not (folder / MANIFEST).exists():
            found.append(CheckpointInfo(number, folder, False, "unfinished: it has no manifest"))
            continue
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            found.append(CheckpointInfo(number, folder, False, str(error)))
            continue
        clocks = tuple(entry.stamp.clock for entry in manifest.shards)
        nbytes = sum(entry.nbytes for entry in manifest.shards)
        found.append(CheckpointInfo(number, folder, True, "", manifest.job, manifest.created, clocks, nbytes))
    return found


def list_jobs(root: Path) -> list[str]:
    """Every job with a checkpoint below a service's folder; one whose first was cut short has none yet."""
    jobs = sorted(root.iterdir()) if root.is_dir() else []
    return [job.name for job in jobs if job.is_dir() and any(info.complete for info in list_checkpoints(job))]


def next_number(root: Path) -> int:
    """One more than the largest number there is, finished or not."""
    return max((info.number for info in list_checkpoints(root)), default=0) + 1


def newest(root: Path, *, on_skip: Callable[[Path, str], None] | None = None) -> tuple[Path, Manifest]:
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
            if on_skip is not None:
                on_skip(info.folder, str(error))
    raise NotFound(
        "there is no checkpoint that verifies" + (f": {'; '.join(reasons)}" if reasons else ""),
        field=str(root),
    )


def prune(root: Path, *, keep: int) -> None:
    """Delete the oldest complete checkpoints beyond `keep`, and unfinished ones older than the newest complete one."""
    infos = list_checkpoints(root)
    complete = [info for info in infos if info.complete]
    if not complete:
        return
    stale = complete[:-keep] + [i for i in infos if not i.complete and i.number < complete[-1].number]
    for info in stale:
        # The manifest goes first, so that a half-deleted folder is never taken for a checkpoint.
        (info.folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(info.folder)


# ---- reading


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
        if claimed != _checksum(body):
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


def verify(folder: Path) -> Manifest:
    """Check a whole checkpoint: manifest, size and checksum of every file, every element of every tensor once.

    Raises:
        CheckpointError: names the first file that is wrong, and how.
    """
    manifest = read_manifest(folder)
    spans: dict[str, list[tuple[int, int]]] = {spec.name: [] for spec in manifest.tensors}
    for entry in manifest.shards:
        path = folder / entry.file
        try:
            if not path.is_file():
                raise CheckpointError("is missing", field=str(path))
            if path.stat().st_size != entry.nbytes:
                raise CheckpointError(
                    f"has {path.stat().st_size} bytes, expected {entry.nbytes}", field=str(path)
                )
            if _hash(path) != entry.sha256:
                raise CheckpointError("was altered: its checksum does not fit", field=str(path))
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror or error}", field=str(path)) from None
        shard, _ = _metadata(path)
        if shard.shard != entry.shard:
            raise CheckpointError(f"holds shard {shard.shard}, expected {entry.shard}", field=str(path))
        for segment in shard.segments:
            spans.setdefault(segment.tensor, []).append((segment.start, segment.stop))
    for spec in manifest.tensors:
        reached = 0
        for start, stop in sorted(spans[spec.name]):
            if start != reached:
                raise CheckpointError(
                    f"elements {reached} to {start} of {spec.name!r} are not held once", field=str(folder)
                )
            reached = stop
        if reached != spec.numel:
            raise CheckpointError(
                f"{spec.name!r} ends at element {reached} of {spec.numel}", field=str(folder)
            )
    return manifest


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
    held = [_metadata(folder / entry.file)[0] for entry in manifest.shards]
    same = next((old for old in held if old.shard == shard and _spans(old) == list(spans)), None)
    sources = held if same is None else [same]
    pushers: dict[str, PusherState] = {}
    for old in sources:
        for name, state in old.pushers.items():
            pushers[name] = _merged(pushers.get(name, state), state)
    segments = [segment for span in spans for segment in _cut(span, held)]
    arrays = _gather(folder, manifest, spans, held)
    clock = max(old.stamp.clock for old in sources)
    return ShardState(shard, Stamp(incarnation, clock), tuple(segments), arrays, pushers)


def load_tensors(folder: Path, manifest: Manifest) -> dict[str, dict[str, Array]]:
    """Every slot's (and "w"'s) whole tensors, in their shapes."""
    spans = [Span(spec.name, 0, spec.numel) for spec in manifest.tensors]
    held = [_metadata(folder / entry.file)[0] for entry in manifest.shards]
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
        for segment in _metadata(folder / entry.file)[0].segments:
            counts[segment.tensor].append(segment.updates)
    return counts


# ---- inside


@dataclass(frozen=True, slots=True)
class _Held:
    """What one file's header says."""

    shard: int
    stamp: Stamp
    segments: tuple[Segment, ...]
    pushers: Mapping[str, PusherState]
    slots: tuple[str, ...]


def _metadata(path: Path) -> tuple[_Held, Mapping[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            meta: Mapping[str, str] = file.metadata()
            slots = dict.fromkeys(key.partition("/")[0] for key in file.keys())  # noqa: SIM118 - no mapping
        held = _Held(
            int(meta["shard"]),
            Stamp(*json.loads(meta["stamp"])),
            tuple(Segment(*segment) for segment in json.loads(meta["segments"])),
            {name: _pusher(state) for name, state in json.loads(meta["pushers"]).items()},
            tuple(slots),
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


def _spans(held: _Held) -> list[Span]:
    """A shard's spans, from its segments (a tensor's are adjacent)."""
    spans: dict[str, Span] = {}
    for s in held.segments:
        first = spans.get(s.tensor)
        spans[s.tensor] = Span(s.tensor, first.start if first else s.start, s.stop)
    return list(spans.values())


def _cut(span: Span, held: Sequence[_Held]) -> list[Segment]:
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
    folder: Path, manifest: Manifest, spans: Sequence[Span], held: Sequence[_Held]
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


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    """write(2) may take less than it is given (2 GiB at most)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot be written: {error.strerror or error}",
            field=str(path),
            fix="free some space, or give another folder",
        ) from error
