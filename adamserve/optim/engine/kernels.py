"""Choose an executor for a rule and make its kernel: compiled (CPU), cuda, or eager anywhere."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adamserve.optim.arith import REALS
from adamserve.optim.base import Rule
from adamserve.optim.engine import build, eager, emit
from adamserve.optim.engine.eager import Run
from adamserve.optim.engine.threads import ALONE, share
from adamserve.optim.engine.trace import Program, trace

_log = logging.getLogger("adamserve.optim")

Executor = Literal["compiled", "eager", "cuda"]
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
        seconds: time spent making it ready.
        cached: whether nothing had to be compiled.
    """

    executor: Executor
    reason: str
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Kernel:
    """A program ready to run."""

    run: Run
    program: Program
    info: KernelInfo


Kind = Literal["step", "narrow", "look", "coast"]
_Key = tuple[Rule, Kind, torch.dtype, torch.dtype, torch.device]
_kernels: dict[_Key, Kernel] = {}
_libraries: dict[str, build.Built] = {}
_lock = threading.Lock()
_warned: set[str] = set()


def kernel(rule: Rule, kind: Kind, dtype: torch.dtype, gradient: torch.dtype, device: torch.device) -> Kernel:
    """A rule's kernel, made at the first call. Thread-safe."""
    key = (rule, kind, dtype, gradient, device)
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                if (
                    len(_kernels) >= 4096
                ):  # a search over constants makes a rule each; their libraries are shared
                    _kernels.clear()
                found = _kernels[key] = _make(rule, kind, dtype, gradient, device)
    return found


def forget() -> None:
    """Drop all kernels, so that the next call chooses again (after a change of environment)."""
    with _lock:
        _kernels.clear()
        _libraries.clear()
        _warned.clear()


def program(rule: Rule, kind: Kind, real_name: str) -> Program:
    """Trace a rule's step with a gradient, also with a narrow copy, or coasting without one; or its look-ahead."""
    constants = tuple(rule._all_constants(1, rule.lr))
    if kind == "coast":
        return trace(rule._coast_step, REALS[real_name], ("w", *rule.slot_names), constants)
    if kind == "look":
        return trace(rule._look, REALS[real_name], ("w", *rule.slot_names, "out"), constants)
    if kind == "narrow":
        return trace(rule._narrow_step, REALS[real_name], ("w", "g", *rule.slot_names, "narrow"), constants)
    return trace(rule._step, REALS[real_name], ("w", "g", *rule.slot_names), constants)


def _make(rule: Rule, kind: Kind, dtype: torch.dtype, gradient: torch.dtype, device: torch.device) -> Kernel:
    start = time.perf_counter()
    traced, g_name = program(rule, kind, DTYPES[dtype]), DTYPES[gradient]
    executor: Executor = "eager"
    cached = True
    run: Run | None = None
    if os.environ.get("ADAMSERVE_KERNELS") == "eager":
        reason = f"ADAMSERVE_KERNELS=eager: {EAGER_COST}"
    elif device.type == "cpu":
        try:
            built = library(emit.c_source(traced, g_name))
            run, executor, reason, cached = (
                _compiled(built.library, traced),
                "compiled",
                built.reason,
                built.cached,
            )
        except build.BuildError as error:
            reason = f"{error}: {EAGER_COST}"
            _warn(reason)
    else:
        try:
            run, executor, reason, cached = _cuda(traced, g_name, device), "cuda", "", False
        except Exception as error:  # whatever NVRTC, the driver or torch's private interface answers
            reason = f"cannot build a CUDA kernel ({_first_line(error)}): {EAGER_COST}"
            _warn(reason)
    info = KernelInfo(executor=executor, reason=reason, seconds=time.perf_counter() - start, cached=cached)
    _log.debug("%s %s %s/%s on %s: %s", type(rule).__name__, kind, dtype, gradient, device, info)
    return Kernel(run or eager.runner(traced), traced, info)


def library(source: str) -> build.Built:
    """The compiled library of a source, loaded once a process."""
    found = _libraries.get(source)
    if found is not None:
        return build.Built(found.library, True, found.reason)
    built = _libraries[source] = build.build(source)
    if built.reason:
        _warn(built.reason)
    return built


def _warn(reason: str) -> None:
    """Log once a process and reason."""
    if reason not in _warned:
        _warned.add(reason)
        _log.warning("%s", reason)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _compiled(lib: ctypes.CDLL, traced: Program) -> Run:
    """The executor of a C function."""
    function = getattr(lib, emit.ENTRY)
    function.restype = None
    function.argtypes = [ctypes.c_longlong, ctypes.c_void_p] + [ctypes.c_void_p] * len(traced.arrays)
    numbers = ctypes.c_double * len(traced.constants)

    def run(arrays: Sequence[Tensor], constants: Sequence[float]) -> None:
        c, n = numbers(*constants), arrays[0].numel()
        pointers = [a.data_ptr() for a in arrays]
        if n < ALONE:
            function(n, c, *pointers)
            return
        sizes = [a.element_size() for a in arrays]

        def part(start: int, stop: int) -> None:
            function(stop - start, c, *[p + start * size for p, size in zip(pointers, sizes, strict=True)])

        share(n, part)

    return run


def _cuda(traced: Program, gradient: str, device: torch.device) -> Run:
    """The executor of a CUDA kernel, compiled for the device at run time (NVRTC through torch)."""
    used = [traced.constants.index(name) for name in emit.used_constants(traced)]
    with torch.cuda.device(device):
        function = torch.cuda._compile_kernel(  # type: ignore[no-untyped-call,unused-ignore]
            emit.cuda_source(traced, gradient), emit.ENTRY, nvcc_options=["--fmad=false"]
        )
        processors = torch.cuda.get_device_properties(device).multi_processor_count

    def run(arrays: Sequence[Tensor], constants: Sequence[float]) -> None:
        flat, total = [a.view(-1) for a in arrays], arrays[0].numel()
        numbers = [float(constants[k]) for k in used]
        with torch.cuda.device(device):
            for start in range(0, total, _CUDA_LAUNCH):
                n = min(_CUDA_LAUNCH, total - start)
                grid = min(-(-n // _CUDA_BLOCK), 32 * processors)
                parts = [a[start : start + n].detach() for a in flat]
                function(grid=(grid, 1, 1), block=(_CUDA_BLOCK, 1, 1), args=[n, *numbers, *parts])

    return run
