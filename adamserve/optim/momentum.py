"""Gradient descent with momentum: SGD and Nesterov as on the slides, and torch's SGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from adamserve.errors import InvalidArgument
from adamserve.optim.arith import Ops, Value, Values
from adamserve.optim.base import Rule, number


@dataclass(frozen=True, kw_only=True, slots=True)
class _Momentum(Rule):
    """A rule that moves w by one slot, a velocity V = momentum V - rate g unless `_update` says otherwise."""

    lr: float = 0.01
    momentum: float = number(0.9, below=1.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"momentum": self.momentum, "rate": rate}

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return dict.fromkeys(self.slot_names, c["momentum"])

    def _moves(self) -> tuple[float, float]:
        return self.momentum, self.momentum

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        if not self.slot_names:
            return -(c["rate"] * g), {}
        v = c["momentum"] * s["velocity"] - c["rate"] * g
        return v, {"velocity": v}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SGD(_Momentum):
    """Gradient descent with momentum.

        V = momentum V - rate g
        w = w + V

    momentum in [0, 1). The slot is V; with momentum 0 there is none.

    Source: slides p. 5; Polyak 1964. torch.optim.SGD keeps V / -rate. While the rate is constant that is the same. When
    the rate changes, the velocity here keeps the rates that it was made with (`TorchSGD` does as torch).
    """

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The velocity V, unless momentum is 0."""
        return ("velocity",) if self.momentum else ()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Nesterov(_Momentum):
    """Nesterov's accelerated gradient: SGD with g taken at the look-ahead point w + momentum V.

        V = momentum V - rate g(w + momentum V)
        w = w + V

    momentum in [0, 1). The slot is V. Take gradients at `lookahead(w, slots)`; evaluate and keep w itself.

    Source: slides p. 6; Nesterov 1983; Sutskever et al. 2013,
    http://proceedings.mlr.press/v28/sutskever13.html. torch.optim.SGD(nesterov=True) stores the look-ahead
    point instead of w.
    """

    slot_names = ("velocity",)
    has_lookahead: ClassVar[bool] = True


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TorchSGD(_Momentum):
    """Gradient descent with momentum, as torch.optim.SGD.

        B = momentum B + (1 - dampening) g          (the first time B = g)
        w = w - rate B                              (nesterov: w - rate (g + momentum B))

    momentum in [0, 1), dampening in [0, 1]; nesterov needs momentum and no dampening. The slot is B; with momentum 0
    there is none, and dampening does nothing. A change of rate acts on the whole velocity at once, and the Nesterov
    form has no look-ahead point.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html.
    """

    lr: float = 1e-3
    momentum: float = number(0.0, below=1.0)
    dampening: float = number(0.0, below=1.0, closed=True)
    nesterov: bool = False

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The velocity B, in units of the gradient, unless momentum is 0."""
        return ("momentum_buffer",) if self.momentum else ()

    def _check(self) -> None:
        if self.nesterov and (not self.momentum or self.dampening):
            raise InvalidArgument("needs momentum above 0 and dampening 0", field="nesterov")

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"momentum": self.momentum, "take": 1.0 if t == 1 else 1.0 - self.dampening, "rate": rate}

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        if not self.momentum:
            return -(c["rate"] * g), {}
        b = c["momentum"] * s["momentum_buffer"] + c["take"] * g
        direction = g + c["momentum"] * b if self.nesterov else b
        return -(c["rate"] * direction), {"momentum_buffer": b}
