"""Gradients on a shard's device, of whole tensors or by rows: their mean, and their correction for staleness."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adamserve import optim
from adamserve.errors import InvalidArgument
from adamserve.shard import sparse
from adamserve.shard.checks import check_dense, not_finite
from adamserve.values import Array, Gradient, Span, SparseRows, TensorSpec


@dataclass(frozen=True, slots=True)
class RowGradient:
    """The gradients of some rows of a shard's span: increasing row numbers in the tensor, and values (n, width)."""

    rows: Array
    values: torch.Tensor


Loaded = torch.Tensor | RowGradient
"""A gradient of a shard's whole span of a tensor, 1-D, or of some of its rows."""


def load(span: Span, spec: TensorSpec, gradient: Gradient, device: torch.device, *, finite: bool) -> Loaded:
    """Check a gradient, and return it as the kernels take it: of the parameter's dtype or a narrower one.

    On the CPU a dense one is the array's own memory, unless it has to be widened to float64.

    Args:
        span: the shard's, of the tensor `spec`.
        gradient: what arrived, as `values.Push` says.
        device: where the kernels run.
        finite: all values are known to be finite.

    Raises:
        InvalidArgument: it has another shape or dtype, is not contiguous, or names other rows.
        NotFinite: some value is not finite.
    """
    if isinstance(gradient, SparseRows):
        checked = sparse.checked(spec, gradient, span, finite=finite)
        values = borrow(checked.values)
        if values.dtype is torch.float32 and spec.dtype == "float64":
            values = values.double()
        return RowGradient(checked.indices, values.to(device))
    check_dense(spec, gradient, (span.numel,))
    if not gradient.flags.c_contiguous:
        raise InvalidArgument("the gradient is not contiguous", field=spec.name, fix="send a contiguous copy")
    tensor = borrow(gradient)
    if not finite and not optim.all_finite(tensor):
        raise not_finite(spec.name)
    return (tensor.double() if spec.dtype == "float64" else tensor).to(device)


def mean(pushes: Sequence[Mapping[str, Loaded]], spans: Mapping[str, Span]) -> dict[str, Loaded]:
    """The mean gradient by tensor, summed in the order of `pushes`, whatever the order of arrival was.

    A tensor that some members left out counts as zero there, and so does a row. If all members send a tensor by rows,
    so is its mean.
    """
    names = dict.fromkeys(name for gradients in pushes for name in gradients)
    return {
        name: _mean([gradients[name] for gradients in pushes if name in gradients], len(pushes), spans[name])
        for name in names
    }


def _mean(gradients: Sequence[Loaded], members: int, span: Span) -> Loaded:
    by_rows = [gradient for gradient in gradients if isinstance(gradient, RowGradient)]
    if len(by_rows) == len(gradients):
        rows = np.unique(np.concatenate([gradient.rows for gradient in by_rows]))
        parts = [(np.searchsorted(rows, gradient.rows), gradient.values) for gradient in by_rows]
        return RowGradient(rows, _sum_rows(len(rows), parts).div_(members))
    total = _dense(gradients[0], span)
    for gradient in gradients[1:]:
        total.add_(_dense(gradient, span) if isinstance(gradient, RowGradient) else gradient)
    return total.div_(members)


def corrected(gradient: torch.Tensor, drift: torch.Tensor, weight: float) -> torch.Tensor:
    """g + weight g^2 drift, and g where that is not finite; see `consistency.Async`."""
    g = gradient.to(drift.dtype)
    moved = g + weight * g * g * drift
    return torch.where(moved.isfinite(), moved, g)


def borrow(array: Array) -> torch.Tensor:
    """A tensor over a contiguous array's own memory, without a copy; only read it, and keep the array alive.

    torch.from_numpy warns about a read-only array (and one from Ray's object store is read-only).
    """
    if array.dtype.kind == "V":  # bfloat16 of the package ml_dtypes, which torch does not know
        return borrow(array.view(np.int16)).view(torch.bfloat16)
    if array.flags.writeable:
        return torch.from_numpy(array)
    if array.size == 0:
        return torch.empty(array.shape, dtype=getattr(torch, str(array.dtype)))
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    return torch.frombuffer(memory, dtype=getattr(torch, str(array.dtype))).reshape(array.shape)


def _dense(gradient: Loaded, span: Span) -> torch.Tensor:
    """A new dense gradient of at least single precision."""
    if isinstance(gradient, RowGradient):
        first, stop = sparse.rows_of(span, gradient.values.shape[1])
        return _sum_rows(stop - first, [(gradient.rows - first, gradient.values)]).view(-1)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)


def _sum_rows(n: int, parts: Sequence[tuple[Array, torch.Tensor]]) -> torch.Tensor:
    """The sum, in order, of gradients that each name some of n rows, each row once."""
    like = parts[0][1]
    dtype = torch.promote_types(like.dtype, torch.float32)
    total = torch.zeros((n, like.shape[1]), dtype=dtype, device=like.device)
    for rows, values in parts:
        total.index_add_(0, torch.from_numpy(rows).to(like.device), values.to(total.dtype))
    return total
