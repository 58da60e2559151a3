"""Gradients on their way out: checked, laid out for the shards, and written in the encoding of the wire."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adamserve.client.link import Feed, Link
from adamserve.client.session import Session
from adamserve.errors import InvalidArgument, NotFinite, NotFound
from adamserve.shard.sparse import as_rows, for_shards, to_places
from adamserve.values import Array, Gradient, SparseRows
from adamserve.wire import codec


class Outgoing:
    """What a client sends of its gradients, and what int8 has lost of them so far.

    Attributes:
        encoding: how float32 gradients travel; a name of `codec.ENCODINGS`.
    """

    def __init__(self, session: Session, encoding: str) -> None:
        self._session = session
        self.encoding = encoding
        self._residual: dict[str, Array] = {}

    def checked(self, name: str, gradient: Gradient, *, copy: bool) -> Gradient:
        """A gradient as one contiguous run, or as increasing rows; checked before anything is sent."""
        spec = self._session.tensors.get(name)
        if spec is None:
            known = ", ".join([*self._session.tensors][:5])
            raise NotFound("the job has no such tensor", field=name, fix=f"it has {known}")
        rows = as_rows(name, gradient)
        if rows is not None:
            found = for_shards(spec, rows)
            values = found.values if found.values.dtype != np.float16 else found.values.astype(np.float32)
            self._check_values(name, values, by_rows=True)
            return SparseRows(found.indices, values.copy() if copy else values)
        gradient = np.asarray(gradient)
        if gradient.shape != spec.shape:
            raise InvalidArgument(f"a gradient of shape {gradient.shape} for {spec.shape}", field=name)
        if gradient.dtype == np.float16:
            gradient = gradient.astype(np.float32)
        if gradient.dtype != np.float32 and gradient.dtype != spec.dtype:
            raise InvalidArgument(
                f"a gradient of dtype {gradient.dtype} for a {spec.dtype} parameter", field=name
            )
        own = copy and spec.stride == 1  # otherwise `to_places` copies
        flat = to_places(spec, np.array(gradient, order="C") if own else np.ascontiguousarray(gradient))
        self._check_values(name, flat, by_rows=False)
        return flat

    def _check_values(self, name: str, values: Array, *, by_rows: bool) -> None:
        """One shard refuses a push whole by itself; of several, some would apply their part and others not. int8 would
        change a NaN."""
        encoding = self._travels_as(name, values, by_rows=by_rows)
        checks_here = len(self._session.shards) > 1 or encoding == "int8"
        if checks_here and not codec.fits(values, encoding):
            raise NotFinite(
                "the gradient holds NaN or infinity, or numbers too large for the wire",
                field=name,
                fix="skip this batch, clip the gradient, or send float32",
            )

    def _travels_as(self, name: str, values: Array, *, by_rows: bool) -> str:
        """The encoding of a gradient: narrow for float32 parameters only."""
        if self._session.tensors[name].dtype != "float32":
            return str(values.dtype)
        # int8 needs the error of the last gradient of the same rows.
        return "float32" if by_rows and self.encoding == "int8" else self.encoding

    def with_residual(self, name: str, gradient: Gradient) -> Gradient:
        """Error feedback: add what int8 lost of the last gradient, and keep what it loses of this one."""
        if isinstance(gradient, SparseRows) or self._travels_as(name, gradient, by_rows=False) != "int8":
            return gradient
        total: Array = gradient + self._residual.get(name, np.float32(0))
        lost = self._residual[name] = np.empty_like(total)
        for shard in self._session.shards:
            for span in shard.spans:
                if span.tensor == name:
                    part = total[span.start : span.stop]
                    codec.dequantize(*codec.quantize(part), out=lost[span.start : span.stop])
        np.subtract(total, lost, out=lost)
        return total

    def messages(self, shard: Link, feed: Feed, head: bytes) -> Iterator[list[bytes | memoryview]]:
        """A push as messages of about a chunk: head in the first, commit in the last; small tensors share one."""
        message: list[bytes | memoryview] = [head]
        size = 0
        for span, gradient in feed.parts(shard):
            if isinstance(gradient, SparseRows):
                name = self._travels_as(span.tensor, gradient.values, by_rows=True)
                fields = codec.encode_rows(span.tensor, gradient.indices, gradient.values, name)
            else:
                name = self._travels_as(span.tensor, gradient, by_rows=False)
                fields = codec.encode(span.tensor, gradient, span.start, name)
            for parts in fields:
                message += parts
                size += sum(map(len, parts))
                if size >= codec.CHUNK_BYTES:
                    yield message
                    message, size = [], 0
        yield [*message, b"" if feed.aborted else feed.tail or b""]
