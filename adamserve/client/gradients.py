"""Gradients before they leave: checked, laid out for the shards, and given the encoding that they travel in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamserve.client.session import Session
from adamserve.errors import InvalidArgument, NotFound
from adamserve.shard import sparse
from adamserve.shard.checks import check_dense, check_value, not_finite
from adamserve.values import Array, Gradient, SparseRows, TensorSpec
from adamserve.wire import codec


class Prepared(NamedTuple):
    """A gradient as it is sent: one run of elements or checked rows, its encoding, and what that loses of it."""

    gradient: Gradient
    encoding: str
    lost: Array | None = None


class Gradients:
    """What a client sends of its gradients; `lost` is what int8 has lost of each so far."""

    def __init__(self, session: Session, wire_dtype: str) -> None:
        known = [name for name in codec.ENCODINGS if name != "float64"]
        if wire_dtype not in known:
            raise InvalidArgument(
                f"{wire_dtype!r} is not a wire dtype", field="wire_dtype", fix=f"one of {', '.join(known)}"
            )
        self._session = session
        self._wire_dtype = wire_dtype
        self.lost: dict[str, Array] = {}

    def checked(self, name: str, gradient: Gradient, *, copy: bool) -> Gradient:
        """Check a gradient, and bring it into the form that is sent; `copy` if the caller may change it."""
        spec = self._spec(name)
        rows = sparse.as_rows(name, gradient)
        if rows is not None:
            rows = sparse.for_shards(spec, SparseRows(rows.indices, _widened(rows.values)))
            self._check_finite(spec, rows)
            return SparseRows(rows.indices, rows.values.copy() if copy else rows.values)
        array = np.asarray(gradient)
        check_dense(spec, array, spec.shape)
        wide = _widened(array)
        own = copy and spec.stride == 1 and wide is array  # otherwise it is a copy, or `to_places` makes one
        flat = sparse.to_places(spec, np.array(wide, order="C") if own else np.ascontiguousarray(wide))
        self._check_finite(spec, flat)
        return flat

    def values(self, name: str, values: Gradient) -> Prepared:
        """Check values that a parameter or a slot is to be assigned; they travel in the tensor's own dtype."""
        spec = self._spec(name)
        rows = sparse.as_rows(name, values)
        whole = np.asarray(values) if rows is None else rows
        check_value(spec, whole)
        if not np.isfinite(_values(whole)).all():
            raise InvalidArgument("the values hold NaN or infinity", field=name, fix="assign finite values")
        return Prepared(self.checked(name, values, copy=False), spec.dtype)

    def prepared(self, name: str, gradient: Gradient) -> Prepared:
        """Choose a checked gradient's encoding; to one that travels as int8, add what was lost of the last one."""
        spec = self._session.topology.tensors[name]
        encoding = self._encoding(spec, gradient)
        if encoding != "int8" or isinstance(gradient, SparseRows):
            return Prepared(gradient, encoding)
        total: Array = gradient + self.lost.get(name, np.float32(0))
        lost = np.empty_like(total)
        for span in (span for link in self._session.links for span in link.spans if span.tensor == name):
            part = slice(span.start, span.stop)
            codec.dequantize(*codec.quantize(total[part]), out=lost[part])
        np.subtract(total, lost, out=lost)
        return Prepared(total, encoding, lost)

    @property
    def pulled_as(self) -> str:
        """How float32 parameters travel."""
        return self._wire_dtype if self._wire_dtype in ("bfloat16", "float16") else "float32"

    def _spec(self, name: str) -> TensorSpec:
        spec = self._session.topology.tensors.get(name)
        if spec is None:
            known = ", ".join([*self._session.topology.tensors][:5])
            raise NotFound("the job has no such tensor", field=name, fix=f"it has {known}")
        return spec

    def _check_finite(self, spec: TensorSpec, gradient: Gradient) -> None:
        """One shard refuses a push whole by itself; of several, some would apply their part and others not. int8 would
        change a NaN."""
        encoding = self._encoding(spec, gradient)
        checks_here = len(self._session.links) > 1 or encoding == "int8"
        if checks_here and not codec.fits(_values(gradient), encoding):
            raise not_finite(spec.name)

    def _encoding(self, spec: TensorSpec, gradient: Gradient) -> str:
        """The encoding that a gradient travels in: narrow for float32 parameters only."""
        if spec.dtype != "float32":
            return str(_values(gradient).dtype)
        # int8 needs the error of the last gradient of the same rows.
        by_rows = isinstance(gradient, SparseRows)
        return "float32" if by_rows and self._wire_dtype == "int8" else self._wire_dtype


def _values(gradient: Gradient) -> Array:
    return gradient.values if isinstance(gradient, SparseRows) else gradient


def _widened(values: Array) -> Array:
    """Halves as float32; anything else as it is."""
    return values.astype(np.float32) if values.dtype.name in ("float16", "bfloat16") else values
