"""Where a pull's parameters go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from adamserve.errors import InvalidArgument, NotFound
from adamserve.rpc import codec, wire
from adamserve.sparse import Wanted
from adamserve.values import Array, Span, TensorSpec


class Target:
    """The arrays that a pull fills, from any number of shards at once.

    Args:
        specs: the job's tensors by name.
        into: arrays to fill; None makes new ones.
        rows: by tensor, row numbers: only those are pulled, into a new array.

    Raises:
        NotFound, InvalidArgument: an array or a row does not fit; names the tensor.
    """

    def __init__(
        self, specs: Mapping[str, TensorSpec], into: Mapping[str, Array] | None, rows: Mapping[str, Array]
    ) -> None:
        for name in rows:
            if name not in specs:
                raise NotFound("the job has no such tensor", field=name)
        self._specs = specs
        self._wanted = {name: Wanted(specs[name], numbers) for name, numbers in rows.items()}
        whole = [spec for name, spec in specs.items() if name not in rows]
        self._whole = {
            spec.name: _writable(spec, into.get(spec.name))
            if into is not None
            else np.empty(spec.shape, spec.dtype)
            for spec in whole
        }
        self._flat = {name: array.reshape(-1) for name, array in self._whole.items()}

    def asked(self, spans: Iterable[Span]) -> Iterator[tuple[Span, Array]]:
        """Of some spans, those of which only rows are wanted, and which."""
        for span in spans:
            if span.tensor in self._wanted:
                yield span, self._wanted[span.tensor].within(span)

    def expected(self, spans: Iterable[Span]) -> int:
        """The number of elements to come for some spans."""
        spans = list(spans)
        by_row = sum(len(rows) * self._specs[span.tensor].width for span, rows in self.asked(spans))
        return by_row + sum(span.numel for span in spans if span.tensor not in self._wanted)

    def put(self, chunk: wire.Chunk) -> int:
        """Write a chunk to its place; returns the number of elements."""
        wanted = self._wanted.get(chunk.tensor)
        if wanted is None:
            codec.decode(chunk, self._flat[chunk.tensor][chunk.start : chunk.start + chunk.length])
            return chunk.length
        return wanted.put(*codec.decode_rows(chunk, self._specs[chunk.tensor].width))

    def result(self) -> dict[str, Array]:
        """The arrays by tensor."""
        return {
            name: self._wanted[name].result() if name in self._wanted else self._whole[name]
            for name in self._specs
        }


def _writable(spec: TensorSpec, array: Array | None) -> Array:
    if array is None or array.shape != spec.shape or array.dtype != spec.dtype:
        raise InvalidArgument(f"needs an array of {spec.dtype} {spec.shape}", field=spec.name)
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise InvalidArgument("is not writable and contiguous", field=spec.name)
    return array
