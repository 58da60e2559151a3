"""Rules that divide by the root of squared gradients: AdaGrad, RMSProp, with Nesterov momentum, and torch's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from adamserve.optim.arith import Ops, Value, Values, larger, norm2, ratio
from adamserve.optim.base import Rule, number


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scaled(Rule):
    """A rule that divides by the slot `root`, the root of the sum or mean of squared gradients."""

    eps: float = 0.0
    eps_inside_sqrt: bool = True

    @property
    def _damping(self) -> float:
        """The constant eps: its root where it stands inside the root."""
        return math.sqrt(self.eps) if self.eps_inside_sqrt else self.eps

    def _scaled(self, op: Ops, g: Value, root: Value, c: Values) -> Value:
        """rate g / sqrt(root^2 + eps) where eps stands inside the root, otherwise rate g / (root + eps)."""
        if self.eps:
            root = norm2(op, root, c["eps"]) if self.eps_inside_sqrt else root + c["eps"]
        return c["rate"] * ratio(op, g, root)

    def _moves(self) -> tuple[float, float]:
        return 0.0, 0.0

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        return op.number(0.0), {}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdaGrad(_Scaled):
    """Adaptive gradient.

        A = A + g^2
        w = w - rate g / sqrt(A + eps)          (eps_inside_sqrt; otherwise g / (sqrt(A) + eps))

    eps >= 0, by default 0, and 0/0 counts as 0. The slot is root = sqrt(A), updated as a scaled hypotenuse: so
    float32 gradients from 1e-37 to 1e38 give the right result, while A itself would underflow below 1e-22. In
    float32 a gradient smaller than root/4096 does not change root, just as it would not change A.

    The step is at most rate, since |g| <= root.

    Source: slides p. 7; Duchi, Hazan, Singer 2011, https://jmlr.org/papers/v12/duchi11a.html.
    torch.optim.Adagrad has eps outside the root, 1e-10 by default.
    """

    slot_names = ("root",)

    lr: float = 0.01

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"rate": rate, "eps": self._damping}

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {}

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g))
        return -self._scaled(op, g, root, c), {"root": root}

    def _bound(self, t: int) -> float | None:
        return 1.0


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RMSProp(_Scaled):
    """A moving average of squared gradients in place of AdaGrad's sum.

        R = decay R + (1 - decay) g^2
        w = w - rate g / sqrt(R + eps)          (eps_inside_sqrt; otherwise g / (sqrt(R) + eps))

    decay in [0, 1), eps >= 0, by default 0, and 0/0 counts as 0. The slot is root = sqrt(R), as in AdaGrad.
    There is no bias correction: the first step is rate / sqrt(1 - decay), and no later step is larger.

    Source: slides p. 8; Tieleman & Hinton 2012 (Coursera, lecture 6.5). torch.optim.RMSprop has eps outside
    the root, 1e-8 by default, and decay ("alpha") 0.99.
    """

    slot_names = ("root",)

    lr: float = 1e-3
    decay: float = number(0.9, below=1.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"rate": rate, "keep": self.decay, "take": 1.0 - self.decay, "eps": self._damping}

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"root": math.sqrt(c["keep"])}

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g), c["keep"], c["take"])
        return -self._scaled(op, g, root, c), {"root": root}

    def _bound(self, t: int) -> float | None:
        return 1.0 / math.sqrt(1.0 - self.decay)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NesterovRMSProp(_Scaled):
    """RMSProp with Nesterov momentum, g taken at the look-ahead point w + momentum V.

        R = decay R + (1 - decay) g^2
        V = momentum V - rate g / sqrt(R + eps)
        w = w + V

    decay and momentum in [0, 1), eps >= 0, by default 0, and 0/0 counts as 0. Slots: root = sqrt(R) and V.
    A step depends on the rates of earlier updates, so `step_bound` is None.

    Source: slides p. 9. torch.optim.RMSprop(momentum=...) has momentum, but not Nesterov's.
    """

    slot_names = ("root", "velocity")
    has_lookahead: ClassVar[bool] = True

    lr: float = 1e-3
    decay: float = number(0.9, below=1.0)
    momentum: float = number(0.9, below=1.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {
            "rate": rate, "keep": self.decay, "take": 1.0 - self.decay,
            "momentum": self.momentum, "eps": self._damping,
        }  # fmt: skip

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"root": math.sqrt(c["keep"]), "velocity": c["momentum"]}

    def _moves(self) -> tuple[float, float]:
        return self.momentum, self.momentum

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g), c["keep"], c["take"])
        v = c["momentum"] * s["velocity"] - self._scaled(op, g, root, c)
        return v, {"root": root, "velocity": v}

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        v = c["momentum"] * s["velocity"]
        return v, {"velocity": v}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TorchRMSprop(Rule):
    """RMSProp with momentum and a centred form, as torch.optim.RMSprop.

        v = decay v + (1 - decay) g^2
        a = decay a + (1 - decay) g                 (centered only; otherwise 0)
        d = g / (sqrt(v - a^2) + eps)
        B = momentum B + d,  w = w - rate B         (without momentum w - rate d)

    decay (torch's alpha) and momentum in [0, 1), eps >= 0; 0/0 counts as 0. Rounding can make v - a^2 negative; that
    counts as 0 (in torch it gives NaN). The slots are v; a where it is centered; B where there is momentum.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html.
    """

    lr: float = 0.01
    decay: float = number(0.99, below=1.0)
    eps: float = 1e-8
    momentum: float = number(0.0, below=1.0)
    centered: bool = False

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The mean square; centered, the mean; with momentum, the velocity."""
        centred = ("mean",) if self.centered else ()
        return ("square", *centred, *(("momentum_buffer",) if self.momentum else ()))

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {
            "keep": self.decay, "take": 1.0 - self.decay, "eps": self.eps,
            "momentum": self.momentum, "rate": rate, "zero": 0.0,
        }  # fmt: skip

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"square": c["keep"], "mean": c["keep"], "momentum_buffer": c["momentum"]}

    def _moves(self) -> tuple[float, float]:
        return self.momentum, self.momentum

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        square = c["keep"] * s["square"] + c["take"] * (g * g)
        new = {"square": square}
        if self.centered:
            new["mean"] = mean = c["keep"] * s["mean"] + c["take"] * g
            square = larger(op, square - mean * mean, c["zero"])
        d = ratio(op, g, op.sqrt(square) + c["eps"])
        if self.momentum:
            new["momentum_buffer"] = d = c["momentum"] * s["momentum_buffer"] + d
        return -(c["rate"] * d), new
