"""The copies of a shard's parameters that all pullers of a clock share, in the encodings of the wire."""

from __future__ import annotations

from collections.abc import Mapping

from adamserve.edge.buffers import Buffers
from adamserve.optim.engine.threads import share
from adamserve.values import Array
from adamserve.wire import codec


class EncodedPublisher:
    """Copies into memory of earlier copies that nobody sends from any more (`adamserve.shard.host.Publisher`)."""

    def __init__(self) -> None:
        self._buffers = Buffers()

    def room(self, encoding: str, items: int) -> Array:
        return self._buffers.take(items, codec.ENCODINGS[encoding].item)

    def copy(self, arrays: Mapping[str, Array], encoding: str) -> Mapping[str, Array]:
        return {
            dtype: self._copied(values, encoding if dtype == "float32" else dtype)
            for dtype, values in arrays.items()
        }

    def _copied(self, values: Array, encoding: str) -> Array:
        out = self._buffers.take(values.size, codec.ENCODINGS[encoding].item)

        def part(start: int, stop: int) -> None:
            codec.convert(values[start:stop], encoding, out[start:stop])

        share(values.size, part)
        return out
