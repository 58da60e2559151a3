"""Gradients and pulls of some rows of a tensor: what is accepted, and how it is cut for the shards."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from adamserve.errors import InvalidArgument
from adamserve.partition import BLOCK_BYTES
from adamserve.values import GRADIENT_DTYPES, ITEM_BYTES, Array, Gradient, Span, SparseRows, TensorSpec


def as_rows(name: str, gradient: Any) -> SparseRows | None:
    """A sparse gradient of any kind as `SparseRows`: torch.sparse_coo, scipy's sparse matrices; None if it is dense.

    Raises:
        InvalidArgument: a sparse layout that has no rows.
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


def checked(
    spec: TensorSpec, gradient: SparseRows, *, first: int = 0, stop: int | None = None, finite: bool = False
) -> SparseRows:
    """Check a sparse gradient, and bring it into one form: rows increasing, each once, values of shape (n, width).

    Args:
        spec: the tensor.
        gradient: as the caller gave it; left as it is.
        first, stop: the rows that it may name.
        finite: the values are known to be finite.

    Raises:
        InvalidArgument: a row outside, values of another shape or dtype, more rows than there are, NaN or infinity.
    """
    rows, values = gradient.indices, gradient.values
    total = check_table(spec)
    stop = total if stop is None else stop
    if str(values.dtype) not in GRADIENT_DTYPES[spec.dtype]:
        raise InvalidArgument(
            f"a gradient of dtype {values.dtype} for a {spec.dtype} parameter",
            field=spec.name,
            fix="send " + " or ".join(GRADIENT_DTYPES[spec.dtype]),
        )
    rows = check_indices(spec, rows, first, stop)
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
        new = np.empty(len(rows), bool)
        new[0], new[1:] = True, rows[1:] != rows[:-1]
        if not new.all():
            starts = np.flatnonzero(new)
            wide = values if values.dtype != np.float16 else values.astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.add.reduceat(wide, starts, axis=0)
            rows, finite = rows[starts], False
    if not finite and not np.isfinite(values).all():
        raise InvalidArgument(
            "the gradient holds NaN or infinity", field=spec.name, fix="skip this batch, or clip the gradient"
        )
    return SparseRows(rows, values)


def check_table(spec: TensorSpec) -> int:
    """The number of rows of a tensor that may be pushed and pulled by rows.

    Raises:
        InvalidArgument: it has no first dimension, or a row is so large that shards may cut it.
    """
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


def check_indices(spec: TensorSpec, rows: Array, first: int, stop: int) -> Array:
    """Row numbers as contiguous int64.

    Raises:
        InvalidArgument: of another kind or shape, or outside `first` to `stop`.
    """
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


def narrow(rows: Array) -> Array:
    """Row numbers as they travel: 4 bytes each where that is enough."""
    return rows.astype(np.int32) if not rows.size or rows[-1] < 1 << 31 else rows


def within(rows: Array, span: Span, width: int) -> slice:
    """Where in increasing row numbers a span's own are."""
    low, high = np.searchsorted(rows, rows_of(span, width))
    return slice(int(low), int(high))


class Wanted:
    """Rows of one tensor that a pull asks for, and the array that they come back in.

    Args:
        spec: the tensor.
        rows: their numbers, int32 or int64, in any order, also more than once.
    """

    def __init__(self, spec: TensorSpec, rows: Any) -> None:
        total = check_table(spec)
        named = check_indices(spec, np.asarray(rows), 0, total)
        self._width = spec.width
        self.rows, self._places = np.unique(named, return_inverse=True)
        self._shape = (len(named), *spec.shape[1:])
        self.values: Array = np.empty((len(self.rows), spec.width), spec.dtype)

    def within(self, span: Span) -> Array:
        """Those of a span, increasing."""
        return self.rows[within(self.rows, span, self._width)]

    def put(self, rows: Array, values: Array) -> int:
        """Write what has come for some of the rows; returns the number of elements."""
        self.values[np.searchsorted(self.rows, rows)] = values
        return int(values.size)

    def result(self) -> Array:
        """The rows in the order in which they were asked for."""
        return self.values[self._places].reshape(self._shape)


def part(gradient: Gradient, span: Span) -> Gradient:
    """A span's part of a gradient that is one run of elements, or checked rows; views."""
    if not isinstance(gradient, SparseRows):
        return gradient[span.start : span.stop]
    own = within(gradient.indices, span, gradient.values.shape[1])
    return SparseRows(gradient.indices[own], gradient.values[own])
