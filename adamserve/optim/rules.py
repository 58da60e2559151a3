"""The gradient rules: SGD, Nesterov, AdaGrad, RMSProp and RMSProp with Nesterov momentum.

The rules with two moments (Adam and its kin) are in moments.py. Equations are those of the seminar slides
"Adam: A Method for Stochastic Optimization" (Cohen 2015), with the paper each comes from named in its docstring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from adamserve.optim.arith import Ops, Value, Values, norm2, ratio
from adamserve.optim.base import Rule, check_number


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SGD(Rule):
    """Gradient descent with momentum.

        V = momentum V - rate g
        w = w + V

    momentum in [0, 1); with 0 there is no slot.

    Source: slides p. 5; Polyak 1964. torch.optim.SGD keeps V / -rate instead, which is the same while the
    rate is constant; when the rate changes, here the old velocity keeps the rate it was made with.
    """

    lr: float = 0.01
    momentum: float = 0.9

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The velocity V, unless momentum is 0."""
        return ("velocity",) if self.momentum else ()

    def _check(self) -> None:
        check_number(self, "momentum", at_least=0.0, below=1.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"momentum": self.momentum, "rate": rate}

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"velocity": c["momentum"]} if self.momentum else {}

    def _moves(self) -> tuple[float, float]:
        return self.momentum, self.momentum

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        if not self.momentum:
            return -(c["rate"] * g), {}
        v = c["momentum"] * s["velocity"] - c["rate"] * g
        return v, {"velocity": v}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Nesterov(Rule):
    """Nesterov's accelerated gradient: SGD with g taken at the look-ahead point w + momentum V.

        V = momentum V - rate g(w + momentum V)
        w = w + V

    momentum in [0, 1). Take gradients at `lookahead(w, slots)`; w itself is what to evaluate and keep.

    Source: slides p. 6; Nesterov 1983; Sutskever et al. 2013,
    http://proceedings.mlr.press/v28/sutskever13.html. torch.optim.SGD(nesterov=True) stores the look-ahead
    point instead of w.
    """

    has_lookahead: ClassVar[bool] = True

    lr: float = 0.01
    momentum: float = 0.9

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The velocity V."""
        return ("velocity",)

    def _check(self) -> None:
        check_number(self, "momentum", at_least=0.0, below=1.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"momentum": self.momentum, "rate": rate}

    def _point(self, w: Value, s: Values, c: Values) -> Value:
        return w + c["momentum"] * s["velocity"]

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"velocity": c["momentum"]}

    def _moves(self) -> tuple[float, float]:
        return self.momentum, self.momentum

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        v = c["momentum"] * s["velocity"] - c["rate"] * g
        return v, {"velocity": v}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdaGrad(Rule):
    """Adaptive gradient.

        A = A + g^2
        w = w - rate g / sqrt(A + eps)          (eps_inside_sqrt; otherwise g / (sqrt(A) + eps))

    eps >= 0, by default 0, and 0/0 counts as 0. The slot is root = sqrt(A), updated as a scaled hypotenuse:
    float32 gradients from 1e-37 to 1e38 are then right, where A itself would underflow below 1e-22. A
    gradient smaller than root/4096 in float32 leaves root as it was, just as A would be left.

    The step is at most rate, since |g| <= root.

    Source: slides p. 7; Duchi, Hazan, Singer 2011, https://jmlr.org/papers/v12/duchi11a.html.
    torch.optim.Adagrad has eps outside the root, 1e-10 by default.
    """

    lr: float = 0.01
    eps: float = 0.0
    eps_inside_sqrt: bool = True

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The root of the accumulator."""
        return ("root",)

    def _check(self) -> None:
        check_number(self, "eps", at_least=0.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"rate": rate, "eps": _eps(self)}

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {}

    def _moves(self) -> tuple[float, float]:
        return 0.0, 0.0

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g))
        return -(c["rate"] * ratio(op, g, _damped(self, op, root, c))), {"root": root}

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        return op.number(0.0), {}

    def _bound(self, t: int) -> float | None:
        return 1.0


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RMSProp(Rule):
    """A moving average of squared gradients in place of AdaGrad's sum.

        R = decay R + (1 - decay) g^2
        w = w - rate g / sqrt(R + eps)          (eps_inside_sqrt; otherwise g / (sqrt(R) + eps))

    decay in [0, 1), eps >= 0, by default 0, and 0/0 counts as 0. The slot is root = sqrt(R), as in AdaGrad.
    There is no bias correction: the first step is rate / sqrt(1 - decay), which is the bound of every step.

    Source: slides p. 8; Tieleman & Hinton 2012 (Coursera, lecture 6.5). torch.optim.RMSprop has eps outside
    the root, 1e-8 by default, and decay ("alpha") 0.99.
    """

    lr: float = 1e-3
    decay: float = 0.9
    eps: float = 0.0
    eps_inside_sqrt: bool = True

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The root of the average."""
        return ("root",)

    def _check(self) -> None:
        check_number(self, "decay", at_least=0.0, below=1.0)
        check_number(self, "eps", at_least=0.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"rate": rate, "keep": self.decay, "take": 1.0 - self.decay, "eps": _eps(self)}

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"root": math.sqrt(c["keep"])}

    def _moves(self) -> tuple[float, float]:
        return 0.0, 0.0

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g), c["keep"], c["take"])
        return -(c["rate"] * ratio(op, g, _damped(self, op, root, c))), {"root": root}

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        return op.number(0.0), {}

    def _bound(self, t: int) -> float | None:
        return 1.0 / math.sqrt(1.0 - self.decay)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NesterovRMSProp(Rule):
    """RMSProp with Nesterov momentum, g taken at the look-ahead point w + momentum V.

        R = decay R + (1 - decay) g^2
        V = momentum V - rate g / sqrt(R + eps)
        w = w + V

    decay and momentum in [0, 1), eps >= 0, by default 0, and 0/0 counts as 0. Slots: root = sqrt(R) and V.
    Its step depends on the rates of earlier pushes, so `step_bound` is None.

    Source: slides p. 9. torch.optim.RMSprop(momentum=...) has momentum, but not Nesterov's.
    """

    has_lookahead: ClassVar[bool] = True

    lr: float = 1e-3
    decay: float = 0.9
    momentum: float = 0.9
    eps: float = 0.0
    eps_inside_sqrt: bool = True

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The root of the average, and the velocity V."""
        return ("root", "velocity")

    def _check(self) -> None:
        check_number(self, "decay", at_least=0.0, below=1.0)
        check_number(self, "momentum", at_least=0.0, below=1.0)
        check_number(self, "eps", at_least=0.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        keep, take = self.decay, 1.0 - self.decay
        return {"rate": rate, "keep": keep, "take": take, "momentum": self.momentum, "eps": _eps(self)}

    def _point(self, w: Value, s: Values, c: Values) -> Value:
        return w + c["momentum"] * s["velocity"]

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"root": math.sqrt(c["keep"]), "velocity": c["momentum"]}

    def _moves(self) -> tuple[float, float]:
        return self.momentum, self.momentum

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g), c["keep"], c["take"])
        v = c["momentum"] * s["velocity"] - c["rate"] * ratio(op, g, _damped(self, op, root, c))
        return v, {"root": root, "velocity": v}

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        v = c["momentum"] * s["velocity"]
        return v, {"velocity": v}


_RootRule = AdaGrad | RMSProp | NesterovRMSProp


def _eps(rule: _RootRule) -> float:
    """eps as `_damped` wants it: its root when it stands inside the root."""
    return math.sqrt(rule.eps) if rule.eps_inside_sqrt else rule.eps


def _damped(rule: _RootRule, op: Ops, root: Value, c: Values) -> Value:
    """The denominator: sqrt(root^2 + eps) or root + eps."""
    if not rule.eps:
        return root
    return norm2(op, root, c["eps"]) if rule.eps_inside_sqrt else root + c["eps"]
