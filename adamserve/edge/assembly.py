"""Tensors put together from the chunks of a message stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from adamserve.edge.buffers import Buffers
from adamserve.errors import InvalidArgument, LimitExceeded, NotFinite, NotFound
from adamserve.shard.geometry import Partition
from adamserve.shard.sparse import check_table
from adamserve.values import Array, Gradient, Span, SparseRows, TensorSpec
from adamserve.wire import chunks, codec

RANGES = 65_536
"""Separate runs of one tensor that a push may arrive in."""

_HELD: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("<f4"),
}
"""What elements are held as until the push is whole; rules read halves as they are."""


class Assembly:
    """The tensors of one message stream, a shard's spans of a job, put together from chunks that come in any order.

    With `values` the chunks are values of parameters or slots, in the tensors' own dtypes, rather than gradients.
    """

    def __init__(self, partition: Partition, shard: int, buffers: Buffers, *, values: bool = False) -> None:
        self._partition = partition
        self._shard = shard
        self._spans = {span.tensor: span for span in partition.shards[shard]}
        self._buffers = buffers
        self._values = values
        self._arrays: dict[str, Array] = {}
        self._ranges: dict[str, list[tuple[int, int]]] = {}
        self._rows: dict[str, list[tuple[Array, Array]]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, chunk: chunks.Chunk) -> None:
        """Check a chunk and copy it to its place.

        Raises:
            NotFound: the shard owns no such tensor.
            InvalidArgument: elements outside the span or sent twice, an encoding that the tensor does not take, a wrong
                number of bytes or checksum.
            LimitExceeded: the tensor comes in too many pieces, or in one that is too large.
        """
        span = self._spans.get(chunk.tensor)
        spec = self._partition.spec(chunk.tensor)
        if span is None:
            raise NotFound(
                f"shard {self._shard} owns no part of it", field=chunk.tensor, fix="ask the topology"
            )
        by_rows = chunk.rows is not None
        if chunk.tensor in (self._arrays if by_rows else self._rows):
            raise InvalidArgument("comes by rows and by elements", field=chunk.tensor)
        if len(chunk.data) > codec.MAX_CHUNK_BYTES:
            raise LimitExceeded(
                f"a chunk of {len(chunk.data)} bytes",
                field=chunk.tensor,
                fix=f"at most {codec.MAX_CHUNK_BYTES} bytes a chunk",
            )
        name = codec.encoding_name(chunk.encoding, field=chunk.tensor)
        encoding = codec.ENCODINGS[name]
        if spec.dtype not in encoding.gradients or (self._values and name != spec.dtype):
            what = "parameter" if self._values else "gradient of a"
            raise InvalidArgument(f"{name} for a {spec.dtype} {what}", field=chunk.tensor)
        if not (self._add_rows(chunk, spec) if by_rows else self._add_elements(chunk, span, name)):
            what = "rows" if by_rows else f"elements {chunk.start} to {chunk.start + chunk.length}"
            raise NotFinite(
                f"{what} hold NaN or infinity",
                field=chunk.tensor,
                fix="skip this batch, or clip the gradient",
            )

    def _add_elements(self, chunk: chunks.Chunk, span: Span, name: str) -> bool:
        """Copy elements to their place; returns whether all are finite."""
        begin, end = chunk.start, chunk.start + chunk.length
        if chunk.length < 0 or begin < span.start or end > span.stop:
            raise InvalidArgument(
                f"elements {begin} to {end}, but the shard owns {span.start} to {span.stop}",
                field=chunk.tensor,
            )
        array = self._arrays.get(chunk.tensor)
        if array is None:
            array = self._arrays[chunk.tensor] = self._buffers.take(span.numel, _HELD[name])
        elif array.dtype != _HELD[name]:
            other = next(known for known, held in _HELD.items() if held == array.dtype)
            raise InvalidArgument(
                f"chunks of {name} and of {other}",
                field=chunk.tensor,
                fix="send all of a tensor in one encoding",
            )
        ranges = self._ranges.setdefault(chunk.tensor, [])
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], end)
        elif ranges and ranges[-1][0] < end and begin < ranges[-1][1]:
            raise InvalidArgument(f"elements {begin} to {end} came twice", field=chunk.tensor)
        elif len(ranges) >= RANGES:
            raise LimitExceeded(
                f"more than {RANGES} separate runs", field=chunk.tensor, fix="send larger chunks"
            )
        else:
            ranges.append((begin, end))
        return codec.decode(chunk, array[begin - span.start : end - span.start])

    def _add_rows(self, chunk: chunks.Chunk, spec: TensorSpec) -> bool:
        """Keep rows; returns whether all their values are finite."""
        total = check_table(spec)
        parts = self._rows.setdefault(chunk.tensor, [])
        rows, values, finite = codec.decode_rows(chunk, spec.width)
        parts.append((rows, values))
        self._counts[chunk.tensor] += len(rows)
        if self._counts[chunk.tensor] > total or len(parts) > RANGES:
            raise LimitExceeded(
                f"more rows than its {total}", field=chunk.tensor, fix="sum rows that are named twice"
            )
        return finite

    def gradients(self) -> dict[str, Gradient]:
        """`arrays`, and the gradients that came by rows, in the order in which they came."""
        gradients: dict[str, Gradient] = {**self.arrays()}
        for name, parts in self._rows.items():
            indices, values = zip(*parts, strict=True)
            gradients[name] = SparseRows(np.concatenate(indices), np.concatenate(values))
        return gradients

    def arrays(self) -> dict[str, Array]:
        """The arrays, every element of each received once.

        Raises:
            InvalidArgument: elements are missing, or came twice.
        """
        for name, ranges in self._ranges.items():
            at = self._spans[name].start
            for begin, end in sorted(ranges):
                if begin != at:
                    problem = "are missing" if begin > at else "came twice"
                    raise InvalidArgument(
                        f"elements {min(begin, at)} to {max(begin, at)} {problem}", field=name
                    )
                at = end
            if at != self._spans[name].stop:
                raise InvalidArgument(f"elements {at} to {self._spans[name].stop} are missing", field=name)
        return self._arrays
