"""The two optimizers of PyTorch whose mathematics differs from the slides' rules.

`torch.optim.SGD` keeps the velocity without the rate, so that a change of rate acts on the whole velocity at once. It
also has dampening, and a Nesterov form without a look-ahead point. `torch.optim.RMSprop` has momentum on the scaled
gradient and a centred second moment. PyTorch's other optimizers are the slides' rules with eps outside the root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from adamserve.errors import InvalidArgument
from adamserve.optim.arith import Ops, Value, Values, larger, ratio
from adamserve.optim.base import Rule, check_number


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TorchSGD(Rule):
    """Gradient descent with momentum, as torch.optim.SGD.

        B = momentum B + (1 - dampening) g          (the first time B = g)
        w = w - rate B                              (nesterov: w - rate (g + momentum B))

    momentum in [0, 1), dampening in [0, 1]; nesterov needs momentum and no dampening. The slot is
    B; with momentum 0 there is none, and dampening does nothing.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html.
    """

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The velocity B, in units of the gradient, unless momentum is 0."""
        return ("momentum_buffer",) if self.momentum else ()

    def _check(self) -> None:
        check_number(self, "momentum", at_least=0.0, below=1.0)
        check_number(self, "dampening", at_least=0.0, below=1.0, closed=True)
        if self.nesterov and (not self.momentum or self.dampening):
            raise InvalidArgument("needs momentum above 0 and dampening 0", field="nesterov")

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"momentum": self.momentum, "take": 1.0 if t == 1 else 1.0 - self.dampening, "rate": rate}

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"momentum_buffer": c["momentum"]} if self.momentum else {}

    def _moves(self) -> tuple[float, float]:
        return self.momentum, self.momentum

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        if not self.momentum:
            return -(c["rate"] * g), {}
        b = c["momentum"] * s["momentum_buffer"] + c["take"] * g
        direction = g + c["momentum"] * b if self.nesterov else b
        return -(c["rate"] * direction), {"momentum_buffer": b}


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
    decay: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The mean square; centered, the mean; with momentum, the velocity."""
        centred = ("mean",) if self.centered else ()
        return ("square", *centred, *(("momentum_buffer",) if self.momentum else ()))

    def _check(self) -> None:
        check_number(self, "decay", at_least=0.0, below=1.0)
        check_number(self, "momentum", at_least=0.0, below=1.0)
        check_number(self, "eps", at_least=0.0)

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
