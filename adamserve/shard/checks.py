"""What a gradient must be: the same checks, in the same words, for a client before it sends and a shard on arrival."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from adamserve.errors import BadSequence, InvalidArgument, NotFinite
from adamserve.values import GRADIENT_DTYPES, Array, TensorSpec


def check_dtype(spec: TensorSpec, dtype: np.dtype[np.generic]) -> None:
    """Check that a gradient's dtype is one that the parameter takes.

    Raises:
        InvalidArgument: it is not; names the tensor and the dtypes that are.
    """
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


def check_value(spec: TensorSpec, values: Array) -> None:
    """Check the dtype of what is assigned to a parameter or a slot: the parameter's own.

    Raises:
        InvalidArgument: it is another one.
    """
    if _name(values.dtype) != spec.dtype:
        raise InvalidArgument(
            f"values of dtype {values.dtype} for a {spec.dtype} parameter",
            field=spec.name,
            fix=f"assign {spec.dtype}",
        )


def check_dense(spec: TensorSpec, gradient: Array, shape: tuple[int, ...]) -> None:
    """Check a dense gradient, of a whole tensor or of a shard's span of it.

    Args:
        spec: the tensor.
        gradient: what was given.
        shape: what its shape must be: the tensor's, or (elements,) of the span.

    Raises:
        InvalidArgument: its dtype or shape is wrong; names the tensor.
    """
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


def check_seq(seq: int) -> None:
    """Check a push's number.

    Raises:
        BadSequence: it is below 1.
    """
    if not seq >= 1:
        raise BadSequence(f"must be at least 1, got {seq}", field="seq", fix="count pushes from 1")


def check_rates(lr: float | None, rates: Mapping[str, float]) -> None:
    """Check a push's rates.

    Raises:
        InvalidArgument: one is not a finite number of at least 0; names it.
    """
    for field, rate in {"lr": lr, **{f"rates[{name}]": rate for name, rate in rates.items()}}.items():
        if rate is not None and not 0.0 <= rate < math.inf:
            raise InvalidArgument(f"must be finite and at least 0, got {rate!r}", field=field)
