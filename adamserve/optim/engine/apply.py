"""What the rules' methods do: check the tensors, find the kernel, launch it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from adamserve.errors import InvalidArgument
from adamserve.optim.base import Rule
from adamserve.optim.engine import build, kernels
from adamserve.optim.engine.eager import Launch
from adamserve.optim.engine.kernels import DTYPES, KernelInfo, Kind, kernel, library
from adamserve.optim.engine.threads import share

_PARAMETERS = (torch.float32, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)


def init(rule: Rule, w: Tensor) -> dict[str, Tensor]:
    """See `Rule.init`."""
    _check_parameter(w)
    return {name: torch.zeros(w.shape, dtype=w.dtype, device=w.device) for name in rule.slot_names}


def step_(
    rule: Rule,
    w: Tensor,
    g: Tensor,
    slots: Mapping[str, Tensor],
    t: int,
    lr: float | None,
    lr_scale: float,
    copy: Tensor | None,
) -> None:
    """See `Rule.step_`."""
    _check_parameter(w)
    _check_like(w, g, "g", _HALVES)
    ordered = _check_slots(rule, w, slots)
    if not isinstance(t, int) or not t >= 1:
        raise InvalidArgument(
            f"must be a whole number >= 1, got {t!r}", field="t", fix="t counts updates from 1"
        )
    for field, x in (("lr", lr), ("lr_scale", lr_scale)):
        if x is not None and not 0.0 <= x < math.inf:
            raise InvalidArgument(f"must be a finite number >= 0, got {x!r}", field=field)
    arrays = [w, g, *ordered]
    changed = {0: "w"} | dict.fromkeys(range(2, len(arrays)), "slots")
    kind: Kind = "step"
    if copy is not None:
        _check_like(w, copy, "copy", (torch.bfloat16,) if w.dtype is torch.float32 else ())
        kind = "copied" if copy.dtype is w.dtype else "bfloat16"
        changed[len(arrays)] = "copy"
        arrays.append(copy)
    constants = list(rule._all_constants(t, rule.rate(t, lr) * lr_scale).values())
    step = kernel(rule, kind, w.dtype, g.dtype, w.device)
    _apply(step.launch, arrays, constants, changed)
    if w.requires_grad:
        torch.autograd.graph.increment_version(w)


def lookahead(rule: Rule, w: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
    """See `Rule.lookahead`."""
    _check_parameter(w)
    ordered = _check_slots(rule, w, slots)
    if not rule.has_lookahead:
        return w
    point = torch.empty(w.shape, dtype=w.dtype, device=w.device)
    look = kernel(rule, "look", w.dtype, w.dtype, w.device)
    _apply(look.launch, [w, *ordered, point], list(rule._all_constants(1, rule.lr).values()), {})
    return point


def prepare(
    rule: Rule,
    dtype: torch.dtype,
    grad_dtypes: Iterable[torch.dtype] = (),
    device: torch.device | str = "cpu",
    *,
    copy: torch.dtype | None = None,
) -> KernelInfo:
    """Make a rule's kernels ready before the first push, so that it does not wait for a compiler.

    Args:
        rule, dtype, device: of the parameters.
        grad_dtypes: the gradients' dtypes; empty means `dtype`.
        copy: dtype of the copy that `step_` will be asked for; None for none.

    Returns:
        The executor, what was lost if it is not the best one, and whether the cache had it all.

    Raises:
        InvalidArgument: a dtype is not one that `step_` takes.
    """
    if dtype not in _PARAMETERS:
        raise InvalidArgument(f"must be float32 or float64, got {dtype}", field="dtype")
    try:
        where = torch.empty(0, device=device).device  # with the index that "cuda" leaves out
    except RuntimeError as error:
        raise InvalidArgument(f"is not a torch device: {device!r}", field="device") from error
    gradients = list(grad_dtypes) or [dtype]
    for gradient in gradients:
        if gradient is not dtype and gradient not in _HALVES:
            raise InvalidArgument(
                f"must be {dtype}, bfloat16 or float16, got {gradient}", field="grad_dtypes"
            )
    kind: Kind = "step" if copy is None else "copied" if copy is dtype else "bfloat16"
    infos = [kernel(rule, kind, dtype, gradient, where).info for gradient in gradients]
    if rule.has_lookahead:
        infos.append(kernel(rule, "look", dtype, dtype, where).info)
    worst = next((info for info in infos if info.executor == "eager"), infos[0])
    return replace(worst, cached=all(info.cached for info in infos))


def all_finite(t: Tensor) -> bool:
    """Return whether no element of a float16, bfloat16, float32 or float64 tensor is infinite or NaN.

    One pass at the speed of memory, and it stops early. On CUDA it waits for the device.

    Raises:
        InvalidArgument: another dtype.
    """
    if not isinstance(t, Tensor) or t.dtype not in DTYPES:
        raise InvalidArgument("must be a float16, bfloat16, float32 or float64 tensor", field="t")
    t = t.detach()
    if t.device.type != "cpu":
        return bool(torch.isfinite(t).all())
    flat = t.contiguous().view(-1)
    test = _finite_test(t.dtype)
    if test is None:
        return all(bool(torch.isfinite(block).all()) for block in torch.split(flat, 1 << 16))
    pointer, size = flat.data_ptr(), flat.element_size()
    answers: list[int] = []
    share(flat.numel(), lambda a, b: answers.append(test(b - a, pointer + a * size)))
    return all(answers)


def _apply(
    launch: Launch, arrays: Sequence[Tensor], constants: Sequence[float], changed: Mapping[int, str]
) -> None:
    """Launch a kernel; arrays that are not contiguous go through a contiguous copy.

    `changed` are the places of those that it writes, with what the caller knows them as.
    """
    if all(a.is_contiguous() for a in arrays):
        launch(arrays, constants)
        return
    for k, name in changed.items():
        if torch._debug_has_internal_overlap(arrays[k]) == 1:
            raise InvalidArgument("elements share memory (an expanded tensor)", field=name)
    with torch.no_grad():
        copies = [a.contiguous() for a in arrays]
        launch(copies, constants)
        for k in changed:
            if copies[k] is not arrays[k]:
                arrays[k].copy_(copies[k])


@cache
def _finite_test(dtype: torch.dtype) -> Callable[[int, int], int] | None:
    """The compiled test for a dtype, or None where there is no compiler."""
    if kernels.only_eager():
        return None
    try:
        built = library(build.text("adamserve.optim.engine", "finite.c"))
    except build.BuildError:
        return None
    return built.function(f"finite_{DTYPES[dtype]}", ctypes.c_longlong, ctypes.c_void_p, returns=ctypes.c_int)


def forget() -> None:
    """Drop everything that was built, so that the next call looks at the environment again."""
    kernels.forget()
    _finite_test.cache_clear()


def _check_parameter(w: Tensor) -> None:
    if not isinstance(w, Tensor):
        raise InvalidArgument(f"must be a torch tensor, got {type(w).__name__}", field="w")
    if w.dtype not in _PARAMETERS or w.layout is not torch.strided:
        raise InvalidArgument(
            f"must be a dense float32 or float64 tensor, got {w.dtype} {w.layout}", field="w"
        )


def _check_like(w: Tensor, x: Tensor, field: str, also: Sequence[torch.dtype]) -> None:
    """Check that x agrees with w; its dtype may also be one of `also`."""
    if not isinstance(x, Tensor):
        raise InvalidArgument(f"must be a torch tensor, got {type(x).__name__}", field=field)
    if x.shape != w.shape:
        raise InvalidArgument(f"has shape {tuple(x.shape)}, the parameter {tuple(w.shape)}", field=field)
    if x.dtype is not w.dtype and x.dtype not in also:
        allowed = ", ".join(str(d) for d in (w.dtype, *also))
        raise InvalidArgument(f"has dtype {x.dtype}", field=field, fix=f"it must be one of {allowed}")
    if x.device != w.device or x.layout is not torch.strided:
        raise InvalidArgument(f"is {x.layout} on {x.device}, the parameter dense on {w.device}", field=field)


def _check_slots(rule: Rule, w: Tensor, slots: Mapping[str, Tensor]) -> list[Tensor]:
    """The slots in the rule's order."""
    names = rule.slot_names
    if len(slots) != len(names) or any(name not in slots for name in names):
        raise InvalidArgument(
            f"has {sorted(slots)}, {type(rule).__name__} keeps {sorted(names)}",
            field="slots",
            fix="use rule.init(w)",
        )
    ordered = [slots[name] for name in names]
    for name, x in zip(names, ordered, strict=True):
        _check_like(w, x, f"slots[{name}]", ())
    return ordered
