"""Gradients and pulls of some rows of a tensor: what is accepted, and how it is cut for the shards."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from adamserve.errors import InvalidArgument, NotFound
from adamserve.shard.checks import check_dtype, not_finite
from adamserve.shard.geometry import BLOCK_BYTES
from adamserve.values import ITEM_BYTES, Array, Gradient, Span, SparseRows, TensorSpec


def as_rows(name: str, gradient: Any) -> SparseRows | None:
    """A sparse gradient of any kind as `SparseRows`: torch.sparse_coo, scipy's sparse matrices; None if it is dense.

    Raises InvalidArgument for a sparse layout that has no rows.
    """
    if isinstance(gradient, SparseRows):
        return SparseRows(np.asarray(gradient.indices), np.asarray(gradient.values))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(gradient, torch.Tensor) and gradient.layout is not torch.strided:
        if gradient.layout is not torch.sparse_coo:
            raise InvalidArgument(
                f"a gradient of layout {gradient.layout}", field=name, fix="convert it with to_sparse_coo()"
            )
        gradient = gradient.detach().cpu().coalesce()
        if gradient.sparse_dim() > 1:
            indices, known = gradient.indices().numpy(), gradient.values().numpy()
            rows, at = np.unique(indices[0], return_inverse=True)
            values = np.zeros((len(rows), *gradient.shape[1:]), known.dtype)
            values[at, *indices[1:]] = known
            return SparseRows(rows, values)
        return SparseRows(gradient.indices()[0].numpy(), gradient.values().numpy())
    if hasattr(gradient, "tocsr"):
        matrix = gradient.tocsr()
        rows = np.flatnonzero(np.diff(matrix.indptr))
        return SparseRows(rows, matrix[rows].toarray())
    return None


def for_shards(spec: TensorSpec, gradient: SparseRows) -> SparseRows:
    """A caller's sparse gradient as the shards take it: `checked`, and its rows numbered by their places."""
    rows = check_indices(spec, gradient.indices)
    return checked(spec, SparseRows(places(spec, rows), gradient.values))


def checked(
    spec: TensorSpec, gradient: SparseRows, span: Span | None = None, *, finite: bool = False
) -> SparseRows:
    """Check a sparse gradient, and bring it into one form: rows increasing, each once, values of shape (n, width).

    Args:
        spec: the tensor.
        gradient: left as it is.
        span: whose rows it may name; None for the whole tensor's.
        finite: the values are known to be finite.

    Raises:
        InvalidArgument: a row outside, values of another shape or dtype, more rows than there are, NaN or infinity.
    """
    rows, values = gradient.indices, gradient.values
    total = check_table(spec)
    check_dtype(spec, values.dtype)
    rows = check_indices(spec, rows, span)
    if values.shape not in ((len(rows), *spec.shape[1:]), (len(rows), spec.width)):
        raise InvalidArgument(
            f"values of shape {values.shape} for {len(rows)} rows of {spec.shape[1:]}",
            field=spec.name,
            fix=f"send shape {(len(rows), *spec.shape[1:])}",
        )
    if len(rows) > total:
        raise InvalidArgument(
            f"{len(rows)} rows for a tensor of {total}", field=spec.name, fix="sum rows that are named twice"
        )
    values = np.ascontiguousarray(values).reshape(len(rows), spec.width)
    if len(rows) > 1 and not (rows[1:] > rows[:-1]).all():
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[order]
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        if len(starts) < len(rows):
            wide = values if values.itemsize > 2 else values.astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.add.reduceat(wide, starts, axis=0)
            rows, finite = rows[starts], False
    if not finite and not np.isfinite(values).all():
        raise not_finite(spec.name)
    return SparseRows(rows, values)


def table_stride(rows: int) -> int:
    """The stride with which any run of rows is spread evenly over the places, whatever the number of shards.

    The whole number nearest to `rows` over the golden ratio that shares no factor with it: multiples of it, modulo
    `rows`, fall into the widest gap left each time (Knuth, TAOCP 3, section 6.4, Fibonacci hashing).
    """
    near = round(rows * (math.sqrt(5.0) - 1.0) / 2.0)
    found = (n for step in range(rows) for n in (near - step, near + step) if 1 < n < rows)
    return next((n for n in found if math.gcd(n, rows) == 1), 1)


def spec_of(name: str, array: Array, tables: Collection[str] = ()) -> TensorSpec:
    """The tensor that an array begins, its rows spread over the shards if it is one of the tables."""
    stride = table_stride(array.shape[0]) if name in tables and array.ndim else 1
    return TensorSpec(name, array.shape, str(array.dtype), stride)


def check_tables(specs: Sequence[TensorSpec], tables: Collection[str]) -> None:
    """Check that every table is one of the tensors, and has rows; raises NotFound or InvalidArgument."""
    known = {spec.name: spec for spec in specs}
    for name in tables:
        if name not in known:
            raise NotFound("is a table, but the job has no such tensor", field=name)
        check_table(known[name])


def places(spec: TensorSpec, rows: Array) -> Array:
    """Where the shards keep rows: int64."""
    return rows if spec.stride == 1 else rows * spec.stride % spec.shape[0]


def to_places(spec: TensorSpec, array: Array) -> Array:
    """A whole tensor with its rows in the shards' order, 1-D; a view where that is the tensor's own."""
    if spec.stride == 1:
        return array.reshape(-1)
    kept = np.empty((spec.shape[0], spec.width), array.dtype)
    kept[places(spec, np.arange(spec.shape[0]))] = array.reshape(kept.shape)
    return kept.reshape(-1)


def in_order(spec: TensorSpec, kept: Array) -> Array:
    """Undo `to_places`: an array of the tensor's shape; a view where the shards keep the tensor's own order."""
    if spec.stride == 1:
        return kept.reshape(spec.shape)
    return kept.reshape(spec.shape[0], spec.width)[places(spec, np.arange(spec.shape[0]))].reshape(spec.shape)


def check_table(spec: TensorSpec) -> int:
    """The number of rows of a tensor; raises InvalidArgument if it has none, or so long that shards may cut them."""
    if not spec.shape or not spec.width:
        raise InvalidArgument(
            f"a tensor of shape {spec.shape} has no rows", field=spec.name, fix="send it dense"
        )
    if spec.width * ITEM_BYTES[spec.dtype] > BLOCK_BYTES:
        raise InvalidArgument(
            f"rows of {spec.width} elements are too long to be sent one by one",
            field=spec.name,
            fix="send it dense",
        )
    return spec.shape[0]


def check_indices(spec: TensorSpec, rows: Array, span: Span | None = None) -> Array:
    """Row numbers of a tensor, or of a span of it, as contiguous int64; raises InvalidArgument for what is none."""
    first, stop = 0, check_table(spec)
    if span is not None:
        first, stop = rows_of(span, spec.width)
    if rows.dtype not in (np.int32, np.int64) or rows.ndim != 1:
        raise InvalidArgument(
            f"row numbers of dtype {rows.dtype} and shape {rows.shape}",
            field=spec.name,
            fix="give a 1-D array of int32 or int64",
        )
    if rows.size:
        low, high = int(rows.min()), int(rows.max())
        if low < first or high >= stop:
            outside = low if low < first else high
            raise InvalidArgument(f"row {outside} is not one of {first} to {stop - 1}", field=spec.name)
    return np.ascontiguousarray(rows, np.int64)


def rows_of(span: Span, width: int) -> tuple[int, int]:
    """The rows that a span holds: first and one past the last."""
    return span.start // width, span.stop // width


def within(rows: Array, span: Span, width: int) -> slice:
    """Where in increasing row numbers a span's own are."""
    return slice(*np.searchsorted(rows, rows_of(span, width)).tolist())


def part(gradient: Gradient, span: Span) -> Gradient:
    """A span's part of a gradient that is one run of elements, or checked rows; views."""
    if not isinstance(gradient, SparseRows):
        return gradient[span.start : span.stop]
    own = within(gradient.indices, span, gradient.values.shape[1])
    return SparseRows(gradient.indices[own], gradient.values[own])
