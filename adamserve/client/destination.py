"""Where a pull's parameters go: arrays of the caller's, or new ones, and rows in the order asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from adamserve.errors import InvalidArgument, NotFound
from adamserve.shard import sparse
from adamserve.values import Array, Span, TensorSpec
from adamserve.wire import chunks, codec


class Target:
    """The arrays that a pull fills, from any number of shards at once; `into` and `rows` are `Client.pull`'s.

    Attributes:
        flat: by tensor that is pulled whole, 1-D memory to write elements to, its rows in the shards' order.
    """

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        into: Mapping[str, Array] | None = None,
        rows: Mapping[str, Array] | None = None,
    ) -> None:
        rows = rows or {}
        for name in rows:
            if name not in specs:
                raise NotFound("the job has no such tensor", field=name)
        self._specs = specs
        self._wanted = {name: _Wanted(specs[name], numbers) for name, numbers in rows.items()}
        self._whole = {
            name: np.empty(spec.shape, spec.dtype) if into is None else _writable(spec, into.get(name))
            for name, spec in specs.items()
            if name not in rows
        }
        self.flat = {
            name: array.reshape(-1) if specs[name].stride == 1 else np.empty(array.size, array.dtype)
            for name, array in self._whole.items()
        }

    def asked(self, spans: Iterable[Span]) -> Iterator[tuple[Span, Array]]:
        """Of some spans, those of which only rows are wanted, and which: by their places, increasing."""
        for span in spans:
            if span.tensor in self._wanted:
                yield span, self._wanted[span.tensor].within(span)

    def expected(self, spans: Iterable[Span]) -> int:
        """The number of elements to come for some spans."""
        spans = list(spans)
        by_row = sum(len(rows) * self._specs[span.tensor].width for span, rows in self.asked(spans))
        return by_row + sum(span.numel for span in spans if span.tensor not in self._wanted)

    def take(self, chunk: chunks.Chunk, spans: Mapping[str, Span]) -> int:
        """Write a chunk of a shard's answer to its place; returns how many elements it had.

        Raises InvalidArgument for one that is garbled, or of none of the shard's spans.
        """
        if chunk.rows is not None:
            rows, values, _ = codec.decode_rows(chunk, self._specs[chunk.tensor].width)
            self._wanted[chunk.tensor].put(rows, values)
        else:
            begin, end = chunk.start, chunk.start + chunk.length
            span = spans.get(chunk.tensor)
            if span is None or not span.start <= begin <= end <= span.stop:
                raise InvalidArgument(f"elements {begin} to {end} are another shard's", field=chunk.tensor)
            codec.decode(chunk, self.flat[chunk.tensor][begin:end])
        return chunk.length

    def result(self) -> dict[str, Array]:
        """The arrays by tensor, when everything has come."""
        for name, spec in self._specs.items():
            if name in self._whole and spec.stride != 1:
                self._whole[name][...] = sparse.in_order(spec, self.flat[name])
        return {
            name: self._wanted[name].result() if name in self._wanted else self._whole[name]
            for name in self._specs
        }


class _Wanted:
    """Rows of one tensor that a pull asks for, in any order, also more than once; kept by their places."""

    def __init__(self, spec: TensorSpec, rows: Any) -> None:
        named = sparse.check_indices(spec, np.asarray(rows))
        self._width = spec.width
        self.rows, self._order = np.unique(sparse.places(spec, named), return_inverse=True)
        self._shape = (len(named), *spec.shape[1:])
        self.values: Array = np.empty((len(self.rows), spec.width), spec.dtype)

    def within(self, span: Span) -> Array:
        """Those of a span, increasing."""
        return self.rows[sparse.within(self.rows, span, self._width)]

    def put(self, rows: Array, values: Array) -> None:
        """Write what has come for some of the rows."""
        self.values[np.searchsorted(self.rows, rows)] = values

    def result(self) -> Array:
        """The rows in the order in which they were asked for."""
        return self.values[self._order].reshape(self._shape)


def _writable(spec: TensorSpec, array: Array | None) -> Array:
    if array is None or array.shape != spec.shape or array.dtype != spec.dtype:
        raise InvalidArgument(f"needs an array of {spec.dtype} {spec.shape}", field=spec.name)
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise InvalidArgument("is not writable and contiguous", field=spec.name)
    return array
