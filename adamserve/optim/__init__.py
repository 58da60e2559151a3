"""Optimizers as rules: checked values, each an update equation with its constants, run by fused kernels.

    rule = optim.Adam(lr=1e-3)
    slots = rule.init(w)
    rule.step_(w, g, slots, t=1)          # in place, one pass over memory

A rule is written once, in the exact arithmetic of arith.py; adam.py is an example. One of three executors runs it, with
the same bits: compiled C, a CUDA kernel, or torch operations (engine/). Rules from outside this package join by
`register` or by an entry point (registry.py). torch_map.py says which rule a torch optimizer is. Importing this package
and constructing rules load neither torch nor numpy.
"""

from typing import TYPE_CHECKING, Any

from adamserve.optim.adam import Adam, AdaMax, LpAdam
from adamserve.optim.base import Rule
from adamserve.optim.engine.threads import set_threads
from adamserve.optim.momentum import SGD, Nesterov, TorchSGD
from adamserve.optim.registry import (
    RULES,
    by_name,
    changes,
    from_dict,
    register,
    rules_of,
    to_dict,
    with_constants,
)
from adamserve.optim.rmsprop import AdaGrad, NesterovRMSProp, RMSProp, TorchRMSprop

if TYPE_CHECKING:
    from adamserve.optim.engine.apply import all_finite, prepare
    from adamserve.optim.engine.kernels import KernelInfo

__all__ = [
    "RULES",
    "SGD",
    "AdaGrad",
    "AdaMax",
    "Adam",
    "KernelInfo",
    "LpAdam",
    "Nesterov",
    "NesterovRMSProp",
    "RMSProp",
    "Rule",
    "TorchRMSprop",
    "TorchSGD",
    "all_finite",
    "by_name",
    "changes",
    "from_dict",
    "prepare",
    "register",
    "rules_of",
    "set_threads",
    "to_dict",
    "with_constants",
]


def __getattr__(name: str) -> Any:
    """Load what needs torch at its first use."""
    if name in ("KernelInfo", "all_finite", "prepare"):
        from adamserve.optim.engine import apply

        return getattr(apply, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
