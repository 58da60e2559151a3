"""The codec's inner loops in C (native.c), which move, sum and test elements in one pass.

Where there is no compiler, `codec` does the same with numpy, in several passes.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache

from adamserve.optim.engine import build

log = logging.getLogger("adamserve.rpc")

_SIGNATURES = {
    "sum_words": 1,
    "digest_words": 2,
    "take_float32": 3,
    "take_bfloat16": 3,
    "keep_bfloat16": 3,
    "keep_float16": 3,
    "give_bfloat16": 2,
}
"""Pointers that each function takes after the number of elements."""


@cache
def library() -> ctypes.CDLL | None:
    """The loops, compiled at the first call (a fifth of a second) and kept on disk; None without a compiler."""
    try:
        built = build.build(build.text("adamserve.wire", "native.c"))
    except build.BuildError as error:
        log.debug("tensors are coded by numpy: %s", error)
        return None
    for name, pointers in _SIGNATURES.items():
        function = getattr(built.library, name)
        function.restype = ctypes.c_uint32
        function.argtypes = [ctypes.c_longlong, *[ctypes.c_void_p] * pointers]
    return built.library
