"""Kernels: a rule's arithmetic, traced and ready to launch, by the best executor that a device has.

On the CPU that is compiled C, on a GPU a CUDA kernel; torch operations ("eager") stand in for either.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from adamserve.optim.arith import REALS
from adamserve.optim.base import Rule
from adamserve.optim.engine import build, eager, emit
from adamserve.optim.engine.eager import Launch
from adamserve.optim.engine.threads import ALONE, share
from adamserve.optim.engine.trace import Program, trace

_log = logging.getLogger("adamserve.optim")

EAGER_COST = "an update takes about 3 to 10 times as long; results are the same to the bit"
_CUDA_LAUNCH = 1 << 30  # torch passes whole numbers to a kernel as 32-bit ints
_CUDA_BLOCK = 256

DTYPES: Mapping[torch.dtype, str] = {
    torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelInfo:
    """How a rule runs on a device.

    Attributes:
        executor: "compiled" (C on the CPU), "cuda" (one fused kernel), or "eager" (torch operations).
        reason: what was lost and why; empty if nothing.
        cached: whether nothing had to be compiled.
    """

    executor: Literal["compiled", "eager", "cuda"]
    reason: str
    cached: bool


@dataclass(frozen=True, slots=True)
class Kernel:
    """A program ready to run."""

    launch: Launch
    info: KernelInfo


Kind = Literal["step", "copied", "bfloat16", "look", "coast"]
_libraries: dict[str, build.Built] = {}
_lock = threading.Lock()


def kernel(rule: Rule, kind: Kind, dtype: torch.dtype, gradient: torch.dtype, device: torch.device) -> Kernel:
    """Return a rule's kernel, which the first call makes. Thread-safe."""
    return _make(rule, kind, dtype, gradient, device)


def forget() -> None:
    """Drop all kernels, so that the next call chooses again (after a change of environment)."""
    _make.cache_clear()
    _libraries.clear()
    _warn.cache_clear()


def program(rule: Rule, kind: Kind, real_name: str) -> Program:
    """Trace a rule's step (also one that writes a copy), its step without a gradient, or its look-ahead."""
    slots = rule.slot_names
    kinds: Mapping[Kind, tuple[Any, tuple[str, ...]]] = {
        "step": (rule._step, ("w", "g", *slots)),
        "copied": (partial(rule._step_with_copy, "copied"), ("w", "g", *slots, "copied")),
        "bfloat16": (partial(rule._step_with_copy, "bfloat16"), ("w", "g", *slots, "bfloat16")),
        "coast": (rule._step, ("w", *slots)),
        "look": (lambda op, x, c: {"out": rule._point(x["w"], x, c)}, ("w", *slots, "out")),
    }
    function, arrays = kinds[kind]
    return trace(function, REALS[real_name], arrays, tuple(rule._all_constants(1, rule.lr)))


@lru_cache(maxsize=4096)  # a search over constants makes many rules; they share libraries
def _make(rule: Rule, kind: Kind, dtype: torch.dtype, gradient: torch.dtype, device: torch.device) -> Kernel:
    """Make the best kernel that can be had."""
    traced = program(rule, kind, DTYPES[dtype])
    try:
        if only_eager():
            raise build.BuildError("ADAMSERVE_KERNELS=eager")
        if device.type == "cpu":
            built = library(emit.c_source(traced, DTYPES[gradient]))
            launch = _compiled(built, traced)
            info = KernelInfo(executor="compiled", reason=built.reason, cached=built.cached)
        else:
            launch = _cuda(traced, DTYPES[gradient], device)
            info = KernelInfo(executor="cuda", reason="", cached=False)
    except build.BuildError as error:
        launch = eager.launcher(traced)
        info = KernelInfo(executor="eager", reason=f"{error}: {EAGER_COST}", cached=True)
        if not only_eager():
            _warn(info.reason)
    _log.debug("%s %s %s/%s on %s: %s", type(rule).__name__, kind, dtype, gradient, device, info)
    return Kernel(launch, info)


def only_eager() -> bool:
    """Whether ADAMSERVE_KERNELS=eager forbids compiled kernels."""
    return os.environ.get("ADAMSERVE_KERNELS") == "eager"


def library(source: str) -> build.Built:
    """Return the compiled library of a source, which a process loads once."""
    with _lock:
        built = _libraries.get(source)
        if built is None:
            built = build.build(source)
            if built.reason:
                _warn(built.reason)
            _libraries[source] = replace(built, cached=True)
    return built


@cache
def _warn(reason: str) -> None:
    """Log once a process and reason."""
    _log.warning("%s", reason)


def _compiled(built: build.Built, traced: Program) -> Launch:
    """The executor of a C function."""
    function = built.function(emit.ENTRY, ctypes.c_longlong, *[ctypes.c_void_p] * (1 + len(traced.arrays)))
    numbers = ctypes.c_double * len(traced.constants)

    def launch(arrays: Sequence[Tensor], constants: Sequence[float]) -> None:
        c, n = numbers(*constants), arrays[0].numel()
        pointers = [a.data_ptr() for a in arrays]
        if n < ALONE:
            function(n, c, *pointers)
            return
        sizes = [a.element_size() for a in arrays]

        def part(start: int, stop: int) -> None:
            function(stop - start, c, *[p + start * size for p, size in zip(pointers, sizes, strict=True)])

        share(n, part)

    return launch


def _cuda(traced: Program, gradient: str, device: torch.device) -> Launch:
    """The executor of a CUDA kernel, compiled for the device at run time (NVRTC through torch)."""
    used = emit.used_constants(traced)
    try:
        with torch.cuda.device(device):
            function = torch.cuda._compile_kernel(  # type: ignore[no-untyped-call,unused-ignore]
                emit.cuda_source(traced, gradient), emit.ENTRY, nvcc_options=["--fmad=false"]
            )
            processors = torch.cuda.get_device_properties(device).multi_processor_count
    except Exception as error:  # whatever NVRTC, the driver or torch's private interface answers
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise build.BuildError(f"cannot build a CUDA kernel ({told})") from error

    def launch(arrays: Sequence[Tensor], constants: Sequence[float]) -> None:
        flat, total = [a.view(-1) for a in arrays], arrays[0].numel()
        numbers = [float(constants[k]) for k in used]
        with torch.cuda.device(device):
            for start in range(0, total, _CUDA_LAUNCH):
                n = min(_CUDA_LAUNCH, total - start)
                grid = min(-(-n // _CUDA_BLOCK), 32 * processors)
                parts = [a[start : start + n].detach() for a in flat]
                function(grid=(grid, 1, 1), block=(_CUDA_BLOCK, 1, 1), args=[n, *numbers, *parts])

    return launch
