"""Gradient descent with momentum: SGD and Nesterov."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from adamserve.optim.arith import Ops, Value, Values
from adamserve.optim.base import Rule, check_number


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SGD(Rule):
    """Gradient descent with momentum.

        V = momentum V - rate g
        w = w + V

    momentum in [0, 1). The slot is V; with momentum 0 there is none.

    Source: slides p. 5; Polyak 1964. torch.optim.SGD keeps V / -rate. While the rate is constant that is the same. When
    the rate changes, the velocity here keeps the rates that it was made with (`TorchSGD` does as torch).
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

    momentum in [0, 1). The slot is V. Take gradients at `lookahead(w, slots)`; evaluate and keep w itself.

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
