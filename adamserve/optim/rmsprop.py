"""RMSProp, plain and with Nesterov momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from adamserve.optim.adagrad import damping, denominator
from adamserve.optim.arith import Ops, Value, Values, norm2, ratio
from adamserve.optim.base import Rule, check_number


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RMSProp(Rule):
    """A moving average of squared gradients in place of AdaGrad's sum.

        R = decay R + (1 - decay) g^2
        w = w - rate g / sqrt(R + eps)          (eps_inside_sqrt; otherwise g / (sqrt(R) + eps))

    decay in [0, 1), eps >= 0, by default 0, and 0/0 counts as 0. The slot is root = sqrt(R), as in AdaGrad.
    There is no bias correction: the first step is rate / sqrt(1 - decay), and no later step is larger.

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
        return {
            "rate": rate,
            "keep": self.decay,
            "take": 1.0 - self.decay,
            "eps": damping(self),
        }

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"root": math.sqrt(c["keep"])}

    def _moves(self) -> tuple[float, float]:
        return 0.0, 0.0

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g), c["keep"], c["take"])
        return -(c["rate"] * ratio(op, g, denominator(self, op, root, c))), {"root": root}

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
    A step depends on the rates of earlier updates, so `step_bound` is None.

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
        return {
            "rate": rate,
            "keep": keep,
            "take": take,
            "momentum": self.momentum,
            "eps": damping(self),
        }

    def _point(self, w: Value, s: Values, c: Values) -> Value:
        return w + c["momentum"] * s["velocity"]

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"root": math.sqrt(c["keep"]), "velocity": c["momentum"]}

    def _moves(self) -> tuple[float, float]:
        return self.momentum, self.momentum

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g), c["keep"], c["take"])
        v = c["momentum"] * s["velocity"] - c["rate"] * ratio(op, g, denominator(self, op, root, c))
        return v, {"root": root, "velocity": v}

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        v = c["momentum"] * s["velocity"]
        return v, {"velocity": v}
