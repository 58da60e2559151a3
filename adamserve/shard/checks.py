"""What a gradient must be: the same checks, in the same words, for a client before it sends and a shard on arrival."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from adamserve.errors import InvalidArgument, NotFinite
from adamserve.values import GRADIENT_DTYPES, Array, Gradient, SparseRows, TensorSpec


def check_dtype(spec: TensorSpec, dtype: np.dtype[np.generic]) -> None:
    """Raise InvalidArgument unless a gradient's dtype is one that the parameter takes."""
    if _name(dtype) not in GRADIENT_DTYPES[spec.dtype] or not dtype.isnative:
        raise InvalidArgument(
            f"a gradient of dtype {dtype} for a {spec.dtype} parameter",
            field=spec.name,
            fix="send " + " or ".join(GRADIENT_DTYPES[spec.dtype]),
        )


@functools.cache
def _name(dtype: np.dtype[np.generic]) -> str:
    """The dtype's name; numpy works it out anew each time, which takes longer than a small update."""
    return dtype.name


def check_value(spec: TensorSpec, values: Gradient) -> None:
    """Raise InvalidArgument unless what is assigned is of the parameter's own dtype, and names each row once."""
    rows = values.indices if isinstance(values, SparseRows) else np.empty(0)
    dtype = values.values.dtype if isinstance(values, SparseRows) else values.dtype
    if _name(dtype) != spec.dtype:
        raise InvalidArgument(
            f"values of dtype {dtype} for a {spec.dtype} parameter",
            field=spec.name,
            fix=f"assign {spec.dtype}",
        )
    if len(np.unique(rows)) < len(rows):
        raise InvalidArgument("a row is assigned twice", field=spec.name, fix="name each row once")


def check_dense(spec: TensorSpec, gradient: Array, shape: tuple[int, ...]) -> None:
    """Raise InvalidArgument unless a dense gradient has a dtype of its tensor's, and this shape."""
    check_dtype(spec, gradient.dtype)
    if gradient.shape != shape:
        raise InvalidArgument(
            f"a gradient of shape {gradient.shape} for {shape}", field=spec.name, fix=f"send shape {shape}"
        )


def not_finite(tensor: str) -> NotFinite:
    """The error for a gradient that holds NaN or infinity, or that the wire's dtype would make infinite."""
    return NotFinite(
        "the gradient holds NaN or infinity, or numbers too large for the wire",
        field=tensor,
        fix="skip this batch, clip the gradient, or send float32",
    )


def check_rates(lr: float | None, rates: Mapping[str, float]) -> None:
    """Raise InvalidArgument unless each of a push's rates is a finite number of at least 0."""
    for field, rate in {"lr": lr, **{f"rates[{name}]": rate for name, rate in rates.items()}}.items():
        if rate is not None and not 0.0 <= rate < math.inf:
            raise InvalidArgument(f"must be finite and at least 0, got {rate!r}", field=field)
