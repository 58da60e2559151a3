"""The executor of torch operations: where there is no compiler, it gives the same bits several times as slowly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from adamserve.optim.arith import Real
from adamserve.optim.engine.trace import Program

Launch = Callable[[Sequence[Tensor], Sequence[float]], None]
"""Launch a kernel over contiguous arrays of one length, with its constants."""


def launcher(program: Program) -> Launch:
    """Make a program's executor. It takes a block at a time, so that temporaries stay in the cache."""
    operations = _operations(program.real)
    last_use = {k: n for n, node in enumerate(program.nodes) for k in node.args}
    last_use |= dict.fromkeys(program.stores.values(), len(program.nodes))

    @torch.no_grad()
    def launch(arrays: Sequence[Tensor], constants: Sequence[float]) -> None:
        first, size = arrays[0], 1 << 15 if arrays[0].device.type == "cpu" else 1 << 24
        # Each number is rounded to the dtype once, here as in C.
        numbers = dict(zip(program.constants, first.new_tensor(constants), strict=True))
        for start in range(0, first.numel(), size):
            parts = [a.view(-1)[start : start + size] for a in arrays]
            named = dict(zip(program.arrays, parts, strict=True))
            values: dict[int, Tensor] = {}
            for n, node in enumerate(program.nodes):
                match node.op:
                    case "load":
                        values[n] = named[str(node.leaf)].to(first.dtype)
                    case "constant":
                        values[n] = numbers[str(node.leaf)]
                    case "number":
                        values[n] = first.new_tensor(node.leaf)
                    case _:
                        values[n] = operations[node.op](*[values[k] for k in node.args])
                for k in {k for k in node.args if last_use[k] == n}:
                    del values[k]
            for name, k in program.stores.items():
                named[name].copy_(values[k])

    return launch


def _operations(r: Real) -> dict[str, Callable[..., Tensor]]:
    """The operations of arith.py on tensors of one dtype."""
    real, whole = (torch.float32, torch.int32) if r.c_type == "float" else (torch.float64, torch.int64)
    offset = r.one - r.sqrt_half
    return {
        "+": torch.add,
        "-": torch.sub,
        "*": torch.mul,
        "/": torch.div,
        "<": torch.lt,
        ">": torch.gt,
        "neg": torch.neg,
        "abs": torch.abs,
        "where": torch.where,
        "sqrt": _sqrt,
        "exponent": lambda x: (((x.view(whole) + offset) >> r.fraction_bits) - r.bias).to(real),
        "mantissa": lambda x: (((x.view(whole) + offset) & r.mask) + r.sqrt_half).view(real),
        "floor2": lambda x: (x.view(whole) & r.exponents).view(real),
        "two_over2": lambda x: (r.exponents - (x.view(whole) & r.exponents)).view(real),
        "pow2": lambda n: ((n.to(whole) + r.bias) << r.fraction_bits).view(real),
    }


def _sqrt(x: Tensor) -> Tensor:
    """On the CPU numpy's: torch's own differs from IEEE 754 in the last bit of one float32 in five (2.13, x86)."""
    if x.device.type != "cpu":
        return x.sqrt()
    return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))
