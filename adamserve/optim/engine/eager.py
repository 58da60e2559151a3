"""The executor of torch operations: where there is no compiler, it gives the same bits several times as slowly."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from adamserve.optim.arith import Real, Value
from adamserve.optim.engine.trace import Program

Launch = Callable[[Sequence[Tensor], Sequence[float]], None]
"""Launch a kernel over contiguous arrays of one length, with its constants."""

_BLOCK = {"cpu": 1 << 15, "cuda": 1 << 24}


def launcher(traced: Program) -> Launch:
    """Make a program's executor. It takes a block at a time, so that temporaries stay in the cache."""
    single = traced.real.c_type == "float"

    def launch(arrays: Sequence[Tensor], constants: Sequence[float]) -> None:
        first, n = arrays[0], arrays[0].numel()
        block = _BLOCK.get(first.device.type, 1 << 24)
        # Each constant is rounded to the dtype once, here as in C.
        rounded = (ctypes.c_float(x).value for x in constants) if single else iter(constants)
        numbers = cast("dict[str, Value]", dict(zip(traced.constants, rounded, strict=True)))
        ops = TorchOps(traced.real, first)
        flat = {name: a.view(-1) for name, a in zip(traced.arrays, arrays, strict=True)}
        with torch.no_grad():
            for start in range(0, n, block):
                parts = {name: a[start : start + block] for name, a in flat.items()}
                values = {
                    name: a if a.dtype == first.dtype else a.to(first.dtype) for name, a in parts.items()
                }
                for name, x in traced.function(ops, cast("dict[str, Value]", values), numbers).items():
                    parts[name].copy_(cast("Tensor", x))

    return launch


class TorchOps:
    """The arithmetic done at once, on torch tensors of one dtype and device."""

    def __init__(self, real: Real, like: Tensor) -> None:
        self.real = real
        self._like = like
        self._scalars: dict[float, Tensor] = {}

    def number(self, x: float) -> Value:
        return cast("Value", self._scalar(x))

    def sqrt(self, x: Value) -> Value:
        """On the CPU numpy's: torch's own differs from IEEE 754 in the last bit of one float32 in five (2.13, x86)."""
        t = _tensor(x)
        if t.device.type != "cpu":
            return cast("Value", t.sqrt())
        return cast("Value", torch.from_numpy(np.sqrt(t.numpy())))

    def abs(self, x: Value) -> Value:
        return cast("Value", _tensor(x).abs())

    def where(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        return cast("Value", self._scalar(yes).where(_tensor(condition), self._scalar(no)))

    def split(self, x: Value) -> tuple[Value, Value]:
        r, bits = self.real, _tensor(x).view(self._int_dtype())
        shifted = bits + (r.one - r.sqrt_half)
        e = (shifted >> r.fraction_bits) - r.bias
        m = (shifted & r.mask) + r.sqrt_half
        return cast("Value", e.to(self._like.dtype)), cast("Value", m.view(self._like.dtype))

    def floor2(self, x: Value) -> Value:
        bits = _tensor(x).view(self._int_dtype()) & self.real.exponents
        return cast("Value", bits.view(self._like.dtype))

    def two_over2(self, x: Value) -> Value:
        bits = self.real.exponents - (_tensor(x).view(self._int_dtype()) & self.real.exponents)
        return cast("Value", bits.view(self._like.dtype))

    def pow2(self, n: Value) -> Value:
        bits = (_tensor(n).to(self._int_dtype()) + self.real.bias) << self.real.fraction_bits
        return cast("Value", bits.view(self._like.dtype))

    def _scalar(self, x: Value | float) -> Tensor:
        """x as a tensor of the dtype: `where` of two Python numbers would take torch's default dtype."""
        if not isinstance(x, int | float):
            return _tensor(x)
        if x not in self._scalars:
            self._scalars[x] = self._like.new_full((), x)
        return self._scalars[x]

    def _int_dtype(self) -> torch.dtype:
        return torch.int32 if self.real.fraction_bits == 23 else torch.int64


def _tensor(x: Value) -> Tensor:
    """The tensor that a value of `TorchOps` is."""
    return cast("Tensor", x)
